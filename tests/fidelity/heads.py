"""The heads on random weights: logits, losses, gradients."""

from __future__ import annotations

import copy
import functools
import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import torch
from parity import (
    GRADIENT_TOLERANCE,
    HEADS,
    TOLERANCE,
    Head,
    arrays,
    largest_difference,
    largest_gradient_difference,
    our_gradients,
    our_head,
    random_inputs,
    tf_model,
    torch_gradients,
    torch_loss,
    torch_model,
)

from fidelity.claims import Claim, Finding, bounded
from fidelity.references import ACTIVATIONS, NO_DROPOUT, outputs_of
from kbert.checkpoint_files import open_tensors
from kbert.huggingface import load_weights


def head_cases(head: Head) -> Iterator[tuple[keras.Model, Any, dict, dict]]:
    """Our model, torch's, inputs and labels: all activations, tied or not, padded or not."""
    has_decoder = head.kind in ("BertForMaskedLM", "BertForPreTraining")
    for activation, tied in itertools.product(ACTIVATIONS, (True, False)[: 1 + has_decoder]):
        config = head.config(**NO_DROPOUT, hidden_act=activation, tie_word_embeddings=tied)
        reference = torch_model(head.kind, config)
        model = our_head(head, config)
        load_weights(model, arrays(reference), source="torch")
        for padded, length in ((True, 11), (False, 13)):
            inputs = random_inputs(31, num_segments=3, length=length, padded=padded)
            yield model, reference, inputs, head.labels(inputs, 31)


def head_against_torch(head: Head) -> Finding:
    """Loss and logits."""
    worst = []
    for model, reference, inputs, labels in head_cases(head):
        logits = head.our_logits(model, inputs)
        for theirs in (reference, copy.deepcopy(reference).double()):
            with torch.no_grad():
                loss, *their_logits = torch_loss(theirs, inputs, labels).values()
            pairs = zip(
                [head.our_loss(logits, labels), *logits], [loss, *their_logits], strict=True
            )
            worst.append(max(largest_difference(*pair) for pair in pairs))
    return bounded(max(worst), TOLERANCE, len(worst))


def head_against_tensorflow(head: Head) -> Finding:
    """Logits, and the loss where TensorFlow's model has the same."""
    worst = []
    for activation, padded in itertools.product(ACTIVATIONS, (False, True)):
        reference = tf_model(f"TF{head.kind}", head.config(hidden_act=activation))
        model = our_head(head, reference.config)
        with tempfile.TemporaryDirectory() as folder:
            reference.save_pretrained(folder)
            load_weights(model, open_tensors(Path(folder, "tf_model.h5")), source="h5")
        inputs = random_inputs(31, num_segments=3, padded=padded)
        ours, labels = head.our_logits(model, inputs), counting_labels(head, inputs)
        theirs = outputs_of(reference, inputs, **labels)
        if labels:
            ours.insert(0, head.our_loss(ours, labels))
            theirs[0] = theirs[0].mean()
        pairs = zip(ours, theirs, strict=True)
        worst.append(max(largest_difference(*pair) for pair in pairs))
    return bounded(max(worst), TOLERANCE, len(worst))


def counting_labels(head: Head, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Labels that TensorFlow's losses take: of a text they must count, there is no multi-label."""
    labels = head.labels(inputs, 31)
    if head.problem_type == "multi_label_classification":
        return {}
    if head.kind == "BertForQuestionAnswering":
        last = inputs["token_ids"].shape[1] - 1
        return {name: np.clip(array, 0, last) for name, array in labels.items()}
    if head.problem_type == "single_label_classification" or "Next" in head.kind:
        return {name: np.maximum(array, 0) for name, array in labels.items()}
    return labels


def head_gradients(head: Head) -> Finding:
    """Of the loss by each tensor, against torch in both precisions."""
    worst = []
    for model, reference, inputs, labels in head_cases(head):
        loss = functools.partial(our_training_loss, head, model, inputs, labels)
        padded = not inputs["padding_mask"].all()  # half of them as a graph, as training is
        ours = our_gradients(model, tf.function(loss) if padded else loss)
        exact = torch_gradients(copy.deepcopy(reference).double(), inputs, labels)
        for wanted in (torch_gradients(reference, inputs, labels), exact):
            worst.append(largest_gradient_difference(ours, wanted, exact)[0])
    return bounded(max(worst), GRADIENT_TOLERANCE, len(worst))


def our_training_loss(head: Head, model: keras.Model, inputs: dict, labels: dict) -> Any:
    return head.our_loss(head.our_logits(model, inputs, training=True), labels)


CLAIMS = [
    Claim(f"{head.name}: {what}", functools.partial(measure, head))
    for head in HEADS
    for what, measure in (
        ("logits and loss; against torch fp32 and fp64", head_against_torch),
        ("logits and loss; against TensorFlow fp32", head_against_tensorflow),
        ("gradients of the loss; against torch fp32 and fp64", head_gradients),
    )
]
