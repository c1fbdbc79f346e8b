"""The way to the API server: which one, as whom, and one HTTP session for all calls.

kopf finds both for its watches, so the calls go the same way, without a client library: those import a class for every
type of Kubernetes, which takes seconds and a hundred megabytes.
"""

import os
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import aiohttp
import kopf
import yaml

_TIMEOUT = aiohttp.ClientTimeout(total=15)
_FRESH_SECONDS = 60.0
"""The token of a service account is renewed in its file long before it expires."""


class NoClusterError(Exception):
    """There is neither a service account nor a kubeconfig that names a cluster."""


def login(settings: kopf.OperatorSettings) -> kopf.ConnectionInfo:
    """Return the cluster that KUBECONFIG names, else the pod's own by its service account, else ~/.kube/config's.

    Raises:
        NoClusterError: There is none of them, or the kubeconfig is none.
    """
    found = None
    try:
        if "KUBECONFIG" not in os.environ:
            found = kopf.login_with_service_account(settings=settings)
        found = found or kopf.login_with_kubeconfig(settings=settings)
    except (OSError, KeyError, TypeError, AttributeError, yaml.YAMLError, kopf.LoginError) as error:
        raise NoClusterError(f"kubeconfig: {type(error).__name__}: {error}") from None
    if found is None:
        raise NoClusterError("neither a service account nor KUBECONFIG nor ~/.kube/config")
    return found


class Connection:
    """A session with an API server.

    Args:
        info: Which one, and as whom.
        session: Over which calls go.
        settings: Of kopf, to log in anew with.
    """

    def __init__(
        self, info: kopf.ConnectionInfo, session: aiohttp.ClientSession, settings: kopf.OperatorSettings
    ) -> None:
        """Hold them."""
        self._info = info
        self._session = session
        self._settings = settings
        self._known_at = time.monotonic()

    async def request(self, verb: str, path: str, body: str | None, headers: Mapping[str, str]) -> tuple[int, str]:
        """Make a call and return the HTTP status and the body of its answer.

        Raises:
            OSError, TimeoutError, aiohttp.ClientError: There was no answer.
        """
        call = self._session.request(verb, self._info.server + path, data=body, headers={**self._login(), **headers})
        async with call as response:
            return response.status, await response.text()

    def _login(self) -> dict[str, str]:
        if time.monotonic() - self._known_at > _FRESH_SECONDS:
            self._info = login(self._settings)
            self._known_at = time.monotonic()
        return self._info.as_http_headers()


@asynccontextmanager
async def connected(settings: kopf.OperatorSettings) -> AsyncIterator[Connection]:
    """Open a session.

    Raises:
        NoClusterError: No cluster is configured.
    """
    info = login(settings)
    connector = aiohttp.TCPConnector(ssl=info.as_ssl_context())
    async with aiohttp.ClientSession(
        connector=connector, timeout=_TIMEOUT, proxy=info.proxy_url, trust_env=info.trust_env
    ) as session:
        yield Connection(info, session, settings)
