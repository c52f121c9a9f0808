"""The preprocessing layers together, where they will run, and the tokenizers of files."""

import json
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from kbert.errors import InputError
from kbert.preprocessing import (
    BertPacker,
    BertWindowPacker,
    TokenMasker,
    WordPieceTokenizer,
    tokenizer_from_files,
    tokenizer_from_vocabulary_file,
)
from kbert.serving_ops import tf_serving_version

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "day", "##s", "!", "人"]


@pytest.fixture(scope="module")
def tokenizer() -> WordPieceTokenizer:
    return WordPieceTokenizer(VOCABULARY)


@pytest.fixture
def packer() -> BertPacker:
    return BertPacker(max_length=8, cls_token_id=2, sep_token_id=3, pad_token_id=0)


@pytest.fixture
def masker() -> TokenMasker:
    return TokenMasker(vocabulary_size=1000, mask_token_id=4, special_token_ids=range(5))


# tokenizer_from_files, tokenizer_from_vocabulary_file


def write_files(folder: Path, **contents) -> Path:
    """Writes name=content; "__" in a name is a dot, what is not a string becomes JSON."""
    folder.mkdir(exist_ok=True)
    for name, content in contents.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / name.replace("__", ".")).write_text(text, encoding="utf-8")
    return folder


def definition(vocabulary=VOCABULARY, **changes) -> dict:
    """A tokenizer.json; changes replace its parts."""
    special = [
        {"id": number, "content": token, "special": True, "normalized": False}
        for number, token in enumerate(VOCABULARY[:5])
    ]
    model = {"type": "WordPiece", "unk_token": "[UNK]"}
    model["vocab"] = {token: number for number, token in enumerate(vocabulary)}
    parts = {
        "added_tokens": special,
        "normalizer": {"type": "BertNormalizer", "lowercase": True, "strip_accents": None},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "model": model,
    }
    return parts | changes


VOCABULARY_TEXT = "\n".join(VOCABULARY) + "\n"


@pytest.mark.parametrize("config", [None, "", "{}", '{"do_lower_case": true}'])
def test_files_with_vocabulary(tmp_path, config):
    write_files(tmp_path, vocab__txt=VOCABULARY_TEXT)
    if config is not None:
        write_files(tmp_path, tokenizer_config__json=config)
    tokenizer = tokenizer_from_files(tmp_path)
    assert tokenizer.vocabulary == tuple(VOCABULARY)
    assert tokenizer(tf.constant(["Gööd day"])).to_list() == [[5, 6]]


def test_files_with_settings(tmp_path):
    config = {"do_lower_case": False, "strip_accents": True, "tokenize_chinese_chars": False}
    write_files(tmp_path, vocab__txt=VOCABULARY_TEXT, tokenizer_config__json=config)
    tokenizer = tokenizer_from_files(str(tmp_path))
    assert not tokenizer.lowercase
    assert tokenizer.strip_accents
    assert not tokenizer.tokenize_chinese_chars


def test_files_with_tokenizer_json(tmp_path):
    write_files(tmp_path, tokenizer__json=definition())
    assert tokenizer_from_files(tmp_path).vocabulary == tuple(VOCABULARY)
    write_files(tmp_path, vocab__txt=VOCABULARY_TEXT)
    assert tokenizer_from_files(tmp_path).vocabulary == tuple(VOCABULARY)


def test_files_with_cased_tokenizer_json(tmp_path):
    cased = {"type": "BertNormalizer", "lowercase": False, "strip_accents": None}
    write_files(tmp_path, tokenizer__json=definition(normalizer=cased))
    # transformers would lower-case here, against tokenizer.json.
    with pytest.raises(InputError, match=r"disagree about lowercase \(False, True\)"):
        tokenizer_from_files(tmp_path)
    for config in ({"do_lower_case": False}, {"tokenizer_class": "PreTrainedTokenizerFast"}):
        write_files(tmp_path, tokenizer_config__json=config)
        assert not tokenizer_from_files(tmp_path).lowercase


def test_files_with_added_tokens(tmp_path):
    entity = {"id": 10, "content": "[E1]", "special": True, "normalized": False}
    parts = definition()
    parts["added_tokens"].append(entity)
    tokenizer = tokenizer_from_files(write_files(tmp_path / "a", tokenizer__json=parts))
    assert tokenizer(tf.constant(["good[E1]"])).to_list() == [[5, 10]]

    config = {"added_tokens_decoder": {"10": {"content": "[E1]", "special": True}}}
    folder = write_files(tmp_path / "b", vocab__txt=VOCABULARY_TEXT, tokenizer_config__json=config)
    assert tokenizer_from_files(folder).additional_special_tokens == ("[E1]",)

    entity["normalized"] = True
    with pytest.raises(InputError, match=r"'\[E1\]' is matched in normalised text"):
        tokenizer_from_files(write_files(tmp_path / "a", tokenizer__json=parts))
    entity |= {"normalized": False, "id": 12}
    with pytest.raises(InputError, match="has the id 12"):
        tokenizer_from_files(write_files(tmp_path / "a", tokenizer__json=parts))


@pytest.mark.parametrize(
    ("token", "lowercase"),
    [("xs", True), ("##xs", True), ("人", True), ("~", True), ("XS", False), ("😀", True)],
)
def test_files_with_added_words(tmp_path, token, lowercase):
    """transformers finds these as added tokens only; here they would be words too."""
    added = {"10": {"content": token, "special": True, "normalized": False}}
    config = {"do_lower_case": lowercase, "added_tokens_decoder": added}
    vocabulary = VOCABULARY_TEXT.replace("人", "day2")
    folder = write_files(tmp_path, vocab__txt=vocabulary, tokenizer_config__json=config)
    with pytest.raises(InputError, match="can also be a word"):
        tokenizer_from_files(folder)


def test_files_with_added_tokens_that_are_no_words(tmp_path):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.BertTokenizerFast.from_pretrained(
        write_files(tmp_path / "base", vocab__txt=VOCABULARY_TEXT)
    )
    theirs.add_special_tokens({"additional_special_tokens": ["XS", "<day>", "a b"]})
    theirs.save_pretrained(tmp_path / "theirs")
    texts = ["XS day", "xs good", "<day> a b", "<DAY>", "dayXSa bday", "día"]
    ours = tokenizer_from_files(tmp_path / "theirs")(tf.constant(texts)).to_list()
    assert ours == theirs(texts, add_special_tokens=False)["input_ids"]


def test_files_with_named_special_tokens(tmp_path):
    text = VOCABULARY_TEXT.replace("[MASK]", "<mask>")
    write_files(tmp_path, vocab__txt=text, special_tokens_map__json={"mask_token": "<mask>"})
    assert tokenizer_from_files(tmp_path).mask_token == "<mask>"
    write_files(tmp_path, tokenizer_config__json={"mask_token": {"content": "<mask>"}})
    (tmp_path / "special_tokens_map.json").unlink()
    assert tokenizer_from_files(tmp_path).mask_token_id == 4


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ({}, "neither vocab.txt nor tokenizer.json"),
        ({"vocab__txt": ""}, "vocab.txt: holds no tokens"),
        ({"vocab__txt": "[PAD]\n[UNK]\n"}, r"vocab.txt: lacks the special tokens \[CLS\], \[SEP\]"),
        ({"vocab__txt": VOCABULARY_TEXT + "day\n"}, r"'day' \(lines 7, 11\)"),
        ({"vocab__txt": VOCABULARY_TEXT, "tokenizer_config__json": "{"}, "config.json: not JSON"),
        ({"vocab__txt": VOCABULARY_TEXT, "tokenizer_config__json": "[]"}, "a JSON object"),
        (
            {
                "vocab__txt": VOCABULARY_TEXT.replace("day", "night"),
                "tokenizer__json": definition(),
            },
            "disagree, first about id 6: 'day' and 'night'",
        ),
        (
            {"vocab__txt": VOCABULARY_TEXT + "night\n", "tokenizer__json": definition()},
            "disagree, first about id 10: none and 'night'",
        ),
        (
            {"tokenizer__json": definition(), "tokenizer_config__json": {"do_lower_case": False}},
            r"disagree about lowercase \(True, False\), strip_accents \(True, False\)",
        ),
        ({"tokenizer__json": definition(model={"type": "BPE"})}, "model is 'BPE'"),
        ({"tokenizer__json": definition(normalizer={"type": "NFC"})}, "normalizer is 'NFC'"),
        ({"tokenizer__json": definition(pre_tokenizer=None)}, "pre_tokenizer is None"),
        ({"tokenizer__json": definition(model={"vocab": {"a": 1}})}, "ids must be 0 to 0"),
    ],
)
def test_files_refused(tmp_path, contents, message):
    with pytest.raises(InputError, match=message) as caught:
        tokenizer_from_files(write_files(tmp_path, **contents))
    assert "\n" not in str(caught.value)


def test_vocabulary_file(tmp_path):
    path = tmp_path / "words.txt"
    path.write_bytes("\r\n".join([*VOCABULARY, "\u2028", "Day"]).encode())
    tokenizer = tokenizer_from_vocabulary_file(path, lowercase=False)
    assert tokenizer.vocabulary == (*VOCABULARY, "\u2028", "Day")
    assert tokenizer(tf.constant(["Day day"])).to_list() == [[11, 6]]
    path.write_bytes(b"\xff")
    with pytest.raises(InputError, match="not UTF-8"):
        tokenizer_from_vocabulary_file(path)
    with pytest.raises(InputError, match="No such file"):
        tokenizer_from_vocabulary_file(tmp_path / "absent.txt")


# All of them, where they will run


def test_layers_inside_a_data_pipeline(tokenizer, packer, masker):
    def preprocess(first, second):
        packed = packer((tokenizer(first), tokenizer(second)))
        return masker(packed, seed=tf.constant([0, 1])) | packed

    texts = ["good days!", "", "人 good"], ["day", "gööd", "[MASK]"]
    batches = list(tf.data.Dataset.from_tensor_slices(texts).batch(2).map(preprocess))
    assert [batch["token_ids"].shape[0] for batch in batches] == [2, 1]
    expected = packer(tuple(tokenizer(tf.constant(part[:2])) for part in texts))
    np.testing.assert_array_equal(batches[0]["token_ids"], expected["token_ids"])


def test_graph_holds_no_op_that_old_servers_lack(tokenizer, packer):
    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)] * 2)
    def preprocess(first, second):
        ids, starts, ends = tokenizer.tokenize_with_offsets(first)
        windows = BertWindowPacker(
            max_length=9, stride=2, cls_token_id=2, sep_token_id=3, pad_token_id=0
        )((ids, tokenizer(second)))
        texts = tokenizer.decode(ids, skip_special_tokens=True), tokenizer.decode_chinese(ids)
        return packer((tokenizer(first), tokenizer(second))), windows, starts, ends, texts

    graph = preprocess.get_concrete_function().graph.as_graph_def()
    nodes = [*graph.node, *(node for f in graph.library.function for node in f.node_def)]
    used = {node.op for node in nodes} - {f.signature.name for f in graph.library.function}
    assert {"RegexSplitWithOffsets", "FastWordpieceTokenizeWithOffsets"} <= used
    assert tf_serving_version(used) == "2.12"


@pytest.mark.parametrize(
    "layer",
    [
        WordPieceTokenizer([*VOCABULARY, "[E1]"], additional_special_tokens=["[E1]"], name="words"),
        WordPieceTokenizer(VOCABULARY, lowercase=False, strip_accents=True),
        BertPacker(max_length=9, cls_token_id=2, sep_token_id=3, pad_token_id=0),
        BertPacker(
            max_length=None,
            truncation="do_not_truncate",
            cls_token_id=2,
            sep_token_id=3,
            pad_token_id=0,
        ),
        BertWindowPacker(max_length=9, stride=2, cls_token_id=2, sep_token_id=3, pad_token_id=0),
        TokenMasker(vocabulary_size=9, mask_token_id=4, special_token_ids=range(5), mask_rate=0.3),
    ],
    ids=lambda layer: layer.name,
)
def test_config_round_trip(layer):
    config = json.loads(json.dumps(layer.get_config()))
    assert type(layer).from_config(config).get_config() == layer.get_config()


def test_keras_file_round_trip(tokenizer, packer, tmp_path):
    windows = BertWindowPacker(
        max_length=5, stride=0, cls_token_id=2, sep_token_id=3, pad_token_id=0
    )
    for pack in (packer, windows):
        inputs = [keras.Input((), dtype="string") for _ in range(2)]
        model = keras.Model(inputs, pack(tuple(tokenizer(text) for text in inputs)))
        model.save(tmp_path / "preprocessor.keras")
        loaded = keras.models.load_model(tmp_path / "preprocessor.keras")
        texts = [tf.constant(["good days", "人"]), tf.constant(["", "gööd day!"])]
        for name, value in model(texts).items():
            np.testing.assert_array_equal(loaded(texts)[name], value)


def test_export(tokenizer, packer, tmp_path):
    archive = keras.export.ExportArchive()
    archive.track(tokenizer)
    archive.add_endpoint(
        "serve", lambda text: packer((tokenizer(text),)), [tf.TensorSpec([None], tf.string)]
    )
    archive.write_out(str(tmp_path / "1"), verbose=False)
    # The loader that TF Serving uses.
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        loaded = tf.compat.v1.saved_model.loader.load(session, ["serve"], str(tmp_path / "1"))
        signature = loaded.signature_def["serve"]
        (text,) = signature.inputs.values()
        ids = session.run(signature.outputs["token_ids"].name, {text.name: ["good 人", "dÄys"]})
    assert ids.tolist() == [[2, 5, 9, 3], [2, 6, 7, 3]]
