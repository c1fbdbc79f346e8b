"""Bundles of models that were not trained, made in a moment."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
import torch.distributed as dist

from rectrain.api.job import RecTrainingJob
from rectrain_jobs.bundle import write_bundle
from rectrain_jobs.features import fit
from rectrain_jobs.models.registry import build_model
from rectrain_jobs.storage import open_store

ITEMS = 40
SEEN = range(1, ITEMS + 1)
USER_ID = {"name": "user_id", "kind": "Categorical", "side": "None", "cardinality": 30}
ITEM_ID = {"name": "item_id", "kind": "Categorical", "side": "Item", "cardinality": ITEMS}
HISTORY = {"name": "history", "kind": "Sequence", "side": "User", "of": "item_id", "maxLength": 5}
AGE = {"name": "age", "kind": "Dense", "side": "User"}
CITY = {"name": "city", "kind": "Categorical", "side": "User", "cardinality": 4, "unknown": "OutOfVocabulary"}
LIKED = {"name": "liked", "kind": "Sequence", "side": "User", "of": "item_id", "maxLength": 2}
PRICE = {"name": "price", "kind": "Dense", "side": "Item"}
OWN_USER = {"name": "user_id", "kind": "Categorical", "side": "User", "cardinality": 30}
NAMED_ITEM = ITEM_ID | {"encoding": "Vocabulary"}

MIND = {"type": "MIND", "mind": {"embeddingDim": 8, "interests": 3}}
MIND_OF_PROFILE = {
    "type": "MIND",
    "mind": {"embeddingDim": 8, "interests": 3, "hiddenDims": [6], "similarity": "Cosine"},
}
TWO_TOWER = {"type": "TwoTower", "twoTower": {"embeddingDim": 8, "hiddenDims": [16, 8]}}
MATRIX = {"type": "TwoTower", "twoTower": {"embeddingDim": 8, "hiddenDims": [], "similarity": "Dot"}}


def job_of(model: dict[str, Any], features: list[dict[str, Any]], seed: int = 0) -> RecTrainingJob:
    """Return a job."""
    spec = {"model": model, "features": features, "data": {"train": {"uri": "x"}}, "training": {"seed": seed}}
    if model["type"] not in ("MIND", "TwoTower"):
        spec["labels"] = [{"name": "label", "task": "Binary"}]
    return RecTrainingJob.model_validate({"metadata": {"name": "tiny"}, "spec": spec})


def make_bundle(
    folder: Path,
    model: dict[str, Any],
    features: list[dict[str, Any]],
    seed: int = 0,
    values: Any = None,
    counts: Any = SEEN,
) -> Any:
    """Write a bundle with initial weights to a folder; returns its model.

    Args:
        folder: Where.
        model: The job's model.
        features: The job's features.
        seed: Other seeds give other weights.
        values: Raw values of the item feature, of which its vocabulary is learnt.
        counts: How often each item was seen; None for a bundle that does not say.
    """
    job = job_of(model, features, seed)
    torch.manual_seed(seed)
    built = build_model(job.spec).eval()
    with torch.no_grad():
        for name, values_of in built.state_dict().items():
            if name.endswith("bias"):
                values_of.normal_()  # else they are zero, and a forgotten one would not be noticed
    items = values if values is not None else []
    fitted = fit(job.spec.features, [{"item_id": pa.array(items)}])
    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        group = dist.group.WORLD
        seen = None if counts is None else torch.tensor([*counts, 0, 0])
        store = open_store(str(folder))
        write_bundle(store, job, built.state_dict(), fitted, metrics={}, lineage={}, item_counts=seen, group=group)
    finally:
        dist.destroy_process_group()
    return built
