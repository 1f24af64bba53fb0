"""What a server counts, in the words of Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


class Meters:
    """Counters of one server process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

        def seconds(name: str, what: str, *labels: str) -> Histogram:
            return Histogram(
                f"matvit_{name}_seconds", what, labels, buckets=_SECONDS, registry=self.registry
            )

        self.decode = seconds("decode", "Decoding an image.")
        self.encode = seconds("encode", "Embedding an image, its share of a batch.", "submodel")
        self.search = seconds("search", "Searching the index, a share of a batch.")
        self.queue = seconds("queue", "Waiting for a batch to begin.")
        self.total = seconds("request", "From the first byte of a request to its answer.", "path")
        self.requests = Counter(
            "matvit_requests", "Requests by what became of them.", ("path", "status"),
            registry=self.registry,
        )  # fmt: skip
        self.size_in_use = Gauge(
            "matvit_size_in_use", "Compute of the submodel that answers, as a share of the full.",
            registry=self.registry,
        )  # fmt: skip
        self.generation = Gauge(
            "matvit_index_generation", "Generation of the index.", registry=self.registry
        )
        self.images = Gauge("matvit_index_images", "Images in the index.", registry=self.registry)

    def text(self) -> bytes:
        """Everything that was counted."""
        return generate_latest(self.registry)
