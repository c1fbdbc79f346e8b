"""Read a bundle on one process, without torchrec's sharding and without pickle."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from rectrain.api.job import RecTrainingJobSpec
from rectrain_jobs.bundle.files import open_bundle
from rectrain_jobs.bundle.layout import Manifest
from rectrain_jobs.features import FeatureSet
from rectrain_jobs.models.registry import Model, build_model
from rectrain_jobs.storage import Storage, open_store


@dataclass(frozen=True)
class Bundle:
    """A trained model, ready to predict.

    Attributes:
        manifest: What the bundle is.
        version: Tells this bundle from every other; what is derived from it, such as an item index, carries it.
        spec: The job's model, features and labels.
        features: The feature definitions, as fitted.
        model: The bare model, in evaluation mode.
        item_counts: Of a retrieval model how many training rows have each row of the item table, where that is known.
    """

    manifest: Manifest
    version: str
    spec: RecTrainingJobSpec
    features: FeatureSet
    model: Model
    item_counts: npt.NDArray[np.int64] | None = None


def load_bundle(uri: str, storage: Storage | None = None, device: torch.device | str = "cpu") -> Bundle:
    """Load a bundle.

    Args:
        uri: Folder of bundle.json.
        storage: How to reach S3.
        device: Where the model is to be.

    Raises:
        UserError: There is no bundle, it is damaged, or it is of a newer format.
    """
    files = open_bundle(open_store(uri, storage))
    model = build_model(files.spec, torch.device("cpu"))
    state = model.state_dict()
    files.load_weights(state, "pt")
    model.load_state_dict(state)
    model.eval().to(device)
    return Bundle(files.manifest, files.version, files.spec, files.features, model, files.item_counts())
