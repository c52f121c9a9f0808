"""What of an experiment is trained: all of it, a classifier on features, or a student."""

from __future__ import annotations

from kbert.distillation import distilled
from kbert.experiment import Experiment
from kbert.features import on_features


def trained_part(experiment: Experiment) -> Experiment:
    """The experiment, or one with what a frozen encoder or a teacher says of its rows.

    What they say is computed in float32, once, and kept under the cache folder.

    Raises:
        InputError: the teacher cannot teach it.
    """
    if experiment.task.has_features:
        return on_features(experiment)
    if experiment.config.distill.teacher is not None:
        return distilled(experiment)
    return experiment
