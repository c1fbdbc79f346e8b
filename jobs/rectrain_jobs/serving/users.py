"""From what a request says of a user to what the model reads, with the transforms of training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rectrain.api.errors import UserError
from rectrain.api.features import FeatureKind, Side, UnknownPolicy
from rectrain.api.job import RecTrainingJobSpec
from rectrain.api.models import MIND
from rectrain_jobs.features import FeatureSet, ValueRefusedError
from rectrain_jobs.pipeline.categorical import Categorical
from rectrain_jobs.pipeline.sequence import Sequence as SequenceTransformer
from rectrain_jobs.serving.encoder import EncodedUser


@dataclass(frozen=True)
class ReadUser:
    """A user as read from a request.

    Attributes:
        encoded: What the model reads.
        seen: Rows of the items of the history.
        unknown: Number of values that the model does not know.
        is_known: Whether there is anything that the model can go by; otherwise popular items are the answer.
    """

    encoded: EncodedUser
    seen: frozenset[int]
    unknown: int
    is_known: bool


class UserReader:
    """Reads histories and user features.

    A value that the model does not know is counted. It is left out (the zero vector) where training refuses such
    values, and has the out-of-vocabulary row where training has one. What a request does not say is missing, as in
    training.

    Args:
        spec: The job's model and features.
        features: The features as fitted.
    """

    def __init__(self, spec: RecTrainingJobSpec, features: FeatureSet) -> None:
        """Choose the features of side User."""
        items = features.transformers[spec.model.item_id]
        assert isinstance(items, Categorical), "a rule of the job asks for it"
        self._items = items
        of_user = [f for f in spec.features if f.side is Side.USER]
        self.history = _history_of(spec)
        self._max_length = spec.feature(self.history).max_length or 0 if self.history is not None else 0
        self._transformers = {f.name: features.transformers[f.name] for f in of_user if f.name != self.history}

    @property
    def features(self) -> list[str]:
        """Names of the user features that a request may give."""
        return list(self._transformers)

    def read(self, history: Sequence[int | str], given: Mapping[str, Any]) -> ReadUser:
        """Read a user.

        Args:
            history: Ids of items, oldest first.
            given: User features by name; None is a missing value.

        Raises:
            UserError: There is no such feature, or a value is not of its kind.
        """
        for name in given:
            if name not in self._transformers:
                raise UserError(
                    f"user_features: the model reads no user feature {name!r}; it reads "
                    f"{', '.join(self._transformers) or 'none besides the history'}"
                )
        kept, unknown = _rows_of(self._items, history)
        seen = frozenset(row for row in kept if row < self._items.cardinality)
        rows: dict[str, Sequence[int]] = {}
        dense: dict[str, float] = {}
        known = 0
        for name, transformer in self._transformers.items():
            value = given.get(name)
            if isinstance(transformer, Categorical | SequenceTransformer):
                elements = transformer if isinstance(transformer, Categorical) else transformer.elements
                found, missed = _rows_of(elements, _values_of(name, transformer, value))
                rows[name] = found[-transformer.max_length :] if isinstance(transformer, SequenceTransformer) else found
                unknown += missed
                known += value is not None and len(found) > missed
            else:
                dense[name] = _number(name, transformer, value)
                known += value is not None
        if self.history is not None:
            rows[self.history] = kept[-self._max_length :]
        is_known = bool(seen) if self.history is not None else known > 0
        return ReadUser(EncodedUser(rows, dense), seen, unknown, is_known)


def _history_of(spec: RecTrainingJobSpec) -> str | None:
    """Return the feature that a request's history is for: the user-side sequence of items; None without one."""
    section = spec.model.section
    if isinstance(section, MIND):
        return section.history
    lists = (f for f in spec.features if f.kind is FeatureKind.SEQUENCE and f.side is Side.USER)
    return next((f.name for f in lists if f.of == spec.model.item_id), None)


def _rows_of(encoding: Categorical, values: Sequence[Any]) -> tuple[list[int], int]:
    """Return the rows that the model reads of some values, and how many values it does not know."""
    rows, unknown = [], 0
    for value in values:
        try:
            row = encoding.row_of(value)
        except ValueRefusedError:
            unknown += 1
            continue
        if row == encoding.out_of_vocabulary_row:
            unknown += 1
            if encoding.unknown is UnknownPolicy.REFUSE:  # training had no such value, so the row is as it began
                continue
        rows.append(row)
    return rows, unknown


def _values_of(name: str, transformer: Categorical | SequenceTransformer, value: Any) -> Sequence[Any]:
    if isinstance(transformer, SequenceTransformer):
        if value is not None and not isinstance(value, list):
            raise UserError(f"user_features.{name}: must be a list of ids, not {value!r:.80}")
        return value or ()
    if isinstance(value, list):
        raise UserError(f"user_features.{name}: must be one id, not a list")
    return (value,)


def _number(name: str, transformer: Any, value: Any) -> float:
    if isinstance(value, list):
        raise UserError(f"user_features.{name}: must be a number, not a list")
    try:
        return float(transformer.transform_one(value))
    except ValueRefusedError as error:
        raise UserError(f"user_features.{name}: {error.problem}") from None
