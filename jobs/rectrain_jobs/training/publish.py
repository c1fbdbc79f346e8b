"""From a model bundle to its item index, and evaluation through it."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch

from rectrain.api.errors import UserError
from rectrain.api.features import Side
from rectrain.api.job import RecTrainingJob
from rectrain_jobs.bundle import Bundle, load_bundle
from rectrain_jobs.bundle.files import trained
from rectrain_jobs.data.batch import BatchBuilder
from rectrain_jobs.evaluation.ranking import Searcher, UserChunk
from rectrain_jobs.features import FEATURES_FILE, FeatureSet
from rectrain_jobs.models.ranking import RankingModel
from rectrain_jobs.resolution import storage_options
from rectrain_jobs.retrieval.base import IndexVersion, ItemIndex
from rectrain_jobs.retrieval.merging import retrieve_all
from rectrain_jobs.retrieval.opening import check_model, index_of, open_index
from rectrain_jobs.retrieval.publishing import Items, publish
from rectrain_jobs.storage import open_store
from rectrain_jobs.training.data import RowChecker, item_columns, open_dataset

_ROWS = 1 << 14


def check_data(bundle: Bundle, job: RecTrainingJob) -> None:
    """Check that the ids in a job's shards stand for the values that they stand for in a bundle.

    Raises:
        UserError: The shards were made with features that had learnt other values.
    """
    store = open_store(job.spec.data.train.uri, storage_options(job))
    if store.exists(FEATURES_FILE) and not bundle.features.transforms_as(FeatureSet.load(store)):
        raise UserError(
            f"{store.uri_of(FEATURES_FILE)}: was fitted on other data than the bundle of {bundle.manifest.name}: "
            "ids stand for other values; use the data that the bundle was trained on"
        )


def items_of(bundle: Bundle, job: RecTrainingJob) -> Items:
    """Compute the vectors of all items of a bundle; of items that are their id alone, of those that training saw.

    Where items are more than their ids, or ids come from a vocabulary, they are those of the job's data; see
    `item_columns`. Memory: the bundle's tables and the vectors.

    Raises:
        UserError: The bundle holds no retrieval model, or the data cannot be read.
    """
    spec, model = bundle.spec, bundle.model
    if isinstance(model, RankingModel):
        raise UserError(f"a bundle of {spec.model.type} has no item vectors; a retrieval model has")
    check_data(bundle, job)
    builder = BatchBuilder(spec, sides=[Side.ITEM])
    shards = [job.spec.data.train, job.spec.data.validation]
    datasets = [open_dataset(job, part.uri, builder.columns) for part in shards if part is not None]
    columns = item_columns(spec, datasets)
    ids = columns[spec.model.item_id]
    if list(columns) == [spec.model.item_id]:
        ids = trained(ids, bundle.item_counts)
        columns = {spec.model.item_id: ids}
    RowChecker(spec, datasets[0]).check(columns, np.arange(len(ids)))
    parts = []
    with torch.no_grad():
        for first in range(0, len(ids), _ROWS):
            part = {name: column[first : first + _ROWS] for name, column in columns.items()}
            valid = np.ones(len(part[spec.model.item_id]), bool)
            parts.append(model.item_vectors(builder.build(part, valid)).float().numpy())
    return Items(ids.astype(np.int64), np.concatenate(parts), bundle.version, bundle.manifest.name)


def searcher_of(index: ItemIndex, bundle: Bundle) -> Searcher:
    """Return what finds items for an evaluation through an index.

    Raises:
        UserError: The index is of another model.
    """
    check_model(index.version, bundle.version)

    def search(chunk: UserChunk, k: int) -> torch.Tensor:
        vectors = torch.as_tensor(chunk.vectors).float().cpu().numpy()
        seen = None
        if chunk.seen is not None:
            ids, offsets = chunk.seen.ids.tolist(), chunk.seen.offsets.tolist()
            seen = [ids[first:last] for first, last in pairwise(offsets)]
        return torch.from_numpy(retrieve_all(index, vectors, k, seen))

    return search


def publish_bundle(job: RecTrainingJob, bundle_uri: str, say: Callable[[str], None]) -> IndexVersion:
    """Publish the items of a bundle to the index that its job names.

    Raises:
        UserError: The bundle or the index cannot be read or reached, or the new version did not pass verification.
    """
    bundle = load_bundle(bundle_uri, storage_options(job))
    return publish(open_index(job), items_of(bundle, job), keep=index_of(job).keep, say=say)
