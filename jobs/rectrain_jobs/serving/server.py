"""Run an application as a process."""

import uvicorn
from fastapi import FastAPI

_DRAIN_SECONDS = 20
_IDLE_SECONDS = 75
"""Longer than load balancers keep idle connections (60 s), so that no request comes on one that was just closed."""


def serve(app: FastAPI, host: str, port: int) -> None:
    """Serve until SIGTERM or SIGINT; requests that have come are answered first.

    Args:
        app: The application.
        host: Address to listen on.
        port: Port to listen on.
    """
    uvicorn.run(
        app,
        host=host,
        port=port,
        loop="uvloop",
        http="httptools",
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,  # nothing asks where a request comes from
        timeout_keep_alive=_IDLE_SECONDS,
        timeout_graceful_shutdown=_DRAIN_SECONDS,
    )
