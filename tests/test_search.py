"""The search: the same seed draws the same trials."""

from __future__ import annotations

from pathlib import Path

import keras
from test_training import Setting

from kbert.config import SearchOptions, TrainOptions
from kbert.search import search
from kbert.training import new_model


def test_a_seed_repeats_a_search(
    tiny_options: list[str], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """Seed 0 too, which keras-tuner by itself takes for none."""
    setting = Setting([*tiny_options, "--train.seed", "0"], tiny_checkpoint)
    options = SearchOptions(
        tuner="random",
        trials=2,
        epochs=1,
        fraction=0.2,
        learning_rate=[rate / 1e5 for rate in range(1, 100)],
        batch_size=[4, 8, 16],
    )

    def build(train: TrainOptions) -> keras.Model:
        return new_model(setting.task, tiny_checkpoint, setting.config.model, train)

    tables = [
        search(
            build,
            setting.task,
            setting.splits["train"],
            setting.splits["validation"],
            setting.config.train,
            options,
            folder=tmp_path / name / "search",
        ).trials.rows
        for name in ("first", "second")
    ]
    assert len(tables[0]) == 2
    assert tables[0] == tables[1]
