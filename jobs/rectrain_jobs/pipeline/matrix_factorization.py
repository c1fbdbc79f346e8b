"""Matrix factorization whose factors were learnt elsewhere, such as by Spark MLlib's ALS."""

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rectrain.api.features import Task
from rectrain_jobs.pipeline.predictor import OnlinePredictor
from rectrain_jobs.pipeline.stage import State, register
from rectrain_jobs.pipeline.transformer import column_of
from rectrain_jobs.pipeline.values import ValueRefusedError, integer_of, plain_array, python_value, shown


@register("matrix_factorization")
class MatrixFactorization(OnlinePredictor[Mapping[str, Any]]):
    """A rating as the inner product of a user's and an item's factors; NaN where one of them is unknown or missing."""

    task = Task.REGRESSION

    def __init__(
        self,
        user: str,
        item: str,
        user_ids: npt.NDArray[np.int64],
        user_factors: npt.NDArray[np.float32],
        item_ids: npt.NDArray[np.int64],
        item_factors: npt.NDArray[np.float32],
    ) -> None:
        """Describe the model.

        Args:
            user: Name of the column with the user's id, an integer.
            item: Likewise for the item.
            user_ids: int64 [users].
            user_factors: float32 [users, factors].
            item_ids: int64 [items].
            item_factors: float32 [items, factors].
        """
        self.user, self.item = user, item
        self.user_ids, self.item_ids = user_ids, item_ids
        self.user_factors, self.item_factors = user_factors, item_factors
        self.inputs = [user, item]
        self._user_rows = {number: row for row, number in enumerate(user_ids.tolist())}
        self._item_rows = {number: row for row, number in enumerate(item_ids.tolist())}

    @classmethod
    def from_spark(cls, model: Any) -> Self:
        """Return the model that Spark MLlib's ALS learnt.

        Args:
            model: A pyspark.ml.recommendation.ALSModel.
        """
        user_ids, user_factors = _factors(model.userFactors, model.rank)
        item_ids, item_factors = _factors(model.itemFactors, model.rank)
        return cls(model.getUserCol(), model.getItemCol(), user_ids, user_factors, item_ids, item_factors)

    def state(self) -> State:
        """Return the names of the columns and the factors."""
        names = ("user_ids", "user_factors", "item_ids", "item_factors")
        return State({"user": self.user, "item": self.item}, {name: getattr(self, name) for name in names})

    def score(self, features: Mapping[str, Any]) -> float:
        """Return the rating of one row's item by its user."""
        user = self._user_rows.get(_id(self.user, features.get(self.user)))
        item = self._item_rows.get(_id(self.item, features.get(self.item)))
        if user is None or item is None:
            return float("nan")
        return float((self.user_factors[user] * self.item_factors[item]).sum(dtype=np.float64))

    def score_batch(self, features: Any) -> npt.NDArray[np.float64]:
        """Return the ratings of many rows, float64 [rows].

        Args:
            features: A list of rows, or a record batch.
        """
        if isinstance(features, Sequence):
            return np.array([self.score(row) for row in features], np.float64)
        users = _rows(self.user, features, self._user_rows)
        items = _rows(self.item, features, self._item_rows)
        known = (users >= 0) & (items >= 0)
        scores = np.full(len(users), np.nan)
        products = self.user_factors[users[known]] * self.item_factors[items[known]]
        scores[known] = products.sum(axis=1, dtype=np.float64)
        return scores

    def read(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Return the batch, of which the two columns are taken."""
        return batch


def _factors(frame: Any, rank: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Return ids and factors of a Spark data frame with the columns id and features, ordered by id."""
    table = frame.orderBy("id").toArrow()
    ids = table.column("id").to_numpy().astype(np.int64)
    flat = table.column("features").combine_chunks().flatten().to_numpy()
    return ids, flat.astype(np.float32).reshape(len(ids), rank)


def _id(name: str, value: Any) -> int | None:
    value = python_value(value)
    if value is None:
        return None
    number = integer_of(value)
    if number is None:
        raise ValueRefusedError(name, f"value {shown(value)} is not an integer")
    return number


def _rows(name: str, batch: pa.RecordBatch, rows: Mapping[int, int]) -> npt.NDArray[np.int64]:
    """Return the row of each id of a column, -1 for ids that have none."""
    found = []
    for row, value in enumerate(plain_array(column_of(batch, name)).to_pylist()):
        try:
            number = _id(name, value)
        except ValueRefusedError as error:
            raise error.at_row(row) from None
        found.append(-1 if number is None else rows.get(number, -1))
    return np.array(found, np.int64)
