"""What goes wrong with a request, in OpenAI's format; on Ollama's routes in Ollama's. Knows statuses."""

from __future__ import annotations

from typing import Any

from ..errors import BackendError, Blip2rtError, CapabilityError, ImageError, OptionError

_KINDS = {
    400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error",
    405: "invalid_request_error", 408: "timeout_error", 413: "invalid_request_error", 415: "invalid_request_error",
    429: "rate_limit_error", 499: "client_closed_request", 500: "server_error", 501: "invalid_request_error",
    503: "overloaded_error", 504: "timeout_error",
}  # fmt: skip


class Fault(Exception):
    """A refusal: status, message (what is wrong: the fix), a word for programs, and the field that is wrong."""

    def __init__(
        self, status: int, message: str, code: str, param: str | None = None, retry_after: int | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param, self.retry_after = status, message, code, param, retry_after

    def body(self, path: str = "") -> dict[str, Any]:
        """The JSON of it. path: the request's; clients of /api/ read a text alone."""
        if path.startswith("/api/"):
            return {"error": self.message}
        kind = _KINDS.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        """What its response has besides."""
        more = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        return {**more, "WWW-Authenticate": "Bearer"} if self.status == 401 else more


def bad(message: str, param: str | None = None, code: str = "invalid_value") -> Fault:
    """A mistake of the caller's."""
    return Fault(400, message, code, param)


def fault_of(error: BaseException) -> Fault:
    """The fault that an error of the library is to a caller. Details of what is no Blip2rtError stay here."""
    if isinstance(error, Fault):
        return error
    if isinstance(error, ImageError):
        message = str(error).replace("load(max_pixels=N)", "start the server with --max-pixels")
        return bad(message, "image", "invalid_image")
    if isinstance(error, OptionError):
        return bad(str(error))
    if isinstance(error, CapabilityError):
        return Fault(501, str(error), "unsupported_by_model")
    if isinstance(error, MemoryError) or (isinstance(error, BackendError) and "out of memory" in str(error)):
        return Fault(503, "not enough memory: ask for less, or try again later", "out_of_memory", retry_after=5)
    if isinstance(error, Blip2rtError):
        return Fault(500, "the model failed: the server's log says why", "model_failed")
    return Fault(500, "the server failed: its log says why", "internal_error")
