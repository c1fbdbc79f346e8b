"""What every type of the job has in common."""

from collections.abc import Iterator
from typing import Annotated, Any, NamedTuple, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, model_validator
from pydantic.alias_generators import to_camel
from pydantic_core import PydanticCustomError

from rectrain.api.quantities import parse_bytes


class Problem(NamedTuple):
    """One thing that is wrong with a job."""

    path: tuple[str | int, ...]
    """Where: field names (camelCase) and list positions, from the object that was checked."""
    value: Any
    """What is there; None where something is missing."""
    message: str
    """What would be right: begins with "must" or "is"."""


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

    def rules(self) -> Iterator[Problem]:
        """Yield what is wrong between the fields of this object. Each field alone is right when this is called."""
        yield from ()

    @model_validator(mode="after")
    def _check_rules(self) -> Self:
        problems = list(self.rules())
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
    StringConstraints(pattern=r"^[0-9]+(\.[0-9]+)?(Ki|Mi|Gi|Ti|Pi|k|M|G|T|P)?$"),
    AfterValidator(_check_quantity),
]
"""A number of bytes the way Kubernetes writes it: 512Mi, 80Gi, 1.5G."""

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=63)]
"""The name of a feature, label or embedding table: a column name in shards and a parameter name in the model."""

Port = Annotated[int, Field(ge=1, le=65535)]
NonNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
