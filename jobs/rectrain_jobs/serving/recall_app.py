"""The recall service over HTTP."""

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any, Generic, TypeVar

import orjson
from fastapi import Body, FastAPI, HTTPException, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.routing import Route

from rectrain.api.errors import UserError
from rectrain_jobs.retrieval.base import UnavailableError
from rectrain_jobs.serving import recall_api as api
from rectrain_jobs.serving.access import Access, BodyLimit, Guard, Receive, Scope, Send, problem
from rectrain_jobs.serving.recall_metrics import CountedRequests, RecallMetrics
from rectrain_jobs.serving.recall_model import Answer, Recaller
from rectrain_jobs.serving.recall_service import BusyError, NotReadyError, RecallService

_LOG = logging.getLogger(__name__)
_B = TypeVar("_B", bound=BaseModel)
_USERS_AT_ONCE = 4
"""Users up to which a request is computed where it came in: handing it to a thread takes longer than a user does."""


@dataclass(frozen=True)
class Limits:
    """What one request may ask for.

    Attributes:
        top_k: Items for a user.
        users: Users.
        history: Items in a history, and elements of a list among the user features.
        body_bytes: Size of the body.
    """

    top_k: int = 1000
    users: int = 256
    history: int = 1000
    body_bytes: int = 1 << 20

    def check(self, request: api.RecallRequest) -> None:
        """Refuse a request that asks for more.

        Raises:
            UserError: It names the field.
        """
        if request.top_k > self.top_k:
            raise UserError(f"top_k: is {request.top_k}; the service gives up to {self.top_k}")
        for name, users in (("hist_item", request.hist_item), ("user_features", request.user_features)):
            if users is not None and len(users) > self.users:
                raise UserError(f"{name}: is of {len(users)} users; the service takes up to {self.users}")
        for number, history in enumerate(request.hist_item or ()):
            if len(history) > self.history:
                raise UserError(f"hist_item.{number}: has {len(history)} items; the service takes up to {self.history}")
        for number, features in enumerate(request.user_features or ()):
            for name, value in features.items():
                if isinstance(value, list) and len(value) > self.history:
                    raise UserError(
                        f"user_features.{number}.{name}: has {len(value)} elements; the service takes up to "
                        f"{self.history}"
                    )


@dataclass(frozen=True)
class AppSettings:
    """How a service is offered.

    Attributes:
        limits: What one request may ask for.
        access: Who may call.
        follow_seconds: How often it is looked whether bundle or index have changed; 0 for never.
    """

    limits: Limits = field(default_factory=Limits)
    access: Access = field(default_factory=Access)
    follow_seconds: float = 10.0


def recall_app(service: RecallService, settings: AppSettings) -> FastAPI:
    """Return the application.

    Args:
        service: What it offers.
        settings: How.
    """
    metrics = RecallMetrics()
    limits = settings.limits

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        following = asyncio.create_task(_follow(service, metrics, settings.follow_seconds))
        try:
            yield
        finally:
            following.cancel()
            service.close()

    app = FastAPI(
        title="rectrain recall",
        description="Items for users, by the vectors of a trained model. "
        f"A request may ask for {limits.users} users, {limits.top_k} items for each, and have histories of "
        f"{limits.history} items, in {limits.body_bytes:,} bytes.",
        version="1",
        lifespan=lifespan,
    )

    @app.post(_RECALL, tags=["recall"], response_model=api.RecallAnswer, responses=_problems(401, 408, 413, 422, 503))
    async def recall(request: api.RecallRequest) -> Response:
        """Find items for users.

        Each user's history becomes one vector or several; the `top_k` nearest items of each are merged by score, every
        item once. Ids that the model does not know are left out and counted; a user of whom nothing is known gets
        popular items.
        """
        limits.check(request)
        recaller = service.current
        began = time.perf_counter()
        users = len(request.hist_item or request.user_features or ())
        if users <= _USERS_AT_ONCE and recaller.index.is_local:
            answer = recaller.answer(request)
        else:
            answer = await run_in_threadpool(recaller.answer, request)
        metrics.answered(answer, time.perf_counter() - began)
        return Response(_json(answer, recaller), media_type="application/json")

    @app.post("/rec/count", tags=["recall"], response_model=api.CountAnswer, responses=_problems(401, 408, 413, 503))
    async def count() -> api.CountAnswer:
        """Count the items in the index."""
        return api.CountAnswer(count=await run_in_threadpool(service.count))

    @app.post(
        "/rec/insert_data",
        tags=["administration"],
        response_model=api.InsertAnswer,
        responses=_problems(401, 403, 408, 409, 413, 422),
    )
    async def insert_data() -> api.InsertAnswer:
        """Put the vectors of the model's items into the index, as a new version that is verified and then served."""
        recaller = await _changed(metrics, service.insert)
        version = recaller.index.version
        return api.InsertAnswer(inserted=version.items, index_version=version.name)

    @app.post(
        "/rec/reload",
        tags=["administration"],
        response_model=api.LoadedAnswer,
        responses=_problems(400, 401, 403, 408, 409, 413, 422),
    )
    async def reload(request: Annotated[api.ReloadRequest | None, Body()] = None) -> api.LoadedAnswer:
        """Load the bundle and the index anew, or another bundle; what was there answers until both are loaded."""
        bundle = request.bundle if request is not None else None
        recaller = await _changed(metrics, lambda: service.reload(bundle))
        return api.LoadedAnswer(model_version=recaller.model.version, index_version=recaller.index.version.name)

    async def drop() -> api.DropAnswer:
        """Remove the index with all its versions. Recalls are not answered until there is another."""
        return api.DropAnswer(dropped=await run_in_threadpool(service.drop))

    for path in _DROP:
        app.post(
            path,
            tags=["administration"],
            response_model=api.DropAnswer,
            responses=_problems(401, 403, 408, 409, 413, 422),
            name=path.strip("/").replace("/", "_"),
        )(drop)

    @app.get("/healthz", tags=["health"], response_class=Response, responses={200: _TEXT})
    async def healthz() -> Response:
        """Tell whether the process is alive."""
        return Response("ok\n", media_type="text/plain")

    @app.get("/readyz", tags=["health"], response_model=api.LoadedAnswer, responses=_problems(503))
    async def readyz() -> api.LoadedAnswer:
        """Tell whether recalls are answered, and from what."""
        recaller = service.current
        return api.LoadedAnswer(model_version=recaller.model.version, index_version=recaller.index.version.name)

    @app.get("/metrics", tags=["health"], response_class=Response, responses={200: _TEXT})
    async def exposition() -> Response:
        """Give Prometheus its metrics."""
        try:
            recaller: Recaller | None = service.current
        except NotReadyError:
            recaller = None
        return Response(metrics.exposition(recaller), media_type=CONTENT_TYPE_LATEST)

    _describe_tokens(app)
    _tell_problems(app)
    paths = {route.path for route in app.routes if isinstance(route, Route)}
    # Before FastAPI's own route, which describes it.
    app.router.routes.insert(0, Route(_RECALL, OfBody(api.RecallRequest, recall), methods=["POST"]))
    app.add_middleware(BodyLimit, most=limits.body_bytes)
    app.add_middleware(Guard, access=settings.access, calls=_CALLS, administration=_ADMINISTRATION)
    app.add_middleware(CountedRequests, metrics=metrics, paths=paths)
    return app


class OfBody(Generic[_B]):
    """Gives an endpoint its body, as an application of its own: FastAPI's way there takes as long as many searches.

    Args:
        kind: What the body is.
        endpoint: What answers it.
    """

    def __init__(self, kind: type[_B], endpoint: Callable[[_B], Awaitable[Response]]) -> None:
        """Hold both."""
        self._kind = kind
        self._endpoint = endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, whose body is one message."""
        kind = next((value for name, value in scope["headers"] if name == b"content-type"), b"").decode("latin-1")
        if _JSON.match(kind) is None:
            raise UserError(_not_json(kind))
        try:
            body = self._kind.model_validate_json((await receive())["body"])
        except ValidationError as error:
            raise UserError(api.shown(list(error.errors()))) from None
        await (await self._endpoint(body))(scope, receive, send)


_JSON = re.compile(r"application/([\w.-]+\+)?json\s*(;|$)", re.IGNORECASE)
_RECALL = "/rec/recall"
_DROP = ("/rec/drop", "/qa/drop")
_CALLS = (_RECALL, "/rec/count")
_ADMINISTRATION = ("/rec/insert_data", "/rec/reload", *_DROP)
_TEXT: dict[str, Any] = {"content": {"text/plain": {}}}
_MEANINGS = {
    400: "The body is not text in UTF-8.",
    401: "A token is needed.",
    403: "The token is not the administrator's.",
    408: "The body did not come in time.",
    409: "Another change is going on, or bundle and index do not belong together.",
    413: "The body is too large.",
    422: "The request is wrong.",
    503: "There is no index of the model yet, or its server does not answer.",
}


def _problems(*codes: int) -> dict[int | str, dict[str, Any]]:
    return {code: {"model": api.Problem, "description": _MEANINGS[code]} for code in codes}


def _not_json(kind: str) -> str:
    return f"body: must be JSON with Content-Type: application/json, not {kind or 'none'}"


def _describe_tokens(app: FastAPI) -> None:
    """Say in the OpenAPI document which calls take a token."""
    document = app.openapi()
    document.setdefault("components", {})["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    for path in (*_CALLS, *_ADMINISTRATION):
        document["paths"][path]["post"]["security"] = [{"token": []}]


def _json(answer: Answer, recaller: Recaller) -> bytes:
    body = {
        "items": answer.items,
        "scores": answer.scores,
        "sources": answer.sources,
        "unknown": answer.unknown,
        "model_version": recaller.model.version,
        "index_version": recaller.index.version.name,
    }
    return orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)


async def _changed(metrics: RecallMetrics, change: Callable[[], Recaller]) -> Recaller:
    try:
        recaller = await run_in_threadpool(change)
    except UserError as error:
        metrics.reload(loaded=False)
        raise HTTPException(409, str(error)) from None
    metrics.reload(loaded=True)
    return recaller


async def _follow(service: RecallService, metrics: RecallMetrics, seconds: float) -> None:
    """Load what has changed, every so many seconds; what goes wrong is logged once and tried again."""
    said = ""
    while seconds:
        await asyncio.sleep(seconds)
        try:
            if await run_in_threadpool(service.follow):
                metrics.reload(loaded=True)
            said = ""
        except BusyError:
            continue
        except Exception as error:
            metrics.reload(loaded=False)
            if str(error) != said:
                said = str(error)
                _LOG.warning("what is served stays: %s", error, exc_info=not isinstance(error, UserError))


def _tell_problems(app: FastAPI) -> None:
    """Let every error be answered with a Problem."""

    def answer(status: int, detail: str, headers: Any = None) -> Response:
        return Response(problem(detail), status, headers=headers, media_type="application/json")

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        kind = request.headers.get("content-type", "")
        if "json" not in kind:
            return answer(422, _not_json(kind))
        return answer(422, api.shown(list(error.errors())))

    @app.exception_handler(UserError)
    async def wrong(_: Request, error: UserError) -> Response:
        return answer(422, str(error))

    @app.exception_handler(NotReadyError)
    async def not_ready(_: Request, error: NotReadyError) -> Response:
        return answer(503, f"not ready: {error}", {"Retry-After": "5"})

    @app.exception_handler(UnavailableError)
    async def unavailable(_: Request, error: UnavailableError) -> Response:
        return answer(503, f"the index does not answer: {error}", {"Retry-After": "5"})

    @app.exception_handler(BusyError)
    async def busy(_: Request, error: BusyError) -> Response:
        return answer(409, str(error))

    @app.exception_handler(StarletteHTTPException)
    async def other(_: Request, error: StarletteHTTPException) -> Response:
        return answer(error.status_code, str(error.detail), error.headers)

    @app.exception_handler(Exception)
    async def defect(_: Request, __: Exception) -> Response:  # it is logged, with its traceback
        return answer(500, "an error of the service itself, which its log has")
