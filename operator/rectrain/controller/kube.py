"""Calls to the API server: five verbs on raw objects, errors told apart, nothing decided."""

import json
from typing import Any, Protocol
from urllib.parse import quote

import aiohttp
from kubernetes_asyncio.client import ApiClient
from kubernetes_asyncio.client.exceptions import ApiException

from rectrain.api.pod_template import CHILD_NAME_LABEL
from rectrain.controller.errors import (
    AlreadyExistsError,
    ApiError,
    ConflictError,
    KindMissingError,
    NotFoundError,
    RefusedError,
)
from rectrain.controller.kinds import Kind
from rectrain.controller.metrics import API_CALLS
from rectrain.controller.observed import Key, Raw

MERGE_PATCH = "application/merge-patch+json"
STRATEGIC_PATCH = "application/strategic-merge-patch+json"
_TIMEOUT = aiohttp.ClientTimeout(total=15)


class Kube(Protocol):
    """What the controller asks of an API server. Every method may raise an ApiError."""

    async def get(self, kind: Kind, key: Key) -> Raw:
        """Return an object."""

    async def list_pods(self, job: Key) -> list[Raw]:
        """Return the pods that bear a job's name."""

    async def create(self, kind: Kind, body: Raw) -> Raw:
        """Create an object, and return it as it was created."""

    async def patch(
        self, kind: Kind, key: Key, body: Raw, *, content_type: str = MERGE_PATCH, subresource: str = ""
    ) -> Raw:
        """Change an object, and return it as it is then."""

    async def delete(self, kind: Kind, key: Key, *, uid: str, foreground: bool) -> Raw | None:
        """Delete the object of that identity. Return it while it waits for its dependents, None when it is gone."""


class ApiServer:
    """The real one, through kubernetes_asyncio's connection and credentials.

    Its generated methods are left aside: they validate and copy every object into classes, which takes longer than the
    call.

    Args:
        client: A client that knows where the API server is and who we are.
    """

    def __init__(self, client: ApiClient) -> None:
        """Hold the client."""
        self._client = client

    async def get(self, kind: Kind, key: Key) -> Raw:
        """Return an object."""
        return await self._call("GET", kind, kind.path(key.namespace, key.name))

    async def list_pods(self, job: Key) -> list[Raw]:
        """Return the pods that bear a job's name."""
        path = f"{Kind.POD.path(job.namespace)}?labelSelector={quote(f'{CHILD_NAME_LABEL}={job.name}')}"
        items: list[Raw] = (await self._call("GET", Kind.POD, path))["items"]
        return items

    async def create(self, kind: Kind, body: Raw) -> Raw:
        """Create an object, and return it as it was created."""
        return await self._call("POST", kind, kind.path(body["metadata"]["namespace"]), body)

    async def patch(
        self, kind: Kind, key: Key, body: Raw, *, content_type: str = MERGE_PATCH, subresource: str = ""
    ) -> Raw:
        """Change an object, and return it as it is then."""
        return await self._call("PATCH", kind, kind.path(key.namespace, key.name, subresource), body, content_type)

    async def replace(self, kind: Kind, key: Key, body: Raw) -> Raw:
        """Replace an object that has not changed since it was read, and return it as it is then."""
        return await self._call("PUT", kind, kind.path(key.namespace, key.name), body)

    async def delete(self, kind: Kind, key: Key, *, uid: str, foreground: bool) -> Raw | None:
        """Delete the object of that identity. Return it while it waits for its dependents, None when it is gone."""
        options = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "propagationPolicy": "Foreground" if foreground else "Background",
            "preconditions": {"uid": uid},
        }
        answer = await self._call("DELETE", kind, kind.path(key.namespace, key.name), options)
        return None if answer["kind"] == "Status" else answer

    async def _call(
        self, verb: str, kind: Kind, path: str, body: Any = None, content_type: str = "application/json"
    ) -> Raw:
        headers = {"Accept": "application/json", "Content-Type": content_type, **self._client.default_headers}
        await self._client.update_params_for_auth(headers, [], ["BearerToken"])
        code = 0
        try:
            answer = await self._client.rest_client.request(
                verb,
                self._client.configuration.host + path,
                headers=headers,
                body=body,
                _request_timeout=_TIMEOUT,
            )
            code = answer.status
            found: Raw = json.loads(answer.data)
            return found
        except ApiException as error:
            code = error.status
            raise error_of(f"{verb} {path}", error.status, _text(error.body)) from None
        except (TimeoutError, aiohttp.ClientError, OSError, ValueError) as error:
            raise ApiError(f"{verb} {path}: {type(error).__name__}: {error}") from error
        finally:
            API_CALLS.labels(verb=verb, kind=kind.plural, code=str(code)).inc()


def error_of(call: str, code: int, body: str) -> ApiError:
    """Return what an HTTP status and a body other than success come to.

    Args:
        call: Verb and path, for the message.
        code: HTTP status.
        body: A Status object as JSON, or text.
    """
    try:
        status = json.loads(body)
    except ValueError:
        status = {}
    reason, said = (status.get("reason"), status.get("message")) if isinstance(status, dict) else (None, None)
    message = f"{call}: {said or body[:500] or f'HTTP {code}'}"
    match code, reason:
        case 404, None:  # no Status object: the path itself is unknown
            return KindMissingError(message)
        case 404, _:
            return NotFoundError(message)
        case 409, "AlreadyExists":
            return AlreadyExistsError(message)
        case 409, _:
            return ConflictError(message)
        case ((400 | 422), _):
            return RefusedError(said or message, permanent=True)
        case 403, _:
            return RefusedError(said or message, permanent=False)
    return ApiError(message)


def _text(body: Any) -> str:
    return body.decode(errors="replace") if isinstance(body, bytes) else str(body or "")
