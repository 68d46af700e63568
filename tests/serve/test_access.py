"""Who may call; logs, request ids, metrics, the API description, and the pages."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable
from typing import Any

import pytest

from blip2rt.serve.metrics import Metrics
from blip2rt.serve.middleware import RequestMiddleware
from blip2rt.serve.settings import Access, Settings
from tests.serve.server_process import AppClient, ServerProcess, encoded, events

Open = Callable[..., AppClient]


def test_server_listens_on_loopback_by_default(nano: ServerProcess) -> None:
    assert nano.url.startswith("http://127.0.0.1:")
    own = {str(row[4][0]) for row in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)}
    for address in own:
        if not address.startswith("127."):
            with pytest.raises(OSError):
                socket.create_connection((address, nano.port), 2)


def test_api_key_is_required_except_on_public_paths(app: Open, small: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLIP2RT_API_KEY", "second third")
    server, body = app("--api-key", "first"), {"image": encoded(small)}
    for path in ("/", "/health", "/ready", "/docs", "/coffee.jpg", "/openapi.json"):
        assert server.get(path).status == 200, path
    for headers in ({}, *({"Authorization": key} for key in ("Bearer wrong", "first", "Basic first"))):
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
    assert server.log and not any("first" in json.dumps(line) for line in server.log)


def test_allowed_pages_can_call_and_read_errors(app: Open) -> None:
    server = app("--cors-origin", "https://ours.example", "--api-key", "k", "--max-body", 100)
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
        found = server.call("OPTIONS", "/v1/caption", b"", preflight)
        assert found.status == status and (status == 200 or found.error["code"] == "origin_not_allowed")


def test_other_sites_and_unknown_host_names_are_rejected(nano: ServerProcess, app: Open) -> None:
    """DNS rebinding: the name server of a malicious page answers 127.0.0.1 the second time."""
    assert nano.get("/v1/models", Origin="https://evil.example").error["code"] == "origin_not_allowed"
    assert nano.get("/v1/models", Origin=f"http://127.0.0.1:{nano.port}").status == 200
    assert "access-control-allow-origin" not in nano.get("/v1/models").headers
    assert nano.get("/v1/models", Host="evil.example").error["code"] == "host_not_allowed"
    for host in ("localhost", "localhost:8000", "127.0.0.1", "[::1]:8000"):
        assert nano.get("/v1/models", Host=host).status == 200
    assert app("--allow-host", "Cam.lan").get("/v1/models", Host="cam.lan:80").status == 200


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
def test_foreign_pages_are_rejected_on_a_public_address(host: str, origin: str, access: Any, code: str) -> None:
    settings = Settings("0.0.0.0", access=Access(**access))
    middleware: Any = RequestMiddleware(None, settings, Metrics(), None, None)  # type: ignore[arg-type]
    headers = [(b"host", host.encode())] + ([] if origin is None else [(b"origin", origin.encode())])
    error = middleware._access_error({"type": "http", "path": "/v1/search", "method": "POST", "headers": headers})
    assert (error and error.code) == code


@pytest.mark.parametrize("flags", [[], ["--log-prompts"]])
def test_logs_contain_no_images_and_prompts_on_request(app: Open, small: bytes, flags: list[str]) -> None:
    server, image = app(*flags), encoded(small)
    assert server.post("/v1/ask", {"image": image, "question": "is the secret dog here"}).status == 200
    line = server.logged("request", path="/v1/ask")
    assert line is not None and line["status"] == 200 and line["seconds"] > 0 and line["client"] == "127.0.0.1"
    assert line["bytes"] > 100 and line["prompt_tokens"] > 3 and line["completion_tokens"] >= 0
    assert image[:40] not in json.dumps(server.log)
    assert line.get("question") == ("is the secret dog here" if flags else None)
    assert ("secret" in json.dumps(server.log)) == bool(flags)


def test_requests_have_an_id_or_a_proxys(nano: ServerProcess, app: Open) -> None:
    number = nano.get("/v1/models").headers["x-request-id"]
    assert nano.wait_for_log("request", id=number)["path"] == "/v1/models"
    nano.get("/health")
    assert not [line for line in nano.log if line.get("path") in ("/health", "/ready")], "polled: not logged"
    server = app()
    assert server.get("/v1/models", X_Request_Id="a-1.b", traceparent="00-ab").headers["x-request-id"] == "a-1.b"
    assert server.logged("request", id="a-1.b", traceparent="00-ab")
    assert server.get("/v1/models", X_Request_Id="a b").headers["x-request-id"] != "a b"


def test_metrics_count_requests_and_tokens(app: Open, small: bytes) -> None:
    client = pytest.importorskip("prometheus_client.parser")
    server = app()
    usage = events(server.post("/v1/caption", {"image": encoded(small), "stream": True}).body)[-1]["usage"]
    for name, value in (
        ('tokens_total{kind="prompt"}', usage["prompt_tokens"]),
        ('tokens_total{kind="completion"}', usage["completion_tokens"]),
        ('requests_total{route="/v1/caption",status="200"}', 1),
        ('request_seconds_count{route="/v1/caption"}', 1),
        ("first_piece_seconds_count", 1),
        ("wait_seconds_count", 1),
        ("ready", 1),
    ):
        assert server.metric(f"blip2rt_{name}") == value, name
    for path in ("/x", "/y", "/v1/models/a", "/v1/models/b"):
        server.get(path)
    page = server.get("/metrics")
    assert page.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert b"process_resident_memory_bytes " in page.body and b"blip2rt_info{" in page.body
    families = list(client.text_string_to_metric_families(page.body.decode()))
    labels = {sample.labels["route"] for each in families for sample in each.samples if "route" in sample.labels}
    assert labels <= {"/v1/caption", "/v1/models/{name}", "/ready", "/metrics", "other"}, "callers cannot add any"


def test_openapi_describes_the_routes(nano: ServerProcess) -> None:
    document = nano.get("/openapi.json").json
    assert document["openapi"].startswith("3.") and "security" not in document
    content = document["paths"]["/v1/caption"]["post"]["requestBody"]["content"]
    assert set(content) == {"application/json", "multipart/form-data"}
    for name in json.dumps(document).split('"#/components/schemas/')[1:]:
        assert name.partition('"')[0] in document["components"]["schemas"]
    for path, methods in document["paths"].items():
        for method in methods:
            found = nano.call(method.upper(), path.replace("{name}", "nano"), b"{}" if method == "post" else None, {})
            assert found.status not in (404, 405), path
    assert len(document["paths"]) == 17 and "/" not in document["paths"]


def test_pages_load_nothing_from_elsewhere(nano: ServerProcess) -> None:
    for path in ("/", "/docs"):
        page = nano.get(path)
        text = page.body.decode()
        assert page.headers["content-type"].startswith("text/html")
        assert "http://" not in text and "https://" not in text
        for part in re.findall(r'(?:src|href)="([\w.]+)"', text):
            assert nano.get(f"/{part}").status == 200, part
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "connect-src 'self'" in policy and "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
