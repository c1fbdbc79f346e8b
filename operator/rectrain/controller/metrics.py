"""The controller's own Prometheus metrics. None is labelled with a job's name: jobs come and go, series would stay."""

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from rectrain.api.status import State
from rectrain.controller.observed import Raw

REGISTRY = CollectorRegistry()

RECONCILES = Counter(
    "rectrain_controller_reconcile", "Passes over a job, by how they ended.", ["result"], registry=REGISTRY
)
RECONCILE_SECONDS = Histogram(
    "rectrain_controller_reconcile_time_seconds",
    "Duration of a pass over a job.",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
    registry=REGISTRY,
)
ACTIONS = Counter("rectrain_controller_actions", "What passes did, by kind of action.", ["action"], registry=REGISTRY)
API_CALLS = Counter(
    "rectrain_controller_api_requests",
    "Calls to the API server, without watches, by verb, kind and HTTP status (0: no answer).",
    ["verb", "kind", "code"],
    registry=REGISTRY,
)
WATCH_EVENTS = Counter("rectrain_controller_watch_events", "Events from watches.", ["kind"], registry=REGISTRY)
PROGRESS_READS = Counter(
    "rectrain_controller_progress_reads",
    "Readings of workers' progress, by how they ended.",
    ["result"],
    registry=REGISTRY,
)
LEADER = Gauge("rectrain_controller_leader", "1 where this process is the one that acts.", registry=REGISTRY)


class JobsCollector(Collector):
    """Counts jobs by state and adds up their throughput when metrics are read.

    Args:
        statuses: Yields the status of each job.
        queue_depth: Returns the number of jobs whose turn it is.
        watch_lag: Returns for how many seconds a watch has owed what is known otherwise.
    """

    def __init__(
        self,
        statuses: Callable[[], Iterable[Raw]],
        queue_depth: Callable[[], int],
        watch_lag: Callable[[], float],
    ) -> None:
        """Hold where the figures come from."""
        self._statuses = statuses
        self._queue_depth = queue_depth
        self._watch_lag = watch_lag

    def collect(self) -> Iterable[Metric]:
        """Yield the figures."""
        counts = dict.fromkeys(map(str, State), 0)
        rows, restarts = 0.0, 0
        for status in self._statuses():
            state = status.get("state") or State.PENDING
            counts[state] = counts.get(state, 0) + 1
            restarts += status.get("restarts") or 0
            if state == State.RUNNING:
                rows += (status.get("progress") or {}).get("examplesPerSecond") or 0.0
        jobs = GaugeMetricFamily("rectrain_jobs", "RecTrainingJobs, by state.", labels=["state"])
        for state, count in counts.items():
            jobs.add_metric([state], count)
        yield jobs
        yield _gauge("rectrain_examples_per_second", "Rows trained on in a second, of all running jobs.", rows)
        yield _gauge("rectrain_job_restarts", "Restarts after failures of the jobs that are there.", restarts)
        yield _gauge("rectrain_workqueue_depth", "Jobs whose turn it is.", self._queue_depth())
        yield _gauge(
            "rectrain_watch_lag_seconds", "For how long a watch has owed what is known otherwise.", self._watch_lag()
        )


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, value=value)
