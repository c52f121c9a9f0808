"""WordPiece as a Keras layer: raw strings become ids, and ids strings, in the TensorFlow graph."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow_text.python.ops.regex_split_ops import gen_regex_split_ops

from kbert.assets import normalizer
from kbert.preprocessing.decoding import Spellings, clean_up_spaces, join_tokens, spellings
from kbert.preprocessing.ragged import row_numbers, with_splits
from kbert.preprocessing.splitter import PLAIN_TEXT, plain_text_model, splitter, word_model
from kbert.preprocessing.words import Words, characters_of_bytes, split_into_words
from kbert.tokenizer_files import (
    MAX_WORD_CHARACTERS,
    SPECIAL_TOKENS,
    check_vocabulary,
    read_tokenizer_files,
    read_vocabulary,
)


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
        # Keras counts names up in a process, and what is cached is known by this config
        super().__init__(**{"name": "word_piece_tokenizer", **kwargs})
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
        self._spellings: Spellings | None = None
        self.supports_jit = False
        self.built = True

    @property
    def special_tokens(self) -> tuple[str, ...]:
        """The tokens that are cut out of the raw text."""
        named = (self.unknown_token, self.cls_token, self.sep_token, self.pad_token)
        return tuple(dict.fromkeys((*named, self.mask_token, *self.additional_special_tokens)))

    @property
    def normalizer_table(self) -> normalizer.NormalizerTable:
        """What becomes of each code point."""
        strip_accents = self.lowercase if self.strip_accents is None else self.strip_accents
        return normalizer.load_table(self.lowercase, strip_accents)

    @property
    def chinese_mask(self) -> int:
        """The flag of the table's that Chinese characters to be split have; 0 for none."""
        return normalizer.CHINESE if self.tokenize_chinese_chars else 0

    @property
    def continuation_token_ids(self) -> tuple[int, ...]:
        """The tokens that go on with a word, such as `##s`."""
        tokens = enumerate(self.vocabulary)
        return tuple(number for number, token in tokens if token.startswith("##"))

    @property
    def packing_ids(self) -> dict[str, int]:
        """The special tokens that a packer puts around texts, under the names it takes them by."""
        names = ("cls_token_id", "sep_token_id", "pad_token_id")
        return {name: getattr(self, name) for name in names}

    def call(self, text: tf.Tensor) -> tf.RaggedTensor:
        """Tokenizes a batch.

        Args:
            text: string, (batch,), UTF-8.

        Returns:
            Ragged int32 ids, (batch, tokens of the text).
        """
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
        return with_splits(ids.values, tf.gather(ids.row_splits, splits))

    def tokenize_with_offsets(
        self, text: tf.Tensor
    ) -> tuple[tf.RaggedTensor, tf.RaggedTensor, tf.RaggedTensor]:
        """Tokenizes a batch, and says which characters each token was made of.

        Offsets count code points, as in a Python string, and are those of HuggingFace's
        `return_offsets_mapping`. Bytes that are not UTF-8 count as many characters as
        `bytes.decode(errors="replace")` puts in their place.

        Args:
            text: string, (batch,), UTF-8.

        Returns:
            Ids, starts and ends, ragged int32, (batch, tokens of the text).
        """
        pieces, is_special, splits = self._cut_out_special_tokens(text)
        is_plain = tf.strings.regex_full_match(pieces, PLAIN_TEXT) & ~is_special
        plain = tf.where(is_plain, pieces, "")
        words = self._split_into_words(tf.where(is_plain, "", pieces), is_special)
        parts = self._plain_with_offsets(plain), self._words_with_offsets(words)
        ids, starts, ends = (tf.concat(pair, 1) for pair in zip(*parts, strict=True))

        lengths = tf.strings.length(plain) + tf.cast(words.num_places, tf.int32)  # (pieces,)
        before = tf.concat([[0], tf.cumsum(lengths)], 0)
        before_row = tf.gather(tf.gather(before, splits), row_numbers(splits))
        shifts = tf.gather(before[:-1] - before_row, row_numbers(ids.row_splits))
        splits = tf.gather(ids.row_splits, splits)
        values = ids.values, starts.values + shifts, ends.values + shifts
        return tuple(with_splits(part, splits) for part in values)

    def words(self, text: tf.Tensor) -> tf.RaggedTensor:
        """Splits a batch into normalised words, which are then cut into pieces each.

        Args:
            text: string, (batch,), UTF-8.

        Returns:
            Ragged string, (batch, words of the text); special tokens are words as they stand.
        """
        pieces, is_special, splits = self._cut_out_special_tokens(text)
        words = self._split_into_words(pieces, is_special)
        return with_splits(words.texts, tf.gather(words.splits, splits))

    def compute_output_spec(self, text: keras.KerasTensor) -> keras.KerasTensor:
        return keras.KerasTensor((text.shape[0], None), dtype="int32", ragged=True)

    def id_to_token(self, ids: tf.Tensor | tf.RaggedTensor) -> tf.Tensor | tf.RaggedTensor:
        """Returns the tokens of ids, in the shape of `ids`."""
        return tf.gather(tf.constant(self.vocabulary), ids)

    def decode(
        self,
        ids: tf.Tensor | tf.RaggedTensor,
        *,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool = True,
    ) -> tf.Tensor:
        """Returns texts of ids, as HuggingFace's `decode` and `batch_decode` do.

        Args:
            ids: Integers, (batch, None), ragged or not. What is no id of the vocabulary is left
                out.
            skip_special_tokens: Whether to leave out special tokens too.
            clean_up_tokenization_spaces: Whether to write "don't" for "don ' t". In HuggingFace a
                tokenizer made of a vocab.txt does; others do what their files say.

        Returns:
            string, (batch,).
        """
        texts = self._join(ids, skip_special_tokens, is_chinese=False)
        return clean_up_spaces(texts) if clean_up_tokenization_spaces else texts

    def decode_chinese(
        self, ids: tf.Tensor | tf.RaggedTensor, *, skip_special_tokens: bool = False
    ) -> tf.Tensor:
        """Returns texts of ids without the spaces that Chinese is not written with.

        `decode`, like HuggingFace's, puts a space between any two words, and so between all
        Chinese characters. Here there is none beside a Chinese character or Chinese punctuation,
        nor within "……" and the like. Other spaces are those of `decode`.

        Args:
            ids, skip_special_tokens: See `decode`.

        Returns:
            string, (batch,).
        """
        texts = self._join(ids, skip_special_tokens, is_chinese=True)
        return clean_up_spaces(texts)

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
        text = tf.convert_to_tensor(text, tf.string)
        if text.shape.rank != 1:
            raise ValueError(f"text must have the shape (batch,). Received: {text.shape}")
        self._build_models()
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
        return splitter(self._plain_text_model).tokenize(pieces)

    def _plain_with_offsets(self, pieces: tf.Tensor) -> list[tf.RaggedTensor]:
        """Returns ids, starts and ends within pieces of printable ASCII, int32, (pieces, None)."""
        pieces = tf.strings.lower(pieces) if self.lowercase else pieces
        parts = splitter(self._plain_text_model).tokenize_with_offsets(pieces)
        return [tf.cast(part, tf.int32) for part in parts]

    def _tokenize_any(self, pieces: tf.Tensor, is_special: tf.Tensor) -> tf.RaggedTensor:
        """Returns the ids of pieces, int32, (pieces, None)."""
        words = self._split_into_words(pieces, is_special)
        texts = tf.where(words.lengths > MAX_WORD_CHARACTERS, self.unknown_token, words.texts)
        ids = splitter(self._word_model).tokenize(texts)  # (words, None)
        return with_splits(ids.values, tf.gather(ids.row_splits, words.splits))

    def _words_with_offsets(self, words: Words) -> list[tf.RaggedTensor]:
        """Returns ids, starts and ends within the pieces, int32, (pieces, None)."""
        is_too_long = words.lengths > MAX_WORD_CHARACTERS
        texts = tf.where(is_too_long, self.unknown_token, words.texts)
        ids, starts, ends = splitter(self._word_model).tokenize_with_offsets(texts)
        word_of_token = row_numbers(ids.row_splits)
        num_bytes = tf.gather(tf.cast(tf.strings.length(words.texts), tf.int64), word_of_token)
        ends = tf.where(tf.gather(is_too_long, word_of_token), num_bytes, ends.values)
        starts, ends = characters_of_bytes(words, word_of_token, starts.values, ends)
        splits = tf.gather(ids.row_splits, words.splits)
        return [with_splits(part, splits) for part in (ids.values, starts, ends)]

    def _split_into_words(self, pieces: tf.Tensor, is_special: tf.Tensor) -> Words:
        alone_mask = normalizer.ALONE | self.chinese_mask
        return split_into_words(
            pieces, is_special, table=self.normalizer_table, alone_mask=alone_mask
        )

    def _join(
        self, ids: tf.Tensor | tf.RaggedTensor, skip_special_tokens: bool, *, is_chinese: bool
    ) -> tf.Tensor:
        """Returns texts of what is to be seen of ids, string, (batch,)."""
        if not isinstance(ids, tf.RaggedTensor):
            ids = tf.RaggedTensor.from_tensor(ids)
        is_kept = (ids.values >= 0) & (ids.values < self.vocabulary_size)
        if skip_special_tokens:
            special = tf.constant(self.special_token_ids, ids.dtype)
            is_kept &= tf.reduce_all(ids.values[:, tf.newaxis] != special, 1)
        if self._spellings is None:
            self._spellings = spellings(self.vocabulary)
        kept = tf.where(is_kept)[:, 0]
        return join_tokens(
            tf.gather(ids.values, kept),
            tf.gather(row_numbers(ids.row_splits), kept),
            ids.nrows(),
            spelt=self._spellings,
            is_chinese=is_chinese,
        )

    def _build_models(self) -> None:
        if self._word_model is not None:
            return
        self._plain_text_model = plain_text_model(self.vocabulary, self.unknown_token)
        self._word_model = word_model(self.vocabulary, self.unknown_token)


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


def _escape_for_re2(token: str) -> str:
    return "".join(c if c.isalnum() or not c.isascii() else f"\\{c}" for c in token)
