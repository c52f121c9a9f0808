"""WordPiece vocabularies for models from scratch, learnt from the training texts.

texts -> words, as `WordPieceTokenizer` sees them -> counts -> characters -> merges. The merges are
those of HuggingFace's `tokenizers`, whose trainer takes seconds where TensorFlow Text's takes
minutes, and keeps to the size, which that one exceeds. Its own choice and order of characters
changes from process to process, so they are chosen here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import tensorflow as tf
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from kbert.errors import InputError
from kbert.preprocessing import WordPieceTokenizer
from kbert.tokenizer_files import MAX_WORD_CHARACTERS

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")  # in BERT's own order
MIN_MERGES = 2  # occurrences of two neighbours that become one piece


def learn_vocabulary(
    texts: Iterable[Sequence[str]], *, size: int, lowercase: bool
) -> tuple[str, ...]:
    """Learns a WordPiece vocabulary; the same texts give the same one in every process.

    After the special tokens come the single characters of the texts, the most frequent where not
    all fit, then longer pieces in the order in which they were merged, the most frequent first.
    A character of longer words is there twice, as `x` and as `##x`. Chinese characters and
    punctuation are words of their own, and so are only there as they stand.

    Args:
        texts: Batches of texts; a few thousand a batch are fastest.
        size: The most entries; there are fewer where the texts have no more that repeat.
        lowercase: Whether `WordPieceTokenizer` will lower-case texts.

    Raises:
        InputError: If the size has no room for a character.
    """
    if size <= len(SPECIAL_TOKENS):
        raise InputError(
            f"A vocabulary must have room for more than the {len(SPECIAL_TOKENS)} special tokens. "
            f"Received: size {size}"
        )
    counts = count_words(texts, lowercase=lowercase)
    characters = _characters(counts, size - len(SPECIAL_TOKENS))
    trainer = trainers.WordPieceTrainer(
        vocab_size=size,
        min_frequency=MIN_MERGES,
        show_progress=False,
        # as special tokens they get their ids in this order: else in that of a random hash
        special_tokens=[*SPECIAL_TOKENS, *characters],
    )
    learner = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    learner.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    learner.train_from_iterator(_repeated(counts, frozenset(characters)), trainer)
    ids = learner.get_vocab()
    return tuple(sorted(ids, key=ids.__getitem__))


def count_words(texts: Iterable[Sequence[str]], *, lowercase: bool) -> Counter[str]:
    """Counts the normalised words of texts; those that always become [UNK] are left out."""
    tokenizer = WordPieceTokenizer(SPECIAL_TOKENS, lowercase=lowercase)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
    def count(batch: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        found = tf.unique_with_counts(tokenizer.words(batch).values)
        return found.y, found.count

    counts: Counter[bytes] = Counter()
    for batch in texts:
        words, numbers = count(tf.constant(batch, tf.string))
        counts.update(dict(zip(words.numpy().tolist(), numbers.numpy().tolist(), strict=True)))
    decoded = {word.decode("utf-8"): number for word, number in counts.items()}
    unwanted = [word for word in decoded if len(word) > MAX_WORD_CHARACTERS]
    for word in (*unwanted, *SPECIAL_TOKENS):
        decoded.pop(word, None)
    return Counter(decoded)


def _characters(counts: Mapping[str, int], room: int) -> list[str]:
    """Returns the most frequent pieces of one character: first `x`, then `##x`, by code point."""
    found: Counter[str] = Counter()
    for word, count in counts.items():
        for character in word:
            found[character] += count
            if len(word) > 1:
                found["##" + character] += count
    # `x` before `##x`, which the trainer knows only with it
    ranked = sorted(found, key=lambda piece: (-found[piece], len(piece), piece))
    return sorted(ranked[:room], key=lambda piece: (len(piece), piece))


def _repeated(counts: Mapping[str, int], characters: frozenset[str]) -> Iterable[str]:
    """Yields each word that the characters can spell as often as it is there, sorted."""
    for word in sorted(counts):
        if {word[0], *("##" + character for character in word[1:])} <= characters:
            yield " ".join([word] * counts[word])
