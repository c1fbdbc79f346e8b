"""Gradient-boosted trees, by XGBoost."""

from typing import Any, Self

import numpy as np
import numpy.typing as npt

from rectrain.api.features import Task
from rectrain_jobs.pipeline.stage import State, register
from rectrain_jobs.pipeline.vector_models import Floats, VectorPredictor, as_matrix, check_labels
from rectrain_jobs.pipeline.vectors import SparseVector, VectorBatch

_OBJECTIVES = {Task.BINARY: "binary:logistic", Task.REGRESSION: "reg:squarederror"}


@register("boosted_trees")
class BoostedTrees(VectorPredictor):
    """Trees over the slots of a vector; an absent slot is a missing value, for which each split has a side.

    Chen and Guestrin, "XGBoost: A scalable tree boosting system", KDD 2016.
    """

    def __init__(
        self,
        task: Task | str = Task.BINARY,
        trees: int = 100,
        max_depth: int = 6,
        learning_rate: float = 0.1,
        seed: int = 0,
        width: int = 0,
        model: npt.NDArray[np.uint8] | None = None,
    ) -> None:
        """Describe the model, fitted or not.

        Args:
            task: Binary or Regression.
            trees: Number of trees.
            max_depth: Depth of a tree.
            learning_rate: Share of each tree's correction that is taken.
            seed: Of what is drawn.
            width: Number of slots.
            model: XGBoost's JSON as bytes.
        """
        self.task = Task(task)
        self.trees = trees
        self.max_depth = max_depth
        self.learning_rate = learning_rate
        self.seed = seed
        self._width = width
        self._booster = _booster(model) if model is not None and len(model) else None

    @property
    def width(self) -> int:
        """Number of slots of the vectors that it takes."""
        return self._width

    def state(self) -> State:
        """Return settings and trees."""
        names = ("task", "trees", "max_depth", "learning_rate", "seed", "width")
        model = b"" if self._booster is None else bytes(self._booster.save_raw("json"))
        return State({name: getattr(self, name) for name in names}, {"model": np.frombuffer(model, np.uint8)})

    def score(self, features: SparseVector) -> float:
        """Return the score of one vector."""
        if self._booster is None or features.width != self._width:
            raise self.unfit(features.width)
        row = np.full((1, self._width), np.nan, np.float32)
        row[0, features.indices] = features.values
        return float(self._booster.inplace_predict(row, predict_type="margin", validate_features=False)[0])

    def score_batch(self, features: Any) -> Floats:
        """Return the scores of many vectors, float64 [rows]."""
        batch = self.checked(features)
        if self._booster is None or not len(batch):
            return np.zeros(len(batch))
        matrix = as_matrix(batch)
        scores = self._booster.inplace_predict(matrix, predict_type="margin", validate_features=False)
        return scores.astype(np.float64)  # type: ignore[no-any-return]

    def fit(self, features: Any, labels: Floats) -> Self:
        """Learn the trees.

        Args:
            features: Vectors of all rows.
            labels: For each 0 or 1, or a value.

        Raises:
            UserError: A label is not what the task has.
        """
        import xgboost

        batch = VectorBatch.of(features)
        check_labels(self.task, labels)
        settings = {
            "objective": _OBJECTIVES[self.task],
            "max_depth": self.max_depth,
            "learning_rate": self.learning_rate,
            "seed": self.seed,
            "tree_method": "hist",
        }
        trained = xgboost.train(settings, xgboost.DMatrix(as_matrix(batch), labels), self.trees)
        self._width = batch.width
        self._booster = _booster(np.frombuffer(bytes(trained.save_raw("json")), np.uint8))
        return self


def _booster(model: npt.NDArray[np.uint8]) -> Any:
    import xgboost

    # One row is too little work for several threads.
    booster = xgboost.Booster({"nthread": 1})
    booster.load_model(bytearray(model.tobytes()))
    return booster
