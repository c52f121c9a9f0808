"""The uses of BERT: one file each, found by name in the only dispatch table."""

from __future__ import annotations

from importlib import import_module

TASKS = {
    "classification": "kbert.tasks.classification:Classification",
    "multi_label": "kbert.tasks.multi_label:MultiLabel",
    "regression": "kbert.tasks.regression:Regression",
    "features": "kbert.tasks.features:Features",
    "tagging": "kbert.tasks.tagging:Tagging",
    "masked_lm": "kbert.tasks.masked_lm:MaskedLM",
    "embedding": "kbert.tasks.embedding:Embedding",
    "question_answering": "kbert.tasks.question_answering:QuestionAnswering",
    "translation": "kbert.tasks.translation:Translation",
}


def task_class(name: str) -> type:
    """The class of a task by its name, imported when it is asked for.

    Raises:
        KeyError: there is no such task.
    """
    module, _, attribute = TASKS[name].partition(":")
    return getattr(import_module(module), attribute)
