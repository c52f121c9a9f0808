"""The rounds of a training by Keras."""

from __future__ import annotations

import math

import keras
from rounds import Rounds


class Timed(keras.callbacks.Callback):
    """Begins, counts and ends them."""

    def __init__(self, rounds: Rounds, **said) -> None:
        super().__init__()
        self.rounds = rounds
        self.said = said

    def on_epoch_begin(self, epoch, logs=None) -> None:
        self.rounds.begin()

    def on_train_batch_end(self, batch, logs=None) -> None:
        self.rounds.step()

    def on_epoch_end(self, epoch, logs=None) -> None:
        trained = sum(math.prod(variable.shape) for variable in self.model.trainable_weights)
        self.rounds.end(loss=float(logs["loss"]), trained=trained, **self.said)
