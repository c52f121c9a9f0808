"""Writes `normalizer.npz`, the table described in `kbert.assets.normalizer`.

Developers run this when the reference changes: `python -m kbert.assets.make_normalizer`. It needs
the `tokenizers` library (the reference itself, which transformers brings); kbert does not.
"""

from collections.abc import Callable
from itertools import product

import numpy as np
from tokenizers import normalizers, pre_tokenizers

from kbert.assets.normalizer import (
    ALONE,
    BLOCK_SIZE,
    CHINESE,
    DROPPED,
    NONSTARTER,
    PATH,
    RANK_MASK,
    RANK_SHIFT,
    SEQUENCE,
    VALUE_MASK,
    WHITE_SPACE,
    array_prefix,
)

NUM_CODE_POINTS = 0x110000
SURROGATES = range(0xD800, 0xE000)
SCALARS = [code for code in range(NUM_CODE_POINTS) if code not in SURROGATES]

_to_nfd = normalizers.NFD().normalize_str


def mark_ranks() -> dict[int, int]:
    """Returns the rank (1, 2, ...) of each combining mark, read off the reference's own NFD.

    NFD puts a mark before another exactly if its class is smaller; U+0345 has the largest class.
    """
    single = [code for code in SCALARS if _to_nfd(chr(code)) == chr(code)]
    last = chr(0x345)
    marks = [code for code in single if _to_nfd(last + chr(code)) != last + chr(code)]
    representatives: list[int] = []
    for mark in marks:
        if not any(_same_class(mark, other) for other in representatives):
            representatives.append(mark)
    representatives.append(ord(last))

    def rank(mark: int) -> int:
        return 1 + sum(_goes_before(other, mark) for other in representatives)

    return {mark: rank(mark) for mark in [*marks, ord(last)]}


def _goes_before(first: int, second: int) -> bool:
    return _to_nfd(chr(second) + chr(first)) == chr(first) + chr(second) and first != second


def _same_class(first: int, second: int) -> bool:
    return not _goes_before(first, second) and not _goes_before(second, first)


def word_flags() -> tuple[set[int], set[int]]:
    """Returns the code points that BertPreTokenizer takes as white space, and as punctuation."""
    split = pre_tokenizers.BertPreTokenizer().pre_tokenize_str
    num_pieces = {code: len(split(f"a{chr(code)}a")) for code in SCALARS}
    white_space = {code for code, count in num_pieces.items() if count == 2}
    return white_space, {code for code, count in num_pieces.items() if count == 3}


def chinese_code_points() -> set[int]:
    """Returns the code points that BertNormalizer sets apart by spaces."""
    normalize = _bert_normalizer(lowercase=False, strip_accents=False, chinese=True)
    return {code for code in SCALARS if normalize(chr(code)) == f" {chr(code)} "}


def _bert_normalizer(
    *, lowercase: bool, strip_accents: bool, chinese: bool = False
) -> Callable[[str], str]:
    return normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=chinese,
        strip_accents=strip_accents,
        lowercase=lowercase,
    ).normalize_str


def build_entries(
    normalize: Callable[[str], str],
    *,
    white_space: set[int],
    punctuation: set[int],
    chinese: set[int],
    ranks: dict[int, int],
    dropped: set[int],
) -> tuple[np.ndarray, list[list[int]]]:
    """Returns one entry for each code point, and the sequences that some of them refer to."""
    entries = np.zeros(NUM_CODE_POINTS, dtype=np.int32)
    sequences: list[list[int]] = []

    def entry_of(code: int) -> int:
        if code in white_space:
            return WHITE_SPACE
        return code | (ALONE if code in punctuation else 0) | ranks.get(code, 0) << RANK_SHIFT

    for code in SCALARS:
        normalized = [entry_of(ord(character)) for character in normalize(chr(code))]
        first = _to_nfd(chr(code))[0]
        rank = 0 if code in dropped else ranks.get(ord(first), 0)
        if len(normalized) > 1:
            if code in chinese or any(part & ALONE or part == WHITE_SPACE for part in normalized):
                raise ValueError(f"U+{code:04X}: a sequence with a word boundary cannot be stored")
            entry = len(sequences) | SEQUENCE
            sequences.append(normalized)
        else:
            entry = normalized[0] if normalized else DROPPED | rank << RANK_SHIFT | code
            entry |= CHINESE if code in chinese else 0
        if not normalize(first) and any(part & RANK_MASK for part in normalized):
            raise ValueError(f"U+{code:04X}: a mark without its first part cannot be stored")
        starts_run = code not in dropped and not rank
        value = (entry - code) & VALUE_MASK
        entries[code] = entry & ~VALUE_MASK | value | (0 if starts_run else NONSTARTER)
    return entries, sequences


def main() -> None:
    white_space, punctuation = word_flags()
    common = {
        "white_space": white_space,
        "punctuation": punctuation,
        "chinese": chinese_code_points(),
    }
    plain = _bert_normalizer(lowercase=False, strip_accents=False)
    common["dropped"] = {code for code in SCALARS if not plain(chr(code))}
    ranks = mark_ranks()
    arrays: dict[str, np.ndarray] = {}
    for lowercase, strip_accents in product((False, True), repeat=2):
        normalize = _bert_normalizer(lowercase=lowercase, strip_accents=strip_accents)
        entries, sequences = build_entries(
            normalize, ranks=ranks if strip_accents else {}, **common
        )
        blocks, block_numbers = np.unique(
            entries.reshape(-1, BLOCK_SIZE), axis=0, return_inverse=True
        )
        prefix = array_prefix(lowercase, strip_accents)
        arrays[prefix + "block_numbers"] = block_numbers.reshape(-1).astype(np.uint16)
        arrays[prefix + "blocks"] = blocks
        arrays[prefix + "sequences"] = np.array(sum(sequences, []), dtype=np.int32)
        arrays[prefix + "sequence_lengths"] = np.array(
            [len(sequence) for sequence in sequences], dtype=np.uint8
        )
    np.savez_compressed(PATH, **arrays)
    print(f"{PATH.name}: {PATH.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
