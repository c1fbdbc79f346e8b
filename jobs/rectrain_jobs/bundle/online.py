"""A trained model as an online predictor: single requests without torchrec's batches, many rows with them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torchrec.modules.embedding_modules import EmbeddingCollection
from torchrec.sparse.jagged_tensor import JaggedTensor

from rectrain.api.errors import UserError
from rectrain.api.features import FeatureKind, Label, Pooling, Task
from rectrain.api.tables import EmbeddingTable, embedding_tables
from rectrain_jobs.bundle.reading import Bundle, load_bundle
from rectrain_jobs.data.batch import BatchBuilder
from rectrain_jobs.models.mind import MIND
from rectrain_jobs.models.ranking import RankingModel
from rectrain_jobs.pipeline import OnlinePredictor, State, ValueRefusedError, register
from rectrain_jobs.storage import Storage, open_store


@register("bundle")
class BundlePredictor(OnlinePredictor[Mapping[str, Any]]):
    """Predicts with the model of a bundle from raw values by feature name; absent ones are missing.

    A retrieval model scores the row's item for the row's user. The fitted features of the bundle transform the values
    as they did for training; a single request then takes its rows of the embedding tables directly, to the same layers.
    """

    def __init__(self, uri: str, bundle: Bundle, storage: Storage | None = None, label: str | None = None) -> None:
        """Prepare for requests.

        Args:
            uri: Where the bundle is, from which other processes load it.
            bundle: The bundle.
            storage: How to reach S3.
            label: Which label to predict, where the model has several.

        Raises:
            UserError: There is no such label, or several and none is named.
        """
        spec = bundle.spec.model_copy(update={"labels": []})
        self._opened = (uri, storage, label)
        self.bundle = bundle
        self.label = _label_of(uri, bundle.spec.labels, label)
        self.task = self.label.task
        self.num_scores = self.label.num_classes
        self._builder = BatchBuilder(spec)
        self.names = [feature.name for feature in self._builder.features]
        self.inputs = self.names
        self.features = bundle.features.select(self.names)
        dense = [feature.name for feature in self._builder.features if feature.kind is FeatureKind.DENSE]
        self.of_row = _RowModel(bundle, dense)

    @classmethod
    def open(cls, uri: str, storage: Storage | None = None, label: str | None = None) -> "BundlePredictor":
        """Load a bundle and prepare for requests.

        Args:
            uri: Folder of bundle.json.
            storage: How to reach S3.
            label: Which label to predict, where the model has several.

        Raises:
            UserError: There is no bundle, it is damaged, or has no such label.
        """
        # Where it is whatever the folder that another process works in.
        address = open_store(uri, storage).uri
        return cls(address, load_bundle(address, storage), storage, label)

    def __reduce__(self) -> tuple[Any, ...]:
        """Return how a process that is sent the predictor makes it: from the bundle, which it has to reach."""
        return type(self).open, self._opened

    def state(self) -> State:
        """Refuse: the bundle itself is what is stored.

        Raises:
            UserError: Always.
        """
        raise UserError(f"{self._opened[0]}: is a model bundle already; load it from there")

    def score(self, features: Mapping[str, Any]) -> Any:
        """Return the logit, logits or value of one row."""
        with torch.inference_mode():
            scores = self._scores(self.of_row(self.features.transform_func(features)))
            return scores.item() if self.num_scores is None else scores[0].numpy()

    def score_batch(self, features: Any) -> npt.NDArray[Any]:
        """Return the scores of many rows, float32 [rows] or [rows, num_scores].

        Args:
            features: A list of rows, or a record batch.
        """
        columns = self._columns(features) if isinstance(features, Sequence) else self.features.transform_batch(features)
        rows = len(next(iter(columns.values()))) if columns else 0
        if not rows:
            return np.empty((0, self.num_scores) if self.num_scores else 0, np.float32)
        with torch.inference_mode():
            batch = self._builder.build(columns, np.ones(rows, np.bool_))
            return self._scores(self.bundle.model(batch)).numpy()

    def read(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Return the batch: the features take their columns of it."""
        return batch

    def _columns(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, npt.NDArray[Any]]:
        transformed = []
        for row, values in enumerate(rows):
            try:
                transformed.append(self.features.transform_func(values))
            except ValueRefusedError as error:
                raise error.at_row(row) from None
        return {name: np.array([values[name] for values in transformed]) for name in self.names} if transformed else {}

    def _scores(self, output: Any) -> Tensor:
        model = self.bundle.model
        scores: Tensor = output[self.label.name] if isinstance(model, RankingModel) else model.scores(output)
        return scores


def _label_of(uri: str, labels: Sequence[Label], wanted: str | None) -> Label:
    names = [label.name for label in labels]
    if wanted is None and not labels:  # a retrieval model that learnt from what was taken, with no label
        return Label(name="score", task=Task.BINARY)
    if wanted is None and len(labels) > 1:
        raise UserError(f"{uri}: predicts several labels; name one: {', '.join(names)}")
    for label in labels:
        if wanted in (None, label.name):
            return label
    raise UserError(f"{uri}: has no label {wanted!r}; it has {', '.join(names) or 'none'}")


class _Row(NamedTuple):
    """What an architecture reads of a Batch, for one row."""

    dense: Tensor
    num_negatives: int = 0


class _Pooled:
    """Stands in for torchrec's KeyedTensor: the pooled embeddings of one row."""

    def __init__(self, by_feature: dict[str, Tensor]) -> None:
        self._by_feature = by_feature

    def to_dict(self) -> dict[str, Tensor]:
        return self._by_feature


class _Tables(NamedTuple):
    """All embedding tables of one width as one, so that a row's ids are looked up at once.

    Attributes:
        weight: float [rows of all tables, width].
        ids: By Categorical feature the first row of its table.
        lists: By Sequence feature the first row of its table, and whether its vectors are pooled by their mean.
    """

    weight: Tensor
    ids: dict[str, int]
    lists: dict[str, tuple[int, bool]]


class _RowModel:
    """The model of a bundle for one row: the layers of the model itself, over embeddings taken without a batch."""

    def __init__(self, bundle: Bundle, dense: list[str]) -> None:
        self._model = bundle.model
        self._dense = dense
        self._tables = _merged_tables(bundle)

    def __call__(self, row: Mapping[str, Any]) -> Any:
        """Return what the model's forward returns for a batch of this row.

        Args:
            row: By feature what FeatureSet.transform_func returns.
        """
        model = self._model
        dense = torch.from_numpy(np.array([[row[name] for name in self._dense]], np.float32))
        if isinstance(model, RankingModel):
            return model.heads(model.arch(_Pooled(self._embedded(row, _pooled)), dense))
        if isinstance(model, MIND):
            embedded = self._embedded(row, _jagged)
            for name, found in embedded.items():
                if isinstance(found, Tensor):
                    embedded[name] = JaggedTensor(found, lengths=_ONE)
            return model.arch(embedded, _Row(dense))
        return model.arch(_Pooled(self._embedded(row, _pooled)), _Row(dense))

    def _embedded(self, row: Mapping[str, Any], of_list: Callable[[Tensor, Tensor, bool], Any]) -> dict[str, Any]:
        """Return the embedding of each feature: of a Categorical [1, width], of a Sequence what `of_list` makes."""
        embedded: dict[str, Any] = {}
        for tables in self._tables:
            if tables.ids:
                places = np.array([int(row[name]) + first for name, first in tables.ids.items()], np.int64)
                vectors = tables.weight.index_select(0, torch.from_numpy(places))
                embedded |= zip(tables.ids, torch.split(vectors, 1), strict=True)
            for name, (first, mean) in tables.lists.items():
                ids = row[name]
                embedded[name] = of_list(tables.weight, torch.from_numpy(ids[ids >= 0].astype(np.int64) + first), mean)
        return embedded


def _pooled(weight: Tensor, places: Tensor, mean: bool) -> Tensor:
    """Return the sum or mean [1, width] of some rows of a table; zeros for none."""
    return F.embedding_bag(places, weight, _FIRST, mode="mean" if mean else "sum")


def _jagged(weight: Tensor, places: Tensor, mean: bool) -> JaggedTensor:
    """Return some rows of a table as the list of one row."""
    return JaggedTensor(weight.index_select(0, places), lengths=torch.tensor([len(places)], dtype=torch.int32))


_FIRST = torch.zeros(1, dtype=torch.int64)
_ONE = torch.ones(1, dtype=torch.int32)


def _merged_tables(bundle: Bundle) -> list[_Tables]:
    """Join the tables of each width; the model's own become views of them, so that nothing is there twice."""
    collection = bundle.model.embeddings
    modules = collection.embeddings if isinstance(collection, EmbeddingCollection) else collection.embedding_bags
    by_width: dict[int, list[EmbeddingTable]] = {}
    for table in embedding_tables(bundle.spec):
        by_width.setdefault(table.embedding_dim, []).append(table)
    merged = []
    for tables in by_width.values():
        weight = torch.cat([modules[table.name].weight.detach() for table in tables])
        ids: dict[str, int] = {}
        lists: dict[str, tuple[int, bool]] = {}
        first = 0
        for table in tables:
            modules[table.name].weight.data = weight[first : first + table.num_embeddings]
            for name in table.features:
                if bundle.spec.feature(name).kind is FeatureKind.SEQUENCE:
                    lists[name] = (first, table.pooling is Pooling.MEAN)
                else:
                    ids[name] = first
            first += table.num_embeddings
        merged.append(_Tables(weight, ids, lists))
    return merged
