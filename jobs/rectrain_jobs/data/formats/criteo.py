"""Criteo's click logs: a label, 13 integers and 26 hexadecimal values, apart by tabs, any of the 39 may be missing."""

from collections.abc import Iterator

from rectrain.api.errors import UserError
from rectrain.api.features import FeatureKind
from rectrain_jobs.data.formats.base import Definition, RawBatch, RowReader
from rectrain_jobs.data.formats.delimited import delimited_rows
from rectrain_jobs.data.source import SourceFile

NUM_DENSE = 13
NUM_CATEGORICAL = 26
_NAMES = [str(place) for place in range(1 + NUM_DENSE + NUM_CATEGORICAL)]


class CriteoReader(RowReader):
    """Gives a row for each line.

    The Dense features in their order are the integers, the Categorical features in their order the hexadecimal values,
    which are text; the one label is the first value. Fewer features leave out the last ones.
    """

    def __init__(self, definition: Definition) -> None:
        """Give each feature its place."""
        super().__init__(definition)
        dense = [f.name for f in definition.features if f.kind is FeatureKind.DENSE]
        categorical = [f.name for f in definition.features if f.kind is FeatureKind.CATEGORICAL]
        others = [f.name for f in definition.features if f.kind is FeatureKind.SEQUENCE]
        if others:
            raise UserError(f"features[{others[0]}].kind: must be Dense or Categorical: Criteo has no sequences")
        for names, limit, kind in ((dense, NUM_DENSE, "Dense"), (categorical, NUM_CATEGORICAL, "Categorical")):
            if len(names) > limit:
                raise UserError(f"features: must be at most {limit} {kind} ones for Criteo, not {len(names)}")
        if len(definition.labels) > 1:
            raise UserError(f"labels: must be at most one for Criteo, not {len(definition.labels)}")
        places = {label.name: 0 for label in definition.labels}
        places |= {name: 1 + place for place, name in enumerate(dense)}
        places |= {name: 1 + NUM_DENSE + place for place, name in enumerate(categorical)}
        self._columns = {name: str(place) for name, place in places.items()}

    def rows(self, file: SourceFile) -> Iterator[RawBatch]:
        """Give all rows of a file."""
        yield from delimited_rows(file, self._columns, delimiter="\t", names=_NAMES)
