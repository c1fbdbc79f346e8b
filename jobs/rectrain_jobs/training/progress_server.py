"""Rank 0's progress over HTTP: /progress for the controller, /metrics for Prometheus."""

import json
import logging
import os
import threading
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PORT_VARIABLE = "RECTRAIN_PROGRESS_PORT"
"""Environment variable of the port; without it nothing is served, as on a laptop."""

_LOG = logging.getLogger(__name__)
_METRICS = {
    "step": ("rectrain_training_step", "Steps done."),
    "totalSteps": ("rectrain_training_steps", "Steps in all."),
    "epoch": ("rectrain_training_epoch", "Current epoch, from 0."),
    "examplesPerSecond": ("rectrain_training_examples_per_second", "Rows of all ranks in a second."),
    "loss": ("rectrain_training_loss", "Training loss."),
}
_REQUEST_SECONDS = 5


class ProgressServer:
    """Serves what it was told last, from a thread of its own.

    Attributes:
        port: Where it listens.

    Args:
        port: Port to listen on, on every address; 0 takes a free one.

    Raises:
        OSError: The port is taken.
    """

    def __init__(self, port: int) -> None:
        """Begin to listen; there is no progress yet."""
        self._progress: Mapping[str, Any] | None = None
        server = self

        class Handler(BaseHTTPRequestHandler):
            timeout = _REQUEST_SECONDS  # a client that says nothing is not waited for

            def do_GET(self) -> None:
                status, kind, body = server.answer(self.path)
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Say nothing: it is asked every few seconds."""

        self._server = ThreadingHTTPServer(("", port), Handler)
        self._server.daemon_threads = True
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, name="progress-server", daemon=True)
        self._thread.start()

    def update(self, progress: Mapping[str, Any]) -> None:
        """Take the newest progress, with the fields of the job's status."""
        self._progress = progress

    def answer(self, path: str) -> tuple[HTTPStatus, str, bytes]:
        """Return status, content type and body of the answer to a request."""
        progress = self._progress
        match path.partition("?")[0]:
            case "/progress" if progress is None:
                return HTTPStatus.SERVICE_UNAVAILABLE, "text/plain", b"training has not begun\n"
            case "/progress":
                return HTTPStatus.OK, "application/json", json.dumps(progress).encode()
            case "/metrics":
                return HTTPStatus.OK, "text/plain; version=0.0.4", _exposition(progress or {}).encode()
        return HTTPStatus.NOT_FOUND, "text/plain", b"there are /progress and /metrics\n"

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def progress_server() -> ProgressServer | None:
    """Return the server that the environment asks for, or None. That it cannot listen does not keep training up."""
    port = os.environ.get(PORT_VARIABLE)
    if not port:
        return None
    try:
        return ProgressServer(int(port))
    except (OSError, ValueError, OverflowError) as error:
        _LOG.warning("progress is not served: %s=%s: %s", PORT_VARIABLE, port, error)
        return None


def _exposition(progress: Mapping[str, Any]) -> str:
    lines = []
    for field, (name, text) in _METRICS.items():
        if progress.get(field) is not None:
            lines += [f"# HELP {name} {text}", f"# TYPE {name} gauge", f"{name} {progress[field]}"]
    return "".join(f"{line}\n" for line in lines)
