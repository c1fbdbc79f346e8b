"""Raw formats: each a streaming reader of files, one file of code each."""

from rectrain.api.data import SourceFormat
from rectrain_jobs.data.formats.base import Definition, RawBatch, Reader
from rectrain_jobs.data.formats.interactions import InteractionsReader

READERS: dict[SourceFormat, type[Reader]] = {
    SourceFormat.INTERACTIONS: InteractionsReader,
}


def open_reader(definition: Definition) -> Reader:
    """Return the reader of a definition's format.

    Raises:
        UserError: The format cannot give what the definition asks for.
    """
    return READERS[definition.source.format](definition)


__all__ = ["READERS", "Definition", "RawBatch", "Reader", "open_reader"]
