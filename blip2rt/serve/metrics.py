"""What Prometheus is told. Knows the names; nothing about requests."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_NOW = ("waiting", "running", "rows", "positions", "kept_bytes", "image_bytes")  # counters that go down, too
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """The metrics of one server."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter("blip2rt_requests", "Requests answered", ["route", "status"], registry=registry)
        self.seconds = Histogram(
            "blip2rt_request_seconds", "Seconds from a request's head to the end of its answer", ["route"],
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self.first = Histogram(
            "blip2rt_first_piece_seconds", "Seconds from a request's head to the first piece of a streamed text",
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self.tokens = Counter("blip2rt_tokens", "Tokens read (prompt) and written (completion)", ["kind"],
                              registry=registry)  # fmt: skip
        self.refused = Counter("blip2rt_refused", "Requests sent away", ["reason"], registry=registry)
        self.gone = Counter("blip2rt_clients_gone", "Clients that left before their answer was there",
                            registry=registry)  # fmt: skip
        self.waiting = Gauge("blip2rt_queue", "Requests that wait", registry=registry)
        self.running = Gauge("blip2rt_running", "Requests that are worked on", registry=registry)
        self.held = Gauge("blip2rt_body_bytes", "Bytes of request bodies that are held", registry=registry)
        self.ready = Gauge("blip2rt_ready", "1 when the model is loaded", registry=registry)
        for kind in ("prompt", "completion"):
            self.tokens.labels(kind)
        for reason in ("queue", "deadline", "key", "body"):
            self.refused.labels(reason)

    def count(self, counters: Callable[[], Mapping[str, int]]) -> None:
        """Show what the model counts: blip2rt_model_NAME of what is now, blip2rt_model_NAME_total of what was."""
        self.registry.register(_Counters(counters))

    def text(self) -> bytes:
        """The page of metrics."""
        return generate_latest(self.registry)


class _Counters(Collector):
    def __init__(self, counters: Callable[[], Mapping[str, int]]) -> None:
        self._counters = counters

    def collect(self) -> Iterator[Metric]:
        for name, value in self._counters().items():
            family = GaugeMetricFamily if name in _NOW else CounterMetricFamily
            yield family(f"blip2rt_model_{name}", f"The model's counter {name}", value=value)
