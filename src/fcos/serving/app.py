"""The HTTP application: routes of the service, its OpenAPI document and its web page."""

from __future__ import annotations

import hmac
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException

from ..inference.draw import class_color, draw
from . import protocol
from .bodies import read_body, read_images
from .images import Form, encode
from .middleware import RequestLog
from .problems import Problem, describe, to_response
from .schemas import (
    FAILURES,
    Options,
    describe_problems,
    describe_request,
    describe_result,
    to_result,
)
from .service import Detected, Service
from .settings import Settings

if TYPE_CHECKING:
    from ..inference.predictor import Detector

_BEARER = HTTPBearer(auto_error=False, description="Only if the server was started with --token.")
_PAGE = Path(__file__).with_name("page")
_TYPES = {".html": "text/html; charset=utf-8", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}


def create_app(detector: Detector, settings: Settings | None = None) -> FastAPI:
    """Create the ASGI application of a detector; `fcos serve` runs it with uvicorn.

    Args:
        detector: trained detector. Nothing else may use it while the application runs.
        settings: options of the service; None: the defaults.
    """
    from .. import __version__

    service = Service(detector, settings or Settings())

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await service.start()
        yield
        await service.stop()

    app = FastAPI(
        title="fcos",
        version=__version__,
        description="Object detection in images.",
        lifespan=lifespan,
        docs_url=None,  # these pages load scripts from other machines
        redoc_url=None,
    )
    app.state.service = service
    app.add_middleware(RequestLog, metrics=service.metrics)
    app.add_exception_handler(Problem, _answer_problem)
    app.add_exception_handler(RequestValidationError, _answer_problem)
    app.add_exception_handler(HTTPException, _answer_problem)
    protected: dict[str, Any] = {
        "dependencies": [Depends(_authorization(service.settings.token))],
        "responses": describe_problems({401: "The token is missing or wrong."}),
    }
    app.include_router(_public_routes(service))
    app.include_router(_detection_routes(service), **protected)
    app.include_router(protocol.routes(service), **protected)
    return app


async def _answer_problem(request: Request, error: Exception) -> Response:
    if isinstance(error, RequestValidationError):
        problem = Problem(422, describe(error.errors()))
    elif isinstance(error, HTTPException):
        problem = Problem(error.status_code, str(error.detail), error.headers)
    else:
        assert isinstance(error, Problem)
        problem = error
    return to_response(problem, path=request.url.path)


def _authorization(token: str | None) -> Any:
    """Return a dependency that rejects requests without the token."""

    def check(given: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)]) -> None:
        if token is not None and not hmac.compare_digest((given.credentials if given else "").encode(), token.encode()):
            raise Problem(401, "a valid bearer token is required", {"WWW-Authenticate": "Bearer"})

    return check


def _public_routes(service: Service) -> APIRouter:
    """Return the routes that need no token: the page, which contains no data, and the state of the service."""
    router = APIRouter()
    files = {file.name: file.read_bytes() for file in _PAGE.iterdir() if file.suffix in _TYPES}

    def respond(name: str) -> Response:
        headers = {"Cache-Control": "no-cache"}
        return Response(files[name], media_type=_TYPES[Path(name).suffix], headers=headers)

    @router.get("/", include_in_schema=False)
    def page() -> Response:
        return respond("index.html")

    @router.get("/page/{name}", include_in_schema=False)
    def page_file(name: str) -> Response:
        if name not in files:
            raise Problem(404, "Not Found")
        return respond(name)

    @router.get("/v2/health/live", tags=["state"], summary="Whether the server runs")
    def live() -> dict[str, bool]:
        return {"live": True}

    @router.get(
        "/v2/health/ready",
        tags=["state"],
        summary="Whether the server accepts images",
        responses=describe_problems({503: "The server is starting or stopping."}),
    )
    def ready() -> dict[str, bool]:
        if not service.is_ready:
            raise Problem(503, "the server is starting or stopping")
        return {"ready": True}

    return router


def _detection_routes(service: Service) -> APIRouter:
    router = APIRouter()
    settings, detector = service.settings, service.detector

    @router.post(
        "/v1/detect",
        tags=["detection"],
        summary="Detect objects in images",
        openapi_extra=describe_request(),
        responses={**describe_result(), **describe_problems(FAILURES)},
    )
    async def detect(request: Request, options: Annotated[Options, Query()]) -> Response:
        """Detect objects in one or several images.

        The body is an image file, a form with files (`multipart/form-data`), or JSON with image files in base64. The
        result is JSON, or the annotated image as PNG or JPEG (of a single image).
        """
        form = options.format
        selection = service.selection(**options.model_dump(exclude={"format"}))
        async with service.admit() as ticket:
            async with ticket.time_limit(Problem(408, f"the body did not arrive within {settings.timeout:g} s")):
                body = await read_body(request, settings.max_body)
            files = await ticket.run(read_images, request.headers.get("content-type", ""), body)
            if form != "json" and len(files) > 1:
                raise Problem(422, f"format: {form} is for a single image, found {len(files)}; use json")
            detected = await service.detect(files, selection, ticket, keep_pictures=form != "json")
            request.state.log = {"images": len(files), "detections": sum(len(image.instances) for image in detected)}
            if form == "json":
                # Image by image, as decoding.
                ids = detector.category_ids
                images = [await ticket.run(to_result, image.instances, ids) for image in detected]
                return await ticket.run(JSONResponse, {"model": settings.name, "images": images})
            return Response(await ticket.run(_annotate, detected[0], form), media_type=f"image/{form}")

    @router.get("/v1/model", tags=["detection"], summary="Classes and limits of the model")
    def model() -> dict[str, Any]:
        rows = zip(detector.label_names, detector.category_ids, detector.thresholds.tolist(), strict=True)
        return {
            "name": settings.name,
            "classes": [
                {"name": name, "category_id": i, "threshold": threshold, "color": f"#{bytes(class_color(label)).hex()}"}
                for label, (name, i, threshold) in enumerate(rows)
            ],
            "masks": service.has_masks,
            "keypoints": service.has_keypoints,
            "skeleton": service.skeleton,
            "limits": {"images": settings.max_queue, "bytes": settings.max_body, "pixels": settings.max_pixels},
        }

    @router.get(
        "/metrics",
        tags=["state"],
        summary="Metrics in the format of Prometheus",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    def metrics() -> Response:
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return router


def _annotate(image: Detected, form: Form) -> bytes:
    assert image.picture is not None
    return encode(draw(image.picture, image.instances), form)
