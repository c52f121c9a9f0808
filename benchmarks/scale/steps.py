"""Times training steps of several sizes in one process: `python steps.py SIZES`.

SIZES is a list in JSON of objects with the fields of `Sizes`. For each, a line of JSON on standard
output tells the median time of a step in milliseconds. A step is one of kbert's: its encoder and
classifier, AdamW with clipping, float32, on made-up ids without padding. The vocabulary is small,
so that the update of its embedding does not hide how the rest grows.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from statistics import median

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parent)]

from serve.startup import import_tensorflow_quietly  # noqa: E402

import_tensorflow_quietly()

import keras  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402
from theory import Sizes  # noqa: E402

from kbert.config import EncoderConfig, TrainOptions  # noqa: E402
from kbert.encoder import build_encoder  # noqa: E402
from kbert.heads import sequence_classifier  # noqa: E402
from kbert.optimizers import new_optimizer  # noqa: E402

VOCABULARY = 1000
UNTIMED, TIMED = 2, 7  # steps; the first one traces


def main() -> None:
    """Time each size in turn."""
    tf.config.experimental.enable_op_determinism()
    for fields in json.loads(sys.argv[1]):
        sizes = Sizes(**fields)
        milliseconds = time_steps(sizes)
        print(json.dumps({**asdict(sizes), "milliseconds": milliseconds}), flush=True)
        keras.utils.clear_session()


def time_steps(sizes: Sizes) -> float:
    """Median time of a step, in milliseconds."""
    keras.utils.set_random_seed(0)
    model = new_model(sizes)
    generator = np.random.default_rng(0)
    shape = (sizes.batch, sizes.length)
    ids = tf.constant(generator.integers(5, VOCABULARY, shape), tf.int32)
    inputs = {"token_ids": ids, "segment_ids": 0 * ids, "padding_mask": tf.ones_like(ids)}
    labels = tf.one_hot(generator.integers(sizes.classes, size=sizes.batch), sizes.classes)
    times = []
    for _ in range(UNTIMED + TIMED):
        began = time.perf_counter()
        model.train_on_batch(inputs, labels)
        times.append(time.perf_counter() - began)
    return 1000 * median(times[UNTIMED:])


def new_model(sizes: Sizes) -> keras.Model:
    """A classifier that is ready to be trained."""
    config = EncoderConfig(
        vocabulary_size=VOCABULARY,
        hidden_dim=sizes.hidden,
        num_layers=sizes.layers,
        num_heads=sizes.hidden // 32,
        intermediate_dim=4 * sizes.hidden,
        max_sequence_length=512,
    )
    encoder = build_encoder(config, dtype="float32")
    model = sequence_classifier(encoder, config, num_labels=sizes.classes, dtype="float32")
    options = TrainOptions(batch_size=sizes.batch, learning_rate=1e-5)
    model.compile(
        new_optimizer(options, total_steps=1000),
        loss=keras.losses.CategoricalCrossentropy(from_logits=True),
    )
    return model


if __name__ == "__main__":
    main()
