"""Whether the columns of shards, from whatever writer, are those that a job's features and labels make."""

from collections.abc import Collection, Sequence

import numpy as np

from rectrain.api.features import Feature, Label
from rectrain_jobs.data.mds import MDSDataset
from rectrain_jobs.features import FeatureSet, LabelEncoder


def schema_problems(
    dataset: MDSDataset, features: Sequence[Feature], labels: Sequence[Label], names: Collection[str] | None = None
) -> list[str]:
    """Return what is wrong with the columns of a dataset, each as a line that begins with the column.

    Args:
        dataset: The shards.
        features: The features.
        labels: The labels.
        names: Only the columns of these features and labels; None for all.
    """
    wanted = {name: (t.dtype, t.shape) for name, t in FeatureSet(features).transformers.items()}
    wanted |= {encoder.name: (encoder.dtype, encoder.shape) for encoder in map(LabelEncoder, labels)}
    problems = []
    for name, (dtype, shape) in wanted.items():
        if names is not None and name not in names:
            continue
        column = dataset.columns.get(name)
        if column is None:
            problems.append(f"{name}: there is no such column; the shards have {', '.join(dataset.columns)}")
        elif column.shape != shape or not np.can_cast(column.dtype, dtype, "same_kind"):
            expected = f"{dtype.name}{list(shape) if shape else ''}"
            problems.append(f"{name}: has encoding {column.encoding}; the definition makes it {expected}")
    return problems
