"""Errors of requests: their status, and their JSON in the formats of OpenAI and Ollama."""

from typing import Any

from ..errors import BackendError, Blip2rtError, CapabilityError, ImageError, OptionError

CLIENT_GONE = 499  # nginx's status for a client that disconnects; it is logged and never sent
_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 408: "timeout_error"}
_TYPES |= {429: "rate_limit_error", 500: "server_error", 503: "overloaded_error", 504: "timeout_error"}


class ApiError(Exception):
    """A rejected request: status, message (`what is wrong: the fix`), machine-readable code, and the wrong field."""

    def __init__(
        self, status: int, message: str, code: str, param: str | None = None, retry_after: int | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param, self.retry_after = status, message, code, param, retry_after

    def body(self, path: str = "") -> dict[str, Any]:
        """Return its JSON. path: the request's; Ollama's clients (/api/) read a plain message."""
        if path.startswith("/api/"):
            return {"error": self.message}
        kind = _TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        """Return the headers that belong to its status."""
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        return {**headers, "WWW-Authenticate": "Bearer"} if self.status == 401 else headers


def bad_request(message: str, param: str | None = None, code: str = "invalid_value") -> ApiError:
    """Return the error for a mistake of the caller."""
    return ApiError(400, message, code, param)


def api_error(error: BaseException) -> ApiError:
    """Convert any exception. Details of an unexpected one stay in the log."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ImageError):
        return bad_request(str(error), "image", "invalid_image")
    if isinstance(error, OptionError):
        return bad_request(str(error))
    if isinstance(error, CapabilityError):
        return ApiError(501, str(error), "unsupported_by_model")
    if isinstance(error, MemoryError) or (isinstance(error, BackendError) and "out of memory" in str(error)):
        return ApiError(503, "not enough memory: ask for less, or try again later", "out_of_memory", retry_after=5)
    if isinstance(error, Blip2rtError):
        return ApiError(500, "the model failed: the server's log says why", "model_failed")
    return ApiError(500, "the server failed: its log says why", "internal_error")


def client_gone() -> ApiError:
    """Return the error that ends the work for a client that has disconnected."""
    return ApiError(CLIENT_GONE, "the client has disconnected", "client_gone")
