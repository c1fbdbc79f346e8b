"""What the ranking models share: embeddings, an architecture over them, and a head for each label."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from rectrain.api.features import Label
from rectrain_jobs.data.batch import Batch
from rectrain_jobs.models.task_losses import prediction, split_logits


class RankingModel(nn.Module):
    """Scores rows of user, item and context features: DLRM, DCNv2 or DeepFM, as its architecture says.

    Args:
        embeddings: The job's embedding tables.
        arch: From pooled embeddings and Dense features to logits [rows, sum of the labels' widths].
        labels: The job's labels.
    """

    def __init__(self, embeddings: EmbeddingBagCollection, arch: nn.Module, labels: Sequence[Label]) -> None:
        """Put the parts together."""
        super().__init__()
        self.embeddings = embeddings
        self.arch = arch
        self.heads = _Heads(labels)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return float32 logits by label name: [rows] or, with classes, [rows, classes]."""
        # Nothing but calls of modules, so that torchrec's pipelines can trace it and overlap the lookups.
        return self.heads(self.arch(self.embeddings(batch.sparse), batch.dense))  # type: ignore[no-any-return]

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """Return predictions by label name: probabilities, or values for Regression; shaped as the logits."""
        logits = self(batch)
        return {label.name: prediction(label, logits[label.name]) for label in self.heads.labels}


class ConstantVector(nn.Module):
    """Stands in for the layers over the Dense features of a job that has none: a learnt vector, the same for all rows.

    Its inner product with an embedding is a learnt weight of that value, so that interactions of pairs are joined by
    first-order terms.

    Args:
        width: Width of the vector.
    """

    def __init__(self, width: int) -> None:
        """Draw the vector."""
        super().__init__()
        self.vector = nn.Parameter(torch.empty(width).normal_(std=width**-0.5))

    def forward(self, dense: Tensor) -> Tensor:
        """Return [rows, width] for Dense features [rows, 0]."""
        return self.vector.expand(len(dense), -1)


class _Heads(nn.Module):
    def __init__(self, labels: Sequence[Label]) -> None:
        super().__init__()
        self.labels = labels

    def forward(self, logits: Tensor) -> dict[str, Tensor]:
        return split_logits(logits, self.labels)
