"""Figures of a server that Prometheus reads."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Counters of one server; `program` is `text`, or `image` with its budget."""

    def __init__(self):
        self._registry = registry = CollectorRegistry()

        def histogram(name: str, text: str, labels: tuple[str, ...], buckets) -> Histogram:
            return Histogram(name, text, labels, registry=registry, buckets=buckets)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, registry=registry)

        self.requests = histogram(
            "siglip2_request_seconds",
            "Time from a request's arrival to the end of its answer",
            ("route", "status"),
            _SECONDS,
        )
        self.batch = histogram(
            "siglip2_batch_items", "Items of a batch, without padding", ("program",), _ROWS
        )
        self.batch_seconds = histogram(
            "siglip2_batch_seconds", "Time of a batch on the device", ("program",), _SECONDS
        )
        self.decode = histogram(
            "siglip2_decode_seconds", "Time to decode and patch an image", (), _SECONDS
        )
        self.items = counter("siglip2_items", "Items embedded on the device", "program")
        self.padding = counter(
            "siglip2_padding_items", "Rows of batches that were computed for no item", "program"
        )
        self.tokens = counter(
            "siglip2_tokens", "Patches or text tokens of the items, without padding", "program"
        )
        self.token_slots = counter(
            "siglip2_token_slots", "Patches or text tokens computed, with padding", "program"
        )
        self.cached = counter("siglip2_cached_texts", "Texts answered from the cache")
        self.refused = counter(
            "siglip2_refused", "Requests refused because the server was full", "reason"
        )
        self.left = counter("siglip2_left", "Requests whose client left before the answer")
        self.late = counter("siglip2_late", "Requests that missed their deadline")
        self.bad_images = counter("siglip2_bad_images", "Images that could not be read")
        self.restarts = counter("siglip2_decoder_restarts", "Decoding processes replaced")
        self.queue = Gauge(
            "siglip2_queue_items", "Items taken on and not answered yet", registry=registry
        )
        self.healthy = Gauge("siglip2_healthy", "1 while the device works", registry=registry)

    def text(self) -> bytes:
        """All figures, as Prometheus reads them."""
        return generate_latest(self._registry)
