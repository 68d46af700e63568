"""Metrics for Prometheus."""

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_MODEL_GAUGES = ("waiting", "running", "rows", "positions", "kept_bytes", "image_bytes")  # the others only increase
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """The metrics of one server."""

    def __init__(self) -> None:
        self.registry = to = CollectorRegistry()
        self.requests = Counter("blip2rt_requests", "Requests answered", ["route", "status"], registry=to)
        about = "Seconds from a request's headers to the end of its response"
        self.seconds = Histogram("blip2rt_request_seconds", about, ["route"], buckets=_SECONDS, registry=to)
        about = "Seconds from a request's headers to the first piece of a streamed text"
        self.first_piece = Histogram("blip2rt_first_piece_seconds", about, buckets=_SECONDS, registry=to)
        about = "Seconds that a request waits for a free slot"
        self.wait = Histogram("blip2rt_wait_seconds", about, buckets=_SECONDS, registry=to)
        self.tokens = Counter(
            "blip2rt_tokens", "Tokens read (prompt) and generated (completion)", ["kind"], registry=to
        )
        self.refused = Counter("blip2rt_refused", "Requests rejected", ["reason"], registry=to)
        self.gone = Counter("blip2rt_clients_gone", "Clients that disconnected before their response", registry=to)
        self.waiting = Gauge("blip2rt_queue", "Requests that wait", registry=to)
        self.running = Gauge("blip2rt_running", "Requests that run", registry=to)
        self.body_bytes = Gauge("blip2rt_body_bytes", "Bytes of request bodies in memory", registry=to)
        self.ready = Gauge("blip2rt_ready", "1 when the model is loaded", registry=to)
        for kind in ("prompt", "completion"):
            self.tokens.labels(kind)
        for reason in ("queue", "deadline", "key", "body"):
            self.refused.labels(reason)

        ProcessCollector(registry=to)  # process_*: memory, CPU time, open files

    def add_model(self, version: str, **labels: str) -> None:
        """Expose the version and what is served as the labels of blip2rt_info."""
        labels |= {"version": version}
        Gauge("blip2rt_info", "Version and model", list(labels), registry=self.registry).labels(**labels).set(1)

    def add_model_counters(self, counters: Callable[[], Mapping[str, int]]) -> None:
        """Expose the model's counters as blip2rt_model_NAME (gauges) and blip2rt_model_NAME_total."""
        self.registry.register(_ModelCounters(counters))

    def text(self) -> bytes:
        """Return the metrics in Prometheus' text format."""
        return generate_latest(self.registry)


class _ModelCounters(Collector):
    def __init__(self, counters: Callable[[], Mapping[str, int]]) -> None:
        self._counters = counters

    def collect(self) -> Iterator[Metric]:
        for name, value in self._counters().items():
            family = GaugeMetricFamily if name in _MODEL_GAUGES else CounterMetricFamily
            yield family(f"blip2rt_model_{name}", f"The model's counter {name}", value=value)
