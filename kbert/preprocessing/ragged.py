"""What `tf.RaggedTensor` does too slowly: its own row numbers take rows x longest row of memory."""

import tensorflow as tf


def with_splits(values: tf.Tensor, splits: tf.Tensor) -> tf.RaggedTensor:
    """Returns a ragged tensor, (rows, None), without checking its splits."""
    return tf.RaggedTensor.from_row_splits(values, splits, validate=False)


def row_numbers(splits: tf.Tensor) -> tf.Tensor:
    """Returns the row of each value, int32, (values,), of row splits (rows + 1,)."""
    return tf.cumsum(count_at(splits[1:], splits[-1]))


def numbers_in_rows(rows: tf.RaggedTensor) -> tf.Tensor:
    """Returns 0, 1, ... for the values of each row, int32, (values,)."""
    splits = tf.cast(rows.row_splits, tf.int32)
    return tf.range(splits[-1]) - tf.gather(splits, row_numbers(rows.row_splits))


def count_at(positions: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """Returns how often each of 0 ... size - 1 is in positions, int32; `size` is not counted."""
    ones = tf.ones_like(positions, dtype=tf.int32)
    shape = tf.cast(size, positions.dtype)[tf.newaxis] + 1
    return tf.scatter_nd(positions[:, tf.newaxis], ones, shape)[:-1]


def ranges(starts: tf.Tensor, lengths: tf.Tensor) -> tf.Tensor:
    """Returns start, start + 1, ... of each range, after each other, int32."""
    found = tf.raw_ops.RaggedRange(starts=starts, limits=starts + lengths, deltas=1)
    return found.rt_dense_values
