"""The recall service's Prometheus metrics. None is labelled with what callers send."""

from collections.abc import Collection

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from rectrain_jobs.serving.access import App, Message, Receive, Scope, Send
from rectrain_jobs.serving.recall_model import Answer, Recaller


class RecallMetrics:
    """Counts of one service."""

    def __init__(self) -> None:
        """Make the metrics, in a registry of their own."""
        registry = self._registry = CollectorRegistry()
        self._requests = Counter(
            "rectrain_recall_requests", "Calls, by path and HTTP status.", ["path", "code"], registry=registry
        )
        self._seconds = Histogram(
            "rectrain_recall_time_seconds",
            "Time in which a recall was answered, without reading and writing it.",
            buckets=(0.0005, 0.001, 0.0015, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5),
            registry=registry,
        )
        self._users = Counter(
            "rectrain_recall_users", "Users answered, by where their items are from.", ["source"], registry=registry
        )
        self._unknown = Counter(
            "rectrain_recall_unknown_ids", "Ids in requests that the model does not know.", registry=registry
        )
        self._reloads = Counter(
            "rectrain_recall_reloads",
            "Loadings of a bundle or index, by how they ended.",
            ["result"],
            registry=registry,
        )
        self._ready = Gauge("rectrain_recall_ready", "1 where recalls are answered.", registry=registry)
        self._version = Gauge(
            "rectrain_recall_version_info",
            "What recalls are answered from.",
            ["model_version", "index_version"],
            registry=registry,
        )
        self._counters: dict[tuple[str, int], Counter] = {}
        self._of_model, self._popular = (self._users.labels(source) for source in ("model", "popularity"))
        for result in ("loaded", "failed"):
            self._reloads.labels(result)

    def request(self, path: str, code: int) -> None:
        """Count a call."""
        counter = self._counters.get((path, code))  # looking it up by labels takes longer
        if counter is None:
            counter = self._counters[path, code] = self._requests.labels(path, code)
        counter.inc()

    def answered(self, answer: Answer, seconds: float) -> None:
        """Count the users of a recall."""
        self._seconds.observe(seconds)
        popular = answer.sources.count("popularity")
        if popular:
            self._popular.inc(popular)
        if popular < len(answer.sources):
            self._of_model.inc(len(answer.sources) - popular)
        if any(answer.unknown):
            self._unknown.inc(sum(answer.unknown))

    def reload(self, loaded: bool) -> None:
        """Count a loading."""
        self._reloads.labels("loaded" if loaded else "failed").inc()

    def exposition(self, recaller: Recaller | None) -> bytes:
        """Return all metrics in Prometheus's text form.

        Args:
            recaller: What recalls are answered from; None while they are not.
        """
        self._ready.set(recaller is not None)
        self._version.clear()
        if recaller is not None:
            self._version.labels(recaller.model.version, recaller.index.version.name).set(1)
        return generate_latest(self._registry)


class CountedRequests:
    """Counts every call of an application.

    Args:
        app: The application.
        metrics: Where.
        paths: The paths that there are. Callers' own are no label: there is no end to them.
    """

    def __init__(self, app: App, metrics: RecallMetrics, paths: Collection[str]) -> None:
        """Hold them."""
        self._app = app
        self._metrics = metrics
        self._paths = frozenset(paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        path = scope["path"] if scope["path"] in self._paths else "other"
        is_answered = False

        async def counted(message: Message) -> None:
            nonlocal is_answered
            if message["type"] == "http.response.start":
                is_answered = True
                self._metrics.request(path, message["status"])
            await send(message)

        try:
            await self._app(scope, receive, counted)
        except Exception:
            if not is_answered:  # what lies outside answers it
                self._metrics.request(path, 500)
            raise
