"""Vocabularies, tokenizer.json and its settings; files of sentence-transformers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from materials import VOCABULARY

from hostile_files.case import TERA, Case
from hostile_files.spoilers import both, changed, deep, grown, later, linked, piped, write


def vocabulary(*tokens: str) -> Callable[[Path], None]:
    """A vocab.txt of the tiny one's tokens, and others."""
    return write("vocab.txt", "".join(f"{token}\n" for token in (*VOCABULARY, *tokens)))


def tokenizer_json(**values: Any) -> Callable[[Path], None]:
    """A tokenizer.json of the tiny vocabulary in place of vocab.txt, changed."""

    def spoil(folder: Path) -> None:
        (folder / "vocab.txt").unlink()
        content = {
            "added_tokens": [],
            "normalizer": {"type": "BertNormalizer", "lowercase": True},
            "pre_tokenizer": {"type": "BertPreTokenizer"},
            "model": {
                "type": "WordPiece",
                "unk_token": "[UNK]",
                "vocab": {token: number for number, token in enumerate(VOCABULARY)},
            },
        }
        model = {**content["model"], **values.pop("model", {})}
        (folder / "tokenizer.json").write_text(json.dumps({**content, "model": model, **values}))

    return spoil


def vocab_with(**ids: Any) -> dict[str, Any]:
    return {"vocab": {token: number for number, token in enumerate(VOCABULARY)} | ids}


TOKENS = ("tokenizer",)
tokenizers = [
    Case("vocab.txt: empty", write("vocab.txt", ""), TOKENS),
    Case("vocab.txt: a duplicate", vocabulary("cat"), TOKENS),
    Case("vocab.txt: two empty lines", vocabulary("", ""), TOKENS),
    Case("vocab.txt: one empty line", vocabulary("", "run"), TOKENS, is_read=True),
    Case("vocab.txt: a token of 257 bytes", vocabulary("猫" * 85 + "ab"), TOKENS),
    Case("vocab.txt: a token of 256 bytes", vocabulary("猫" * 85 + "a"), TOKENS, is_read=True),
    Case("vocab.txt: a line of a million characters", vocabulary("x" * 10**6), TOKENS),
    Case("vocab.txt: a line of 60 million characters",
         later(lambda: vocabulary("x" * 60_000_000)), TOKENS),
    Case("vocab.txt: 10 TB", grown("vocab.txt", 10 * TERA), TOKENS),
    Case("vocab.txt: 5 million lines",
         later(lambda: vocabulary(*(f"w{n}" for n in range(5_000_000)))), TOKENS, is_large=True),
    Case("vocab.txt: 600,000 lines of 100 characters",
         later(lambda: vocabulary(*(f"{n:0100d}" for n in range(600_000)))), TOKENS, is_read=True,
         is_large=True),
    Case("vocab.txt: NUL bytes", vocabulary("a\0b", "\0"), TOKENS, is_read=True),
    Case("vocab.txt: not UTF-8", write("vocab.txt", b"[PAD]\n\xff\xfe\n"), TOKENS),
    Case("vocab.txt: UTF-16",
         write("vocab.txt", "\n".join(VOCABULARY).encode("utf-16")), TOKENS),
    Case("vocab.txt: no special tokens", write("vocab.txt", "the\ncat\n"), TOKENS),
    Case("vocab.txt: a pipe", piped("vocab.txt"), TOKENS),
    Case("vocab.txt: a symlink out of the folder", linked("vocab.txt", "/etc/passwd"), TOKENS),
    Case("tokenizer.json: good", tokenizer_json(), TOKENS, is_read=True),
    Case("tokenizer.json: 200,000 levels", write("tokenizer.json", deep()), TOKENS),
    Case("tokenizer.json: 10 TB", grown("tokenizer.json", 10 * TERA), TOKENS),
    Case("tokenizer.json: a pipe", piped("tokenizer.json"), TOKENS),
    *(
        Case(f"tokenizer.json: {name}", tokenizer_json(**values), TOKENS)
        for name, values in (
            ("model of another type", {"model": {"type": "BPE"}}),
            ("vocab a list", {"model": {"vocab": ["a"]}}),
            ("vocab a text", {"model": {"vocab": "a"}}),
            ("an id that is a text", {"model": vocab_with(run="19")}),
            ("an id that is a list", {"model": vocab_with(run=[19])}),
            ("an id under 0", {"model": vocab_with(run=-1)}),
            ("an id of 10**18", {"model": vocab_with(run=10**18)}),
            ("an id twice", {"model": vocab_with(run=3)}),
            ("half a surrogate pair", {"model": vocab_with(**{"\ud800": 19})}),
            ("normalizer a text", {"normalizer": "BertNormalizer"}),
            ("normalizer a list", {"normalizer": [{"type": "BertNormalizer"}]}),
            ("lowercase a text", {"normalizer": {"type": "BertNormalizer", "lowercase": "no"}}),
            ("a sequence of normalizers", {"normalizer": {"type": "Sequence", "normalizers": []}}),
            ("pre_tokenizer a number", {"pre_tokenizer": 1}),
            ("added_tokens a text", {"added_tokens": "x"}),
            ("added_tokens of numbers", {"added_tokens": [1]}),
            ("an added token without an id", {"added_tokens": [{"content": "[X]"}]}),
            ("an added token of id 10**9",
             {"added_tokens": [{"content": "[X]", "id": 10**9, "special": True}]}),
            ("an added token whose content is a list",
             {"added_tokens": [{"content": ["x"], "id": 19, "special": True}]}),
            ("an added token of a million characters",
             {"added_tokens": [{"content": "[" + "x" * 10**6, "id": 19, "special": True}]}),
        )
    ),
    *(
        Case(f"tokenizer_config.json: {name}", changed("tokenizer_config.json", **values), TOKENS)
        for name, values in (
            ("do_lower_case a text", {"do_lower_case": "no"}),
            ("do_lower_case a list", {"do_lower_case": []}),
            ("strip_accents a number", {"strip_accents": 3}),
            ("tokenize_chinese_chars a text", {"tokenize_chinese_chars": "x"}),
            ("unk_token a number", {"unk_token": 1}),
            ("unk_token an object without content", {"unk_token": {"special": True}}),
            ("cls_token a list", {"cls_token": ["[CLS]"]}),
            ("mask_token of a million characters", {"mask_token": "x" * 10**6}),
            ("added_tokens_decoder a list", {"added_tokens_decoder": []}),
            ("added_tokens_decoder with a word for an id",
             {"added_tokens_decoder": {"x": {"content": "[X]", "special": True}}}),
            ("added_tokens_decoder of texts", {"added_tokens_decoder": {"19": "[X]"}}),
            ("an id of 100,000 digits", {"added_tokens_decoder": {"9" * 100_000: {}}}),
            ("additional_special_tokens a number", {"additional_special_tokens": 5}),
            ("additional_special_tokens of numbers", {"additional_special_tokens": [5]}),
        )
    ),
    Case("special_tokens_map.json: a list", write("special_tokens_map.json", "[]"), TOKENS),
    Case("special_tokens_map.json: 200,000 levels", write("special_tokens_map.json", deep()),
         TOKENS),
    Case("added_tokens.json: ids that are texts", write("added_tokens.json", '{"[X]": "19"}'),
         TOKENS),
    Case("added_tokens.json: ids that are lists", write("added_tokens.json", '{"[X]": [19]}'),
         TOKENS),
]  # fmt: skip


def modules(path: Any, *, content: Any = None) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        listed = [
            {"path": "", "type": "sentence_transformers.models.Transformer"},
            {"path": path, "type": "sentence_transformers.models.Pooling"},
        ]
        (folder / "modules.json").write_text(json.dumps(listed))
        (folder / "1_Pooling").mkdir()
        pooling = {"pooling_mode_mean_tokens": True} if content is None else content
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
        outside = folder.with_name("outside")
        outside.mkdir(exist_ok=True)
        (outside / "config.json").write_text(json.dumps(pooling))

    return spoil


SENTENCES = ("sentences",)
sentences = [
    Case("modules.json: good", modules("1_Pooling"), SENTENCES, is_read=True),
    Case("modules.json: a path out of the folder", modules("../outside"), SENTENCES),
    Case("modules.json: an absolute path", modules("/etc"), SENTENCES),
    Case("modules.json: a path that is a list", modules(["1_Pooling"]), SENTENCES),
    Case("modules.json: 200,000 levels", write("modules.json", deep()), SENTENCES),
    Case("modules.json: code of a stranger",
         write("modules.json", '[{"type": "evil.Module", "path": ""}]'), SENTENCES),
    Case("pooling: a number", modules("1_Pooling", content={"pooling_mode": 3}), SENTENCES),
    Case("pooling: an object", modules("1_Pooling", content={"pooling_mode": {"a": 1}}), SENTENCES),
    Case("sentence_bert_config.json: a length of 10**400",
         both(modules("1_Pooling"), write("sentence_bert_config.json",
                                          '{"max_seq_length": 1' + "0" * 400 + "}")), SENTENCES,
         is_read=True),
    Case("config_sentence_transformers.json: a list of 200,000 levels",
         both(modules("1_Pooling"), write("config_sentence_transformers.json", deep())), SENTENCES),
]  # fmt: skip
