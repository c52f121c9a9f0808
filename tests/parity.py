"""Ours against a reference: the bound, inputs that show errors, and the reference's own outputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from kbert import losses
from kbert.config import EncoderConfig
from kbert.encoder import build_encoder
from kbert.heads import build_model
from kbert.huggingface import HEADS as HF_HEADS
from kbert.huggingface import encoder_config, named_tensors

TOLERANCE = 1e-5
"""Largest difference allowed, times the reference's largest absolute value where that is over 1."""

GRADIENT_TOLERANCE = 1e-4
"""Largest difference allowed between gradients of a tensor, over its largest gradient."""

ODD_CONFIG = EncoderConfig(
    vocabulary_size=31,
    hidden_dim=20,
    num_layers=2,
    num_heads=4,
    intermediate_dim=37,
    initializer_range=0.3,
    max_sequence_length=13,
)
"""Sizes that are no multiples of what kernels compute at once."""


def largest_difference(ours: Any, reference: Any) -> float:
    """Largest absolute difference, in units of max(1, largest absolute reference value)."""
    ours, reference = _array(ours), _array(reference)
    assert ours.shape == reference.shape
    assert np.isfinite(ours).all()
    return float(np.abs(ours - reference).max() / max(1.0, np.abs(reference).max()))


def assert_same_outputs(ours: Any, reference: Any, *, tolerance: float = TOLERANCE) -> None:
    """Compares arrays, or dictionaries and lists of arrays, of ours and of a reference."""
    if isinstance(reference, dict):
        assert set(ours) == set(reference)
        for key in reference:
            assert_same_outputs(ours[key], reference[key], tolerance=tolerance)
    elif isinstance(reference, list | tuple):
        assert len(ours) == len(reference)
        for left, right in zip(ours, reference, strict=True):
            assert_same_outputs(left, right, tolerance=tolerance)
    else:
        difference = largest_difference(ours, reference)
        assert difference <= tolerance, f"differs by {difference:.2e}, allowed is {tolerance:.0e}"


def assert_round_trip(model: Any, copy: Any) -> None:
    """Two models have the same weights, bit for bit, under the same paths."""
    ours = {variable.path: np.asarray(variable) for variable in model.weights}
    theirs = {variable.path: np.asarray(variable) for variable in copy.weights}
    assert list(ours) == list(theirs)
    for path, array in ours.items():
        np.testing.assert_array_equal(array, theirs[path], err_msg=path)


def random_inputs(
    vocabulary_size: int, *, num_segments: int = 2, length: int = 11, padded: bool = True
) -> dict[str, np.ndarray]:
    """Inputs of an encoder, (5, length) int32: the texts are of all lengths when padded."""
    generator = np.random.default_rng(7)
    shape = (5, length)
    mask = np.ones(shape, "int32")
    if padded:
        lengths = np.linspace(1, length, shape[0]).astype(int)
        mask = (np.arange(length) < lengths[:, None]).astype("int32")
    return {
        "token_ids": generator.integers(0, vocabulary_size, shape, dtype="int32"),
        "segment_ids": generator.integers(0, num_segments, shape, dtype="int32"),
        "padding_mask": mask,
    }


def hf_inputs(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Our inputs under HuggingFace's names."""
    return {
        "input_ids": inputs["token_ids"],
        "token_type_ids": inputs["segment_ids"],
        "attention_mask": inputs["padding_mask"],
    }


def torch_outputs(model: Any, inputs: dict[str, np.ndarray], **options: Any) -> Any:
    """What a torch model of transformers gives for our inputs."""
    import torch

    tensors = {name: torch.tensor(array) for name, array in hf_inputs(inputs).items()}
    with torch.no_grad():
        return model.eval()(**tensors, **options)


def tf_outputs(model: Any, inputs: dict[str, np.ndarray]) -> Any:
    """What a TensorFlow model of transformers gives for our inputs."""
    return model(hf_inputs(inputs), training=False)


SIZES = {
    "vocab_size": 31,
    "hidden_size": 20,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 37,
    "max_position_embeddings": 13,
    "type_vocab_size": 3,
    "layer_norm_eps": 1e-3,
}


def hf_config(**values: Any) -> Any:
    """A small BERT of odd sizes."""
    import transformers

    return transformers.BertConfig(**{**SIZES, "num_labels": 5, **values})


def torch_model(kind: str, config: Any) -> Any:
    """A torch model whose weights are far from their initial ones."""
    import torch
    import transformers

    torch.manual_seed(0)
    model = getattr(transformers, kind)._from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return model


def tf_model(kind: str, config: Any) -> Any:
    """The same for TensorFlow; the weights are others."""
    import transformers

    model = getattr(transformers, kind)(config)
    model(model.dummy_inputs)
    generator = np.random.default_rng(0)
    for weight in model.weights:
        weight.assign(weight + 0.3 * generator.normal(size=weight.shape))
    return model


def arrays(model: Any) -> dict[str, np.ndarray]:
    """The tensors of a torch model by name."""
    return {name: array.numpy() for name, array in model.state_dict().items()}


@dataclass(frozen=True)
class Head:
    """A head with a loss, and HuggingFace's model of it."""

    name: str
    kind: str
    """Class of HuggingFace's model, without TF."""
    loss: Callable[[], Any]
    """Our loss; of each of the logits where there are several."""
    num_labels: int = 2
    problem_type: str | None = None

    def config(self, **values: Any) -> Any:
        """HuggingFace's config of a small model of it."""
        values = {"num_labels": self.num_labels, "problem_type": self.problem_type, **values}
        return hf_config(**values)

    def labels(self, inputs: dict[str, np.ndarray], vocabulary_size: int) -> dict[str, np.ndarray]:
        """Labels by HuggingFace's names, some of which do not count."""
        generator = np.random.default_rng(11)
        rows, length = inputs["token_ids"].shape
        words = generator.integers(0, vocabulary_size, (rows, length))
        words = np.where(generator.random((rows, length)) < 0.4, words, -100)
        words[0, 0] = 1  # there is one at least
        classes = generator.integers(0, self.num_labels, rows)
        if self.kind == "BertForQuestionAnswering":
            # the first ends behind the text, the second begins before it
            starts, ends = generator.integers(0, length, (2, rows))
            starts[1:2], ends[:1] = -1, length + 2
            return {"start_positions": starts, "end_positions": ends}
        if self.kind == "BertForPreTraining":
            return {"labels": words, "next_sentence_label": classes}
        if self.kind == "BertForMaskedLM":
            return {"labels": words}
        if self.kind == "BertForTokenClassification":
            return {"labels": np.where(words >= 0, words % self.num_labels, -100)}
        if self.problem_type == "multi_label_classification":
            return {"labels": generator.integers(0, 2, (rows, self.num_labels)).astype("float32")}
        if self.problem_type == "regression":
            numbers = generator.normal(size=(rows, self.num_labels)).astype("float32")
            return {"labels": numbers[:, 0] if self.num_labels == 1 else numbers}
        return {"labels": np.where(np.arange(rows) == rows - 2, -100, classes)}

    def our_logits(self, model: Any, inputs: dict[str, np.ndarray], **options: Any) -> list:
        """Our logits, of masked words at all positions, in the order of HuggingFace's."""
        if "mask_positions" in model.input:
            rows, length = inputs["token_ids"].shape
            positions = np.tile(np.arange(length, dtype="int32"), (rows, 1))
            inputs = {**inputs, "mask_positions": positions}
        logits = model(inputs, **options)
        if isinstance(logits, dict):
            return [logits["masked_lm_logits"], logits["next_sentence_logits"]]
        if self.kind == "BertForQuestionAnswering":
            return [logits[:, 0], logits[:, 1]]
        return [logits]

    def our_loss(self, logits: list, labels: dict[str, np.ndarray]) -> Any:
        """Our loss of our logits."""
        if self.kind == "BertForQuestionAnswering":
            both = np.stack([labels["start_positions"], labels["end_positions"]], axis=1)
            return self.loss()(both, tf.stack(logits, axis=1))
        pairs = zip(labels.values(), logits, strict=True)
        return sum(self.loss()(label, given) for label, given in pairs)


def our_head(head: Head, config: Any) -> Any:
    """Our model of a head, by HuggingFace's config."""
    ours = encoder_config(config.to_dict())
    name = HF_HEADS[head.kind]
    return build_model(build_encoder(ours), ours, head=name, num_labels=head.num_labels)


SEQUENCE = "BertForSequenceClassification"
HEADS = (
    Head("single label", SEQUENCE, losses.cross_entropy, 5, "single_label_classification"),
    Head("multi-label", SEQUENCE, losses.multi_label, 5, "multi_label_classification"),
    Head("regression", SEQUENCE, losses.regression, 1, "regression"),
    Head("regression of 3 numbers", SEQUENCE, losses.regression, 3, "regression"),
    Head("token classification", "BertForTokenClassification", losses.cross_entropy, 5),
    Head("masked LM", "BertForMaskedLM", losses.cross_entropy),
    Head("next sentence", "BertForNextSentencePrediction", losses.cross_entropy),
    Head("pre-training", "BertForPreTraining", losses.cross_entropy),
    Head("question answering", "BertForQuestionAnswering", losses.SpanLoss),
)


def torch_loss(model: Any, inputs: dict[str, np.ndarray], labels: dict[str, np.ndarray]) -> Any:
    """Outputs of a torch model with the loss of labels, whose gradient can be asked for."""
    import torch

    kind = next(model.parameters()).dtype
    tensors = {name: torch.tensor(array) for name, array in {**hf_inputs(inputs), **labels}.items()}
    tensors = {name: t.to(kind) if t.is_floating_point() else t for name, t in tensors.items()}
    return model(**tensors)


def torch_gradients(
    model: Any, inputs: dict[str, np.ndarray], labels: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Gradient of a torch model's loss by parameter."""
    model.zero_grad()
    torch_loss(model, inputs, labels).loss.backward()
    named = model.named_parameters()
    return {name: p.grad.numpy().copy() for name, p in named if p.grad is not None}


def our_gradients(model: Any, loss: Callable[[], Any]) -> dict[str, np.ndarray]:
    """Gradient of a loss of our model by HuggingFace's names and in its shapes.

    The gradients stand in for the weights for a moment, so that the two-way table names them.
    """
    with tf.GradientTape() as tape:
        value = loss()
    variables = model.trainable_variables
    gradients = tape.gradient(value, [variable.value for variable in variables])
    weights = model.get_weights()
    try:
        for variable, gradient in zip(variables, gradients, strict=True):
            zero = tf.zeros(variable.shape)
            variable.assign(zero if gradient is None else tf.convert_to_tensor(gradient))
        return named_tensors(model)
    finally:
        model.set_weights(weights)


def largest_gradient_difference(
    ours: dict[str, np.ndarray], reference: dict[str, np.ndarray], exact: dict[str, np.ndarray]
) -> tuple[float, str]:
    """Largest difference over largest gradient of all tensors, and the tensor that has it.

    Some gradients are zero but for rounding: a bias of the keys adds the same to all scores of a
    row, which softmax does not see. These, known by `exact`, the reference's gradients in double
    precision, are measured by the largest gradient of all.
    """
    assert set(reference) == set(exact) <= set(ours)
    largest = max(float(np.abs(array).max()) for array in exact.values())
    differences = {}
    for name, array in ours.items():
        # torch's model may lack a tensor that its loss does not depend on, such as the pooler
        wanted = reference.get(name, np.zeros_like(array))
        scale = np.abs(exact.get(name, 0)).max()
        scale = largest if scale < 1e-12 * largest else np.abs(wanted).max()
        differences[name] = float(np.abs(array - wanted).max() / scale)
    worst = max(differences, key=lambda name: differences[name])
    return differences[worst], worst


def _array(values: Any) -> np.ndarray:
    values = values.detach() if hasattr(values, "detach") else values
    return np.asarray(values, dtype="float64")
