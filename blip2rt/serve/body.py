"""A request's body, in bounds of size and time, as JSON or a form. Knows nothing of what the fields mean."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from .faults import Fault, bad
from .gate import Notes
from .metrics import Metrics
from .settings import Limits

M = TypeVar("M", bound=BaseModel)
_DISCARDED = 4  # times the limit that is read and dropped, so that who sends too much reads why
_DISCARD_SECONDS = 5.0
_VALUES = 10_000  # of a body of JSON, about: a mistake in each of a million takes minutes to tell
_NAME = re.compile("[a-z_]+")  # a field's


class Intake:
    """Reads the bodies of one server's requests."""

    def __init__(self, limits: Limits, metrics: Metrics) -> None:
        self._limits, self._metrics = limits, metrics
        self._held = 0

    async def read(self, request: Request) -> bytes:
        """The body. Raises Fault: 413 too large, 408 too slow, 503 where all bodies together are too many, 499 gone."""
        limit, notes = self._limits.body, request.scope["notes"]
        told = request.headers.get("content-length", "")
        if told.isdigit() and int(told) > limit:
            await self._discard(request)
            raise self._too_large()
        body, end = bytearray(), time.monotonic() + self._limits.body_seconds
        more = True
        while more:
            try:
                message = await asyncio.wait_for(request.receive(), max(end - time.monotonic(), 0.001))
            except asyncio.TimeoutError:
                self._metrics.refused.labels("body").inc()
                raise Fault(408, f"the body did not come within {self._limits.body_seconds:g} seconds: send it faster",
                            "body_too_slow") from None  # fmt: skip
            if message["type"] == "http.disconnect":
                raise Fault(499, "the client has left", "client_gone")
            chunk = message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) + len(chunk) > limit:
                body.clear()
                if more:
                    await self._discard(request)
                raise self._too_large()
            self._hold(notes, len(chunk))
            body += chunk
        notes.fields["bytes"] = len(body)
        return bytes(body)

    def release(self, notes: Notes) -> None:
        """The body of a request is held no more."""
        self._held -= notes.held
        self._metrics.held.dec(notes.held)
        notes.held = 0

    def _hold(self, notes: Notes, size: int) -> None:
        if self._held + size > self._limits.bodies:
            self._metrics.refused.labels("body").inc()
            raise Fault(503, "too much is being sent at the same time: try again later", "bodies_too_large",
                        retry_after=1)  # fmt: skip
        self._held += size
        notes.held += size
        self._metrics.held.inc(size)

    async def _discard(self, request: Request) -> None:
        """Read on for a while, and keep nothing."""
        end, left = time.monotonic() + _DISCARD_SECONDS, _DISCARDED * self._limits.body
        while left > 0:
            try:
                message = await asyncio.wait_for(request.receive(), max(end - time.monotonic(), 0.001))
            except asyncio.TimeoutError:
                return
            left -= len(message.get("body", b""))
            if message["type"] == "http.disconnect" or not message.get("more_body", False):
                return

    def _too_large(self) -> Fault:
        self._metrics.refused.labels("body").inc()
        return Fault(413, f"the body has more than {self._limits.body:,} bytes: send smaller pictures, or start the "
                     "server with --max-body", "body_too_large")  # fmt: skip


def from_json(kind: type[M], body: bytes) -> M:
    """JSON -> a request, whatever its content type says, as Ollama reads it. Raises Fault."""
    if sum(map(body.count, b",[{")) > _VALUES:
        raise bad(f"the body has more than {_VALUES:,} commas and brackets: send fewer values", code="too_many_values")
    try:
        return kind.model_validate_json(body or b"null")
    except ValidationError as error:
        raise fault_of_validation(error) from None


def fault_of_validation(error: ValidationError) -> Fault:
    """The first mistake by name, with the number of other fields that have one."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    first, place = found[0], _place(found[0]["loc"])
    message = f"{place or 'the body'}: {first['msg']}"
    if others := {_place(each["loc"]) for each in found} - {place}:
        message += f" (and {len(others)} more)"
    return bad(message, place or None, "invalid_json" if first["type"] == "json_invalid" else "invalid_value")


def _place(loc: tuple[int | str, ...]) -> str:
    """Where a mistake is, without the names of the types that a field may have: messages.0.content, not content.str."""
    types = ("str", "bytes", "int", "float", "bool")
    return ".".join(str(each) for each in loc if isinstance(each, int) or (each not in types and _NAME.fullmatch(each)))


async def from_form(kind: type[M], request: Request, body: bytes, images: int) -> M:
    """multipart/form-data -> a request: fields are its fields, a file is the bytes of its field. Raises Fault."""

    async def chunks() -> AsyncIterator[bytes]:
        yield body
        yield b""

    try:
        parser = _InMemory(request.headers, chunks(), max_files=images, max_fields=100, max_part_size=1 << 20)  # type: ignore[arg-type]
        form = await parser.parse()
    except (MultiPartException, KeyError, ValueError, UnicodeError) as error:
        raise bad(f"the form cannot be read: {getattr(error, 'message', error)}", code="invalid_form") from None
    fields: dict[str, Any] = {}
    for name in form:
        values = [value if isinstance(value, str) else await value.read() for value in form.getlist(name)]
        fields[name] = values if len(values) > 1 else values[0]
    await form.close()
    for name, field in kind.model_fields.items():
        if isinstance(fields.get(name), list) and not any(
            get_origin(each) is list for each in get_args(field.annotation)
        ):
            raise bad(f"{name}: the form has it {len(fields[name])} times: send it once", name, "invalid_form")
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise fault_of_validation(error) from None


class _InMemory(MultiPartParser):
    """A form whose files are never written to the disk."""

    spool_max_size = 1 << 40
    max_file_size = 1 << 40  # its older name


def is_form(request: Request) -> bool:
    """Whether the body is a form."""
    return request.headers.get("content-type", "").lower().startswith("multipart/form-data")
