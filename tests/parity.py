"""Ours against a reference: the bound, inputs that show errors, and the reference's own outputs."""

from __future__ import annotations

from typing import Any

import numpy as np

TOLERANCE = 1e-5
"""Largest difference allowed, times the reference's largest absolute value where that is over 1."""


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


def _array(values: Any) -> np.ndarray:
    values = values.detach() if hasattr(values, "detach") else values
    return np.asarray(values, dtype="float64")
