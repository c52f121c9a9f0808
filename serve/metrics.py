"""What the server counts, under TensorFlow Serving's names, and Prometheus' page of it."""

import bisect
import threading
from collections.abc import Sequence

PREFIX = ":tensorflow:serving:"


def exponential_buckets(scale: float, growth: float, count: int) -> tuple[float, ...]:
    """The upper bounds of the buckets of a histogram, without the infinite last one."""
    return tuple(scale * growth**index for index in range(count))


class Counter:
    """Numbers that only grow, one for each combination of labels.

    Args:
        name: under the prefix, such as "request_count".
        help: one line.
        labels: names of the labels.
    """

    kind = "counter"

    def __init__(self, name: str, help: str, labels: Sequence[str]) -> None:
        self.name = PREFIX + name
        self.help = help
        self.labels = tuple(labels)
        self._values: dict[tuple[str, ...], int] = {}
        self._lock = threading.Lock()

    def add(self, *labels: str, amount: int = 1) -> None:
        """Adds to the number with these values of the labels."""
        with self._lock:
            self._values[labels] = self._values.get(labels, 0) + amount

    def value(self, *labels: str) -> int:
        """The number so far."""
        with self._lock:
            return self._values.get(labels, 0)

    def samples(self) -> list[tuple[str, dict[str, str], float]]:
        """(name, labels, value) of each line of the page."""
        with self._lock:
            values = sorted(self._values.items())
        return [
            (self.name, dict(zip(self.labels, labels, strict=True)), value)
            for labels, value in values
        ]


class Histogram:
    """How values are spread, for each combination of labels.

    Args:
        name: under the prefix, such as "request_latency".
        help: one line.
        labels: names of the labels.
        buckets: upper bounds; a last one, +Inf, is added.
    """

    kind = "histogram"

    def __init__(
        self, name: str, help: str, labels: Sequence[str], buckets: Sequence[float]
    ) -> None:
        self.name = PREFIX + name
        self.help = help
        self.labels = tuple(labels)
        self._bounds = tuple(buckets)
        self._counts: dict[tuple[str, ...], list[int]] = {}
        self._sums: dict[tuple[str, ...], float] = {}
        self._lock = threading.Lock()

    def observe(self, value: float, *labels: str) -> None:
        """Counts one value under these values of the labels."""
        with self._lock:
            counts = self._counts.setdefault(labels, [0] * (len(self._bounds) + 1))
            counts[bisect.bisect_left(self._bounds, value)] += 1
            self._sums[labels] = self._sums.get(labels, 0.0) + value

    def count(self, *labels: str) -> int:
        """How many values there were."""
        with self._lock:
            return sum(self._counts.get(labels, ()))

    def samples(self) -> list[tuple[str, dict[str, str], float]]:
        """(name, labels, value) of each line of the page."""
        with self._lock:
            series = [(key, list(self._counts[key]), self._sums[key]) for key in self._counts]
        lines: list[tuple[str, dict[str, str], float]] = []
        for key, counts, total in sorted(series):
            labels = dict(zip(self.labels, key, strict=True))
            cumulative = 0
            for bound, count in zip((*self._bounds, float("inf")), counts, strict=True):
                cumulative += count
                bucket = "+Inf" if bound == float("inf") else f"{bound:g}"
                lines.append((f"{self.name}_bucket", {**labels, "le": bucket}, cumulative))
            lines.append((f"{self.name}_sum", labels, total))
            lines.append((f"{self.name}_count", labels, cumulative))
        return lines


class Metrics:
    """All that one server counts. Any thread may count at any time."""

    def __init__(self) -> None:
        latency = exponential_buckets(10, 1.8, 33)  # microseconds
        self.request_count = Counter("request_count", "requests", ("model_name", "status"))
        self.request_latency = Histogram(
            "request_latency", "microseconds", ("model_name", "API", "entrypoint"), latency
        )
        self.runtime_latency = Histogram(
            "runtime_latency", "microseconds", ("model_name", "API", "runtime"), latency
        )
        self.model_warmup_latency = Histogram(
            "model_warmup_latency", "microseconds", ("model_path", "status"), latency
        )
        self.request_example_counts = Histogram(
            "request_example_counts", "examples a request", ("model",), latency
        )
        self.request_example_count_total = Counter(
            "request_example_count_total", "examples", ("model",)
        )
        self.queuing_latency = Histogram(
            "batching_session:queuing_latency",
            "microseconds",
            ("thread_pool_name",),
            exponential_buckets(100, 1.2, 52),
        )
        sizes = tuple(float(2**power) for power in range(14))
        self.input_batch_size = Histogram(
            "batching_session:input_batch_size", "rows", ("thread_pool_name",), sizes
        )
        self.processed_batch_size = Histogram(
            "batching_session:processed_batch_size", "rows", ("thread_pool_name",), sizes
        )
        self.padding_size = Histogram(
            "batching_session:padding_size", "rows", ("execution_batch_size",), sizes
        )

    def page(self) -> str:
        """Prometheus' text format."""
        lines = []
        for metric in vars(self).values():
            lines += [f"# HELP {metric.name} {metric.help}", f"# TYPE {metric.name} {metric.kind}"]
            for name, labels, value in metric.samples():
                written = ",".join(f'{label}="{text}"' for label, text in labels.items())
                lines.append(f"{name}{{{written}}} {value:g}")
        return "\n".join(lines) + "\n"
