"""BERT's text normaliser as a table over Unicode: the layout of `normalizer.npz`, and its reader.

The file is written by `python -m kbert.assets.make_normalizer` from HuggingFace's own normaliser.
Every Unicode scalar value has one int32 entry for each pair (lowercase, strip_accents):

    bits 0-20   VALUE       the normalised code point (32 stands for all white space) or, where
                            SEQUENCE is set, the row of `sequences` with the normalised code
                            points; stored as the difference from the code point looked up
    bit 21      ALONE       a word of its own (punctuation)
    bit 22      CHINESE     a word of its own if Chinese characters are split
    bit 23      SEQUENCE    becomes several code points (a Hangul syllable becomes its letters)
    bit 24      NONSTARTER  does not end a run of combining marks
    bits 25-30  RANK        the place of a combining mark within its run, 0 if it is none
    bit 31      DROPPED     becomes nothing: with RANK 0 and NONSTARTER before NFD, else after it

So text is normalised by looking up its code points one by one, with one exception: NFD sorts each
run of combining marks (Unicode's canonical ordering), and `strip_accents` leaves some marks in
place (the reference strips by an older Unicode than its NFD is of). RANK and NONSTARTER say how to
sort those, and the stripped ones among them: the reference counts offsets in that order.
Differences make most blocks of 128 entries equal, and equal blocks are stored once.
"""

from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

VALUE_MASK = (1 << 21) - 1
ALONE, CHINESE, SEQUENCE, NONSTARTER = (1 << bit for bit in (21, 22, 23, 24))
RANK_SHIFT = 25
RANK_MASK = 63 << RANK_SHIFT
DROPPED = -1 << 31
WHITE_SPACE = 32
BLOCK_BITS = 7
BLOCK_SIZE = 1 << BLOCK_BITS

PATH = Path(__file__).with_name("normalizer.npz")


class NormalizerTable(NamedTuple):
    """The table for one pair (lowercase, strip_accents); all arrays are int32."""

    block_starts: np.ndarray  # (0x110000 / BLOCK_SIZE,): where the block of a code point starts
    entries: np.ndarray  # (num_blocks * BLOCK_SIZE,)
    sequence_starts: np.ndarray  # (num_sequences,): into sequences
    sequence_lengths: np.ndarray  # (num_sequences,)
    sequences: np.ndarray  # entries whose VALUE is the code point itself


def array_prefix(lowercase: bool, strip_accents: bool) -> str:
    return f"lowercase={int(lowercase)},strip_accents={int(strip_accents)}/"


@lru_cache
def load_table(lowercase: bool, strip_accents: bool) -> NormalizerTable:
    """Reads one table from the file that is shipped with kbert."""
    prefix = array_prefix(lowercase, strip_accents)
    with np.load(PATH) as file:
        names = ("block_numbers", "blocks", "sequence_lengths", "sequences")
        block_numbers, blocks, lengths, sequences = (file[prefix + name] for name in names)
    lengths = lengths.astype(np.int32)
    return NormalizerTable(
        block_starts=block_numbers.astype(np.int32) * BLOCK_SIZE,
        entries=blocks.reshape(-1),
        sequence_starts=(np.cumsum(lengths) - lengths).astype(np.int32),
        sequence_lengths=lengths,
        sequences=sequences,
    )
