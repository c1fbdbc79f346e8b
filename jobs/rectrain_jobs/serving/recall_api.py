"""The bodies of the recall service's calls."""

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    StringConstraints,
)

_MAX_TEXT = 512


@dataclass(frozen=True)
class _OrElse:
    """Says in one message what is wrong with a value of no type of a union, where pydantic says it for each type."""

    message: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> Any:
        schema: dict[str, Any] = dict(handler(source))
        return schema | {"custom_error_type": "no_such_value", "custom_error_message": self.message}


_TEXT_IS = f"text of 1 to {_MAX_TEXT} characters"
Text = Annotated[StrictStr, StringConstraints(min_length=1, max_length=_MAX_TEXT)]
ItemId = Annotated[StrictInt | Text, _OrElse(f"must be an integer or {_TEXT_IS}")]
"""An item as the training data names it."""
Scalar = Annotated[
    StrictBool | StrictInt | StrictFloat | Text, _OrElse(f"must be a finite number, true, false or {_TEXT_IS}")
]
Number = Annotated[StrictInt | StrictFloat, _OrElse("must be a finite number")]
FeatureValue = Annotated[
    StrictBool | StrictInt | StrictFloat | Text | list[ItemId] | None,
    _OrElse(f"must be a finite number, true, false, {_TEXT_IS}, a list of ids or null"),
]


class _Body(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True, protected_namespaces=()
    )


class Condition(_Body):
    """What an attribute of an item has to be; all that is given has to hold. An item without the attribute has not."""

    in_: Annotated[list[Scalar], Field(min_length=1, max_length=1000)] | None = Field(None, alias="in")
    """One of these values."""
    not_in: Annotated[list[Scalar], Field(min_length=1, max_length=1000)] | None = None
    """None of these values."""
    gt: Number | None = None
    """Greater than this number."""
    gte: Number | None = None
    """This number or greater."""
    lt: Number | None = None
    """Less than this number."""
    lte: Number | None = None
    """This number or less."""


class RecallRequest(_Body):
    """Users, and how many items each is to get."""

    top_k: Annotated[StrictInt, Field(ge=1)] = 50
    """Items for each user."""
    hist_item: list[list[ItemId]] | None = None
    """For each user the ids of the items that the user took, oldest first. May be left out for a model that reads no
    history, when `user_features` are given."""
    user_features: list[dict[str, FeatureValue]] | None = None
    """For each user the other features that the model reads, by name; a feature that is not there is missing."""
    exclude_seen: StrictBool = False
    """Leave out the items of the user's own history."""
    filter: Annotated[dict[str, Condition], Field(max_length=16)] = Field(default_factory=dict)
    """Only items whose attributes are such, by name of the attribute."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"top_k": 50, "hist_item": [[43, 23, 65], [675, 3456]]},
                {"top_k": 10, "hist_item": [[43, 23, 65]], "exclude_seen": True},
                {"top_k": 10, "hist_item": [[43]], "filter": {"price": {"lte": 20}, "brand": {"in": ["a", "b"]}}},
                {"top_k": 10, "hist_item": [[]], "user_features": [{"age": 31}]},
            ]
        }
    )


class RecallAnswer(_Body):
    """Items for each user, in the order of the request."""

    items: list[list[int | str]]
    """For each user ids of items, best first, each once; fewer than top_k where there are no more."""
    scores: list[list[float]]
    """For each user the items' scores: the highest inner product with any of the user's vectors. Of popular items: in
    how many training rows the item is."""
    sources: list[str]
    """For each user where the items are from: `model`, or `popularity` when nothing is known of the user."""
    unknown: list[int]
    """For each user how many given ids the model does not know."""
    model_version: str
    """Version of the model bundle."""
    index_version: str
    """Version of the item index."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "items": [[812, 77], [5]],
                    "scores": [[0.91, 0.88], [4211]],
                    "sources": ["model", "popularity"],
                    "unknown": [0, 2],
                    "model_version": "5c7a09b2e1f4",
                    "index_version": "000002_5c7a09b2e1f4",
                }
            ]
        }
    )


class CountAnswer(_Body):
    """How many items the index has."""

    count: int
    """Vectors in the index, counted exactly."""


class InsertAnswer(_Body):
    """What was put into the index."""

    inserted: int
    """Vectors in the new version."""
    index_version: str
    """The new version, which is served now."""


class DropAnswer(_Body):
    """What was removed."""

    dropped: int
    """Versions of the index that were removed."""


class ReloadRequest(_Body):
    """What to load."""

    bundle: Annotated[StrictStr, StringConstraints(min_length=1, max_length=2048)] | None = None
    """URI of another model bundle; without it the present one's is read again."""

    model_config = ConfigDict(json_schema_extra={"examples": [{}, {"bundle": "s3://models/mind/7/bundle"}]})


class LoadedAnswer(_Body):
    """What the service answers from."""

    model_version: str
    """Version of the model bundle."""
    index_version: str
    """Version of the item index."""


class Problem(_Body):
    """Why there is no answer."""

    detail: str
    """What is wrong, and what would be right."""


def shown(errors: list[Any]) -> str:
    """Return pydantic's errors as one line that names the fields."""
    parts = []
    for error in errors[:3]:
        if error["type"] == "json_invalid":
            return f"body: is no JSON: {error['ctx']['error']}"
        where = ".".join(str(part) for part in error["loc"] if part != "body")
        parts.append(f"{where or 'body'}: {error['msg']}")
    return "; ".join(parts)
