"""Declare a route: path, handler, request model and summary in one Endpoint, from which OpenAPI is generated."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ..version import __version__
from .service import Call, Service

_TEXT = {"type": "string"}
_ERROR = {"message": _TEXT, "type": _TEXT, "code": _TEXT, "param": {"type": ["string", "null"]}}
_ERROR_SCHEMAS = {
    "Error": {"type": "object", "properties": {"error": {"type": "object", "properties": _ERROR}}},
    "OllamaError": {"type": "object", "properties": {"error": _TEXT}},
}


@dataclass(frozen=True)
class Endpoint:
    """A route of the server.

    handler: an async function of (call), or of (call, body) with a request model; it returns a Response, or an object
        that is sent as JSON. It may raise ApiError and Blip2rtError.
    request: the model of a POST's body; a route without one is a GET.
    forms: whether OpenAPI offers multipart/form-data besides JSON.
    summary: for OpenAPI; a route without one is not listed.
    """

    path: str
    handler: Callable[..., Any]
    request: type[BaseModel] | None = None
    summary: str = ""
    forms: bool = False

    def route(self, service: Service) -> Route:
        """Return the route that calls the handler."""

        async def handle(request: Request) -> Response:
            call = Call(service, request)
            body = [] if self.request is None else [await call.read(self.request)]
            result = await self.handler(call, *body)
            return result if isinstance(result, Response) else JSONResponse(result)

        return Route(self.path, handle, methods=["GET" if self.request is None else "POST"])


def openapi(endpoints: Sequence[Endpoint], needs_key: bool) -> dict[str, Any]:
    """Describe the endpoints as OpenAPI 3.1."""
    listed = [each for each in endpoints if each.summary]
    models = [(each.request, "validation") for each in listed if each.request is not None]
    refs, schemas = models_json_schema(models, ref_template="#/components/schemas/{model}")  # type: ignore[arg-type]
    components: dict[str, Any] = {"schemas": {**schemas.get("$defs", {}), **_ERROR_SCHEMAS}}
    paths: dict[str, Any] = {}
    for each in listed:
        responses = {"200": {"description": "Success"}, "default": _error_response(each.path)}
        operation: dict[str, Any] = {"summary": each.summary, "responses": responses}
        if "{" in each.path:
            operation["parameters"] = [{"name": "name", "in": "path", "required": True, "schema": _TEXT}]
        if each.request is not None:
            schema = {"schema": refs[each.request, "validation"]}
            kinds = ["application/json", *["multipart/form-data"] * each.forms]
            operation["requestBody"] = {"required": True, "content": dict.fromkeys(kinds, schema)}
        paths[each.path.replace(":path}", "}")] = {"get" if each.request is None else "post": operation}
    info = {"title": "blip2rt", "version": __version__}
    document: dict[str, Any] = {"openapi": "3.1.0", "info": info, "paths": paths, "components": components}
    if needs_key:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}]
    return document


def _error_response(path: str) -> dict[str, Any]:
    api, name = ("Ollama", "OllamaError") if path.startswith("/api/") else ("OpenAI", "Error")
    schema = {"schema": {"$ref": f"#/components/schemas/{name}"}}
    return {"description": f"Error in {api}'s format", "content": {"application/json": schema}}
