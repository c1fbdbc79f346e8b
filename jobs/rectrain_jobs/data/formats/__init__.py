"""Raw formats: each a streaming reader of files, one file of code each."""

from rectrain.api.data import SourceFormat
from rectrain_jobs.data.formats.base import Definition, RawBatch, Reader
from rectrain_jobs.data.formats.comirec import ComiRecReader
from rectrain_jobs.data.formats.criteo import CriteoReader
from rectrain_jobs.data.formats.interactions import InteractionsReader
from rectrain_jobs.data.formats.libsvm import LibSVMReader
from rectrain_jobs.data.formats.parquet import ParquetReader
from rectrain_jobs.data.formats.sequences import SequencesReader
from rectrain_jobs.data.formats.synthetic import SyntheticReader
from rectrain_jobs.data.formats.triples import TriplesReader

READERS: dict[SourceFormat, type[Reader]] = {
    SourceFormat.INTERACTIONS: InteractionsReader,
    SourceFormat.TRIPLES: TriplesReader,
    SourceFormat.SEQUENCES: SequencesReader,
    SourceFormat.LIBSVM: LibSVMReader,
    SourceFormat.CRITEO: CriteoReader,
    SourceFormat.COMIREC: ComiRecReader,
    SourceFormat.PARQUET: ParquetReader,
    SourceFormat.SYNTHETIC: SyntheticReader,
}


def open_reader(definition: Definition) -> Reader:
    """Return the reader of a definition's format.

    Raises:
        UserError: The format cannot give what the definition asks for.
    """
    return READERS[definition.source.format](definition)


__all__ = ["READERS", "Definition", "RawBatch", "Reader", "open_reader"]
