"""A server with two models as kbert exports them, but tiny: news (text) and pairs (text_a, text_b).

For the tests of what stands on paper: the page for clients, the OpenAPI document.
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import tensorflow as tf

from serve.flags import Options
from serve.model_config import ModelConfig
from serve.server import LocalServer

VERSION = 3


def answers(is_first: tf.Tensor, names: tuple[str, str]) -> dict[str, tf.Tensor]:
    """The outputs of a classification with two classes."""
    first = tf.where(is_first, 0.75, 0.1)
    probabilities = tf.stack([first, 1 - first], axis=-1)  # (batch, 2)
    return {
        "label": tf.where(is_first, *names),
        "label_index": tf.where(is_first, 0, 1),
        "probabilities": probabilities,
        "logits": tf.math.log(probabilities),
    }


class News(tf.Module):
    """business if it is about shares, else sports."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="text")])
    def serving_default(self, text: tf.Tensor) -> dict[str, tf.Tensor]:
        is_business = tf.strings.regex_full_match(text, "(?s).*[Ss]hares.*")
        return answers(is_business, ("business", "sports"))

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="text")])
    def preprocess(self, text: tf.Tensor) -> dict[str, tf.Tensor]:
        length = tf.reduce_max(tf.concat([[0], tf.strings.length(text)], axis=0))
        return {"token_ids": tf.zeros([tf.size(text), length], tf.int32)}

    @property
    def signatures(self) -> dict[str, Callable]:
        return {"serving_default": self.serving_default, "preprocess": self.preprocess}


class Pairs(tf.Module):
    """same if both are equal, else different."""

    @tf.function(
        input_signature=[
            tf.TensorSpec([None], tf.string, name="text_a"),
            tf.TensorSpec([None], tf.string, name="text_b"),
        ]
    )
    def serving_default(self, text_a: tf.Tensor, text_b: tf.Tensor) -> dict[str, tf.Tensor]:
        return answers(tf.equal(text_a, text_b), ("same", "different"))

    @property
    def signatures(self) -> dict[str, Callable]:
        return {"serving_default": self.serving_default}


def save_models(root: Path) -> None:
    """root/news/3 and root/pairs/3."""
    for name, module in (("news", News()), ("pairs", Pairs())):
        path = str(root / name / str(VERSION))
        tf.saved_model.save(module, path, signatures=module.signatures)


@contextlib.contextmanager
def served(root: Path) -> Iterator[tuple[str, str]]:
    """The addresses of REST and of gRPC while both models are served, their version as "stable"."""
    labels = {"stable": VERSION}
    configs = [ModelConfig(name, root / name, labels=labels) for name in ("news", "pairs")]
    options = Options(allow_labels_for_unavailable=True)  # as they are when it starts
    with LocalServer(configs, options=options) as server:
        assert server.rest_address and server.grpc_address
        yield server.rest_address, server.grpc_address
