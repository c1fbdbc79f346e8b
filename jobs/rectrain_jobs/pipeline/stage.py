"""Stages by name: what a saved pipeline refers to, found among registered classes and installed packages."""

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any, ClassVar, Self, TypeVar

import numpy.typing as npt
import pyarrow as pa

from rectrain.api.errors import UserError

ENTRY_POINTS = "rectrain.stages"
"""Group of the entry points by which packages offer stages; the name of one is the name of its stage."""

_registered: dict[str, "type[Stage]"] = {}


@dataclass
class State:
    """Everything that a stage is made of, in forms that run no code when read.

    Attributes:
        config: JSON values.
        arrays: Numbers, kept in safetensors.
        tables: Kept in Parquet.
        stages: Stages inside this one.
    """

    config: dict[str, Any] = field(default_factory=dict)
    arrays: dict[str, npt.NDArray[Any]] = field(default_factory=dict)
    tables: dict[str, pa.Table] = field(default_factory=dict)
    stages: "dict[str, Stage]" = field(default_factory=dict)


class Stage:
    """A transformer or a predictor: what a pipeline is built of, saved with it and loaded by name.

    Attributes:
        stage_name: Its name in saved pipelines, given by `register`.
        stage_version: Version of what `state` returns. A class reads its own and older versions.
    """

    stage_name: ClassVar[str]
    stage_version: ClassVar[int] = 1

    def state(self) -> State:
        """Return what the stage is made of, fitted values among it."""
        raise NotImplementedError(f"{type(self).__name__} cannot be saved: it has no state()")

    @classmethod
    def from_state(cls, state: State, version: int) -> Self:
        """Return the stage that a state was taken of.

        By default all that the state has are arguments of the constructor.

        Args:
            state: What `state` returned.
            version: The stage_version that it was saved with.
        """
        return cls(**state.config, **state.arrays, **state.tables, **state.stages)


StageT = TypeVar("StageT", bound=type[Stage])


def register(name: str) -> Callable[[StageT], StageT]:
    """Give a class its name in saved pipelines: a decorator.

    Where the class's module may not be imported before a pipeline is loaded, its package also declares the entry point
    `name = "module:Class"` in the group `rectrain.stages`.

    Args:
        name: `package.stage`, so that names of different packages do not meet; ours have no prefix.

    Raises:
        ValueError: Another class has the name.
    """

    def named(stage: StageT) -> StageT:
        known = _registered.setdefault(name, stage)
        if (known.__module__, known.__qualname__) != (stage.__module__, stage.__qualname__):
            raise ValueError(f"stage {name!r} is {known.__module__}.{known.__qualname__}; choose another name")
        _registered[name] = stage
        stage.stage_name = name
        return stage

    return named


def stage_class(name: str, remedy: str) -> type[Stage]:
    """Return the class of a name.

    Args:
        name: As in a saved pipeline.
        remedy: What helps where it is not known.

    Raises:
        UserError: No installed package provides the name, or the package that does cannot be imported.
    """
    if name in _registered:
        return _registered[name]
    for entry_point in entry_points(group=ENTRY_POINTS, name=name):
        try:
            found = entry_point.load()
        except ImportError as error:
            raise UserError(f"stage {name!r} needs {error.name or error}; {remedy}") from None
        if getattr(found, "stage_name", None) == name:
            return found  # type: ignore[no-any-return]
    raise UserError(f"stage {name!r} is not known here; {remedy}")
