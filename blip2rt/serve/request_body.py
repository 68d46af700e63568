"""Read a request's body within limits of size and time, as JSON or a form, into a pydantic model; decode its images."""

import asyncio
import base64
import binascii
import re
import time
from collections.abc import AsyncIterator
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from .errors import ApiError, bad_request, client_gone
from .metrics import Metrics
from .middleware import RequestContext
from .settings import Limits

M = TypeVar("M", bound=BaseModel)
_DISCARD_FACTOR = 4  # times the limit: read and dropped, so that a client that sends too much still reads the error
_DISCARD_SECONDS = 5.0
_MAX_JSON_VALUES = 10_000  # about: collecting a million validation errors takes minutes
_FIELD_NAME = re.compile("[a-z_]+")
_MAX_ERRORS, _MAX_FAULTS = 100, 5  # of the errors, examined and reported
_GIVE = re.compile("^Input should be( greater| less)?")
_SEND = "send the picture as a data URI (data:image/jpeg;base64,...)"
_NOT_TEXT = ("image", "images", "image_url", "role", "type")  # images have limits of their own
_FIXES = {"Field required": "it is missing: send it"}


class BodyReader:
    """Reads the bodies of a server's requests and limits their total size."""

    def __init__(self, limits: Limits, metrics: Metrics) -> None:
        self._limits, self._metrics = limits, metrics
        self._total_bytes = 0

    async def read(self, request: Request) -> bytes:
        """Return the body.

        Raises ApiError: 415 compressed, 413 too large, 408 too slow, 503 too many at once, 499 disconnected.
        """
        limit, context = self._limits.body_bytes, request.scope["context"]
        encoding = request.headers.get("content-encoding", "")
        if encoding.lower() not in ("", "identity"):
            await self._discard(request)
            message = f"Content-Encoding is {encoding[:50]}: send the body uncompressed"
            raise self._rejected(415, message, "encoding_not_supported")
        length = request.headers.get("content-length", "")
        if length.isdigit() and int(length) > limit:
            await self._discard(request)
            raise self._too_large()
        body, end, more = bytearray(), time.monotonic() + self._limits.body_seconds, True
        while more:
            try:
                chunk, more = await _next_chunk(request, end)
            except asyncio.TimeoutError:
                message = f"the body did not arrive within {self._limits.body_seconds:g} seconds: send it faster"
                raise self._rejected(408, message, "body_too_slow") from None
            if len(body) + len(chunk) > limit:
                body.clear()
                if more:
                    await self._discard(request)
                raise self._too_large()
            self._hold(context, len(chunk))
            body += chunk
        context.log_fields["bytes"] = len(body)
        return bytes(body)

    def release(self, context: RequestContext) -> None:
        """Account for a body that is no longer in memory."""
        self._total_bytes -= context.body_bytes
        self._metrics.body_bytes.dec(context.body_bytes)
        context.body_bytes = 0

    def _hold(self, context: RequestContext, size: int) -> None:
        if self._total_bytes + size > self._limits.total_body_bytes:
            message = "too many large requests at the same time: try again later"
            raise self._rejected(503, message, "bodies_too_large", retry_after=1)
        self._total_bytes += size
        context.body_bytes += size
        self._metrics.body_bytes.inc(size)

    async def _discard(self, request: Request) -> None:
        """Read and drop the rest, up to a limit."""
        end, left, more = time.monotonic() + _DISCARD_SECONDS, _DISCARD_FACTOR * self._limits.body_bytes, True
        while more and left > 0:
            try:
                chunk, more = await _next_chunk(request, end)
            except (asyncio.TimeoutError, ApiError):
                return
            left -= len(chunk)

    def _too_large(self) -> ApiError:
        message = f"the body has more than {self._limits.body_bytes:,} bytes: send smaller pictures, or start the "
        return self._rejected(413, message + "server with --max-body", "body_too_large")

    def _rejected(self, status: int, message: str, code: str, retry_after: int | None = None) -> ApiError:
        self._metrics.refused.labels("body").inc()
        return ApiError(status, message, code, retry_after=retry_after)


async def _next_chunk(request: Request, end: float) -> tuple[bytes, bool]:
    """Return the next part of the body, and whether more follows. Raises TimeoutError and ApiError."""
    message = await asyncio.wait_for(request.receive(), max(end - time.monotonic(), 0.001))
    if message["type"] == "http.disconnect":
        raise client_gone()
    return message.get("body", b""), message.get("more_body", False)


def parse_json(kind: type[M], body: bytes) -> M:
    """Parse JSON into a model, whatever the content type, as Ollama does. Raises ApiError."""
    if sum(map(body.count, b",[{")) > _MAX_JSON_VALUES:
        message = f"the body has more than {_MAX_JSON_VALUES:,} commas and brackets: send fewer values"
        raise bad_request(message, code="too_many_values")
    try:
        return kind.model_validate_json(body or b"null")
    except ValidationError as error:
        raise _validation_error(error) from None


async def parse_form(kind: type[M], request: Request, body: bytes, max_files: int) -> M:
    """Parse multipart/form-data into a model; the value of a file is its bytes. Raises ApiError."""

    async def chunks() -> AsyncIterator[bytes]:
        yield body
        yield b""

    try:
        limits: dict[str, Any] = {"max_files": max_files, "max_fields": 100, "max_part_size": 1 << 20}
        form = await _InMemoryParser(request.headers, chunks(), **limits).parse()  # type: ignore[arg-type]
    except (MultiPartException, KeyError, ValueError, UnicodeError) as error:
        message = f"the form cannot be read: {getattr(error, 'message', error)}"
        raise bad_request(message, code="invalid_form") from None
    fields: dict[str, Any] = {}
    for name in form:
        values = [value if isinstance(value, str) else await value.read() for value in form.getlist(name)]
        fields[name] = values if len(values) > 1 else values[0]
    await form.close()
    for name, field in kind.model_fields.items():
        takes_list = any(get_origin(each) is list for each in get_args(field.annotation))
        if isinstance(fields.get(name), list) and not takes_list:
            raise bad_request(f"{name}: the form has it {len(fields[name])} times: send it once", name, "invalid_form")
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise _validation_error(error) from None


class _InMemoryParser(MultiPartParser):
    """A form parser that never writes files to disk."""

    spool_max_size = 1 << 40


def is_form(request: Request) -> bool:
    """Whether the body is a form."""
    return request.headers.get("content-type", "").lower().startswith("multipart/form-data")


def _validation_error(error: ValidationError) -> ApiError:
    """Report every invalid field. Where several types are possible, only the one that fits best is reported."""
    errors = error.errors(include_url=False, include_context=False, include_input=False)[:_MAX_ERRORS]
    faults = {_field_path(each["loc"]): _GIVE.sub(_instruction, each["msg"]) for each in errors}
    parents = {path for path in faults for other in faults if other != path and other.startswith(path and f"{path}.")}
    deepest = {path: text for path, text in faults.items() if path not in parents}
    shown = [f"{path or 'the body'}: {_FIXES.get(text, text)}" for path, text in deepest.items()][:_MAX_FAULTS]
    code = "invalid_json" if errors[0]["type"] == "json_invalid" else "invalid_value"
    return bad_request("; ".join(shown), next(iter(deepest)) or None, code)


def _instruction(found: re.Match[str]) -> str:
    return f"give a value{found[1]}" if found[1] else "give"


def _field_path(loc: tuple[int | str, ...]) -> str:
    """Write an error's place without the types of a union: messages.0.content, not messages.0.content.str."""
    types = ("str", "bytes", "int", "float", "bool")
    keep = (each for each in loc if isinstance(each, int) or (each not in types and _FIELD_NAME.fullmatch(each)))
    return ".".join(map(str, keep))


def count_characters(value: object) -> int:
    """Count the characters of all texts in a request, without references to images. A dict is a JSON Schema."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, BaseModel):
        return sum(count_characters(each) for name, each in value if name not in _NOT_TEXT)
    parts = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else ()
    return sum(map(count_characters, parts))


def image_bytes(reference: str | bytes, param: str) -> bytes:
    """Return the bytes of an image: as they are, of a data URI, or of base64. Nothing is fetched, and no file is read.

    Raises ApiError, which names the field `param`.
    """
    if isinstance(reference, bytes):
        return reference
    start = reference[:8].lower()
    if start.startswith(("http:", "https:", "file:")):
        raise _invalid_image("URLs are not fetched", param)
    if start.startswith("data:"):
        kind, _, reference = reference.partition(",")
        if not kind[-20:].lower().rstrip().endswith(";base64"):
            raise _invalid_image("the data URI is not base64", param)
    try:  # either alphabet, with or without padding and line breaks
        text = reference.encode("ascii").translate(bytes.maketrans(b"-_", b"+/"), b" \t\r\n").rstrip(b"=")
        decoded = base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise _invalid_image("the image is not base64", param) from None
    if not decoded:
        raise _invalid_image("the image is empty", param)
    return decoded


def _invalid_image(problem: str, param: str) -> ApiError:
    return bad_request(f"{problem}: {_SEND}", param, "invalid_image")
