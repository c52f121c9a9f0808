"""The certificate of an export: assets.extra/parity.json in the SavedModel.

docs/parity.md tells what is in it. Needs numpy alone, neither TensorFlow nor Keras.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from kbert.answers import IDS, Answers, Comparison, compare, scale
from kbert.errors import InputError
from kbert.foreign_files import malformed_told, read_json
from kbert.whole_files import written_whole

FORMAT = 1
PLACE = Path("assets.extra") / "parity.json"
FLOAT32 = "float32"
ADVICE = "export the model again, or name another parity.json"
SOURCES = ("python", "saved_model", "huggingface")


@dataclass(frozen=True)
class Certificate:
    """Probe texts and the answers to them."""

    signature: str
    """Name of the signature that answers."""
    bound: float
    """Largest difference that was allowed."""
    versions: dict[str, str]
    """Of the packages that took part."""
    inputs: dict[str, list[str]]
    """The probe texts, (probes,) for each input of the signature."""
    ranked_by: dict[str, str]
    """Output of strings or whole numbers -> float output whose largest values chose it."""
    answers: dict[str, Answers]
    """By who answered: python, saved_model and, where it is installed, huggingface."""
    huggingface: str
    """transformers' class that answered, or why none did."""
    tf_serving: str | None = None
    """First TF Serving that has all ops of the SavedModel; None where that was not looked at."""
    precision: str = FLOAT32
    """In which the SavedModel computes its products."""
    figures: dict[str, dict[str, float]] = field(default_factory=dict)
    """Of a SavedModel that is not in float32: the headline of the split that it was measured on, by
    precision, float32 first."""

    def compare(self, answers: Answers, source: str, *, bound: float) -> Comparison:
        """How answers to the probes compare with those of one of the sources."""
        return compare(answers, self.answers[source], ranked_by=self.ranked_by, bound=bound)

    def problem(self) -> str:
        """What is wrong first with the SavedModel's answers; "" where nothing is."""
        for source, name in (("python", "the model in Python"), ("huggingface", "HuggingFace")):
            if source in self.answers:
                served = self.answers["saved_model"]
                compared = self.compare(served, source, bound=self.bound)
                if problem := self.problem_of(compared, self.bound):
                    return f"{problem}, compared with {name}"
        return ""

    def problem_of(self, compared: Comparison, bound: float) -> str:
        """What is wrong first with answers; in a lower precision others may be chosen."""
        is_exact = self.precision == FLOAT32
        return compared.problem(bound) if is_exact else compared.numbers_problem(bound)


def write_certificate(path: Path, certificate: Certificate) -> None:
    """Write a parity.json: a line for each key, then one for each probe.

    Floats are in the shortest form that reads back as the same number of their type.
    """
    lines = [f"{json.dumps(key)}: {_text(value)}" for key, value in _head(certificate).items()]
    probes = ",\n".join(_text(probe) for probe in _probes(certificate))
    lines.append(f'"probes": [\n{probes}\n]')
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as beside:
        beside.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def read_certificate(path: Path) -> Certificate:
    """Read a parity.json.

    Raises:
        InputError: it cannot be read, or is no certificate of this format.
    """
    content = read_json(path, advice=ADVICE)
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        raise InputError(f"{path}: not a certificate of format {FORMAT}, but {found!r}.")
    with malformed_told(path, advice=ADVICE):
        return _from_json(content)


def find_saved_model(path: Path) -> Path:
    """The SavedModel that a path means: itself, the newest version in it, or a run's export.

    Raises:
        InputError: there is none, or a run has several.
    """
    bases = [path, *sorted((path / "export").glob("*"))]
    found = [version for base in bases if (version := _newest_version(base)) is not None]
    if not found:
        raise InputError(
            f"{path}: no SavedModel, no folder of its versions, and no run with an export."
        )
    if len(found) > 1:
        raise InputError(f"{path}: has {len(found)} exports; name one, such as {found[0]}.")
    return found[0]


def find_certificate(path: Path) -> Path:
    """The parity.json that a path means: itself, or that of the SavedModel it means.

    Raises:
        InputError: there is none.
    """
    if path.is_file():
        return path
    place = find_saved_model(path) / PLACE
    if not place.is_file():
        raise InputError(f"{place} is missing; export the model again, or name a --certificate.")
    return place


def _newest_version(folder: Path) -> Path | None:
    if (folder / "saved_model.pb").is_file():
        return folder
    numbered = [path for path in folder.glob("*") if path.name.isascii() and path.name.isdecimal()]
    versions = [path for path in numbered if (path / "saved_model.pb").is_file()]
    return max(versions, key=lambda path: int(path.name), default=None)


def _head(certificate: Certificate) -> dict[str, Any]:
    """All but the probes."""
    served = certificate.answers["saved_model"]
    compared = {
        source: certificate.compare(served, source, bound=certificate.bound)
        for source in certificate.answers
        if source != "saved_model"
    }
    return {
        "format": FORMAT,
        "signature": certificate.signature,
        "bound": certificate.bound,
        "largest_difference": _largest(
            {source: comparison.rows for source, comparison in compared.items()}
        ),
        "huggingface": certificate.huggingface if "huggingface" in compared else None,
        "huggingface_missing": None if "huggingface" in compared else certificate.huggingface,
        "versions": certificate.versions,
        "tf_serving": certificate.tf_serving,
        "precision": certificate.precision,
        "figures": certificate.figures,
        "outputs": {
            name: _describe(name, array, certificate, compared)
            for name, array in sorted(certificate.answers["python"].outputs.items())
        },
    }


def _describe(
    name: str, array: np.ndarray, certificate: Certificate, compared: dict[str, Comparison]
) -> dict[str, Any]:
    """Type of an output, and how the SavedModel's values differ from the others'."""
    if np.issubdtype(array.dtype, np.floating):
        rows = {source: found.differences.get(name) for source, found in compared.items()}
        return {
            "type": array.dtype.name,
            "scale": scale(array),
            "largest_difference": _largest(rows),
        }
    changed = {source: found.changed.get(name) for source, found in compared.items()}
    return {
        "type": "string" if array.dtype == object else array.dtype.name,
        "ranked_by": certificate.ranked_by.get(name),
        "other_values": {
            source: int(counts.sum()) for source, counts in changed.items() if counts is not None
        },
    }


def _largest(rows: dict[str, np.ndarray | None]) -> dict[str, float]:
    return {source: float(values.max()) for source, values in rows.items() if values is not None}


def _probes(certificate: Certificate) -> list[dict[str, Any]]:
    """For each probe its texts and what was answered to it."""
    columns = {
        source: {
            **answers.ids,
            "outputs": {name: _plain(answers.outputs[name]) for name in sorted(answers.outputs)},
        }
        for source, answers in certificate.answers.items()
    }
    count = len(next(iter(certificate.inputs.values())))
    return [
        {
            "inputs": {name: texts[row] for name, texts in certificate.inputs.items()},
            **{
                source: {
                    **{key: found[key][row] for key in IDS},
                    "outputs": {name: rows[row] for name, rows in found["outputs"].items()},
                }
                for source, found in columns.items()
            },
        }
        for row in range(count)
    ]


def _plain(array: np.ndarray) -> list:
    """Nested lists; a float32 0.1 as 0.1, not as the double 0.10000000149011612."""
    if np.issubdtype(array.dtype, np.floating):
        shortest = [float(str(value)) for value in array.ravel()]
        return np.array(shortest).reshape(array.shape).tolist()
    return array.tolist()


def _from_json(content: dict[str, Any]) -> Certificate:
    probes, outputs = content["probes"], content["outputs"]
    types = {name: _type(output["type"]) for name, output in outputs.items()}
    if not all(isinstance(text, str) for row in probes for text in row["inputs"].values()):
        raise TypeError("a probe's text is no string")
    ranked_by = {
        name: output["ranked_by"]
        for name, output in outputs.items()
        if output.get("ranked_by") is not None
    }
    if not all(isinstance(name, str) for name in ranked_by.values()):
        raise TypeError("what an output is ranked by is no name")
    return Certificate(
        signature=content["signature"],
        bound=float(content["bound"]),
        versions=content["versions"],
        inputs={name: [row["inputs"][name] for row in probes] for name in probes[0]["inputs"]},
        ranked_by=ranked_by,
        answers={
            source: _answers([row[source] for row in probes], types)
            for source in SOURCES
            if source != "huggingface" or source in probes[0]
        },
        huggingface=content["huggingface"] or content["huggingface_missing"],
        # exports did not say these at first
        tf_serving=content.get("tf_serving"),
        precision=content.get("precision", FLOAT32),
        figures=content.get("figures", {}),
    )


def _type(name: str) -> Any:
    if name == "string":
        return object
    kind = np.dtype(name)
    if kind.kind not in "fiub":  # others may take any memory for a value
        raise TypeError(f"an output holds {name}")
    return kind


def _answers(rows: list[dict[str, Any]], types: dict[str, Any]) -> Answers:
    ids = {key: [row[key] for row in rows] for key in IDS}
    if not all(type(number) is int for of in ids.values() for row in of for number in row):
        raise TypeError("ids are no whole numbers")
    return Answers(
        ids=ids,
        outputs={
            name: np.array([row["outputs"][name] for row in rows], types[name])
            for name in rows[0]["outputs"]
        },
    )


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
