"""What a rank leaves in its termination log, from where it comes into the job's status: results, or why it ended."""

import math
import os
from collections.abc import Mapping
from pathlib import Path

from rectrain.api.status import MetricValue, Results
from rectrain_jobs.training import exit_codes

PATH_VARIABLE = "RECTRAIN_TERMINATION_LOG"
"""Environment variable of the file; without it nothing is left."""
_MAX_BYTES = 4096
"""What Kubernetes reads of it."""


def results_text(
    metrics: Mapping[str, float],
    *,
    mlflow_run_id: str | None,
    checkpoint_uri: str | None,
    model_uri: str,
    index_name: str | None = None,
) -> str:
    """Return the results of training as the job's status takes them, for `leave_results`.

    Metrics that are undefined are left out, and the last ones where there are more than Kubernetes reads.

    Args:
        metrics: Final metrics by name.
        mlflow_run_id: Run in MLflow, if there is one.
        checkpoint_uri: Newest checkpoint, if there is one.
        model_uri: Model bundle.
        index_name: Version of the item index, if one was published.
    """
    defined = [MetricValue(name=name, value=value) for name, value in metrics.items() if math.isfinite(value)]
    while True:
        results = Results(
            metrics=defined,
            mlflow_run_id=mlflow_run_id,
            checkpoint_uri=checkpoint_uri,
            model_uri=model_uri,
            index_name=index_name,
        )
        text = results.model_dump_json(exclude_none=True)
        if len(text.encode()) <= _MAX_BYTES or not defined:
            return text
        defined = defined[:-1]


def leave_results(text: str) -> None:
    """Leave the results of training, as one rank of each pod: any pod may be the only one that is left to read."""
    path = _path()
    if path is not None:
        path.write_text(text)


def leave_reason(code: int, message: str) -> bool:
    """Leave why a rank ended, and return whether there is a place for it.

    Ranks of one pod share the file. One that only lost its peers says nothing where another has given a reason.

    Args:
        code: The rank's exit code.
        message: The reason; of a long one the end, where a traceback has its error.
    """
    path = _path()
    if path is None:
        return False
    if code != exit_codes.FAILED or not path.exists() or not path.stat().st_size:
        path.write_bytes(message.encode()[-_MAX_BYTES:])
    return True


def _path() -> Path | None:
    text = os.environ.get(PATH_VARIABLE)
    return Path(text) if text else None
