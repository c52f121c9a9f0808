"""Who gets one thread a kernel, and that it changes no answer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_training import Setting

from kbert import evaluation, kernel_threads, run
from kbert.config import parse
from kbert.evaluation import Evaluator
from kbert.search_space import read_space

ROOT = Path(__file__).resolve().parents[1]
SEARCH = ["--search.tuner", "random", "--search.space"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--train.batch_size", "32"], True),
        (["--train.batch_size", "32", "--train.compile", "parallel"], True),
        (["--train.batch_size", "32", "--train.compile", "graph"], False),
        (["--train.batch_size", "31"], False),  # a core would have seven rows
        (["--train.batch_size", "64", "--train.accumulate", "4"], False),
        (["--train.batch_size", "32", "--task", "masked_lm"], False),
        (["--train.batch_size", "32", "--distill.teacher", "runs/news"], False),
        (["--train.batch_size", "32", *SEARCH, "{batch_size: [32, 64]}"], True),
        (["--train.batch_size", "32", *SEARCH, "{batch_size: [16, 64]}"], False),
    ],
)
def test_each_core_must_have_a_part_of_each_step(
    tiny_options: list[str], monkeypatch: pytest.MonkeyPatch, words: list[str], expected: bool
) -> None:
    asked: list[bool] = []
    for module in (kernel_threads, run):
        monkeypatch.setattr(module, "cores", lambda: 4)
    monkeypatch.setattr(run, "use_one_thread_a_kernel", lambda: asked.append(True))
    config = parse([*tiny_options, *words])
    space = () if config.search.tuner == "none" else read_space(config)
    run.begin_threads(config, space)
    assert asked == [True] * expected


def test_tensorflow_is_asked_when_it_starts_and_left_alone_later() -> None:
    script = """
import tensorflow as tf
from kbert import kernel_threads
kernel_threads.cores = lambda: 2
kernel_threads.use_one_thread_a_kernel()
print(kernel_threads.has_one_thread_a_kernel())
tf.constant(1)
tf_threads = tf.config.threading.get_intra_op_parallelism_threads()
kernel_threads.use_one_thread_a_kernel()
print(tf_threads)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["True", "1"]


def test_a_split_is_measured_in_parts(
    tiny_options: list[str], tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = Setting(tiny_options, tiny_checkpoint)
    model = setting.new_model()
    found = []
    for parts in (1, 3):
        monkeypatch.setattr(evaluation, "has_one_thread_a_kernel", lambda: parts > 1)  # noqa: B023
        monkeypatch.setattr(evaluation, "cores", lambda: parts)  # noqa: B023
        evaluator = Evaluator(model, setting.task, setting.splits["train"], batch_size=7)
        found.append(evaluator.validate())
        graph = evaluator.measured.get_concrete_function(*next(iter(evaluator.batches))).graph
        names = [
            op.name
            for op in graph.get_operations()
            if "attention" in op.name and op.type == "Softmax"
        ]
        assert len(names) == 2 * parts  # of two blocks
        assert model.get_layer("encoder").parts == 1
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-6)
    for name, values in found[0][1].items():
        np.testing.assert_allclose(values, found[1][1][name], atol=1e-5)
