"""The counts and their page, read with Prometheus' own parser."""

import math

from prometheus_client.parser import text_string_to_metric_families
from rest_stand_in import together

from serve.metrics import MAX_SERIES, OTHER, PREFIX, Histogram, Metrics


def read(page: str) -> dict[tuple, float]:
    """(name, labels and their values) -> value; the parser ends the names of counters itself."""
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


def test_counter_and_histogram_on_the_page():
    metrics = Metrics()
    metrics.request_count.add("half", "OK")
    metrics.request_count.add("half", "OK", amount=2)
    metrics.request_count.add("half", "NOT_FOUND")
    metrics.request_latency.observe(9, "half", "predict", "REST")
    metrics.request_latency.observe(2e9, "half", "predict", "REST")
    samples = read(metrics.page())
    assert samples[f"{PREFIX}request_count_total", ("model_name", "half"), ("status", "OK")] == 3
    labels = ("API", "predict"), ("entrypoint", "REST"), ("model_name", "half")
    name = f"{PREFIX}request_latency"
    buckets = {key[3][1]: value for key, value in samples.items() if key[0] == f"{name}_bucket"}
    assert len(buckets) == 34
    assert buckets["10"] == 1
    assert buckets["+Inf"] == 2
    assert samples[f"{name}_count", *labels] == 2
    assert samples[f"{name}_sum", *labels] == 2e9 + 9


def test_the_text_is_tf_servings():
    metrics = Metrics()
    metrics.request_count.add("half", "OK", amount=12_345_678)
    metrics.request_latency.observe(20, "half", "predict", "REST")
    lines = metrics.page().splitlines()
    assert f"# TYPE {PREFIX}request_latency histogram" in lines
    assert f"# TYPE {PREFIX}request_count counter" in lines
    labels = 'model_name="half",API="predict",entrypoint="REST"'
    assert f'{PREFIX}request_latency_bucket{{{labels},le="104.976"}} 1' in lines
    assert f'{PREFIX}request_latency_bucket{{{labels},le="1.27482e+06"}} 1' in lines
    assert f'{PREFIX}request_latency_bucket{{{labels},le="708235"}} 1' in lines
    assert f"{PREFIX}request_latency_sum{{{labels}}} 20" in lines
    assert f'{PREFIX}request_count{{model_name="half",status="OK"}} 12345678' in lines
    types = [line.split()[2] for line in lines if line.startswith("# TYPE")]
    assert types == sorted(types)
    assert len(types) == len(set(types)) == 10


def test_a_value_on_a_bound_is_counted_above_it():
    histogram = Histogram("sizes", "sizes", ("model",), (1, 2, 4))
    for size in (1, 2, 2, 5):
        histogram.observe(size, "half")
    counts = {labels.get("le", name): value for name, labels, value in histogram.samples()}
    assert (counts["1"], counts["2"], counts["4"], counts["+Inf"]) == (0, 1, 3, 4)
    assert histogram.count("half") == 4


def test_values_of_labels_are_escaped():
    name = 'a"b\\c\nd'
    metrics = Metrics()
    metrics.request_count.add(name, "NOT_FOUND")
    assert (
        read(metrics.page())[
            f"{PREFIX}request_count_total", ("model_name", name), ("status", "NOT_FOUND")
        ]
        == 1
    )


def test_names_that_clients_make_up_do_not_add_up():
    metrics = Metrics()
    for number in range(3 * MAX_SERIES):
        metrics.request_count.add("x" * 10_000 + str(number), "NOT_FOUND")
        metrics.request_count.add(str(number), "NOT_FOUND")
        metrics.runtime_latency.observe(1, str(number), "Predict", "TF1")
    counts = metrics.request_count.samples()
    assert sum(value for _, _, value in counts) == 6 * MAX_SERIES
    assert len(counts) == MAX_SERIES + 1
    assert metrics.request_count.value(OTHER, OTHER) > 2 * MAX_SERIES
    assert metrics.runtime_latency.count(OTHER, OTHER, OTHER) == 2 * MAX_SERIES
    assert max(len(labels["model_name"]) for _, labels, _ in counts) == 256


def test_numbers_that_are_none():
    metrics = Metrics()
    metrics.queuing_latency.observe(math.inf, "pool")
    metrics.padding_size.observe(0.5, "8")
    samples = read(metrics.page())
    key = ("thread_pool_name", "pool")
    assert samples[f"{PREFIX}batching_session:queuing_latency_sum", key] == math.inf
    key = ("execution_batch_size", "8")
    assert samples[f"{PREFIX}batching_session:padding_size_sum", key] == 0.5


def test_many_threads_count_at_once():
    metrics = Metrics()

    def count(number: int) -> None:
        for _ in range(2000):
            metrics.request_count.add("half", "OK")
            metrics.request_latency.observe(number, "half", "predict", "REST")

    together(8, count)
    assert metrics.request_count.value("half", "OK") == 16_000
    assert metrics.request_latency.count("half", "predict", "REST") == 16_000
