"""Calls to the API server: five verbs on raw objects, errors told apart, nothing decided."""

import json
import re
from typing import Any, Protocol
from urllib.parse import quote

import aiohttp

from rectrain.controller.connection import Connection, NoClusterError
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

_ADMISSION = re.compile(r"admission webhook|ValidatingAdmissionPolicy")
MERGE_PATCH = "application/merge-patch+json"
STRATEGIC_PATCH = "application/strategic-merge-patch+json"


class Kube(Protocol):
    """What the controller asks of an API server. Every method may raise an ApiError."""

    async def get(self, kind: Kind, key: Key) -> Raw:
        """Return an object."""

    async def list_pods(self, key: Key, label: str) -> list[Raw]:
        """Return the pods whose label says that they are of the object of that name."""

    async def list_warnings(self, namespace: str, uid: str) -> list[Raw]:
        """Return the events of type Warning about the object of that identity."""

    async def create(self, kind: Kind, body: Raw) -> Raw:
        """Create an object, and return it as it was created."""

    async def patch(
        self, kind: Kind, key: Key, body: Raw, *, content_type: str = MERGE_PATCH, subresource: str = ""
    ) -> Raw:
        """Change an object, and return it as it is then."""

    async def delete(self, kind: Kind, key: Key, *, uid: str, foreground: bool) -> Raw | None:
        """Delete the object of that identity. Return it while it waits for its dependents, None when it is gone."""


class ApiServer:
    """The real one.

    Args:
        connection: The way to it.
    """

    def __init__(self, connection: Connection) -> None:
        """Hold the connection."""
        self._connection = connection

    async def get(self, kind: Kind, key: Key) -> Raw:
        """Return an object."""
        return await self._call("GET", kind, kind.path(key.namespace, key.name))

    async def list_pods(self, key: Key, label: str) -> list[Raw]:
        """Return the pods whose label says that they are of the object of that name."""
        return await self._list(Kind.POD, key.namespace, f"labelSelector={quote(f'{label}={key.name}')}")

    async def list_warnings(self, namespace: str, uid: str) -> list[Raw]:
        """Return the events of type Warning about the object of that identity."""
        return await self._list(Kind.EVENT, namespace, f"fieldSelector={quote(f'regarding.uid={uid},type=Warning')}")

    async def list_one(self, kind: Kind, namespace: str) -> None:
        """List at most one object of a namespace, or of all where it is empty: whether that is allowed."""
        await self._list(kind, namespace, "limit=1")

    async def create(self, kind: Kind, body: Raw) -> Raw:
        """Create an object, and return it as it was created."""
        # Else a field of a pod template that is misspelt, such as nodeSelektor, would be left out without a word.
        path = f"{kind.path(body['metadata']['namespace'])}?fieldValidation=Strict"
        return await self._call("POST", kind, path, body)

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

    async def _list(self, kind: Kind, namespace: str, query: str) -> list[Raw]:
        items: list[Raw] = (await self._call("GET", kind, f"{kind.path(namespace)}?{query}"))["items"]
        return items

    async def _call(
        self, verb: str, kind: Kind, path: str, body: Any = None, content_type: str = "application/json"
    ) -> Raw:
        headers = {"Accept": "application/json", "Content-Type": content_type}
        code = 0
        try:
            text = None if body is None else json.dumps(body)
            code, answer = await self._connection.request(verb, path, text, headers)
            if not 200 <= code < 300:
                raise error_of(f"{verb} {path}", code, answer)
            found: Raw = json.loads(answer)
            return found
        except (TimeoutError, aiohttp.ClientError, OSError, ValueError, NoClusterError) as error:
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
            # A webhook's or a policy's no may be a yes later.
            return RefusedError(said or message, permanent=_ADMISSION.search(message) is None)
        case 403, _:
            return RefusedError(said or message, permanent=False)
    return ApiError(message)
