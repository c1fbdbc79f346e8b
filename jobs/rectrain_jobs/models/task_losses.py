"""Losses and predictions of labels: one task each."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from rectrain.api.features import Label, Task
from rectrain_jobs.data.batch import Batch


def logit_width(label: Label) -> int:
    """Return the number of logits that a label needs: its classes, or 1."""
    return label.num_classes or 1


def split_logits(logits: Tensor, labels: Sequence[Label]) -> dict[str, Tensor]:
    """Return each label's logits: [rows] for Binary and Regression, [rows, classes] for the others.

    Args:
        logits: [rows, sum of the labels' widths].
        labels: The labels, in the order of the logits.
    """
    parts = torch.split(logits.float(), [logit_width(label) for label in labels], dim=1)
    return {
        label.name: part.squeeze(1) if label.num_classes is None else part
        for label, part in zip(labels, parts, strict=True)
    }


def prediction(label: Label, logits: Tensor) -> Tensor:
    """Return probabilities for a classification's logits, the values themselves for Regression."""
    match label.task:
        case Task.BINARY | Task.MULTI_LABEL:
            return logits.sigmoid()
        case Task.MULTI_CLASS:
            return logits.softmax(dim=1)
        case Task.REGRESSION:
            return logits


def task_loss(label: Label, logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Return the mean of a label's loss over the valid rows; 0 when there are none.

    Cross-entropy of the sigmoid for Binary and MultiLabel (for the latter the mean over the classes), of the softmax
    for MultiClass, squared error for Regression.

    Args:
        label: The label.
        logits: [rows] or [rows, classes].
        target: Shaped as the logits; [rows] class numbers for MultiClass.
        valid: bool [rows]; what other rows hold is not looked at.
    """
    match label.task:
        case Task.BINARY | Task.REGRESSION:
            target = target.where(valid, 0).to(logits.dtype)
            squared = label.task is Task.REGRESSION
            losses = F.mse_loss(logits, target, reduction="none") if squared else _bce(logits, target)
        case Task.MULTI_LABEL:
            losses = _bce(logits, target.where(valid[:, None], 0).to(logits.dtype)).mean(dim=1)
        case Task.MULTI_CLASS:
            losses = F.cross_entropy(logits, target.where(valid, 0).long(), reduction="none")
    return losses.where(valid, 0).sum() / valid.sum().clamp_min(1)


class TaskLoss(nn.Module):
    """The weighted sum of the labels' losses.

    Args:
        labels: The labels.
    """

    def __init__(self, labels: Sequence[Label]) -> None:
        """Keep the labels."""
        super().__init__()
        self.labels = labels

    def forward(self, logits: dict[str, Tensor], batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss, a scalar, and the logits without gradients."""
        with torch.autocast(batch.valid.device.type, enabled=False):
            losses = [
                label.weight * task_loss(label, logits[label.name], batch.labels[label.name], batch.valid)
                for label in self.labels
            ]
        return torch.stack(losses).sum(), {name: part.detach() for name, part in logits.items()}


def _bce(logits: Tensor, target: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, target, reduction="none")
