"""What the server counts, under TensorFlow Serving's names, and Prometheus' page of it."""

import bisect
import math
import threading
from collections.abc import Sequence

PREFIX = ":tensorflow:serving:"

# A client may name any model: from so many combinations of labels on, a metric counts new ones
# under one last combination, and no value of a label is kept longer than this.
MAX_SERIES = 1000
MAX_LABEL_CHARACTERS = 256
OTHER = "(other)"

Labels = tuple[str, ...]
Sample = tuple[str, dict[str, str], float]


def exponential_buckets(scale: float, growth: float, count: int) -> tuple[float, ...]:
    """The upper bounds of the buckets of a histogram, without the infinite last one."""
    bounds, bound = [], float(scale)
    for _ in range(count):
        bounds.append(bound)
        bound *= growth
    return tuple(bounds)


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
        self._values: dict[Labels, int] = {}
        self._lock = threading.Lock()

    def add(self, *labels: str, amount: int = 1) -> None:
        """Adds to the number with these values of the labels."""
        with self._lock:
            if labels not in self._values:
                labels = _bounded(labels, self._values)
                self._values.setdefault(labels, 0)
            self._values[labels] += amount

    def value(self, *labels: str) -> int:
        """The number so far."""
        with self._lock:
            return self._values.get(labels, 0)

    def samples(self) -> list[Sample]:
        """(name, labels, value) of each line of the page."""
        with self._lock:
            values = sorted(self._values.items())
        return [
            (self.name, dict(zip(self.labels, labels, strict=True)), value)
            for labels, value in values
        ]


class Histogram:
    """How values are spread, for each combination of labels.

    A value that is exactly a bound is counted in the bucket above it, as TF Serving does it
    (Prometheus itself would count it below).

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
        self._names = (*(f"{bound:g}" for bound in buckets), "+Inf")
        # the counts of the buckets, and last the sum of the values
        self._counts: dict[Labels, list[float]] = {}
        self._lock = threading.Lock()

    def observe(self, value: float, *labels: str) -> None:
        """Counts one value under these values of the labels."""
        bucket = bisect.bisect_right(self._bounds, value)
        with self._lock:
            counts = self._counts.get(labels)
            if counts is None:
                labels = _bounded(labels, self._counts)
                counts = self._counts.setdefault(labels, [0] * (len(self._names) + 1))
            counts[bucket] += 1
            counts[-1] += value

    def count(self, *labels: str) -> int:
        """How many values there were."""
        with self._lock:
            return int(sum(self._counts.get(labels, ())[:-1]))

    def samples(self) -> list[Sample]:
        """(name, labels, value) of each line of the page."""
        with self._lock:
            series = sorted((key, list(counts)) for key, counts in self._counts.items())
        lines: list[Sample] = []
        for key, (*counts, total) in series:
            labels = dict(zip(self.labels, key, strict=True))
            cumulative = 0
            for bound, count in zip(self._names, counts, strict=True):
                cumulative += count
                lines.append((f"{self.name}_bucket", {**labels, "le": bound}, cumulative))
            lines.append((f"{self.name}_sum", labels, total))
            lines.append((f"{self.name}_count", labels, cumulative))
        return lines


def _bounded(labels: Labels, series: dict[Labels, object] | dict) -> Labels:
    """The labels under which a combination that is not there yet is counted."""
    labels = tuple(label[:MAX_LABEL_CHARACTERS] for label in labels)
    if labels in series or len(series) < MAX_SERIES:
        return labels
    return (OTHER,) * len(labels)


class Metrics:
    """All that one server counts. Any thread may count at any time."""

    def __init__(self) -> None:
        latency = exponential_buckets(10, 1.8, 33)  # microseconds, up to 20 minutes and more
        sizes = exponential_buckets(1, 2, 14)
        pool = ("thread_pool_name",)
        self.request_count = Counter(
            "request_count",
            "Requests for a model, by the status they ended with.",
            ("model_name", "status"),
        )
        self.request_latency = Histogram(
            "request_latency",
            "Microseconds from the whole request to the whole answer, of requests that went well.",
            ("model_name", "API", "entrypoint"),
            latency,
        )
        self.runtime_latency = Histogram(
            "runtime_latency",
            "Microseconds that TensorFlow took for a request, batching included.",
            ("model_name", "API", "runtime"),
            latency,
        )
        self.model_warmup_latency = Histogram(
            "model_warmup_latency",
            "Microseconds that the warm-up of a version took.",
            ("model_path", "status"),
            latency,
        )
        self.request_example_counts = Histogram(
            "request_example_counts",
            "tf.train.Examples in one request.",
            ("model",),
            exponential_buckets(1, 2, 15),
        )
        self.request_example_count_total = Counter(
            "request_example_count_total",
            "tf.train.Examples in all requests.",
            ("model",),
        )
        self.queuing_latency = Histogram(
            "batching_session:queuing_latency",
            "Microseconds that a request waited for its batch.",
            pool,
            exponential_buckets(100, 1.2, 52),
        )
        self.input_batch_size = Histogram(
            "batching_session:input_batch_size", "Rows of one request.", pool, sizes
        )
        self.processed_batch_size = Histogram(
            "batching_session:processed_batch_size",
            "Rows of one batch as it was run, padding included.",
            pool,
            sizes,
        )
        self.padding_size = Histogram(
            "batching_session:padding_size",
            "Rows that were added to fill one batch.",
            ("execution_batch_size",),
            sizes,
        )

    def page(self) -> str:
        """Prometheus' text format: the metrics by name, the labels in their order."""
        lines = []
        for metric in sorted(vars(self).values(), key=lambda metric: metric.name):
            lines += [f"# HELP {metric.name} {metric.help}", f"# TYPE {metric.name} {metric.kind}"]
            for name, labels, value in metric.samples():
                written = ",".join(f'{label}="{_escape(text)}"' for label, text in labels.items())
                lines.append(f"{name}{{{written}}} {_number(value)}")
        return "\n".join(lines) + "\n"


def _escape(text: str) -> str:
    # TF Serving forgets the new line, which would break the page.
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    """Every digit (six of them, as TF Serving writes sums, would make rates jump)."""
    if isinstance(value, float) and (not math.isfinite(value) or not value.is_integer()):
        return str(value)
    return str(int(value))
