"""Who may call: listening address, API keys, origins and host names."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from typing import Any

import pytest

from blip2rt.serve.metrics import Metrics
from blip2rt.serve.middleware import RequestMiddleware
from blip2rt.serve.settings import Access, Settings
from tests.serve.server_process import ServerProcess, encoded

pytestmark = pytest.mark.long(8, "a real server process: keys and origins as clients see them")
Start = Callable[..., ServerProcess]


def test_server_listens_on_loopback_by_default(nano: ServerProcess) -> None:
    assert nano.url.startswith("http://127.0.0.1:")
    own = {str(row[4][0]) for row in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)}
    for address in own:
        if not address.startswith("127."):
            with pytest.raises(OSError):
                socket.create_connection((address, nano.port), 2)


def test_api_key_is_required_except_on_public_paths(start: Start, small: bytes) -> None:
    server = start("--api-key", "first", env={"BLIP2RT_API_KEY": "second third"})
    for path in ("/", "/health", "/ready", "/docs", "/coffee.jpg", "/openapi.json"):
        assert server.get(path).status == 200, path
    body = {"image": encoded(small)}
    for key in (None, "Bearer wrong", "first", "Basic first"):
        headers = {} if key is None else {"Authorization": key}
        refused = server.post("/v1/caption", body, **headers)
        assert refused.status == 401 and refused.headers["www-authenticate"] == "Bearer"
        assert refused.error["code"] == "invalid_api_key" and refused.error["type"] == "authentication_error"
        tags = server.get("/api/tags", **headers)
        assert server.get("/metrics", **headers).status == tags.status == 401
        assert tags.message("/api/tags") == refused.error["message"]
    for key in ("first", "second", "third"):
        assert server.post("/v1/caption", body, Authorization=f"Bearer {key}").status == 200
    assert server.get("/metrics", X_API_Key="first").status == 200
    assert server.get("/openapi.json").json["security"] == [{"key": []}]
    assert not any("first" in json.dumps(line) for line in server.log)


def test_pages_of_other_sites_are_rejected(nano: ServerProcess) -> None:
    assert nano.get("/v1/models", Origin="https://evil.example").error["code"] == "origin_not_allowed"
    assert nano.get("/v1/models", Origin=f"http://127.0.0.1:{nano.port}").status == 200
    assert "access-control-allow-origin" not in nano.get("/v1/models").headers


def test_allowed_pages_can_call_and_read_errors(start: Start) -> None:
    server = start("--cors-origin", "https://ours.example", "--api-key", "k", "--max-body", 100)
    ours, key = {"Origin": "https://ours.example"}, {"Authorization": "Bearer k"}
    for found, status in (
        (server.get("/v1/models", **ours, **key), 200),
        (server.get("/v1/models", **ours), 401),
        (server.get("/v1/models", Host="evil.example", **ours), 403),
        (server.get("/nothing", **ours, **key), 404),
        (server.post("/v1/caption", b"{", **ours, **key), 400),
        (server.post("/v1/caption", b"x" * 101, **ours, **key), 413),
    ):
        assert found.status == status and (status == 200 or found.error["message"])
        assert found.headers["access-control-allow-origin"] == "https://ours.example"
    assert server.get("/v1/models", Origin="https://evil.example", **key).status == 403
    for site, method, status in (("ours", "POST", 200), ("evil", "POST", 403), ("ours", "DELETE", 403)):
        preflight = {"Origin": f"https://{site}.example", "Access-Control-Request-Method": method}
        found = server.call("OPTIONS", "/v1/caption", None, preflight)
        assert found.status == status and (status == 200 or found.error["code"] == "origin_not_allowed")


def test_unknown_host_names_are_rejected(nano: ServerProcess, start: Start) -> None:
    """DNS rebinding: the name server of a malicious page answers 127.0.0.1 the second time."""
    assert nano.get("/v1/models", Host="evil.example").error["code"] == "host_not_allowed"
    for host in ("localhost", "localhost:8000", "127.0.0.1", "[::1]:8000"):
        assert nano.get("/v1/models", Host=host).status == 200
    assert start("--allow-host", "Cam.lan").get("/v1/models", Host="cam.lan:80").status == 200


OURS, BOX = {"origins": ("https://ours.example",)}, {"hosts": ("box.lan",)}


@pytest.mark.parametrize(
    ("host", "origin", "access", "code"),
    [
        ("evil.example:8000", "http://evil.example:8000", {}, "host_not_allowed"),
        ("evil.example", "http://evil.example", BOX, "host_not_allowed"),
        ("evil.example", "http://evil.example", OURS, "host_not_allowed"),
        ("10.0.0.5", "http://evil.example", {}, "origin_not_allowed"),
        ("", "null", {}, "origin_not_allowed"),
        ("10.0.0.5:8000", "http://10.0.0.5:8000", {}, None),
        ("[fd00::5]:8000", "http://[fd00::5]:8000", {}, None),
        ("localhost:8000", "http://localhost:8000", {}, None),
        ("box.lan:8000", "http://box.lan:8000", BOX, None),
        ("box.lan:8000", "https://ours.example", OURS, None),
        ("box.lan:8000", None, {}, None),  # not a page
    ],
)
def test_foreign_pages_are_rejected_on_a_public_address(
    host: str, origin: str | None, access: dict[str, Any], code: str | None
) -> None:
    """A malicious page's name server may point at any address of this network."""
    settings = Settings("0.0.0.0", access=Access(**access))
    middleware: Any = RequestMiddleware(None, settings, Metrics(), None, None)  # type: ignore[arg-type]
    headers = [(b"host", host.encode())] + ([] if origin is None else [(b"origin", origin.encode())])
    error = middleware._access_error({"type": "http", "path": "/v1/search", "method": "POST", "headers": headers})
    assert (error and error.code) == code
