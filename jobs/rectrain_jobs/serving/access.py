"""Who may call what: bearer tokens, and a limit to the size of bodies."""

import asyncio
import hmac
import ipaddress
from collections.abc import Awaitable, Callable, Collection, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from rectrain.api.errors import UserError

_SHORTEST_TOKEN = 16
Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Refusal(NamedTuple):
    """Why a request is not answered."""

    status: int
    detail: str


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

    def refusal_of_caller(self, given: str | None) -> Refusal | None:
        """Return why who gives a token may not call; None if so."""
        accepted = [token for token in (self.token, self.admin_token) if token is not None]
        if self.token is None or _is_one_of(given, accepted):
            return None
        return Refusal(401, "a bearer token is needed: Authorization: Bearer TOKEN")

    def refusal_of_administrator(self, given: str | None) -> Refusal | None:
        """Return why who gives a token may not change the service; None if so."""
        if self.admin_token is None:
            if not self.admin_without_token and self.refusal_of_caller(given) is None:
                return Refusal(403, "the service was started without an administrator's token; nobody may do this")
            return self.refusal_of_caller(given)
        if given is None:
            return Refusal(401, "the administrator's bearer token is needed")
        return None if _is_one_of(given, [self.admin_token]) else Refusal(403, "the token is not the administrator's")


def _is_one_of(given: str | None, tokens: list[str]) -> bool:
    # Every token is compared, and in constant time, so that the time of an answer tells nothing.
    return any([hmac.compare_digest((given or "").encode(), token.encode()) for token in tokens])


class Guard:
    """Asks for tokens before anything of a request is read.

    Args:
        app: The application.
        access: The tokens.
        calls: Paths that callers may use; all other paths below are everybody's.
        administration: Paths that change the service.
    """

    def __init__(self, app: App, access: Access, calls: Collection[str], administration: Collection[str]) -> None:
        """Hold the application."""
        self._app = app
        self._refusals = dict.fromkeys(calls, access.refusal_of_caller)
        self._refusals |= dict.fromkeys(administration, access.refusal_of_administrator)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        refusal_of = self._refusals.get(scope["path"]) if scope["type"] == "http" else None
        refusal = None if refusal_of is None else refusal_of(_bearer_token(scope))
        if refusal is None:
            await self._app(scope, receive, send)
        else:
            more = [(b"www-authenticate", b"Bearer")] if refusal.status == 401 else []
            await send_problem(send, refusal.status, refusal.detail, more)


def _bearer_token(scope: Scope) -> str | None:
    for name, value in scope["headers"]:
        if name == b"authorization":
            scheme, _, token = value.decode("latin-1").partition(" ")
            return token.strip() if scheme.lower() == "bearer" else None
    return None


def problem(detail: str) -> bytes:
    """Return the body that says what is wrong. Callers' own text may be in it, and need not be text in UTF-8."""
    return orjson.dumps({"detail": detail.encode(errors="backslashreplace").decode()})


async def send_problem(send: Send, status: int, detail: str, headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
    """Answer a request with what is wrong."""
    body = problem(detail)
    kind, length = (b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [kind, length, *headers]})
    await send({"type": "http.response.body", "body": body})


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
    """Reads bodies, and refuses those over a size, by their header before they are read, and those that do not come.

    Args:
        app: The application; it finds a body as one message.
        most: Bytes.
        seconds: Time in which a body has to come.
    """

    def __init__(self, app: App, most: int, seconds: float = 30.0) -> None:
        """Hold the application."""
        self._app = app
        self._most = most
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        length = next((value for name, value in scope["headers"] if name == b"content-length"), b"")
        if length.isdigit() and int(length) > self._most:
            await self._refuse(send)
            return
        body = bytearray()
        more = True
        try:
            async with asyncio.timeout(self._seconds):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return
                    body += message.get("body", b"")
                    more = message.get("more_body", False)
                    if len(body) > self._most:
                        await self._refuse(send)
                        return
        except TimeoutError:
            detail = f"the body did not come within {self._seconds:g} seconds"
            await send_problem(send, 408, detail, [(b"connection", b"close")])
            return
        whole: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def read() -> Message:
            return whole.pop() if whole else await receive()

        await self._app(scope, read, send)

    async def _refuse(self, send: Send) -> None:
        detail = f"the body is too large; the service takes up to {self._most:,} bytes"
        await send_problem(send, 413, detail, [(b"connection", b"close")])
