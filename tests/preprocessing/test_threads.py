"""map_in_threads: order, laziness, errors."""

import time

import pytest

from kbert.preprocessing.threads import map_in_threads


def test_results_come_in_order():
    def slow_if_even(number: int) -> int:
        time.sleep(0.02 * (number % 2 == 0))
        return number**2

    assert list(map_in_threads(slow_if_even, range(20))) == [number**2 for number in range(20)]
    assert list(map_in_threads(slow_if_even, [])) == []


def test_batches_are_read_as_they_are_needed():
    read = []

    def batches():
        for number in range(10_000):
            read.append(number)
            yield number

    results = map_in_threads(str, batches())
    assert next(results) == "0"
    assert len(read) < 10_000
    results.close()


def test_an_error_is_raised_where_its_result_would_be():
    results = map_in_threads(lambda number: 1 // number, [1, 0, 1])
    assert next(results) == 1
    with pytest.raises(ZeroDivisionError):
        next(results)
