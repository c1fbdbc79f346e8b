"""From a job, or what else names an index, to its store, and to the version that searches go to."""

from rectrain.api.errors import UserError
from rectrain.api.job import RecTrainingJob
from rectrain.api.operations import Index, IndexType
from rectrain_jobs.resolution import storage_options
from rectrain_jobs.retrieval.base import IndexStore, IndexVersion, ItemIndex
from rectrain_jobs.storage import Storage, open_store


def index_of(job: RecTrainingJob) -> Index:
    """Return what a job says of its index.

    Raises:
        UserError: It says nothing.
    """
    if job.spec.publish.index is None:
        raise UserError("spec.publish.index: is required: where the item vectors go, such as {type: Faiss, uri: index}")
    return job.spec.publish.index


def open_index(job: RecTrainingJob) -> IndexStore:
    """Open the index that a job with absolute URIs names.

    Raises:
        UserError: It names none, its backend is not installed, or it cannot be reached.
    """
    index = index_of(job)
    collection = index.collection or job.metadata.name.replace("-", "_")
    return open_index_store(index.type, index.uri, collection, storage_options(job))


def open_index_store(kind: IndexType, uri: str, collection: str, storage: Storage | None = None) -> IndexStore:
    """Open an index.

    Args:
        kind: The vector store.
        uri: Faiss: a folder; Milvus: the address of a server, or a file `*.db`.
        collection: Milvus: the name that searches use.
        storage: How to reach S3.

    Raises:
        UserError: The backend is not installed, or it cannot be reached.
    """
    try:
        if kind is IndexType.FAISS:
            from rectrain_jobs.retrieval.faiss_store import FaissStore

            return FaissStore(open_store(uri, storage))
        from rectrain_jobs.retrieval.milvus_store import MilvusStore

        return MilvusStore(uri, collection)
    except ModuleNotFoundError as error:
        raise UserError(f"an index of type {kind} needs {error.name}; install rectrain[serving] beside it") from None


def served_version(store: IndexStore) -> IndexVersion:
    """Return the version of an index that searches go to.

    Raises:
        UserError: There is none yet, or it is not there any more.
    """
    name = store.served()
    if name is None:
        raise UserError(f"{store.uri}: has no served version yet; publish one first")
    return store.version(name)


def served_index(store: IndexStore) -> ItemIndex:
    """Open the version of an index that searches go to.

    Raises:
        UserError: There is none yet.
    """
    return store.open(served_version(store))


def check_model(version: IndexVersion, model_version: str) -> None:
    """Check that an index version is of a model: vectors of two models have nothing to do with each other.

    Raises:
        UserError: It is of another.
    """
    if version.model_version != model_version:
        raise UserError(
            f"index version {version.name} is of model {version.model_version}, the bundle is {model_version}: "
            "publish the bundle's items"
        )
