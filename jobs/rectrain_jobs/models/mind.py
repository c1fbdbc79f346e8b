"""MIND: a user's history becomes several interest vectors, each of which retrieves items."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torchrec.modules.embedding_modules import EmbeddingCollection
from torchrec.modules.mlp import MLP
from torchrec.sparse.jagged_tensor import JaggedTensor

from rectrain.api.features import FeatureKind, Pooling, Side
from rectrain.api.job import RecTrainingJobSpec
from rectrain.api.models import MIND as MINDSection  # noqa: N811
from rectrain.api.models import LabelAttention, Similarity
from rectrain.api.tables import EXTRA_ROWS, item_table
from rectrain_jobs.data.batch import Batch
from rectrain_jobs.models.log_uniform import LogUniformSampler
from rectrain_jobs.models.retrieval_losses import sampled_softmax_loss


class MINDOutput(NamedTuple):
    """The vectors of a batch.

    Attributes:
        interests: float [rows, interests, width]; drawn negatives have no user.
        item_vectors: float [rows + drawn negatives, width].
    """

    interests: Tensor
    item_vectors: Tensor


class MIND(nn.Module):
    """The model: a vector for each id of the history, routed to interests.

    Li et al., "Multi-interest network with dynamic routing for recommendation at Tmall", CIKM 2019. Where the paper
    leaves things open, it follows the implementation in THUDM/ComiRec (`CapsuleNetwork` with bilinear_type 0).

    Args:
        spec: The job.
        embeddings: Its embedding tables.
    """

    def __init__(self, spec: RecTrainingJobSpec, embeddings: EmbeddingCollection) -> None:
        """Build the layers."""
        super().__init__()
        self.labels = spec.labels
        self.temperature = _section(spec).temperature
        self.embeddings = embeddings
        self.arch = MINDArch(spec)

    def forward(self, batch: Batch) -> MINDOutput:
        """Return the interests and item vectors of the batch's rows."""
        # Nothing but calls of modules, so that torchrec's pipelines can trace it and overlap the lookups.
        return self.arch(self.embeddings(batch.sparse), batch)  # type: ignore[no-any-return]

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """Return by label name a score [rows] in 0..1 of the row's item for the closest interest; it orders rows."""
        scores = self.scores(self(batch))
        return {label.name: scores.sigmoid() for label in self.labels}

    def scores(self, output: MINDOutput) -> Tensor:
        """Return the score [rows] of each row's item for the closest interest; `predict` returns its sigmoid."""
        interests, items = output
        return torch.einsum("rkd,rd->rk", interests, items[: len(interests)]).amax(dim=1) / self.temperature

    def user_vectors(self, batch: Batch) -> Tensor:
        """Return the interests [rows, interests, width] of a batch that may have user features alone."""
        return self.arch.user(self.embeddings(batch.sparse), batch.dense)  # type: ignore[no-any-return]

    def item_vectors(self, batch: Batch) -> Tensor:
        """Return the item vectors [rows, width] of a batch that may have item features alone."""
        return self.arch.item(self.embeddings(batch.sparse))  # type: ignore[no-any-return]


class MINDArch(nn.Module):
    """Interests and item vectors, over the embeddings of a batch's ids."""

    def __init__(self, spec: RecTrainingJobSpec) -> None:
        """Build the layers."""
        super().__init__()
        self.user = InterestEncoder(spec)
        self.item = ItemEncoder(spec)

    def forward(self, embedded: Mapping[str, JaggedTensor], batch: Batch) -> MINDOutput:
        """Return the vectors of the batch's rows."""
        rows = batch.dense.shape[0] - batch.num_negatives
        return MINDOutput(self.user(embedded, batch.dense, rows), self.item(embedded))


class ItemEncoder(nn.Module):
    """The item vectors: rows of the item's embedding table."""

    def __init__(self, spec: RecTrainingJobSpec) -> None:
        """Read the settings."""
        super().__init__()
        self.item_id = spec.model.item_id
        self.normalise = _section(spec).similarity is Similarity.COSINE

    def forward(self, embedded: Mapping[str, JaggedTensor]) -> Tensor:
        """Return the item vectors [rows with an item, width]."""
        vectors = embedded[self.item_id].values().float()
        return F.normalize(vectors, dim=1) if self.normalise else vectors


class InterestEncoder(nn.Module):
    """From a user's history and profile to the user's interests."""

    dense_columns: Tensor

    def __init__(self, spec: RecTrainingJobSpec) -> None:
        """Choose the features and build the layers."""
        super().__init__()
        section = _section(spec)
        self.history = section.history
        self.max_length = spec.feature(section.history).max_length or 0
        self.profile = [
            f
            for f in spec.features
            if f.side is Side.USER and f.kind is not FeatureKind.DENSE and f.name != self.history
        ]
        dense = [f for f in spec.features if f.kind is FeatureKind.DENSE]
        columns = [position for position, feature in enumerate(dense) if feature.side is Side.USER]
        self.register_buffer("dense_columns", torch.tensor(columns, dtype=torch.int64), persistent=False)
        width = section.embedding_dim
        profile_width = len(self.profile) * width + len(columns)
        self.dropout = nn.Dropout(section.embedding_dropout)
        self.routing = DynamicRouting(width, section.interests, self.max_length, section.routing_iterations)
        self.layers = (
            MLP(width + profile_width, [*section.hidden_dims, width], activation="relu", activation_on_last=False)
            if section.hidden_dims or profile_width
            else None
        )
        self.normalise = section.similarity is Similarity.COSINE

    def forward(self, embedded: Mapping[str, JaggedTensor], dense: Tensor, rows: int | None = None) -> Tensor:
        """Return the interests.

        Args:
            embedded: By feature the embedding of each id.
            dense: float32 [all rows, Dense features of the job].
            rows: Only the first so many rows, which alone have user features. None for all.
        """
        rows = len(dense) if rows is None else rows
        history = _of_rows(embedded[self.history], rows)
        padded = self.dropout(history.to_padded_dense(self.max_length))
        present = torch.arange(self.max_length, device=padded.device) < history.lengths()[:, None]
        # Products of many small numbers and a softmax over them: more digits than autocast's 16 bits have.
        with torch.autocast(padded.device.type, enabled=False):
            interests = self.routing(padded.float(), present)
        if self.layers is not None:
            profile = [_pooled(_of_rows(embedded[f.name], rows), f.pooling or Pooling.MEAN) for f in self.profile]
            profile.append(dense[:rows].index_select(1, self.dense_columns))
            beside = torch.cat(profile, dim=1)[:, None].expand(-1, interests.shape[1], -1)
            layered: Tensor = self.layers(torch.cat([interests, beside], dim=2).flatten(0, 1))
            interests = layered.view(*interests.shape)
        interests = interests.float()
        return F.normalize(interests, dim=2) if self.normalise else interests


def _of_rows(feature: JaggedTensor, rows: int) -> JaggedTensor:
    """Return the first rows of a feature, which have all of its values."""
    return JaggedTensor(feature.values(), lengths=feature.lengths()[:rows])


def _pooled(feature: JaggedTensor, pooling: Pooling) -> Tensor:
    """Return the sum or mean [rows, width] of each row's vectors; zeros for a row that has none."""
    values: Tensor = feature.values()
    lengths: Tensor = feature.lengths()
    rows = torch.arange(len(lengths), device=values.device)
    owners = torch.repeat_interleave(rows, lengths, output_size=len(values))
    total = values.new_zeros(len(lengths), values.shape[1]).index_add_(0, owners, values)
    return total / lengths.clamp_min(1)[:, None] if pooling is Pooling.MEAN else total


class DynamicRouting(nn.Module):
    """Behaviour-to-interest routing: capsules (interests) of the vectors of a history.

    Sabour et al., "Dynamic routing between capsules", NIPS 2017, with MIND's changes: one bilinear map for all pairs of
    a position and an interest; logits that begin random, since with one map equal ones would stay equal; an interest
    for each position's vector chosen by a softmax over interests. Logits are learnt by no gradient: as in ComiRec, all
    iterations but the last are cut off from it, and in the last one it reaches the map and the history, not the
    weights. The initial logits are drawn once from a standard normal distribution, for each interest and position
    (as in PaddleRec), and are part of the model: a history always has the same interests.

    Args:
        width: Width of the vectors.
        interests: Number of interests.
        max_length: Positions of a history.
        iterations: Iterations.
    """

    initial_logits: Tensor

    def __init__(self, width: int, interests: int, max_length: int, iterations: int) -> None:
        """Draw the map and the initial logits."""
        super().__init__()
        self.bilinear = nn.Linear(width, width, bias=False)
        self.iterations = iterations
        self.register_buffer("initial_logits", torch.randn(interests, max_length))

    def forward(self, history: Tensor, present: Tensor) -> Tensor:
        """Return the interests, float32 [rows, interests, width]; zeros for an empty history.

        Args:
            history: float32 [rows, max_length, width]; what absent positions hold does not matter.
            present: bool [rows, max_length].
        """
        mapped = self.bilinear(history.masked_fill(~present[:, :, None], 0))
        weights = self._weights(mapped.detach(), present)
        return squash(weights @ mapped)

    @torch.no_grad()
    def _weights(self, mapped: Tensor, present: Tensor) -> Tensor:
        """Return the weight of every position in every interest after the last iteration, [rows, interests, length]."""
        logits = self.initial_logits.expand(len(mapped), -1, -1)
        weights = self._softmax(logits, present)
        for _ in range(self.iterations - 1):
            logits = logits + squash(weights @ mapped) @ mapped.transpose(1, 2)
            weights = self._softmax(logits, present)
        return weights

    @staticmethod
    def _softmax(logits: Tensor, present: Tensor) -> Tensor:
        return logits.softmax(dim=1) * present[:, None]


def squash(vectors: Tensor) -> Tensor:
    """Return the vectors [..., width] with their directions, and lengths n as n^2 / (1 + n^2)."""
    squared = vectors.square().sum(dim=-1, keepdim=True)
    return vectors * (squared / (1 + squared) / (squared + 1e-9).sqrt())


def label_aware_attention(interests: Tensor, targets: Tensor, attention: LabelAttention, power: float) -> Tensor:
    """Return the vector with which each row's user meets the row's target, [rows, width].

    Args:
        interests: [rows, interests, width].
        targets: [rows, width].
        attention: Soft: a mean weighted by the softmax of inner products raised to a power. Hard: the interest with the
            highest inner product.
        power: Soft: the power; of a negative product the absolute value is raised, so that it stays below the others.
    """
    closeness = torch.einsum("rkd,rd->rk", interests, targets)
    if attention is LabelAttention.HARD:
        return interests[torch.arange(len(interests), device=interests.device), closeness.argmax(dim=1)]
    weights = (closeness.sign() * closeness.abs().pow(power)).softmax(dim=1)
    return torch.einsum("rk,rkd->rd", weights, interests)


class MINDLoss(nn.Module):
    """Sampled softmax of each row's target among the step's shared negatives.

    Args:
        spec: The job.
    """

    def __init__(self, spec: RecTrainingJobSpec) -> None:
        """Read the settings."""
        super().__init__()
        self.section = _section(spec)
        self.label = spec.labels[0] if spec.labels else None
        items = item_table(spec)
        self.item_rows, self.num_ids = items.num_embeddings, items.num_embeddings - EXTRA_ROWS
        # A plain attribute, not a buffer: it is recomputed from the data, not part of the model. It follows the batch.
        self._log_q: Tensor | None = None

    def set_item_counts(self, counts: Tensor) -> None:
        """Give the frequencies of the items in the training data, by which negatives are drawn.

        Args:
            counts: [rows of the item table] how many training rows have the item.
        """
        if counts.shape != (self.item_rows,):
            raise ValueError(f"counts must have shape [{self.item_rows}], not {list(counts.shape)}")
        sampler = LogUniformSampler(counts.cpu().long().numpy(), self.num_ids, self.section.negatives.count)
        self._log_q = torch.from_numpy(sampler.log_q).float() * self.section.negatives.log_q_correction

    def forward(self, output: MINDOutput, batch: Batch) -> tuple[Tensor, MINDOutput]:
        """Return the loss, a scalar that is the mean over this rank's rows, and the vectors without gradients.

        A batch of nothing but padding rows has loss 0 and gradient 0.
        """
        detached = MINDOutput(output.interests.detach(), output.item_vectors.detach())
        with torch.autocast(output.interests.device.type, enabled=False):
            return self._loss(output, batch), detached

    def _loss(self, output: MINDOutput, batch: Batch) -> Tensor:
        if self._log_q is None:
            raise RuntimeError("set_item_counts() must be called before training: the log-q correction needs it")
        if self._log_q.device != batch.item_ids.device:
            self._log_q = self._log_q.to(batch.item_ids.device)
        rows = len(output.interests)
        own, negatives = output.item_vectors[:rows], output.item_vectors[rows:]
        section, log_q = self.section, self._log_q[batch.item_ids]
        users = label_aware_attention(output.interests, own, section.attention, section.attention_power)
        positive = batch.valid
        if self.label is not None:
            positive = positive & (batch.labels[self.label.name] > 0)
        return sampled_softmax_loss(
            users / section.temperature, own, negatives, batch.item_ids[:rows], batch.item_ids[rows:], log_q, positive
        )


def _section(spec: RecTrainingJobSpec) -> MINDSection:
    section = spec.model.section
    assert isinstance(section, MINDSection)
    return section
