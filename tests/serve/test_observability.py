"""Logs, request ids, metrics, the API description, and the pages."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from tests.serve.server_process import ServerProcess, encoded, events

pytestmark = pytest.mark.long(5, "a real server process: metrics and logs of real requests")
Start = Callable[..., ServerProcess]


def test_logs_contain_no_images_and_no_prompts(start: Start, small: bytes) -> None:
    image = encoded(small)
    silent, verbose = start(), start("--log-prompts")
    for server in (silent, verbose):
        assert server.post("/v1/ask", {"image": image, "question": "is the secret dog here"}).status == 200
        line = server.wait_for_log("request", path="/v1/ask")
        assert line["status"] == 200 and line["seconds"] > 0 and line["client"] == "127.0.0.1" and line["bytes"] > 100
        assert line["prompt_tokens"] > 3 and line["completion_tokens"] >= 0
        assert image[:40] not in json.dumps(server.log)
    assert "secret" not in json.dumps(silent.log)
    assert verbose.wait_for_log("request", path="/v1/ask")["question"] == "is the secret dog here"


def test_requests_have_an_id(nano: ServerProcess) -> None:
    number = nano.get("/v1/models").headers["x-request-id"]
    assert nano.wait_for_log("request", id=number)["path"] == "/v1/models"
    nano.get("/health")
    assert not [line for line in nano.log if line.get("path") in ("/health", "/ready")], "polled: not logged"


def test_ids_of_a_proxy_are_kept(start: Start) -> None:
    server = start()
    assert server.get("/v1/models", X_Request_Id="a-1.b", traceparent="00-ab").headers["x-request-id"] == "a-1.b"
    assert server.wait_for_log("request", id="a-1.b")["traceparent"] == "00-ab"
    assert server.get("/v1/models", X_Request_Id="a b").headers["x-request-id"] != "a b"


def test_metrics_count_requests_and_tokens(start: Start, small: bytes) -> None:
    client = pytest.importorskip("prometheus_client.parser")
    server = start()
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
    assert len(document["paths"]) == 22 and "/" not in document["paths"]


def test_pages_load_nothing_from_elsewhere(nano: ServerProcess) -> None:
    for path in ("/", "/docs"):
        page = nano.get(path)
        text = page.body.decode()
        assert page.headers["content-type"].startswith("text/html")
        assert "http://" not in text and "https://" not in text and 'src="' not in text
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "connect-src 'self'" in policy and "frame-ancestors 'none'" in policy
