"""The files of a WordPiece tokenizer, HuggingFace's layout, from and to plain Python values.

vocab.txt | tokenizer.json, tokenizer_config.json, special_tokens_map.json, added_tokens.json
-> the arguments of `kbert.preprocessing.WordPieceTokenizer` -> the first three. Knows no Keras.
"""

import json
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kbert.errors import InputError
from kbert.foreign_files import malformed_told, read_object, read_text

SPECIAL_TOKENS = {
    "unknown_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "mask_token": "[MASK]",
}
MAX_WORD_CHARACTERS = 100
MOST_TOKENS = 1_000_000
"""Of a vocabulary: twice the largest that is known, LaBSE's. Its tables take seconds to build."""
MOST_BYTES = 256
"""Of a token in UTF-8: TensorFlow Text's FastWordpieceBuilder takes no longer one."""
ADVICE = "save the tokenizer anew"

# What tokenizer.json and tokenizer_config.json say of a special token.
_ADDED = {
    "content": "",
    "single_word": False,
    "lstrip": False,
    "rstrip": False,
    "normalized": False,
    "special": True,
}


def read_tokenizer_files(folder: Path) -> dict[str, Any]:
    """Returns the arguments of `WordPieceTokenizer` for a checkpoint folder.

    Raises:
        InputError: If a file is missing, cannot be used or contradicts another one.
    """
    with malformed_told(folder, advice=ADVICE):
        return _read(folder)


def _read(folder: Path) -> dict[str, Any]:
    vocabulary_path, definition_path = folder / "vocab.txt", folder / "tokenizer.json"
    config = _read_json(folder / "tokenizer_config.json")
    if "added_tokens_decoder" not in config:  # else transformers ignores the older file
        config |= _read_json(folder / "special_tokens_map.json")
    settings = {
        "lowercase": _switch(config, "do_lower_case"),
        "strip_accents": _switch(config, "strip_accents"),
        "tokenize_chinese_chars": _switch(config, "tokenize_chinese_chars"),
    }
    # HuggingFace's name of unknown_token is unk_token; the others are the same.
    names = {
        name: _spelling(config.get(name.replace("unknown", "unk")) or default)
        for name, default in SPECIAL_TOKENS.items()
    }
    definition: dict[str, Any] = {}
    if definition_path.exists():
        source, definition = definition_path, _read_json(definition_path)
        vocabulary = _definition_vocabulary(source, definition, names["unknown_token"])
        if vocabulary_path.exists():
            _check_same_vocabulary(folder, vocabulary, read_vocabulary(vocabulary_path))
        settings = _resolve_settings(folder, definition, config, settings)
    elif vocabulary_path.exists():
        source, vocabulary = vocabulary_path, read_vocabulary(vocabulary_path)
    else:
        raise InputError(f"{folder}: holds neither vocab.txt nor tokenizer.json; add one of them.")
    added = _added_tokens(folder, config, definition)
    num_word_pieces = len(vocabulary)
    _append_added_tokens(source, vocabulary, added)
    _refuse_words(source, vocabulary[num_word_pieces:], lowercase=bool(settings["lowercase"]))
    extra = [token for token in added.values() if token not in names.values()]
    further = config.get("additional_special_tokens") or []
    if not isinstance(further, list):
        raise TypeError(f"additional_special_tokens must be a list, received {further!r}")
    extra += [_spelling(token) for token in further]
    check_vocabulary(vocabulary, (*names.values(), *extra), source=source)
    return {
        "vocabulary": vocabulary,
        "additional_special_tokens": list(dict.fromkeys(extra)),
        **settings,
        **names,
    }


def write_tokenizer_files(
    folder: Path, settings: Mapping[str, Any], *, max_length: int | None = None
) -> None:
    """Writes the files that `read_tokenizer_files` and transformers' `AutoTokenizer` read.

    Args:
        folder: Folder that gets vocab.txt, tokenizer.json and tokenizer_config.json.
        settings: The arguments of `WordPieceTokenizer`.
        max_length: Longest input of the model in tokens, [CLS] and [SEP] included.

    Raises:
        InputError: If a token has a line break, which vocab.txt cannot hold.
    """
    vocabulary = settings["vocabulary"]
    broken = [token for token in vocabulary if "\n" in token or "\r" in token]
    if broken:
        raise InputError(f"vocabulary: {broken[0]!r} has a line break, vocab.txt has one a line.")
    text = "".join(f"{token}\n" for token in vocabulary)
    (folder / "vocab.txt").write_text(text, encoding="utf-8", newline="\n")
    _write_json(folder / "tokenizer.json", _definition(settings))
    _write_json(folder / "tokenizer_config.json", _tokenizer_config(settings, max_length))


def _write_json(path: Path, content: dict[str, Any]) -> None:
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    path.write_text(text, encoding="utf-8", newline="\n")


def _definition(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a tokenizer.json, as `BertTokenizerFast` writes it."""
    ids = {token: number for number, token in enumerate(settings["vocabulary"])}
    cls, sep = settings["cls_token"], settings["sep_token"]

    def special(token: str, segment: int) -> dict[str, Any]:
        return {"SpecialToken": {"id": token, "type_id": segment}}

    def text(name: str, segment: int) -> dict[str, Any]:
        return {"Sequence": {"id": name, "type_id": segment}}

    single = [special(cls, 0), text("A", 0), special(sep, 0)]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": ids[token], **_ADDED, "content": token} for token in _added(settings)
        ],
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": settings["tokenize_chinese_chars"],
            "strip_accents": settings["strip_accents"],
            "lowercase": settings["lowercase"],
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": single,
            "pair": [*single, text("B", 1), special(sep, 1)],
            "special_tokens": {
                token: {"id": token, "ids": [ids[token]], "tokens": [token]} for token in (cls, sep)
            },
        },
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": settings["unknown_token"],
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": MAX_WORD_CHARACTERS,
            "vocab": ids,
        },
    }


def _tokenizer_config(settings: Mapping[str, Any], max_length: int | None) -> dict[str, Any]:
    ids = {token: number for number, token in enumerate(settings["vocabulary"])}
    added = {str(ids[token]): {**_ADDED, "content": token} for token in _added(settings)}
    config = {
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": settings["lowercase"],
        "strip_accents": settings["strip_accents"],
        "tokenize_chinese_chars": settings["tokenize_chinese_chars"],
        "clean_up_tokenization_spaces": True,
        **{name.replace("unknown", "unk"): settings[name] for name in SPECIAL_TOKENS},
        "added_tokens_decoder": added,
    }
    if settings["additional_special_tokens"]:
        config["additional_special_tokens"] = list(settings["additional_special_tokens"])
    if max_length is not None:
        config["model_max_length"] = max_length
    return config


def _added(settings: Mapping[str, Any]) -> list[str]:
    """The special tokens in the order of their ids."""
    tokens = {settings[name] for name in SPECIAL_TOKENS}
    tokens |= set(settings["additional_special_tokens"])
    return [token for token in settings["vocabulary"] if token in tokens]


def read_vocabulary(path: Path) -> list[str]:
    """Returns the tokens of a vocabulary file, one a line."""
    text = read_text(path, advice="give a WordPiece vocabulary")
    # Not splitlines(): vocabularies hold characters such as U+2028 as tokens.
    return text.removesuffix("\n").split("\n") if text else []


def check_vocabulary(
    vocabulary: Sequence[str], special_tokens: Sequence[str], *, source: str | Path
) -> None:
    """Raises an InputError naming the tokens that are there twice, or missing, or none."""
    if len(vocabulary) > MOST_TOKENS:
        raise InputError(
            f"{source}: holds {len(vocabulary):,} tokens, a vocabulary at most {MOST_TOKENS:,}; "
            "give another."
        )
    for number, token in enumerate(vocabulary, start=1):
        size = _size(token)
        if size is None or size > MOST_BYTES:
            wrong = "is half of a surrogate pair"
            if size is not None:
                wrong = f"has {size:,} bytes in UTF-8, a token at most {MOST_BYTES}"
            raise InputError(f"{source}: token {number} ({token[:20]!r}...) {wrong}; correct it.")
    places: dict[str, list[int]] = {}
    for number, token in enumerate(vocabulary):
        places.setdefault(token, []).append(number + 1)
    if not places:
        raise InputError(f"{source}: holds no tokens; give a WordPiece vocabulary.")
    duplicates = {token: lines for token, lines in places.items() if len(lines) > 1}
    if duplicates:
        shown = ", ".join(
            f"{token!r} (lines {', '.join(map(str, lines))})"
            for token, lines in list(duplicates.items())[:5]
        )
        more = f" and {len(duplicates) - 5} more" if len(duplicates) > 5 else ""
        raise InputError(f"{source}: tokens must be unique; remove the repeats of {shown}{more}.")
    missing = [token for token in special_tokens if token not in places]
    if missing:
        raise InputError(
            f"{source}: lacks the special tokens {', '.join(missing)}; add them, or name the ones "
            "this vocabulary uses."
        )


def _size(token: str) -> int | None:
    """Bytes in UTF-8; None for what is no text."""
    try:
        return len(token.encode("utf-8"))
    except UnicodeEncodeError:
        return None


def _read_json(path: Path) -> dict[str, Any]:
    """Returns the object in a JSON file, {} if the file is missing or empty."""
    if not path.exists():
        return {}
    is_blank = path.is_file() and path.stat().st_size < 9 and not path.read_bytes().strip()
    return {} if is_blank else read_object(path, advice=ADVICE)


def _switch(config: dict[str, Any], key: str) -> bool | None:
    """A setting of tokenizer_config.json; None, for what follows from another, of one alone."""
    default = None if key == "strip_accents" else True
    value = config.get(key, default)
    if value is not default and not isinstance(value, bool):
        raise TypeError(f"{key} must be true or false, received {value!r}")
    return value


def _spelling(token: str | dict[str, Any]) -> str:
    spelling = token["content"] if isinstance(token, dict) else token
    if not isinstance(spelling, str):
        raise TypeError(f"a token must be a string, received {spelling!r}")
    return spelling


def _definition_vocabulary(path: Path, definition: dict[str, Any], unknown: str) -> list[str]:
    """Returns the vocabulary of a tokenizer.json, refusing what WordPieceTokenizer does not do."""
    model = definition.get("model") or {}
    stated = {
        "model": model.get("type", "BPE" if "merges" in model else "WordPiece"),
        "normalizer": (definition.get("normalizer") or {}).get("type"),
        "clean_text": (definition.get("normalizer") or {}).get("clean_text", True),
        "pre_tokenizer": (definition.get("pre_tokenizer") or {}).get("type"),
        "continuing_subword_prefix": model.get("continuing_subword_prefix", "##"),
        "max_input_chars_per_word": model.get("max_input_chars_per_word", MAX_WORD_CHARACTERS),
        "unk_token": model.get("unk_token", unknown),
    }
    needed = {
        "model": "WordPiece",
        "normalizer": "BertNormalizer",
        "clean_text": True,
        "pre_tokenizer": "BertPreTokenizer",
        "continuing_subword_prefix": "##",
        "max_input_chars_per_word": MAX_WORD_CHARACTERS,
        "unk_token": unknown,
    }
    for key, value in needed.items():
        if stated[key] != value:
            raise InputError(
                f"{path}: {key} is {stated[key]!r}, but kbert reads BERT's WordPiece tokenizers "
                f"({value!r}) only; use a BERT checkpoint."
            )
    ids = model.get("vocab") or {}
    if sorted(ids.values()) != list(range(len(ids))):
        raise InputError(f"{path}: the ids must be 0 to {len(ids) - 1}; save the tokenizer anew.")
    return sorted(ids, key=ids.__getitem__)


def _check_same_vocabulary(folder: Path, ours: list[str], theirs: list[str]) -> None:
    if ours == theirs:
        return
    pairs = zip(ours, theirs, strict=False)
    number = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(ours), len(theirs)))
    a, b = (repr(tokens[number]) if number < len(tokens) else "none" for tokens in (ours, theirs))
    raise InputError(
        f"{folder}: tokenizer.json and vocab.txt disagree, first about id {number}: {a} and {b}; "
        "remove the file that does not belong to the weights."
    )


def _resolve_settings(
    folder: Path, definition: dict[str, Any], config: dict[str, Any], settings: dict[str, Any]
) -> dict[str, Any]:
    """Returns tokenizer.json's settings, after checking that transformers would use the same."""
    normalizer = definition["normalizer"]
    stated = {
        "lowercase": _switch(normalizer, "lowercase"),
        "strip_accents": _switch(normalizer, "strip_accents"),
        "tokenize_chinese_chars": _switch(normalizer, "handle_chinese_chars"),
    }
    if config.get("tokenizer_class") != "PreTrainedTokenizerFast":
        ours, theirs = _with_strip_accents(stated), _with_strip_accents(settings)
        differing = [
            f"{key} ({ours[key]}, {theirs[key]})" for key in ours if ours[key] != theirs[key]
        ]
        if differing:
            raise InputError(
                f"{folder}: tokenizer.json and tokenizer_config.json (or the defaults for what it "
                f"leaves out) disagree about {', '.join(differing)}; state do_lower_case, "
                "strip_accents and tokenize_chinese_chars in tokenizer_config.json."
            )
    return stated


def _with_strip_accents(settings: dict[str, Any]) -> dict[str, Any]:
    if settings["strip_accents"] is not None:
        return settings
    return settings | {"strip_accents": settings["lowercase"]}


def _added_tokens(
    folder: Path, config: dict[str, Any], definition: dict[str, Any]
) -> dict[int, str]:
    """Returns by id all tokens that the files call added; most are the named special ones."""
    tokens = {int(key): token for key, token in config.get("added_tokens_decoder", {}).items()}
    if "added_tokens_decoder" not in config:
        legacy = _read_json(folder / "added_tokens.json")
        tokens |= {number: {"content": token} for token, number in legacy.items()}
    tokens |= {token["id"]: token for token in definition.get("added_tokens", [])}
    for token in tokens.values():
        if token.get("normalized", not token.get("special")) or token.get("single_word"):
            raise InputError(
                f"{folder}: the added token {token['content']!r} is matched in normalised text or "
                "as a whole word, which kbert does not do; make it a special token."
            )
    return {number: _spelling(tokens[number]) for number in sorted(tokens)}


def _append_added_tokens(source: Path, vocabulary: list[str], added: dict[int, str]) -> None:
    for number, token in added.items():
        if number == len(vocabulary):
            vocabulary.append(token)
        elif number > len(vocabulary) or vocabulary[number] != token:
            raise InputError(
                f"{source}: the added token {token!r} has the id {number}, which is another "
                f"token's or leaves a gap (the vocabulary has {len(vocabulary)}); save it anew."
            )


def _refuse_words(source: Path, tokens: Sequence[str], *, lowercase: bool) -> None:
    """Refuses added tokens that a text may hold as words: the reference knows those two apart."""
    for token in tokens:
        body = token.removeprefix("##")
        is_split = len(body) > 1 and any(c in string.punctuation or c.isspace() for c in body)
        if not is_split and not (lowercase and token != token.lower()):
            raise InputError(
                f"{source}: the added token {token!r} can also be a word, which kbert would take "
                f"for it; spell it in brackets, as [{token}]."
            )
