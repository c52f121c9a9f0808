"""BERT's preprocessing as Keras layers: raw strings become ids in the TensorFlow graph.

The reference is HuggingFace's `BertTokenizerFast`; ids are identical. The graph holds TensorFlow's
core ops and two of TensorFlow Text (RegexSplitWithOffsets, FastWordpieceTokenizeWithOffsets) that
every TF Serving image carries. Strings cannot be jit-compiled: keep these layers outside.

text -> WordPieceTokenizer -> ragged ids -> BertPacker -> token_ids, segment_ids, padding_mask
"""

from kbert.preprocessing.masking import TokenMasker
from kbert.preprocessing.packing import BertPacker, PackedSizes
from kbert.preprocessing.sentences import SentencePairer
from kbert.preprocessing.windows import BertWindowPacker
from kbert.preprocessing.wordpiece import (
    WordPieceTokenizer,
    tokenizer_from_files,
    tokenizer_from_vocabulary_file,
)

__all__ = [
    "BertPacker",
    "BertWindowPacker",
    "PackedSizes",
    "SentencePairer",
    "TokenMasker",
    "WordPieceTokenizer",
    "tokenizer_from_files",
    "tokenizer_from_vocabulary_file",
]
