"""The HTTP interface that Label Studio speaks to."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

import tcl_core
from labelstudio_backend.middleware import BasicAuth, BodyLimit, NoTracebacks
from labelstudio_backend.schemas import PredictRequest, SetupRequest, Versions
from labelstudio_backend.service import BusyError, RefusedError, Service
from labelstudio_backend.settings import ServerSettings
from tcl_core.errors import TclError

__all__ = ["create_app"]

_RETRY_SECONDS = "5"
_ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"description": "The labeling configuration or the request cannot be used."},
    401: {"description": "Wrong or missing credentials."},
    408: {"description": "The request's body did not come in time."},
    413: {"description": "The request is too large."},
    503: {"description": "Too many or too large requests wait, or there is no model."},
}


def create_app(settings: ServerSettings) -> FastAPI:
    """Make the application; it starts the worker process when it is started.

    Args:
        settings: of the server.

    Returns:
        An ASGI application, whose `Service` is its ``state.service``.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service = Service(settings)
        app.state.service = service
        async with service.fetcher:
            service.supervisor.start()
            service.replacer.start()
            try:
                yield
            finally:
                await service.replacer.stop()
                await service.supervisor.stop()

    app = FastAPI(
        title="tcl-annotate, ML backend for Label Studio",
        version=tcl_core.__version__,
        lifespan=lifespan,
        # The interactive pages would load programs from another host.
        docs_url=None,
        redoc_url=None,
    )
    _add_routes(app)
    _add_error_handlers(app)
    # The last one added is the first to see a request.
    app.add_middleware(
        BodyLimit,
        max_bytes=settings.max_body_bytes,
        max_total=max(settings.max_body_bytes, settings.connections.max_bodies_bytes),
        seconds=settings.connections.body_seconds,
    )
    if settings.credentials:
        app.add_middleware(BasicAuth, credentials=settings.credentials)
    app.add_middleware(NoTracebacks)
    return app


def _add_routes(app: FastAPI) -> None:
    def service() -> Service:
        return app.state.service

    @app.get("/", responses=_ERRORS)
    @app.get("/health")
    async def health() -> dict[str, str]:
        """Report that the server is up, whatever the state of the worker."""
        return {"status": "UP", "model_class": "tcl-annotate"}

    @app.post("/setup", responses=_ERRORS)
    async def setup(request: SetupRequest) -> dict[str, str]:
        """Register a project. Nothing is loaded here, because Label Studio waits only three seconds."""
        return {"model_version": await service().setup(request)}

    @app.post("/predict", responses=_ERRORS)
    async def predict(request: PredictRequest) -> Response:
        """Predict tasks. The documentation describes the context."""
        return Response(await service().predict(request), media_type="application/json")

    @app.get("/versions", responses=_ERRORS)
    @app.post("/versions", responses=_ERRORS)
    async def versions() -> Versions:
        """Model versions returned since the server started."""
        return Versions(versions=service().versions())

    @app.post("/webhook", responses=_ERRORS)
    async def webhook() -> dict[str, str]:
        """Accept Label Studio's webhooks; the model does not learn from annotations."""
        return {"status": "ignored"}

    @app.get("/status", responses=_ERRORS)
    async def status() -> dict[str, Any]:
        """Status of the server: model, queue, and recently failed tasks with the reasons."""
        return service().status()

    @app.get("/metrics", responses=_ERRORS)
    async def metrics() -> Response:
        """Metrics for Prometheus."""
        return Response(service().metrics.render(), media_type=CONTENT_TYPE_LATEST)


def _add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(RequestValidationError)
    async def malformed(_: Request, error: RequestValidationError) -> JSONResponse:
        # FastAPI's own answer repeats the input, which fails for numbers that JSON does not have.
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return JSONResponse({"detail": f"{where}: {first['msg']}"}, status_code=422)

    @app.exception_handler(TclError)
    async def bad_request(_: Request, error: TclError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, status_code=400)

    @app.exception_handler(RefusedError)
    async def refused(_: Request, error: RefusedError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, status_code=400)

    @app.exception_handler(BusyError)
    async def busy(_: Request, error: BusyError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, status_code=503, headers={"Retry-After": _RETRY_SECONDS})
