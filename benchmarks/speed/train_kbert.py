"""Trains by kbert, an epoch at a time: `python train_kbert.py OPTION ...` as for train.py."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from serve.startup import import_tensorflow_quietly  # noqa: E402

import_tensorflow_quietly()

import keras  # noqa: E402
import tensorflow as tf  # noqa: E402
from rounds import Rounds  # noqa: E402

from kbert.config import parse  # noqa: E402
from kbert.experiment import Materials  # noqa: E402
from kbert.run import with_fastest_step  # noqa: E402


class Timed(keras.callbacks.Callback):
    """The rounds of a training by Keras."""

    def __init__(self, rounds: Rounds, **said) -> None:
        super().__init__()
        self.rounds = rounds
        self.said = said

    def on_epoch_begin(self, epoch, logs=None) -> None:
        self.rounds.begin()

    def on_train_batch_end(self, batch, logs=None) -> None:
        self.rounds.step()

    def on_epoch_end(self, epoch, logs=None) -> None:
        self.rounds.end(loss=float(logs["loss"]), **self.said)


def main() -> None:
    """As `kbert.run.run` trains, without what it measures and exports."""
    rounds = Rounds()
    tf.config.experimental.enable_op_determinism()
    config = parse(sys.argv[1:])
    materials = Materials(config)
    config = with_fastest_step(config, materials.experiment(config))
    experiment = materials.experiment(config)
    said = {"precision": config.train.precision, "compile": config.train.compile}
    experiment.train(experiment.new_model(), folder=None, callbacks=[Timed(rounds, **said)])


if __name__ == "__main__":
    main()
