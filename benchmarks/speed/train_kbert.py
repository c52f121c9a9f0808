"""Trains by kbert, an epoch at a time: `python train_kbert.py OPTION ...` as for train.py."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from serve.startup import import_tensorflow_quietly  # noqa: E402

import_tensorflow_quietly()

import tensorflow as tf  # noqa: E402
from keras_rounds import Timed  # noqa: E402
from rounds import Rounds  # noqa: E402

from kbert.config import parse  # noqa: E402
from kbert.experiment import Materials  # noqa: E402
from kbert.run import begin_threads, with_fastest_step  # noqa: E402


def main() -> None:
    """As `kbert.run.run` trains, without what it measures and exports."""
    rounds = Rounds()
    tf.config.experimental.enable_op_determinism()
    config = parse(sys.argv[1:])
    begin_threads(config)
    materials = Materials(config)
    config = with_fastest_step(config, materials.experiment(config))
    experiment = materials.experiment(config)
    said = {"precision": config.train.precision, "compile": config.train.compile}
    experiment.train(experiment.new_model(), folder=None, callbacks=[Timed(rounds, **said)])


if __name__ == "__main__":
    main()
