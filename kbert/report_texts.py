"""What a run's report says of single texts: confusions, mistakes, likely label errors.

As in `kbert.report_view`, each function gives plain values, or None where there are none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kbert.report_view import Run

MATRIX_CLASSES = 30  # most classes that a confusion matrix shows
PAIRS = 10  # most confused pairs beside a whole matrix
TEXT_BYTES = 3_000_000  # of the texts behind the confusion matrix, in the page
FAINT = 0.08  # share of the largest score under which a piece of text is not highlighted
TAIL = 240  # characters shown after the last piece that is highlighted
TOP_WORDS = 4


# Confusions


def confusion(run: Run) -> dict[str, Any] | None:
    """The confusion matrix, the most confused pairs, and the texts behind the cells."""
    split = run.analysis.get("split", run.split)
    counts = run.metrics.get(split, {}).get("confusion_matrix")
    if not counts:
        return None
    labels = [str(name) for name in run.metrics[split]["labels"]]
    shown = _most_confused(counts)
    is_cut = len(shown) < len(labels)
    texts = fitting_rows(run.analysis.get("rows", []))
    pairs = _pairs(counts, MATRIX_CLASSES if is_cut else PAIRS)
    return {
        "split": split,
        "labels": labels,
        "shown": shown,
        "is_cut": is_cut,
        "upright": len(shown) > 8 or max(len(labels[index]) for index in shown) > 16,
        "rows": [
            {
                "index": row,
                "total": sum(counts[row]),
                "cells": [
                    {
                        "column": column,
                        "count": counts[row][column],
                        "alpha": _alpha(counts[row][column], sum(counts[row])),
                    }
                    for column in shown
                ],
            }
            for row in shown
        ],
        "pairs": pairs if len(labels) > 2 else [],
        "has_texts": bool(texts),
        "first": pairs[0] if pairs else None,
        "texts": {
            "columns": run.analysis.get("columns", []),
            "labels": labels,
            "split": split,
            "counts": counts,
            "rows": texts,
        },
    }


def _most_confused(counts: Sequence[Sequence[int]]) -> list[int]:
    """Classes that the matrix shows, in their order: those in most mistakes where it is cut."""
    size = len(counts)
    mistakes = [
        sum(counts[index]) + sum(row[index] for row in counts) - 2 * counts[index][index]
        for index in range(size)
    ]
    return sorted(sorted(range(size), key=lambda index: -mistakes[index])[:MATRIX_CLASSES])


def _pairs(counts: Sequence[Sequence[int]], most: int) -> list[dict[str, int]]:
    cells = [
        {"row": row, "column": column, "count": count}
        for row, line in enumerate(counts)
        for column, count in enumerate(line)
        if row != column and count
    ]
    return sorted(cells, key=lambda cell: -cell["count"])[:most]


def _alpha(count: int, total: int) -> float:
    """How dark a cell is: 0 for nothing, up to 0.5 so that its number can be read."""
    return round(0.08 + 0.42 * count / total, 3) if count else 0.0


def fitting_rows(rows: Iterable[Mapping[str, Any]], *, room: int = TEXT_BYTES) -> list[list[Any]]:
    """The rows behind the cells as short lists, as many as the page has room for.

    Where it has not room for all, every cell keeps its costliest: first that of each cell, then
    the second of each, and so on.

    Args:
        rows: `rows` of analysis.json.
        room: Bytes of UTF-8 that their texts may take.

    Returns:
        [row, texts, label, prediction, probability, label_probability, loss, baseline] of each,
        the costliest first.
    """
    costliest = sorted(rows, key=lambda row: -(row.get("loss") or 0))
    seen: dict[tuple[int, int], int] = {}
    placed = []
    for row in costliest:
        cell = row["label"], row["prediction"]
        seen[cell] = seen.get(cell, 0) + 1
        placed.append((seen[cell], row))
    chosen = []
    for place, row in sorted(placed, key=lambda pair: pair[0]):
        room -= sum(len(text.encode()) for text in row["texts"])
        if room < 0 and place > 1:
            break
        chosen.append(row)
    return [_short(row) for row in sorted(chosen, key=lambda row: -(row.get("loss") or 0))]


def _short(row: Mapping[str, Any]) -> list[Any]:
    figures = [_rounded(row.get(name)) for name in ("probability", "label_probability", "loss")]
    places = [row["label"], row["prediction"]]
    return [row["row"], list(row["texts"]), *places, *figures, row.get("baseline")]


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


# Mistakes


def mistakes(run: Run) -> dict[str, Any] | None:
    """The costliest mistakes with the words that mattered."""
    found = run.analysis.get("mistakes")
    if not found:
        return None
    return {
        "method": run.analysis.get("attribution"),
        "split": run.analysis.get("split", run.split),
        "rows": [_mistake(run, row) for row in found],
    }


def _mistake(run: Run, row: Mapping[str, Any]) -> dict[str, Any]:
    labels = [str(name) for name in run.analysis.get("labels") or run.labels]
    words = row.get("words") or [[[text, 0.0]] for text in row["texts"]]
    largest = max((abs(score) for column in words for _, score in column), default=0.0)
    names = run.analysis.get("columns", [])
    baseline = row.get("baseline")
    return {
        "row": row["row"],
        "label": labels[row["label"]],
        "prediction": labels[row["prediction"]],
        "probability": row.get("probability"),
        "label_probability": row.get("label_probability"),
        "loss": row.get("loss"),
        "baseline": None if baseline is None else labels[baseline],
        "baseline_is_right": baseline == row["label"],
        "columns": [
            {
                "name": names[place] if len(words) > 1 and place < len(names) else None,
                "pieces": highlighted(column, largest),
            }
            for place, column in enumerate(words)
        ],
        "top": _top_words(words),
    }


def highlighted(pieces: Iterable[Sequence[Any]], largest: float) -> list[dict[str, Any]]:
    """Pieces of a text for the page: faint ones are run together, a long unread end is cut.

    Args:
        pieces: (text, score) each; together they are the text.
        largest: The largest absolute score of the row.

    Returns:
        text, score and weight of each, the weight from -1 to 1, 0 for what is not highlighted:
        faint pieces, and the space after a word.
    """
    found: list[dict[str, Any]] = []
    for text, score in pieces:
        weight = score / largest if largest else 0.0
        weight = round(weight, 2) if abs(weight) >= FAINT else 0.0
        word = text.rstrip() if weight else text
        for part, of in ((word, weight), (text[len(word) :], 0.0)):
            if part and found and not of and not found[-1]["weight"]:
                found[-1]["text"] += part
            elif part:
                found.append({"text": part, "score": score, "weight": of})
    if len(found) > 1 and not found[-1]["weight"] and len(found[-1]["text"]) > TAIL:
        found[-1]["text"] = found[-1]["text"][:TAIL] + " …"
    return found


def _top_words(words: Sequence[Sequence[Sequence[Any]]]) -> dict[str, list[tuple[str, float]]]:
    """The words with the largest scores for and against the prediction."""
    pieces = [(text.strip(), score) for column in words for text, score in column if text.strip()]
    ordered = sorted(pieces, key=lambda piece: -piece[1])
    return {
        "for": [piece for piece in ordered[:TOP_WORDS] if piece[1] > 0],
        "against": [piece for piece in ordered[: -TOP_WORDS - 1 : -1] if piece[1] < 0],
    }


def label_errors(run: Run) -> dict[str, Any] | None:
    """Rows whose label is likely wrong, the likeliest first."""
    found = run.analysis.get("label_errors")
    if not found:
        return None
    labels = [str(name) for name in run.analysis.get("labels") or run.labels]
    names = run.analysis.get("columns", [])
    return {
        "rows": [
            {
                **row,
                "label": labels[row["label"]],
                "suggested": labels[row["suggested"]],
                "columns": [
                    {
                        "name": names[place] if len(row["texts"]) > 1 and names else None,
                        "text": text,
                    }
                    for place, text in enumerate(row["texts"])
                ],
            }
            for row in found
        ]
    }
