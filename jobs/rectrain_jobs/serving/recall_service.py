"""The state of a recall service: what it answers from, and how that is changed while it answers."""

import logging
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath

from rectrain.api.errors import UserError
from rectrain.api.operations import IndexType
from rectrain_jobs.bundle.files import bundle_version
from rectrain_jobs.retrieval.base import IndexStore
from rectrain_jobs.retrieval.opening import check_model, open_index_store, served_version
from rectrain_jobs.retrieval.publishing import publish
from rectrain_jobs.serving.catalogue import Attributes
from rectrain_jobs.serving.recall_model import Recaller, RecallModel
from rectrain_jobs.storage import Storage, open_store

_LOG = logging.getLogger(__name__)
_KEPT_VERSIONS = 3


@dataclass(frozen=True)
class RecallSettings:
    """What a recall service serves.

    Attributes:
        bundle: URI of the model bundle.
        index: Where the item index is: a folder of FAISS, the address of a Milvus server or a file `*.db`. None for
            one of the service's own in memory, made from the bundle.
        collection: Milvus: name of the index.
        items: URI of a Parquet file with attributes of items; None for none.
        storage: How to reach S3.
    """

    bundle: str
    index: str | None = None
    collection: str = "items"
    items: str | None = None
    storage: Storage | None = None


class NotReadyError(Exception):
    """There is nothing to answer from yet."""


class BusyError(Exception):
    """The service is being changed by another call."""


class RecallService:
    """Holds what requests are answered from, and replaces it as a whole.

    A request takes `current` once and keeps to it, so whatever happens meanwhile it is answered by one model and the
    index of that model.

    Args:
        settings: What is served.

    Raises:
        UserError: The bundle cannot be read. An index that is not there, or of another model, is no error: the service
            is not ready then.
    """

    def __init__(self, settings: RecallSettings) -> None:
        """Load the bundle and, if it is there and fits, the index."""
        self._settings = settings
        self._change = threading.Lock()
        self._own_folder: tempfile.TemporaryDirectory[str] | None = None
        self._index = self._open_index()
        self._bundle_uri = settings.bundle
        self._model = RecallModel(open_store(settings.bundle, settings.storage))
        self._recaller: Recaller | None = None
        self._loaded: tuple[str, str | None, float] | None = None
        self._problem = ""
        try:
            self.reload()
        except UserError as error:
            self._not_ready(str(error))

    def close(self) -> None:
        """Remove what the service made for itself."""
        if self._own_folder is not None:
            self._own_folder.cleanup()

    @property
    def current(self) -> Recaller:
        """What requests are answered from.

        Raises:
            NotReadyError: There is no index of the model.
        """
        recaller = self._recaller
        if recaller is None:
            raise NotReadyError(self._problem)
        return recaller

    def reload(self, bundle: str | None = None) -> Recaller:
        """Load what is served now: the bundle if it has changed, and the served version of the index.

        Args:
            bundle: URI of another bundle, which is the service's from now on. None for the present one.

        Raises:
            UserError: Bundle or index cannot be read, or are not of one model; what was there stays.
            BusyError: Another change is going on.
        """
        with self._changing():
            return self._load(bundle or self._bundle_uri)

    def insert(self) -> Recaller:
        """Publish the vectors of the model's items to the index, and load it.

        Raises:
            UserError: The vectors cannot be made from the bundle alone, or publishing failed.
            BusyError: Another change is going on.
        """
        with self._changing():
            store = open_store(self._bundle_uri, self._settings.storage)
            if bundle_version(store) != self._model.version:
                self._model = RecallModel(store)
            publish(self._index, self._model.items(), keep=_KEPT_VERSIONS, say=_LOG.info)
            return self._load(self._bundle_uri)

    def drop(self) -> int:
        """Remove the index with all its versions; returns how many. The service is not ready then.

        Raises:
            BusyError: Another change is going on.
        """
        with self._changing():
            versions = len(self._index.versions())
            self._not_ready("the index was dropped; POST /rec/insert_data makes it anew")
            self._index.clear()
            return versions

    def count(self) -> int:
        """Return the exact number of items in the index.

        Raises:
            NotReadyError: There is no index of the model.
        """
        return self.current.index.count()

    def follow(self) -> bool:
        """Look whether bundle, index or attributes have changed, and load them if so; returns whether they were.

        Raises:
            UserError: They cannot be read, or are not of one model yet.
            BusyError: Another change is going on.
        """
        with self._changing():
            found = self._found(self._bundle_uri)
            if found == self._loaded:
                return False
            if found[1] is None:  # dropped, here or elsewhere; it is made anew when that is asked for
                if self._recaller is not None:
                    self._not_ready("the index was removed")
                return False
            self._load(self._bundle_uri)
            return True

    def _load(self, bundle: str) -> Recaller:
        store = open_store(bundle, self._settings.storage)
        version, revision, _ = found = self._found(bundle)
        is_own = self._own_folder is not None
        served = None if is_own and revision is None else served_version(self._index)
        # An index of another model is noticed before the weights are read.
        if served is not None and not is_own:
            check_model(served, version)
        model = self._model if version == self._model.version else RecallModel(store)
        if served is None or served.model_version != version:
            served = publish(self._index, model.items(), keep=1)
            found = self._found(bundle)
        recaller = Recaller(model, self._index.open(served), self._attributes(model))
        self._bundle_uri, self._model, self._loaded = bundle, model, found
        self._recaller, self._problem = recaller, ""
        return recaller

    def _found(self, bundle: str) -> tuple[str, str | None, float]:
        """Return what tells bundle, index and attributes from any earlier ones."""
        modified = 0.0
        if self._settings.items is not None:
            folder, name = _split(self._settings.items)
            modified = open_store(folder, self._settings.storage).stat(name).modified
        return bundle_version(open_store(bundle, self._settings.storage)), self._index.revision(), modified

    def _attributes(self, model: RecallModel) -> Attributes:
        if self._settings.items is None:
            return Attributes({})
        folder, name = _split(self._settings.items)
        data = open_store(folder, self._settings.storage).read_bytes(name)
        return Attributes.read(data, self._settings.items, model.spec, model.features)

    def _not_ready(self, problem: str) -> None:
        self._recaller, self._loaded, self._problem = None, None, problem

    def _open_index(self) -> IndexStore:
        settings = self._settings
        if settings.index is None:
            self._own_folder = tempfile.TemporaryDirectory(prefix="rectrain-recall-")
            return open_index_store(IndexType.FAISS, self._own_folder.name, settings.collection)
        is_milvus = settings.index.startswith(("http://", "https://")) or settings.index.endswith(".db")
        kind = IndexType.MILVUS if is_milvus else IndexType.FAISS
        return open_index_store(kind, settings.index, settings.collection, settings.storage)

    @contextmanager
    def _changing(self) -> Iterator[None]:
        if not self._change.acquire(blocking=False):
            raise BusyError("another change of the service is going on; try again when it has ended")
        try:
            yield
        finally:
            self._change.release()


def _split(uri: str) -> tuple[str, str]:
    """Return the folder and the name of a file's URI."""
    folder, _, name = uri.rpartition("/")
    return folder or ("/" if uri.startswith("/") else "."), PurePosixPath(name).name
