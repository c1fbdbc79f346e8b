"""What every type of the job has in common."""

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationInfo, model_validator
from pydantic.alias_generators import to_camel
from pydantic_core import PydanticCustomError

from rectrain.api.quantities import parse_bytes
from rectrain.api.rules import Problem, Rule

AS_IT_IS = {"rules": "are not asked"}
"""Context with which an object is read that an API server has: it may break rules that only Python checks, or that came
later, and is there all the same."""


class ApiModel(BaseModel):
    """A part of the job: camelCase in files, snake_case in Python, unknown fields refused, immutable once made."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
        serialize_by_alias=True,
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        protected_namespaces=(),
    )

    RULES: ClassVar[tuple[Rule, ...]] = ()
    """What has to hold between the fields of this object."""

    def problems(self) -> Iterator[Problem]:
        """Yield what is wrong between the fields of this object. Each field alone is right when this is called."""
        for rule in self.RULES:
            yield from rule.problems(self)

    @model_validator(mode="after")
    def _check_rules(self, info: ValidationInfo) -> Self:
        if info.context is AS_IT_IS:
            return self
        problems = list(self.problems())
        if problems:
            text = "; ".join(f"{'.'.join(map(str, p.path))} {p.message}" for p in problems)
            raise PydanticCustomError(RULES_ERROR, "{text}", {"text": text, "problems": problems})
        return self


RULES_ERROR = "rectrain_rules"
"""Type of the pydantic error that carries an object's problems in its context."""


def _check_quantity(value: str) -> str:
    parse_bytes(value)
    return value


Quantity = Annotated[
    str,
    StringConstraints(pattern=r"^[0-9]+(\.[0-9]+)?(Ki|Mi|Gi|Ti|Pi|k|M|G|T|P)?$", max_length=32),
    AfterValidator(_check_quantity),
]
"""A number of bytes the way Kubernetes writes it: 512Mi, 80Gi, 1.5G."""

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=63)]
"""The name of a feature, label or embedding table: a column name in shards and a parameter name in the model."""

Uri = Annotated[str, StringConstraints(min_length=1, max_length=2048)]
"""A URI or path."""

NonNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]


def keyed_by(field: str) -> Any:
    """Return the mark of a list whose elements are told apart by a field: the API server merges them by it."""
    return Field(json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [field]})


WITHOUT_REPEATS = Field(json_schema_extra={"x-kubernetes-list-type": "set"})
"""The mark of a list that the API server refuses when an element is there twice."""

Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
