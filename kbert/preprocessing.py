"""WordPiece preprocessing as Keras layers: raw strings become ids in the TensorFlow graph.

The reference is HuggingFace's `BertTokenizerFast`; ids are identical. The graph holds TensorFlow's
core ops and two of TensorFlow Text (RegexSplitWithOffsets, FastWordpieceTokenizeWithOffsets) that
every TF Serving image carries. Strings cannot be jit-compiled: keep these layers outside.

text -> WordPieceTokenizer -> ragged ids -> BertPacker -> token_ids, segment_ids, padding_mask
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_text as tf_text
from tensorflow_text.python.ops.regex_split_ops import gen_regex_split_ops

from kbert.assets import normalizer
from kbert.assets.normalizer import load_table
from kbert.errors import InputError
from kbert.tokenizer_files import (
    MAX_WORD_CHARACTERS,
    SPECIAL_TOKENS,
    check_vocabulary,
    read_tokenizer_files,
    read_vocabulary,
)

MAX_CHARACTER_BYTES = 4  # UTF-8
PLAIN_TEXT = r"[\t\n\r\x20-\x7E]*"


@keras.saving.register_keras_serializable(package="kbert")
class WordPieceTokenizer(keras.layers.Layer):
    """Turns strings into WordPiece ids, as HuggingFace's `BertTokenizerFast` does.

    Special tokens written in a text (`[MASK]`) become their ids. Words of more than 100
    characters become the unknown token. Bytes that are not UTF-8 and NUL characters are dropped.
    [CLS] and [SEP] are added by `BertPacker`, not here.

    Example:

    >>> tokenizer = WordPieceTokenizer(
    ...     ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "day", "##s", "!"])
    >>> tokenizer(tf.constant(["Good days!", "a [MASK] day"])).to_list()
    [[5, 6, 7, 8], [1, 4, 6]]

    Args:
        vocabulary: The tokens; a token's place is its id.
        lowercase: Whether to lower-case the text.
        strip_accents: Whether to remove accents; None does what `lowercase` does.
        tokenize_chinese_chars: Whether each Chinese character is a word of its own.
        unknown_token, cls_token, sep_token, pad_token, mask_token: Their spelling.
        additional_special_tokens: More tokens to cut out of the raw text as they stand.

    Raises:
        InputError: If the vocabulary has duplicates or lacks a special token.
    """

    def __init__(
        self,
        vocabulary: Sequence[str],
        *,
        lowercase: bool = True,
        strip_accents: bool | None = None,
        tokenize_chinese_chars: bool = True,
        unknown_token: str = "[UNK]",
        cls_token: str = "[CLS]",
        sep_token: str = "[SEP]",
        pad_token: str = "[PAD]",
        mask_token: str = "[MASK]",
        additional_special_tokens: Sequence[str] = (),
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.vocabulary = tuple(vocabulary)
        self.lowercase = lowercase
        self.strip_accents = strip_accents
        self.tokenize_chinese_chars = tokenize_chinese_chars
        self.unknown_token = unknown_token
        self.cls_token = cls_token
        self.sep_token = sep_token
        self.pad_token = pad_token
        self.mask_token = mask_token
        self.additional_special_tokens = tuple(additional_special_tokens)

        check_vocabulary(self.vocabulary, self.special_tokens, source="vocabulary")
        self.vocabulary_size = len(self.vocabulary)
        ids = {token: number for number, token in enumerate(self.vocabulary)}
        self.unknown_token_id = ids[unknown_token]
        self.cls_token_id = ids[cls_token]
        self.sep_token_id = ids[sep_token]
        self.pad_token_id = ids[pad_token]
        self.mask_token_id = ids[mask_token]
        self.special_token_ids = tuple(ids[token] for token in self.special_tokens)
        self._plain_text_model: np.ndarray | None = None  # uint8, TensorFlow Text's own format
        self._word_model: np.ndarray | None = None
        self.supports_jit = False
        self.built = True

    @property
    def special_tokens(self) -> tuple[str, ...]:
        """The tokens that are cut out of the raw text."""
        named = (self.unknown_token, self.cls_token, self.sep_token, self.pad_token)
        return tuple(dict.fromkeys((*named, self.mask_token, *self.additional_special_tokens)))

    def call(self, text: tf.Tensor) -> tf.RaggedTensor:
        """Tokenizes a batch.

        Args:
            text: string, (batch,), UTF-8.

        Returns:
            Ragged int32 ids, (batch, tokens of the text).
        """
        text = tf.convert_to_tensor(text, tf.string)
        if text.shape.rank != 1:
            raise ValueError(f"text must have the shape (batch,). Received: {text.shape}")
        self._build_models()
        pieces, is_special, splits = self._cut_out_special_tokens(text)
        # ASCII text needs no table, which makes it some five times faster.
        is_plain = tf.strings.regex_full_match(pieces, PLAIN_TEXT) & ~is_special
        plain_ids = self._tokenize_plain(tf.where(is_plain, pieces, ""))
        ids = tf.cond(
            tf.reduce_all(is_plain),
            lambda: plain_ids,
            lambda: tf.concat(
                [plain_ids, self._tokenize_any(tf.where(is_plain, "", pieces), is_special)], 1
            ),
        )  # (pieces, None)
        return tf.RaggedTensor.from_row_splits(
            ids.values, tf.gather(ids.row_splits, splits), validate=False
        )

    def compute_output_spec(self, text: keras.KerasTensor) -> keras.KerasTensor:
        return keras.KerasTensor((text.shape[0], None), dtype="int32", ragged=True)

    def id_to_token(self, ids: tf.Tensor | tf.RaggedTensor) -> tf.Tensor | tf.RaggedTensor:
        """Returns the tokens of ids, in the shape of `ids`."""
        return tf.gather(tf.constant(self.vocabulary), ids)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "vocabulary": list(self.vocabulary),
            "lowercase": self.lowercase,
            "strip_accents": self.strip_accents,
            "tokenize_chinese_chars": self.tokenize_chinese_chars,
            "unknown_token": self.unknown_token,
            "cls_token": self.cls_token,
            "sep_token": self.sep_token,
            "pad_token": self.pad_token,
            "mask_token": self.mask_token,
            "additional_special_tokens": list(self.additional_special_tokens),
        }

    def _cut_out_special_tokens(self, text: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Returns pieces (pieces,), whether they are special, and row splits (batch + 1,)."""
        # Longest first: RE2 takes the first alternative that matches, the reference the longest.
        tokens = sorted(self.special_tokens, key=len, reverse=True)
        pattern = "|".join(_escape_for_re2(token) for token in tokens)
        # A NUL would end the string in RegexSplit. Like U+0001 it is dropped, but not before the
        # special tokens are cut out: "[MA\0SK]" is not one.
        text = tf.strings.regex_replace(text, r"\x00", "\x01")
        # The bare op: its public wrapper adds two hundred ops that check its own row splits.
        pieces, _, _, splits = gen_regex_split_ops.regex_split_with_offsets(
            text, f"({pattern})", f"({pattern})"
        )
        return pieces, tf.strings.regex_full_match(pieces, pattern), splits

    def _tokenize_plain(self, pieces: tf.Tensor) -> tf.RaggedTensor:
        """Returns the ids of pieces of printable ASCII, int32, (pieces, None)."""
        pieces = tf.strings.lower(pieces) if self.lowercase else pieces
        return _fast_word_piece(self._plain_text_model, pieces)

    def _tokenize_any(self, pieces: tf.Tensor, piece_is_special: tf.Tensor) -> tf.RaggedTensor:
        """Returns the ids of pieces, int32, (pieces, None)."""
        words, words_before_piece = self._split_into_words(pieces, piece_is_special)
        ids = _fast_word_piece(self._word_model, words)  # (words, None)
        return tf.RaggedTensor.from_row_splits(
            ids.values, tf.gather(ids.row_splits, words_before_piece), validate=False
        )

    def _split_into_words(
        self, pieces: tf.Tensor, piece_is_special: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Normalises pieces and splits them into words.

        Returns:
            The words, string (words,), and the number of words before each piece and before the
            end, int64 (pieces + 1,).
        """
        code_splits, codes = tf.raw_ops.UnicodeDecode(
            input=pieces,
            input_encoding="UTF-8",
            errors="replace",
            replacement_char=0xFFFD,
            replace_control_characters=False,
        )
        num_codes = tf.size(codes)
        piece_starts = _count_at(code_splits[:-1], num_codes)
        starts_piece = piece_starts > 0
        entries = self._look_up(codes)
        entries = tf.cond(
            tf.reduce_any(piece_is_special),
            lambda: _keep_special(entries, codes, piece_starts, piece_is_special),
            lambda: entries,
        )

        # Code points of one word share a number, and numbers grow along the text.
        is_alone = _has(entries, self._alone_mask)
        after_alone = tf.concat([[False], is_alone[:-1]], 0)[:num_codes]
        is_boundary = is_alone | after_alone | _is_white_space(entries) | starts_piece
        word_numbers = tf.cumsum(tf.cast(is_boundary, tf.int32))
        end = tf.constant([np.iinfo(np.int32).max])
        first_numbers = tf.gather(tf.concat([word_numbers, end], 0), code_splits)

        entries, word_numbers = tf.cond(
            tf.reduce_any(_has(entries, normalizer.SEQUENCE | normalizer.RANK_MASK)),
            lambda: self._expand(entries, word_numbers, starts_piece),
            lambda: (entries, word_numbers),
        )
        kept = tf.where((entries >= 0) & ~_is_white_space(entries))[:, 0]
        codes = tf.gather(entries, kept) & normalizer.VALUE_MASK
        word_numbers = tf.gather(word_numbers, kept)
        words, word_numbers = _encode_words(codes, word_numbers, self.unknown_token)
        return words, tf.searchsorted(word_numbers, first_numbers, out_type=tf.int64)

    @property
    def _table(self) -> normalizer.NormalizerTable:
        strip_accents = self.lowercase if self.strip_accents is None else self.strip_accents
        return load_table(self.lowercase, strip_accents)

    @property
    def _alone_mask(self) -> int:
        return normalizer.ALONE | (normalizer.CHINESE if self.tokenize_chinese_chars else 0)

    def _look_up(self, codes: tf.Tensor) -> tf.Tensor:
        """Returns the normaliser's entries (codes,), their VALUE made absolute."""
        blocks = tf.bitwise.right_shift(codes, normalizer.BLOCK_BITS)
        block_starts = tf.gather(self._table.block_starts, blocks)
        entries = tf.gather(self._table.entries, block_starts + (codes & normalizer.BLOCK_SIZE - 1))
        value = (entries + codes) & normalizer.VALUE_MASK
        return entries & ~normalizer.VALUE_MASK | value

    def _expand(
        self, entries: tf.Tensor, word_numbers: tf.Tensor, starts_piece: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Replaces sequences by their parts and puts combining marks into canonical order."""
        is_sequence = _has(entries, normalizer.SEQUENCE)
        rows = tf.where(is_sequence, entries & normalizer.VALUE_MASK, 0)
        lengths = tf.where(is_sequence, tf.gather(self._table.sequence_lengths, rows), 1)
        ends = tf.cumsum(lengths)
        starts = ends - lengths
        num_parts = tf.reduce_sum(lengths)
        source = tf.cumsum(_count_at(starts, num_parts)) - 1
        offsets = tf.range(num_parts) - tf.gather(starts, source)
        part_places = tf.gather(tf.gather(self._table.sequence_starts, rows), source) + offsets
        is_part = tf.gather(is_sequence, source)
        parts = tf.gather(self._table.sequences, tf.where(is_part, part_places, 0))
        runs = tf.cumsum(tf.cast(starts_piece | ~_has(entries, normalizer.NONSTARTER), tf.int64))
        entries = tf.where(is_part, parts, tf.gather(entries, source))
        entries = tf.cond(
            tf.reduce_any(_has(entries, normalizer.RANK_MASK)),
            lambda: _sort_marks(entries, tf.gather(runs, source)),
            lambda: entries,
        )
        return entries, tf.gather(word_numbers, source)

    def _build_models(self) -> None:
        if self._word_model is not None:
            return
        # With tokens that plain text cannot hold the splitter would differ from the reference
        # ("a b"), or fail for want of any other. U+E000 makes a token impossible in ASCII.
        plain_tokens = [
            token if _is_plain(token) or token == self.unknown_token else f"\ue000{number}"
            for number, token in enumerate(self.vocabulary)
        ]
        self._plain_text_model = _build_model(
            plain_tokens, self.unknown_token, MAX_WORD_CHARACTERS, is_split=False
        )
        # Words that are too long are replaced before they get here.
        max_bytes = MAX_WORD_CHARACTERS * MAX_CHARACTER_BYTES
        self._word_model = _build_model(
            self.vocabulary, self.unknown_token, max_bytes, is_split=True
        )


def tokenizer_from_vocabulary_file(
    path: str | Path, *, lowercase: bool = True
) -> WordPieceTokenizer:
    """Builds a tokenizer for a model from scratch out of a vocabulary file, one token a line.

    Raises:
        InputError: If the file cannot be used.
    """
    vocabulary = read_vocabulary(Path(path))
    check_vocabulary(vocabulary, tuple(SPECIAL_TOKENS.values()), source=path)
    return WordPieceTokenizer(vocabulary, lowercase=lowercase)


def tokenizer_from_files(folder: str | Path) -> WordPieceTokenizer:
    """Builds the tokenizer of a checkpoint folder, as `BertTokenizerFast.from_pretrained` does.

    Reads `vocab.txt` or `tokenizer.json` (if both are there they must agree), and, where present,
    `tokenizer_config.json`, `special_tokens_map.json` and `added_tokens.json`. transformers lets
    tokenizer_config.json, and its own defaults for what that leaves out, overrule the normaliser
    of tokenizer.json; where that would change the normaliser, this is an error instead.

    Raises:
        InputError: If a file is missing, cannot be used or contradicts another one.
    """
    return WordPieceTokenizer(**read_tokenizer_files(Path(folder)))


def _is_plain(token: str) -> bool:
    """Returns whether a token can be found in a text that matches PLAIN_TEXT."""
    is_visible_character = len(token) == 1 and not token.isspace()
    return token.isascii() and (token.removeprefix("##").isalnum() or is_visible_character)


def _build_model(
    vocabulary: Sequence[str], unknown_token: str, max_bytes_per_word: int, *, is_split: bool
) -> np.ndarray:
    with tf.init_scope():
        splitter = tf_text.FastWordpieceTokenizer(
            list(vocabulary),
            max_bytes_per_word=max_bytes_per_word,
            unknown_token=unknown_token,
            no_pretokenization=is_split,
        )
        return splitter._model.numpy()  # there is no public accessor


def _fast_word_piece(model: np.ndarray, texts: tf.Tensor) -> tf.RaggedTensor:
    """Returns int32 ids, (texts, None)."""
    splitter = tf_text.FastWordpieceTokenizer(
        model_buffer=tf.constant(model), token_out_type=tf.int32
    )
    return splitter.tokenize(texts)


def _escape_for_re2(token: str) -> str:
    return "".join(c if c.isalnum() or not c.isascii() else f"\\{c}" for c in token)


def _has(entries: tf.Tensor, bits: int) -> tf.Tensor:
    return tf.not_equal(entries & bits, 0)


def _is_white_space(entries: tf.Tensor) -> tf.Tensor:
    value = entries & (normalizer.VALUE_MASK | normalizer.SEQUENCE)
    return tf.equal(value, normalizer.WHITE_SPACE)


def _count_at(positions: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """Returns how often each of 0 ... size - 1 is in positions, int32; `size` is not counted."""
    ones = tf.ones_like(positions, dtype=tf.int32)
    shape = tf.cast(size, positions.dtype)[tf.newaxis] + 1
    return tf.scatter_nd(positions[:, tf.newaxis], ones, shape)[:-1]


def _keep_special(
    entries: tf.Tensor, codes: tf.Tensor, piece_starts: tf.Tensor, piece_is_special: tf.Tensor
) -> tf.Tensor:
    """Makes each special piece one word, spelt as it stands."""
    piece_of_code = tf.cumsum(piece_starts) - 1
    return tf.where(tf.gather(piece_is_special, piece_of_code), codes, entries)


def _sort_marks(entries: tf.Tensor, runs: tf.Tensor) -> tf.Tensor:
    """Sorts each run by RANK; what has no rank stays in front."""
    ranks = tf.cast(entries & normalizer.RANK_MASK, tf.int64)  # below 2**31
    order = tf.argsort(runs * 2**31 + ranks, stable=True)
    return tf.gather(entries, order)


def _encode_words(
    codes: tf.Tensor, word_numbers: tf.Tensor, unknown_token: str
) -> tuple[tf.Tensor, tf.Tensor]:
    """Joins code points that share a number; too long words become the unknown token.

    Returns:
        words: string, (words,).
        word_numbers: (words,), ascending.
    """
    num_codes = tf.size(codes, out_type=tf.int64)
    is_start = tf.not_equal(word_numbers[1:], word_numbers[:-1])
    is_start = tf.concat([[True], is_start], 0)[:num_codes]
    starts = tf.where(is_start)[:, 0]
    splits = tf.concat([starts, num_codes[tf.newaxis]], 0)
    words = tf.raw_ops.UnicodeEncode(
        input_values=codes, input_splits=splits, output_encoding="UTF-8", errors="replace"
    )
    is_too_long = splits[1:] - splits[:-1] > MAX_WORD_CHARACTERS
    return tf.where(is_too_long, unknown_token, words), tf.gather(word_numbers, starts)


@keras.saving.register_keras_serializable(package="kbert")
class BertPacker(keras.layers.Layer):
    """Packs one or two texts as BERT reads them: [CLS] a [SEP], or [CLS] a [SEP] b [SEP].

    Too long inputs are cut at the end of the longer text, then evenly, as HuggingFace's
    `truncation="longest_first"` does. Rows are padded to the longest of the batch.

    Example:

    >>> packer = BertPacker(max_length=6, cls_token_id=2, sep_token_id=3, pad_token_id=0)
    >>> packer((tf.ragged.constant([[5, 6], []], dtype=tf.int32),))["token_ids"].numpy().tolist()
    [[2, 5, 6, 3], [2, 3, 0, 0]]

    Args:
        max_length: The most tokens of a row, special tokens included.
        cls_token_id, sep_token_id, pad_token_id: See `WordPieceTokenizer`.
    """

    def __init__(
        self,
        *,
        max_length: int,
        cls_token_id: int,
        sep_token_id: int,
        pad_token_id: int,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        if max_length < 2:
            raise InputError(f"max_length must hold [CLS] and [SEP]. Received: {max_length}")
        self.max_length = max_length
        self.cls_token_id = cls_token_id
        self.sep_token_id = sep_token_id
        self.pad_token_id = pad_token_id
        self.built = True

    def call(self, segments: Sequence[tf.RaggedTensor]) -> dict[str, tf.Tensor]:
        """Packs a batch.

        Args:
            segments: One or two ragged int32 tensors, (batch, tokens of the text).

        Returns:
            token_ids, segment_ids (0: first text and padding, 1: second text) and padding_mask
            (1: token, 0: padding), all int32, (batch, longest row of the batch).
        """
        if isinstance(segments, tf.RaggedTensor) or len(segments) not in (1, 2):
            raise ValueError("segments must be a tuple of one or two ragged tensors.")
        num_special = len(segments) + 1
        if self.max_length < num_special:
            raise InputError(
                f"max_length must hold the {num_special} special tokens of {len(segments)} texts. "
                f"Received: {self.max_length}"
            )
        lengths = [tf.cast(segment.row_lengths(), tf.int32) for segment in segments]
        lengths = _truncate_longest_first(lengths, self.max_length - num_special)
        row_lengths = (tf.add_n(lengths) + num_special)[:, tf.newaxis]
        longest = tf.reduce_max(tf.concat([[[num_special]], row_lengths], 0))
        positions = tf.range(longest)[tf.newaxis, :]  # (1, longest)
        is_token = positions < row_lengths

        token_ids = tf.where(is_token, self.sep_token_id, self.pad_token_id)
        token_ids = tf.where(positions == 0, self.cls_token_id, token_ids)
        start = tf.constant([[1]])
        for segment, length in zip(segments, lengths, strict=True):
            end = start + length[:, tf.newaxis]
            is_inside = (positions >= start) & (positions < end)
            first = tf.cast(segment.row_starts(), tf.int32)[:, tf.newaxis]
            places = tf.where(is_inside, first + positions - start, 0)
            # The extra value is there to be gathered where a batch has no tokens at all.
            values = tf.concat([tf.cast(segment.values, tf.int32), [0]], 0)
            token_ids = tf.where(is_inside, tf.gather(values, places), token_ids)
            start = end + 1
        second_start = lengths[0][:, tf.newaxis] + 2
        return {
            "token_ids": token_ids,
            "segment_ids": tf.cast(is_token & (positions >= second_start), tf.int32),
            "padding_mask": tf.cast(is_token, tf.int32),
        }

    def compute_output_spec(self, segments: Sequence[keras.KerasTensor]) -> dict[str, Any]:
        names = ("token_ids", "segment_ids", "padding_mask")
        shape = (segments[0].shape[0], None)
        return {name: keras.KerasTensor(shape, dtype="int32") for name in names}

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "max_length": self.max_length,
            "cls_token_id": self.cls_token_id,
            "sep_token_id": self.sep_token_id,
            "pad_token_id": self.pad_token_id,
        }


def _truncate_longest_first(lengths: list[tf.Tensor], room: int) -> list[tf.Tensor]:
    """Cuts one or two lengths (batch,) to a sum of at most `room`, as HuggingFace does.

    Of two texts the shorter one stays whole if it fits into half of the room; else both get half,
    and an odd token goes to the longer one, to the second where they are equal.
    """
    if len(lengths) == 1:
        return [tf.minimum(lengths[0], room)]
    first, second = lengths
    longer_half = room - room // 2
    first_half = tf.where(first > second, longer_half, room // 2)
    return [
        tf.minimum(first, tf.maximum(first_half, room - second)),
        tf.minimum(second, tf.maximum(room - first_half, room - first)),
    ]


@keras.saving.register_keras_serializable(package="kbert")
class TokenMasker(keras.layers.Layer):
    """Hides tokens for masked language modelling, as BERT was trained (Devlin et al. 2019).

    Each position that is neither padding nor a special token is selected with the probability
    `mask_rate`, independently of the others, as HuggingFace's `DataCollatorForLanguageModeling`
    does: a row may have none. Of the selected, `mask_token_rate` become [MASK],
    `random_token_rate` a token drawn from the whole vocabulary; the rest stays.

    Example:

    >>> masker = TokenMasker(vocabulary_size=10, mask_token_id=4, special_token_ids=range(5))
    >>> token_ids = tf.constant([[2, 7, 8, 9, 3]])
    >>> masked = masker({"token_ids": token_ids, "padding_mask": tf.ones_like(token_ids)}, [1, 2])
    >>> sorted(masked)
    ['labels', 'token_ids', 'weights']

    Args:
        vocabulary_size, mask_token_id, special_token_ids: See `WordPieceTokenizer`.
        mask_rate: Probability of a position to be selected.
        mask_token_rate: Share of the selected that become [MASK].
        random_token_rate: Share of the selected that become a random token.
    """

    def __init__(
        self,
        *,
        vocabulary_size: int,
        mask_token_id: int,
        special_token_ids: Sequence[int],
        mask_rate: float = 0.15,
        mask_token_rate: float = 0.8,
        random_token_rate: float = 0.1,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        if not 0 < mask_rate <= 1:
            raise InputError(f"mask_rate must be above 0 and at most 1. Received: {mask_rate}")
        if min(mask_token_rate, random_token_rate) < 0 or mask_token_rate + random_token_rate > 1:
            raise InputError(
                "mask_token_rate and random_token_rate must be shares that sum up to at most 1. "
                f"Received: {mask_token_rate}, {random_token_rate}"
            )
        self.vocabulary_size = vocabulary_size
        self.mask_token_id = mask_token_id
        self.special_token_ids = tuple(special_token_ids)
        self.mask_rate = mask_rate
        self.mask_token_rate = mask_token_rate
        self.random_token_rate = random_token_rate
        self.built = True

    def call(self, inputs: dict[str, tf.Tensor], seed: tf.Tensor) -> dict[str, tf.Tensor]:
        """Masks a batch; the result is a function of its arguments alone.

        Args:
            inputs: token_ids and padding_mask of `BertPacker`; other entries are not read.
            seed: Two integers, (2,).

        Returns:
            token_ids, int32, with tokens hidden; labels, int32, the token_ids that came in; and
            weights, float32, 1 at selected positions, else 0. All (batch, length).
        """
        token_ids = inputs["token_ids"]
        shape = tf.shape(token_ids)
        seeds = tf.unstack(tf.random.split(seed, 3))
        special = tf.constant(self.special_token_ids, token_ids.dtype)
        is_special = tf.reduce_any(token_ids[..., tf.newaxis] == special, -1)
        may_be_hidden = tf.cast(inputs["padding_mask"], tf.bool) & ~is_special
        is_selected = may_be_hidden & (
            tf.random.stateless_uniform(shape, seeds[0]) < self.mask_rate
        )

        choice = tf.random.stateless_uniform(shape, seeds[1])
        becomes_mask = is_selected & (choice < self.mask_token_rate)
        becomes_random = is_selected & (choice >= 1.0 - self.random_token_rate)
        random_ids = tf.random.stateless_uniform(
            shape, seeds[2], maxval=self.vocabulary_size, dtype=token_ids.dtype
        )
        masked = tf.where(becomes_random, random_ids, token_ids)
        return {
            "token_ids": tf.where(becomes_mask, self.mask_token_id, masked),
            "labels": token_ids,
            "weights": tf.cast(is_selected, tf.float32),
        }

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "vocabulary_size": self.vocabulary_size,
            "mask_token_id": self.mask_token_id,
            "special_token_ids": list(self.special_token_ids),
            "mask_rate": self.mask_rate,
            "mask_token_rate": self.mask_token_rate,
            "random_token_rate": self.random_token_rate,
        }
