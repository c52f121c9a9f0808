"""Trains keras-hub's BertTextClassifier as it comes: `python train_keras_hub.py SETTINGS`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[level]) for level in (1, 2)]

from serve.startup import import_tensorflow_quietly  # noqa: E402

import_tensorflow_quietly()

import keras  # noqa: E402
import keras_hub  # noqa: E402
import numpy as np  # noqa: E402
from keras_rounds import Timed  # noqa: E402
from rounds import Rounds, read  # noqa: E402

WARM_UP = 5  # steps


def main() -> None:
    """Train until nobody asks for more: the checkpoint's sizes, with new weights."""
    rounds = Rounds()
    settings = json.loads(sys.argv[1])
    keras.utils.set_random_seed(settings["seed"])
    rows = read(settings["file"])
    labels = sorted({label for _, label in rows})
    folder = Path(settings["checkpoint"])
    sizes = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    vocabulary = (folder / "vocab.txt").read_text(encoding="utf-8").rstrip("\n").split("\n")
    classifier = keras_hub.models.BertTextClassifier(
        keras_hub.models.BertBackbone(
            vocabulary_size=sizes["vocab_size"],
            num_layers=sizes["num_hidden_layers"],
            num_heads=sizes["num_attention_heads"],
            hidden_dim=sizes["hidden_size"],
            intermediate_dim=sizes["intermediate_size"],
            max_sequence_length=sizes["max_position_embeddings"],
        ),
        num_classes=len(labels),
        preprocessor=keras_hub.models.BertTextClassifierPreprocessor(
            keras_hub.models.BertTokenizer(vocabulary, lowercase=True),
            sequence_length=settings["sequence_length"],
        ),
    )
    texts = np.array([text for text, _ in rows])
    numbers = np.array([labels.index(label) for _, label in rows])
    size = settings["batch_size"]
    # all batches are alike, so that a few are enough for a first round, which is not counted
    for count, epochs in ((WARM_UP * size, 1), (len(rows), settings["epochs"])):
        classifier.fit(
            texts[:count],
            numbers[:count],
            batch_size=size,
            epochs=epochs,
            callbacks=[Timed(rounds)],
            verbose=0,
        )


if __name__ == "__main__":
    main()
