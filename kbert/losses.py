"""The losses of BERT's heads, as HuggingFace's models compute them from labels.

Each is a mean over rows, or over the tokens that count, weighted where there are sample weights.
"""

from __future__ import annotations

import keras
import tensorflow as tf
from keras import ops

IGNORED = -100
"""The label of a row or of a token that does not count."""


def cross_entropy() -> keras.losses.Loss:
    """Of one class a row or a token: labels (...) int, `IGNORED` where none counts.

    Logits are (..., classes). It serves sequence and token classifiers, masked words and next
    sentences; where no label counts it is 0.
    """
    return keras.losses.SparseCategoricalCrossentropy(
        from_logits=True, ignore_class=IGNORED, reduction="mean_with_sample_weight"
    )


def multi_label() -> keras.losses.Loss:
    """Of any number of classes a row: labels (batch, classes) 0 or 1, a mean over both axes."""
    return keras.losses.BinaryCrossentropy(from_logits=True, reduction="mean_with_sample_weight")


def regression() -> keras.losses.Loss:
    """Squared error: labels and predictions (batch, numbers), a mean over both axes."""
    return keras.losses.MeanSquaredError(reduction="mean_with_sample_weight")


class SmoothedCrossEntropy(keras.losses.Loss):
    """Of one class a token, with label smoothing: a mean over tokens by their weights.

    Labels are int (batch, length), logits float32 (batch, length, classes). TensorFlow's kernel
    gives loss and gradient at once; Keras' own smoothing goes over all classes three times more.

    Args:
        label_smoothing: Share of the label's probability spread over all classes, in [0, 1).
    """

    def __init__(self, label_smoothing: float, name: str = "smoothed_cross_entropy") -> None:
        super().__init__(name=name, reduction="mean_with_sample_weight")
        self.label_smoothing = label_smoothing

    def call(self, y_true, y_pred):
        """Loss of each token, (batch, length)."""
        classes = y_pred.shape[-1]
        share = self.label_smoothing / classes
        labels = tf.one_hot(
            tf.cast(y_true, tf.int32), classes, 1 - self.label_smoothing + share, share
        )
        return tf.nn.softmax_cross_entropy_with_logits(labels, y_pred)


class SoftenedCrossEntropy(keras.losses.Loss):
    """Kullback-Leibler divergence of a student's classes from a teacher's: a mean over rows.

    Both are logits (batch, classes). They are divided by the temperature, and the divergence is
    multiplied by its square, so that its gradients keep their size (Hinton et al. 2015).

    Args:
        temperature: Over 1 it tells more of the classes that the teacher finds unlikely.
    """

    def __init__(self, temperature: float, name: str = "softened_cross_entropy") -> None:
        super().__init__(name=name, reduction="mean_with_sample_weight")
        self.temperature = temperature

    def call(self, y_true, y_pred):
        """Divergence of each row, (batch,)."""
        theirs = ops.log_softmax(y_true / self.temperature)
        ours = ops.log_softmax(y_pred / self.temperature)
        return self.temperature**2 * ops.sum(ops.exp(theirs) * (theirs - ours), axis=-1)


class SoftenedBinaryCrossEntropy(keras.losses.Loss):
    """Binary cross-entropy to a teacher's probabilities of any number of classes a row.

    Both are logits (batch, classes), divided by the temperature; the mean over both axes is
    multiplied by its square.

    Args:
        temperature: As of `SoftenedCrossEntropy`.
    """

    def __init__(self, temperature: float, name: str = "softened_binary_cross_entropy") -> None:
        super().__init__(name=name, reduction="mean_with_sample_weight")
        self.temperature = temperature

    def call(self, y_true, y_pred):
        """Loss of each row, (batch,)."""
        theirs = ops.sigmoid(y_true / self.temperature)
        losses = ops.binary_crossentropy(theirs, y_pred / self.temperature, from_logits=True)
        return self.temperature**2 * ops.mean(losses, axis=-1)


class DistillationLoss(keras.losses.Loss):
    """From labels and from a teacher: (1 - alpha) of the one, alpha of the other.

    A row's labels are (batch, 2 * outputs + 1): what the task's own loss learns, the teacher's
    outputs, and 1, or 0 for a row without labels, which has the teacher's loss alone. It is a mean
    over rows by their weights.

    Args:
        labels_loss: Of one row's labels and outputs (outputs,).
        teacher_loss: Of one row's outputs of teacher and student.
        alpha: Weight of the teacher's.
    """

    def __init__(
        self,
        labels_loss: keras.losses.Loss,
        teacher_loss: keras.losses.Loss,
        *,
        alpha: float,
        name: str = "distillation_loss",
    ) -> None:
        super().__init__(name=name, reduction="mean_with_sample_weight")
        self.labels_loss = labels_loss
        self.teacher_loss = teacher_loss
        self.alpha = alpha

    def call(self, y_true, y_pred):
        """Loss of each row, (batch,)."""
        labels, theirs, labelled = split_distilled(y_true)
        of_labels = self.labels_loss.call(labels, y_pred) * labelled
        of_teacher = self.teacher_loss.call(theirs, y_pred)
        return (1 - self.alpha) * of_labels + self.alpha * of_teacher


def join_distilled(labels, theirs, labelled):
    """What `DistillationLoss` takes: labels and a teacher's outputs (batch, outputs), labelled
    (batch,) 0 or 1."""
    flags = ops.cast(labelled, labels.dtype)[:, None]
    return ops.concatenate([labels, theirs, flags], axis=-1)


def split_distilled(y_true):
    """The three parts of what `join_distilled` gave."""
    outputs = (y_true.shape[-1] - 1) // 2
    return y_true[:, :outputs], y_true[:, outputs:-1], y_true[:, -1]


class SpanLoss(keras.losses.Loss):
    """Of the first and the last position of an answer: the mean of two cross-entropies.

    Labels are int (batch, 2), logits (batch, 2, length). A label over the last position does not
    count, as in a text that was truncated before its answer; one below 0 is 0. Each of the two is
    a mean over the rows that count.
    """

    def __init__(self, name: str = "span_loss") -> None:
        super().__init__(name=name, reduction="mean_with_sample_weight")

    def call(self, y_true, y_pred):
        """Loss of each row, (batch,)."""
        labels = ops.maximum(ops.cast(y_true, "int32"), 0)
        counts = labels < ops.shape(y_pred)[-1]
        losses = ops.sparse_categorical_crossentropy(
            ops.where(counts, labels, 0), y_pred, from_logits=True
        )  # (batch, 2)
        counts = ops.cast(counts, losses.dtype)
        share = ops.mean(counts, axis=0)  # of the rows that count, (2,)
        return ops.mean(ops.divide_no_nan(losses * counts, share), axis=-1)


class TagLoss(keras.losses.Loss):
    """Of tags, where there is more to know of each token: a mean over the tokens that count.

    Labels are int (batch, length, n), of which the first is the tag; logits (batch, length, tags).
    """

    def __init__(self, name: str = "tag_loss") -> None:
        super().__init__(name=name, reduction="mean_with_sample_weight")

    def call(self, y_true, y_pred):
        """Loss of each position, (batch, length); its weight says whether it counts."""
        tags = ops.maximum(ops.cast(y_true[..., 0], "int32"), 0)
        return ops.sparse_categorical_crossentropy(tags, y_pred, from_logits=True)
