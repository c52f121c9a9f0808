"""The files of sentence-transformers: of old versions and new ones, and ours back again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kbert.errors import InputError
from kbert.pooling import POOLINGS
from kbert.sentence_transformers import (
    SentenceVectors,
    read_sentence_vectors,
    sentence_transformers_files,
)

MODELS = "sentence_transformers.models"


def write(folder: Path, pooling: Any, *kinds: str) -> Path:
    """A folder whose modules after the encoder are of these kinds."""
    kinds = ("Transformer", *(kinds or ("Pooling",)))
    modules = [
        {"idx": index, "name": str(index), "path": f"{index}_{kind}", "type": f"{MODELS}.{kind}"}
        for index, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    (folder / "1_Pooling").mkdir(exist_ok=True)
    text = pooling if isinstance(pooling, str) else json.dumps(pooling)
    (folder / "1_Pooling" / "config.json").write_text(text, encoding="utf-8")
    return folder


def test_minilm_says_mean_and_normalised(minilm: Path) -> None:
    assert read_sentence_vectors(minilm) == SentenceVectors("mean", normalize=True, max_length=256)


def test_without_files_it_is_the_mean_and_said(
    tiny_checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert read_sentence_vectors(tiny_checkpoint) == SentenceVectors("mean", normalize=False)
    (line,) = caplog.messages
    assert line.startswith(f"{tiny_checkpoint} says not how to pool (no modules.json)")


@pytest.mark.parametrize(
    ("content", "pooling"),
    [
        ({"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}, "cls"),
        ({"pooling_mode_mean_tokens": False, "pooling_mode_max_tokens": True}, "max"),
        ({"pooling_mode": "cls", "embedding_dimension": 12}, "cls"),
        ({"pooling_mode": ["max"]}, "max"),
        ({"word_embedding_dimension": 12}, "mean"),
    ],
)
def test_both_kinds_of_keys(tmp_path: Path, content: dict[str, Any], pooling: str) -> None:
    assert read_sentence_vectors(write(tmp_path, content)) == SentenceVectors(pooling)
    normalised = write(tmp_path, content, "Pooling", "Normalize")
    assert read_sentence_vectors(normalised) == SentenceVectors(pooling, normalize=True)


@pytest.mark.parametrize(
    ("content", "kinds", "words"),
    [
        ({"pooling_mode": "weightedmean"}, (), "pools by weightedmean, which is none of"),
        (
            {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True},
            (),
            "pools by cls and mean",
        ),
        ({}, ("Pooling", "Dense"), "Transformer, Pooling, Dense is no encoder"),
        ({}, ("Dense",), "modules.json: Transformer, Dense"),
        ("{", (), "not JSON"),
        ("[]", (), "not a file of sentence-transformers"),
    ],
)
def test_what_is_not_done_is_refused(
    tmp_path: Path, content: Any, kinds: tuple[str, ...], words: str
) -> None:
    with pytest.raises(InputError, match=words) as caught:
        read_sentence_vectors(write(tmp_path, content, *kinds))
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_pooling_is_refused(tmp_path: Path) -> None:
    (write(tmp_path, {}) / "1_Pooling" / "config.json").unlink()
    with pytest.raises(InputError, match=r"1_Pooling/config\.json: No such file.*--task\.pooling"):
        read_sentence_vectors(tmp_path)


@pytest.mark.parametrize("length", ["512", 1, 2.5, True])
def test_a_wrong_length_is_refused(tmp_path: Path, length: Any) -> None:
    content = json.dumps({"max_seq_length": length})
    (write(tmp_path, {}) / "sentence_bert_config.json").write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match="max_seq_length must be a number over 1"):
        read_sentence_vectors(tmp_path)


@pytest.mark.parametrize(
    ("default", "prompts", "is_refused"),
    [("query", {"query": "query: "}, True), (None, {"query": "query: "}, False),
     ("query", {"query": ""}, False), ("query", None, False)],
)  # fmt: skip
def test_a_prompt_before_every_text_is_refused(
    tmp_path: Path, default: str | None, prompts: Any, is_refused: bool
) -> None:
    content = json.dumps({"default_prompt_name": default, "prompts": prompts})
    folder = write(tmp_path, {})
    (folder / "config_sentence_transformers.json").write_text(content, encoding="utf-8")
    if is_refused:
        with pytest.raises(InputError, match="'query: ' is to stand before every text"):
            read_sentence_vectors(folder)
    else:
        assert read_sentence_vectors(folder) == SentenceVectors()


@given(
    st.builds(
        SentenceVectors,
        pooling=st.sampled_from(POOLINGS),
        normalize=st.booleans(),
        max_length=st.none() | st.integers(4, 512),
    )
)
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, vectors: SentenceVectors
) -> None:
    folder = tmp_path_factory.mktemp("written")
    for name, text in sentence_transformers_files(vectors, hidden_dim=12).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    assert read_sentence_vectors(folder) == vectors


def test_written_files_are_as_minilms_own(minilm: Path) -> None:
    files = sentence_transformers_files(read_sentence_vectors(minilm), hidden_dim=384)
    for name in ("modules.json", "sentence_bert_config.json"):
        assert json.loads(files[name]) == json.loads((minilm / name).read_text(encoding="utf-8"))
    pooling = json.loads((minilm / "1_Pooling" / "config.json").read_text(encoding="utf-8"))
    assert pooling.items() <= json.loads(files["1_Pooling/config.json"]).items()
