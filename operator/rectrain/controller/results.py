"""What a worker leaves in its termination message: the results of training."""

from collections.abc import Sequence

from pydantic import ValidationError

from rectrain.api.status import Results
from rectrain.controller.observed import Pod


def results_of(pods: Sequence[Pod]) -> Results | None:
    """Return the results that a worker left, or None where no worker's message holds any.

    Args:
        pods: The pods of the attempt; rank 0's is asked first, but in elastic jobs rank 0 may be anywhere.
    """
    for pod in sorted(pods, key=lambda p: not p.is_master):
        if pod.termination is not None and pod.termination.exit_code == 0:
            results = parse_results(pod.termination.message)
            if results is not None:
                return results
    return None


def parse_results(text: str) -> Results | None:
    """Return the results that a termination message holds, or None where it holds something else."""
    if not text.startswith("{"):
        return None
    try:
        results = Results.model_validate_json(text)
    except ValidationError:
        return None
    names = {metric.name for metric in results.metrics}
    return results if len(names) == len(results.metrics) else None  # the API server tells metrics apart by name
