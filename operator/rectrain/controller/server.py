"""The controller's HTTP server: /healthz for the kubelet, /metrics for Prometheus."""

from collections.abc import Callable

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

MAX_WATCH_LAG = 120.0
"""Seconds that a watch may owe what is known otherwise. kopf notices most dead watches within 70 s by itself."""


class CannotListenError(Exception):
    """The address is not this machine's, or taken."""


async def serve(host: str, port: int, registry: CollectorRegistry, watch_lag: Callable[[], float]) -> web.AppRunner:
    """Start the server; the caller cleans the runner up.

    Args:
        host: Address to listen on.
        port: Port to listen on.
        registry: The metrics.
        watch_lag: Returns for how many seconds a watch has owed what is known otherwise.

    Raises:
        CannotListenError: Nothing can be heard there.
    """

    async def healthz(_: web.Request) -> web.Response:
        lag = watch_lag()
        if lag > MAX_WATCH_LAG:
            return web.Response(status=503, text=f"a watch has told nothing of a change for {lag:.0f} s\n")
        return web.Response(text="ok\n")

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.add_routes([web.get("/healthz", healthz), web.get("/metrics", metrics)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError as error:
        await runner.cleanup()
        raise CannotListenError(f"{host}:{port}: {error.strerror or error}") from None
    return runner
