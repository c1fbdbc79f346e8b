"""The job as MLflow parameters and its names as MLflow's, within the limits that MLflow has."""

from typing import Any

from rectrain.api.job import RecTrainingJob

MAX_KEY, MAX_VALUE, MAX_PARAMETERS = 250, 6000, 1000
"""Longest key and value that MLflow's stores take, and the most parameters of a run that are still of use to people."""

_LONG_LISTS = (("features",), ("labels",), ("data", "source", "columns"), ("sharding", "constraints"))


def parameters_of(job: RecTrainingJob) -> dict[str, str]:
    """Return the resolved spec, defaults included, flattened to text; what no one has set is left out.

    Features and labels go by name. Where that makes more than 1,000 parameters, the single features are left out, then
    other long lists; the job file among the run's artifacts has them.
    """
    spec = job.spec.model_dump(mode="json", exclude_none=True)
    spec.pop("workers", None)
    spec["workers"] = {"worldSize": job.spec.workers.world_size}
    flat = _flatten(spec)
    for *path, name in _LONG_LISTS:
        if len(flat) <= MAX_PARAMETERS:
            break
        parent = spec
        for part in path:
            parent = parent.get(part, {})
        if name in parent:
            parent[name] = f"{len(parent[name])} {name}"
            flat = _flatten(spec)
    return {
        key[:MAX_KEY]: value if len(value) <= MAX_VALUE else value[: MAX_VALUE - 1] + "…" for key, value in flat.items()
    }


def metric_key(name: str) -> str:
    """Return a metric's name as MLflow takes it, which has no @: recall@20 becomes recall_at_20."""
    return name.replace("@", "_at_")


def _flatten(value: Any, prefix: str = "") -> dict[str, str]:
    if isinstance(value, dict) and value:
        found: dict[str, str] = {}
        for key, inner in value.items():
            found |= _flatten(inner, f"{prefix}.{key}" if prefix else str(key))
        return found
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        named = {str(item.get("name", item.get("table", number))): item for number, item in enumerate(value)}
        without_names = {name: {k: v for k, v in item.items() if k != "name"} for name, item in named.items()}
        return _flatten(without_names, prefix)
    return {prefix: str(value)}
