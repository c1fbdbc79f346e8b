"""LibSVM: lines of `label index:value ...` with one index a field."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rectrain.api.errors import UserError
from rectrain.api.features import FeatureKind
from rectrain_jobs.data.formats.base import Definition, RawBatch, RowReader, id_array
from rectrain_jobs.data.formats.lines import TokenLines, token_lines
from rectrain_jobs.data.source import SourceFile


class LibSVMReader(RowReader):
    """Gives a row for each line.

    The features in their order are the fields: field j of every line is feature j. A Categorical feature is the field's
    index, as it is in the one space of all indices (so features that are to share a table name the same `table`, and
    their cardinality is the largest index plus one), and its value has to be 1; a Dense feature is the field's value.
    The one label is the first value of the line.
    """

    def __init__(self, definition: Definition) -> None:
        """Check that there are no sequences and at most one label."""
        super().__init__(definition)
        for feature in definition.features:
            if feature.kind is FeatureKind.SEQUENCE:
                raise UserError(f"features[{feature.name}].kind: must be Dense or Categorical: a field has one index")
        if len(definition.labels) > 1:
            raise UserError(f"labels: must be at most one for LibSVM, not {len(definition.labels)}")

    def rows(self, file: SourceFile) -> Iterator[RawBatch]:
        """Give all rows of a file."""
        for lines in token_lines(file):
            yield RawBatch(self._columns(file, lines), file.uri, lines.numbers)

    def _columns(self, file: SourceFile, lines: TokenLines) -> dict[str, "pa.Array[Any]"]:
        features = self.definition.features
        fields = np.diff(lines.offsets) - 1
        wrong = fields != len(features)
        if wrong.any():
            line = int(np.argmax(wrong))
            raise UserError(
                f"{file.uri}:{lines.numbers[line]}: has {fields[line]} fields; a line has {len(features)}, "
                "one for each feature"
            )
        places = lines.offsets[:-1]
        columns = {label.name: lines.tokens.take(pa.array(places)) for label in self.definition.labels}
        for number, feature in enumerate(features, start=1):
            tokens = lines.tokens.take(pa.array(places + number))
            split: Any = pc.split_pattern(tokens, ":")
            malformed = split.value_lengths().to_numpy() != 2
            if malformed.any():
                self._refuse(file, lines, feature.name, tokens, malformed, "is not index:value")
            halves = split.flatten()
            index, value = halves[0::2], halves[1::2]
            if feature.kind is FeatureKind.DENSE:
                columns[feature.name] = value
                continue
            not_one = ~np.asarray(pc.is_in(value, value_set=pa.array(["1", "1.0"])))
            if not_one.any():
                self._refuse(file, lines, feature.name, tokens, not_one, "must have the value 1: it is Categorical")
            columns[feature.name] = id_array(index, feature)
        return columns

    def _refuse(self, file: SourceFile, lines: TokenLines, name: str, tokens: Any, wrong: Any, why: str) -> None:
        line = int(np.argmax(wrong))
        raise UserError(f"{file.uri}:{lines.numbers[line]}: {name}: field {tokens[line].as_py()!r} {why}")
