"""Two-tower retrieval: a user tower and an item tower whose vectors are compared."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.modules.mlp import MLP
from torchrec.sparse.jagged_tensor import KeyedTensor

from rectrain.api.errors import UserError
from rectrain.api.features import FeatureKind, Side
from rectrain.api.job import RecTrainingJobSpec
from rectrain.api.models import RetrievalLoss, Similarity
from rectrain.api.models import TwoTower as TwoTowerSection
from rectrain.api.rules import Problem
from rectrain.api.tables import EXTRA_ROWS, categorical_of, embedded_features, item_table
from rectrain_jobs.data.batch import Batch
from rectrain_jobs.models.candidates import gather_candidates
from rectrain_jobs.models.retrieval_losses import (
    binary_cross_entropy_loss,
    bpr_loss,
    in_batch_softmax_loss,
    mixed_log_q,
)


class TwoTowerOutput(NamedTuple):
    """The vectors of a batch.

    Attributes:
        user_vectors: float [rows, width]; drawn negatives have no user.
        item_vectors: float [rows + drawn negatives, width].
    """

    user_vectors: Tensor
    item_vectors: Tensor


class TwoTower(nn.Module):
    """The model: embeddings of all features, then a tower for each side.

    Yi et al., "Sampling-bias-corrected neural modeling for large corpus item recommendations", RecSys 2019. Without
    hidden layers it is matrix factorization: Koren et al., "Matrix factorization techniques for recommender systems",
    Computer 2009.

    Args:
        spec: The job.
        embeddings: Its embedding tables.

    Raises:
        UserError: When the towers cannot be built from the features.
    """

    def __init__(self, spec: RecTrainingJobSpec, embeddings: EmbeddingBagCollection) -> None:
        """Build the towers."""
        super().__init__()
        for problem in two_tower_problems(spec):
            raise UserError(f"{'.'.join(map(str, problem.path))} {problem.message}, not {problem.value}")
        self.labels = spec.labels
        self.temperature = _section(spec).temperature
        self.embeddings = embeddings
        self.arch = Towers(spec)

    def forward(self, batch: Batch) -> TwoTowerOutput:
        """Return the user and item vectors of the batch's rows."""
        # Nothing but calls of modules, so that torchrec's pipelines can trace it and overlap the lookups.
        return self.arch(self.embeddings(batch.sparse), batch)  # type: ignore[no-any-return]

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """Return by label name the probability [rows] that the row's user takes the row's item.

        It is one where the model was trained on the label (BinaryCrossEntropy); after other losses it only orders rows.
        """
        scores = self.scores(self(batch))
        return {label.name: scores.sigmoid() for label in self.labels}

    def scores(self, output: TwoTowerOutput) -> Tensor:
        """Return the score [rows] of each row's item for the row's user; `predict` returns its sigmoid."""
        users, items = output
        return (users * items[: len(users)]).sum(dim=1) / self.temperature

    def user_vectors(self, batch: Batch) -> Tensor:
        """Return the user vectors [rows, width] of a batch that may have user features alone."""
        return self.arch.user(self.embeddings(batch.sparse), batch.dense)  # type: ignore[no-any-return]

    def item_vectors(self, batch: Batch) -> Tensor:
        """Return the item vectors [rows, width] of a batch that may have item features alone."""
        return self.arch.item(self.embeddings(batch.sparse), batch.dense)  # type: ignore[no-any-return]


class Towers(nn.Module):
    """Both towers, over the pooled embeddings of a batch."""

    def __init__(self, spec: RecTrainingJobSpec) -> None:
        """Build the towers."""
        super().__init__()
        self.user = Tower(spec, Side.USER)
        self.item = Tower(spec, Side.ITEM)

    def forward(self, pooled: KeyedTensor, batch: Batch) -> TwoTowerOutput:
        """Return the user and item vectors of the batch's rows."""
        rows = batch.dense.shape[0] - batch.num_negatives
        return TwoTowerOutput(self.user(pooled, batch.dense, rows), self.item(pooled, batch.dense))


class Tower(nn.Module):
    """From the pooled embeddings and Dense features of one side to its vectors."""

    dense_columns: Tensor

    def __init__(self, spec: RecTrainingJobSpec, side: Side) -> None:
        """Choose the side's features and build its layers."""
        super().__init__()
        section = _section(spec)
        self.features = [f.name for f in spec.features if f.side is side and f.kind is not FeatureKind.DENSE]
        dense = [f for f in spec.features if f.kind is FeatureKind.DENSE]
        columns = [position for position, feature in enumerate(dense) if feature.side is side]
        self.register_buffer("dense_columns", torch.tensor(columns, dtype=torch.int64), persistent=False)
        width = sum(_widths(spec)[name] for name in self.features) + len(columns)
        self.normalise = section.similarity is Similarity.COSINE
        self.dropout = nn.Dropout(section.embedding_dropout)
        self.layers = (
            MLP(width, section.hidden_dims, activation="relu", activation_on_last=False)
            if section.hidden_dims
            else None
        )

    def forward(self, pooled: KeyedTensor, dense: Tensor, rows: int | None = None) -> Tensor:
        """Return the side's vectors.

        Args:
            pooled: Embeddings of all features.
            dense: float32 [all rows, Dense features of the job].
            rows: Only the first so many rows. None for all.
        """
        by_feature = pooled.to_dict()
        embedded = [by_feature[name][:rows] for name in self.features]
        if self.layers is None:
            vectors = self.dropout(torch.stack(embedded).sum(dim=0))
        else:
            inputs = self.dropout(torch.cat(embedded, dim=1))
            if len(self.dense_columns):
                inputs = torch.cat([inputs, dense[:rows].index_select(1, self.dense_columns)], dim=1)
            vectors = self.layers(inputs)
        vectors = vectors.float()
        return F.normalize(vectors, dim=1) if self.normalise else vectors


class TwoTowerLoss(nn.Module):
    """The loss of a two-tower model's vectors.

    Args:
        spec: The job.
    """

    def __init__(self, spec: RecTrainingJobSpec) -> None:
        """Read the settings."""
        super().__init__()
        self.section = _section(spec)
        self.label = spec.labels[0] if spec.labels else None
        items = item_table(spec)
        self.item_rows, self.num_items = items.num_embeddings, items.num_embeddings - EXTRA_ROWS
        # A plain attribute, not a buffer: it is recomputed from the data, not part of the model, and there only while
        # training. It follows the batch to its device.
        self._item_log_q: Tensor | None = None

    def set_item_counts(self, counts: Tensor, num_items: int | None = None) -> None:
        """Give the frequencies of the items in the training data, which the log-q correction needs.

        Args:
            counts: [rows of the item table] how many training rows have the item. Items without rows count as one.
            num_items: Number of items that uniform negatives are drawn from. Default: the item feature's cardinality.
        """
        if counts.shape != (self.item_rows,):
            raise ValueError(f"counts must have shape [{self.item_rows}], not {list(counts.shape)}")
        counts = counts.double()
        self._item_log_q = (counts.clamp_min(1) / counts.sum().clamp_min(1)).log().float()
        self.num_items = num_items or self.num_items

    def forward(self, output: TwoTowerOutput, batch: Batch) -> tuple[Tensor, TwoTowerOutput]:
        """Return the loss, a scalar that is the mean over this rank's rows, and the vectors without gradients.

        A batch of nothing but padding rows has loss 0 and gradient 0. With negatives across ranks it is a collective
        call.
        """
        detached = TwoTowerOutput(output.user_vectors.detach(), output.item_vectors.detach())
        # Scores divided by a small temperature need more digits than autocast's 16 bits have.
        with torch.autocast(output.user_vectors.device.type, enabled=False):
            return self._loss(output, batch), detached

    def _loss(self, output: TwoTowerOutput, batch: Batch) -> Tensor:
        users, items = output.user_vectors / self.section.temperature, output.item_vectors
        label = batch.labels[self.label.name] if self.label is not None else None
        if self.section.loss is RetrievalLoss.BINARY_CROSS_ENTROPY:
            assert self.label is not None and label is not None, "a rule of the job asks for it"
            return self.label.weight * binary_cross_entropy_loss(users, items[: len(users)], label, batch.valid)
        positive = batch.valid if label is None else batch.valid & (label > 0)
        is_item = F.pad(batch.valid, (0, batch.num_negatives), value=True)
        negatives = self.section.negatives
        candidates = gather_candidates(items, batch.item_ids.where(is_item, -1), negatives.across_ranks)
        if self.section.loss is RetrievalLoss.BPR:
            return bpr_loss(users, candidates, positive, negatives.mask_duplicates)
        log_q = self._log_q(candidates.item_ids, len(users), batch.num_negatives)
        return in_batch_softmax_loss(users, candidates, positive, log_q, negatives.mask_duplicates)

    def _log_q(self, item_ids: Tensor, in_batch: int, uniform: int) -> Tensor | None:
        strength = self.section.negatives.log_q_correction
        if strength == 0:
            return None
        if self._item_log_q is None:
            raise RuntimeError("set_item_counts() must be called before training: the log-q correction needs it")
        if self._item_log_q.device != item_ids.device:
            self._item_log_q = self._item_log_q.to(item_ids.device)
        item_log_q = self._item_log_q[item_ids.clamp_min(0)]
        return strength * mixed_log_q(item_log_q, in_batch, uniform, self.num_items)


def two_tower_problems(spec: RecTrainingJobSpec) -> Iterator[Problem]:
    """Yield what keeps a job's features from making two towers."""
    if _section(spec).hidden_dims:
        return
    widths = _widths(spec)
    # Where no embedding of the user is learnt, the item's is what the others are summed with or compared with.
    first_name = spec.model.user_id if spec.model.user_id in widths else spec.model.item_id
    first = widths[first_name]
    for position, feature in enumerate(spec.features):
        path: Sequence[str | int] = ("features", position)
        if feature.kind is FeatureKind.DENSE:
            message = "must not be Dense: without twoTower.hiddenDims embeddings are summed and nothing reads a number"
            yield Problem((*path, "kind"), feature.name, message)
        elif widths.get(feature.name, first) != first:
            message = f"must be {first} as {first_name}'s: without twoTower.hiddenDims embeddings are summed"
            yield Problem((*path, "embeddingDim"), widths[feature.name], message)


def _section(spec: RecTrainingJobSpec) -> TwoTowerSection:
    section = spec.model.section
    assert isinstance(section, TwoTowerSection)
    return section


def _widths(spec: RecTrainingJobSpec) -> dict[str, int]:
    """Return the width of each Categorical and Sequence feature's pooled embedding."""
    default = spec.model.section.embedding_dim
    return {f.name: categorical_of(spec, f).embedding_dim or default for f in embedded_features(spec)}
