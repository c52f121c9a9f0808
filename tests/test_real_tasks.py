"""benchmarks/tasks: every recipe is run, its words are options, its table is what was measured."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from kbert.config import parse

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def modules(shared_data: Path):
    """What `python benchmarks/tasks` finds."""
    del shared_data
    found = [str(ROOT / folder) for folder in ("benchmarks/tasks", "benchmarks", "recipes")]
    sys.path[:0] = found
    try:
        import jobs
        import table

        yield jobs, table
    finally:
        del sys.path[: len(found)]


def test_every_recipe_is_run(modules) -> None:
    jobs, _ = modules
    assert {job.recipe for job in jobs.jobs()} == {
        path.name for path in (ROOT / "recipes").glob("*.yaml")
    }
    names = [job.name for job in jobs.jobs()]
    assert len(names) == len({*names})


def test_words_are_options(modules) -> None:
    jobs, _ = modules
    for job in jobs.jobs():
        words = ["--config", str(ROOT / "recipes" / job.recipe), "--output", "none", *job.words]
        words += [f"--data.{name}={path}" for name, path in job.files.items()]
        if job.start not in ("scratch", "teacher"):
            words.append("--model.checkpoint=none")
        words += [] if job.teacher is None else [f"--distill.teacher={job.teacher}"]
        config = parse(words)
        assert config.task.name and config.data.train


def test_what_others_start_from_is_run_first(modules) -> None:
    jobs, _ = modules
    done = {"minilm", "small", "scratch", "chinese", "teacher"}
    for job in jobs.jobs():
        assert job.start in done, job.name
        assert job.teacher is None or job.teacher in done, job.name
        assert (job.start == "teacher") <= (job.teacher is not None), job.name
        done.add(job.name)


def test_table(modules) -> None:
    jobs, table = modules
    (job,) = [job for job in jobs.jobs() if job.name == "sentiment"]
    results = [
        {"job": "sentiment", "seed": seed, "seconds": 60.0, "peer": {"accuracy": 0.5 + 0.1 * seed},
         "figures": {"accuracy": 0.8 + 0.1 * seed, "f1_macro": 0.25}}
        for seed in (0, 1)
    ]  # fmt: skip
    assert table.rows_of(job, results) == [
        ["sentiment", "sst2", "accuracy", "0.8500 ± 0.0707", "0.5500 ± 0.0707 (Trainer)", "1.0"],
        ["", "", "f1 macro", "0.2500 ± 0.0000", "", ""],
    ]
    assert table.rows_of(job, []) == []
    (features,) = [job for job in jobs.jobs() if job.name == "features"]
    alone = {"job": "features", "seed": 0, "seconds": 6.0, "peer": {},
             "figures": {"accuracy": 0.75, "f1_macro": 0.5}}  # fmt: skip
    assert table.rows_of(features, [*results, alone]) == [
        [features.task, "sst2", "accuracy", "0.7500", "0.8500 ± 0.0707 (fine-tuned)", "0.1"],
        ["", "", "f1 macro", "0.5000", "0.2500 ± 0.0000 (fine-tuned)", ""],
    ]
    assert table.spread([34.567]) == "34.57"
