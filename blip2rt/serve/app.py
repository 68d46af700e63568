"""The ASGI application: collects the endpoints of all APIs, and adds pages, health checks, error handlers and CORS."""

from functools import cache
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.types import ASGIApp

from ..errors import Blip2rtError
from .endpoints import Endpoint, openapi
from .errors import CLIENT_GONE, ApiError, api_error
from .logs import LOG
from .metrics import CONTENT_TYPE
from .middleware import PAGES, RequestMiddleware
from .protocols import ollama, openai, routes
from .service import Call, Service

_FOLDER = Path(__file__).parent / "pages"
# Nothing is loaded from elsewhere, and no script or style is written into a page.
_CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; media-src blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


async def _health(_: Call) -> Any:
    return {"status": "ok"}


async def _ready(call: Call) -> Any:
    service = call.service
    status = "ending" if service.ending else "stuck" if service.ready and service.queue.is_stuck else "loading"
    if status != "loading" or not service.ready:
        return JSONResponse({"status": status}, 503, {"Retry-After": "2"})
    matcher = service.model.matcher
    labels = matcher.is_calibrated and matcher.rates_captions
    return {"status": "ready", "model": service.name, "pictures": service.pictures, "labels": labels}


async def _metrics(call: Call) -> Response:
    return Response(call.service.metrics.text(), media_type=CONTENT_TYPE)


async def _openapi(call: Call) -> Any:
    return _document(bool(call.service.settings.access.api_keys))


@cache
def _document(needs_key: bool) -> dict[str, Any]:
    return openapi(ENDPOINTS, needs_key)


async def _page(call: Call) -> Response:
    headers = {"Content-Security-Policy": _CONTENT_SECURITY_POLICY, "Cache-Control": "no-cache"}
    return FileResponse(_FOLDER / PAGES[call.request.url.path], headers=headers)


ENDPOINTS = [
    *(Endpoint(path, _page) for path in PAGES),
    Endpoint("/openapi.json", _openapi),
    Endpoint("/health", _health, summary="200 while the server runs"),
    Endpoint("/ready", _ready, summary="200 when the model is loaded, 503 before and while it is stuck"),
    Endpoint("/metrics", _metrics, summary="Metrics for Prometheus"),
    *openai.ENDPOINTS,
    *routes.ENDPOINTS,
    *ollama.ENDPOINTS,
]


_PATHS = frozenset(each.path for each in ENDPOINTS)


def make_app(service: Service) -> ASGIApp:
    """Build the application of a service."""
    handlers: dict[Any, Any] = dict.fromkeys((ApiError, Blip2rtError, MemoryError, Exception), _error_response)
    handlers[HTTPException] = _http_error_response
    app = Starlette(routes=[each.route(service) for each in ENDPOINTS], exception_handlers=handlers)
    app.router.redirect_slashes = False  # an unknown path is 404 in our format
    wrapped = RequestMiddleware(app, service.settings, service.metrics, _PATHS, service.bodies.release)
    origins = list(service.settings.access.origins)
    if not origins:
        return wrapped
    exposed = ["X-Request-Id", "Retry-After"]
    return _Cors(wrapped, origins, allow_methods=["GET", "POST"], allow_headers=["*"], expose_headers=exposed)


class _Cors(CORSMiddleware):
    """The outermost layer, so that pages that may call can read every error. Rejects preflights in our format."""

    def preflight_response(self, request_headers: Headers) -> Response:
        response = super().preflight_response(request_headers)
        if response.status_code == 200:
            return response
        message = "this page may not send this request: start the server with --cors-origin, and use GET or POST"
        return JSONResponse(ApiError(403, message, "origin_not_allowed").body(), 403)


async def _error_response(request: Request, error: Exception) -> Response:
    """Convert an exception. Starlette raises an unexpected one again, and the middleware logs it."""
    failure, context = api_error(error), request.scope["context"]
    if failure.status == CLIENT_GONE:
        context.log_fields["status"] = CLIENT_GONE
        return Response(status_code=400)  # the client has gone
    if failure.status == 500 and isinstance(error, Blip2rtError):
        LOG.error("request failed", exc_info=error, extra={"fields": {"id": context.id}})
    headers = failure.headers()
    if failure.status in (408, 413, 503):
        headers["Connection"] = "close"  # the rest of the body is not read
    context.log_fields["error"] = failure.code
    return JSONResponse(failure.body(request.scope["path"]), failure.status, headers)


async def _http_error_response(request: Request, error: Any) -> Response:
    """Convert Starlette's HTTPException."""
    path, status = request.scope["path"], error.status_code
    message, code = str(error.detail), "http_error"
    if status == 404:
        message, code = f"there is no {path[:100]}: /docs lists all routes", "not_found"
    elif status == 405:
        message = f"{path[:100]} does not accept {request.method[:20]}: /docs lists all routes"
        code = "method_not_allowed"
    return JSONResponse(ApiError(status, message, code).body(path), status, dict(error.headers or {}))
