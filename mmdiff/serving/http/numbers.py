"""What a server counts, in Prometheus' format."""

from __future__ import annotations

from typing import Any

from mmdiff.errors import require

require("prometheus_client", "serve")
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest  # noqa: E402

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Numbers:
    """Counters of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        of: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter("mmdiff_requests", "Requests by route and status.", ["route", "status"], **of)
        self.seconds = Histogram("mmdiff_request_seconds", "To the whole answer.", ["route"], buckets=SECONDS, **of)
        self.tokens = Counter("mmdiff_tokens", "Positions of context, and generated tokens.", ["kind"], **of)
        self.waiting = Gauge("mmdiff_requests_waiting", "Canvases that wait for their turn.", **of)
        self.running = Gauge("mmdiff_requests_running", "Canvases that are being filled.", **of)
        self.forwards = Gauge("mmdiff_forwards", "Forwards of all requests, each counted for each of its rows.", **of)
        self.held = Gauge("mmdiff_body_bytes", "Bytes of bodies in memory.", **of)

    def watch(self, batcher: Any, bodies: Any) -> None:
        """Have the gauges ask a batcher, and the reader of bodies."""
        self.held.set_function(lambda: bodies.held)
        self.waiting.set_function(lambda: batcher.waiting)
        self.running.set_function(lambda: batcher.running)
        self.forwards.set_function(lambda: batcher.forwards)

    def text(self) -> bytes:
        """Returns the exposition that a Prometheus server scrapes."""
        return bytes(generate_latest(self.registry))
