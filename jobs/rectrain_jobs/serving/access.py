"""Who may call what: bearer tokens, and a limit to the size of bodies."""

import hmac
import ipaddress
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import orjson
from fastapi import HTTPException, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from rectrain.api.errors import UserError

_SHORTEST_TOKEN = 16
_BEARER = HTTPBearer(auto_error=False, description="The service's token, or the one for administration.")

Credentials = Annotated[HTTPAuthorizationCredentials | None, Security(_BEARER)]
Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


@dataclass(frozen=True)
class Access:
    """Tokens of a service.

    Attributes:
        token: Callers need it or `admin_token`; None lets everybody call.
        admin_token: Calls that change the service need it; None leaves them to whoever may call, or to nobody.
        admin_without_token: Whether calls that change the service are answered without `admin_token`.
    """

    token: str | None = None
    admin_token: str | None = None
    admin_without_token: bool = False

    def __repr__(self) -> str:
        """Say nothing of the tokens."""
        return "Access(...)"

    async def caller(self, credentials: Credentials) -> None:
        """Let a caller pass, as a dependency of FastAPI's."""
        accepted = [token for token in (self.token, self.admin_token) if token is not None]
        if self.token is not None and not _is_one_of(credentials, accepted):
            raise HTTPException(401, "a bearer token is needed: Authorization: Bearer TOKEN", _CHALLENGE)

    async def administrator(self, credentials: Credentials) -> None:
        """Let an administrator pass, as a dependency of FastAPI's."""
        if self.admin_token is None:
            await self.caller(credentials)
            if not self.admin_without_token:
                raise HTTPException(403, "the service was started without an administrator's token; nobody may do this")
        elif credentials is None:
            raise HTTPException(401, "the administrator's bearer token is needed", _CHALLENGE)
        elif not _is_one_of(credentials, [self.admin_token]):
            raise HTTPException(403, "the token is not the administrator's")


_CHALLENGE = {"WWW-Authenticate": "Bearer"}


def _is_one_of(credentials: HTTPAuthorizationCredentials | None, tokens: list[str]) -> bool:
    given = b"" if credentials is None else credentials.credentials.encode()
    # Every token is compared, and in constant time, so that the time of an answer tells nothing.
    return any([hmac.compare_digest(given, token.encode()) for token in tokens])


def read_token(name: str, variable: str | None, file: str | None) -> str | None:
    """Return a token from a file or from the value of an environment variable; None where neither is given.

    Args:
        name: What it is called in messages.
        variable: Value of the environment variable.
        file: Path of the file, whose first line it is; it has precedence.

    Raises:
        UserError: The file cannot be read, or the token is too short to be one.
    """
    token = variable
    if file is not None:
        try:
            token = Path(file).read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{name}: {file} cannot be read: {error}") from None
    if token is None:
        return None
    if len(token) < _SHORTEST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise UserError(f"{name}: must be {_SHORTEST_TOKEN} printable ASCII characters or more, without spaces")
    return token


def is_loopback(host: str) -> bool:
    """Tell whether only this machine reaches an address to listen on."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class BodyLimit:
    """Refuses bodies over a size, by their header before they are read, and while they are read.

    Args:
        app: The application.
        most: Bytes.
    """

    def __init__(self, app: App, most: int) -> None:
        """Hold the application."""
        self._app = app
        self._most = most
        self._answer = orjson.dumps({"detail": f"the body is too large; the service takes up to {most:,} bytes"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        length = next((value for name, value in scope["headers"] if name == b"content-length"), b"")
        if length.isdigit() and int(length) > self._most:
            await self._refuse(send)
            return
        if length:
            await self._app(scope, receive, send)  # the server reads no more than the header says
            return
        body = bytearray()
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self._most:
                await self._refuse(send)
                return
        whole: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def read() -> Message:
            return whole.pop() if whole else await receive()

        await self._app(scope, read, send)

    async def _refuse(self, send: Send) -> None:
        headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": 413, "headers": headers})
        await send({"type": "http.response.body", "body": self._answer})
