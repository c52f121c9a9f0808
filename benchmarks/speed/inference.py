"""Texts a second of an exported SavedModel, from strings, beside ONNX Runtime and torch.

All have the weights of one short run of kbert, and answer the same texts in their own order, of
which short and long ones are in a batch together. BertTokenizerFast is in front of the peers.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from peak import matrix_products, share_of_peak
from peers import ROOT, in_turn, spread
from quality import OUT, checkpoint, cpus
from texts import MAX_LENGTHS, ROWS, texts

HERE = Path(__file__).resolve().parent
WORK = {
    "batch 1": {"batch_size": 1, "batches": 200},
    "batch 32": {"batch_size": 32, "batches": ROWS // 32},
}
OURS = {"kbert": "float32", "kbert bfloat16": "bfloat16", "kbert int8": "int8"}
"""export.precision of each."""
PEERS = {
    "ONNX Runtime": ("onnxruntime", "float32"),
    "ONNX Runtime int8": ("onnxruntime", "int8"),
    "torch float32": ("torch", "float32"),
    "torch bfloat16": ("torch", "bfloat16"),
}
"""By what, in which type."""
TORCH = ("torch float32", "torch bfloat16")
WARM_UP = {"batch 1": 200, "batch 32": 20}  # batches of the first round, which is not counted
GOAL = 1.2
SAME = 1e-3  # of logits, in float32


def measure(name: str, rounds: int) -> dict[str, Any]:
    """Answers of kbert, ONNX Runtime and torch to the texts of one data set."""
    saved_models = exports_of(name, OURS)
    weights = weights_of(saved_models["kbert"], name)
    commands = {tool: kbert(name, folder) for tool, folder in saved_models.items()}
    commands |= {of: peer(name, weights, *how) for of, how in PEERS.items()}
    commands |= matrix_products()
    work = {
        of: (json.dumps({**told, "batches": WARM_UP[of]}), json.dumps(told))
        for of, told in WORK.items()
    }
    first, found = in_turn(commands, work, rounds, rivals=TORCH)
    compare(first["batch 1"])
    measured: dict[str, Any] = {}
    for of, said in found.items():
        count = WORK[of]["batch_size"] * WORK[of]["batches"]
        speeds = {
            tool: spread([count / round[tool]["seconds"] for round in said])
            for tool in (*OURS, *PEERS)
            if tool in said[0]
        }
        told = ", ".join(f"{tool} {speed['median']:.0f}" for tool, speed in speeds.items())
        print(f"  {of}, texts/s: {told}", flush=True)
        compared = {
            "ONNX Runtime": ("kbert", "ONNX Runtime"),
            "ONNX Runtime int8": ("kbert int8", "ONNX Runtime int8"),
            "torch": (
                max(("kbert", "kbert bfloat16"), key=lambda tool: speeds[tool]["median"]),
                max(
                    (tool for tool in TORCH if tool in speeds),
                    key=lambda tool: speeds[tool]["median"],
                ),
            ),
        }
        ratios = {
            tool: {
                **spread([round[theirs]["seconds"] / round[ours]["seconds"] for round in said]),
                "compared": [ours, theirs],
            }
            for tool, (ours, theirs) in compared.items()
        }
        measured[of] = {"texts_per_second": speeds, "ratios": ratios}
    share = share_of_peak(name, found["batch 32"], precision="float32", passes=1)
    return {**measured, "share_of_peak": share}


def compare(said: dict[str, dict[str, Any]]) -> None:
    """Stop unless all answer the first text alike."""
    ours = np.array(said["kbert"]["logits"])
    for tool in ("ONNX Runtime", "torch float32"):
        difference = np.abs(ours - said[tool]["logits"]).max()
        if difference > SAME:
            raise SystemExit(f"bench: {tool} answers otherwise, by {difference}.")


def exports_of(name: str, precisions: dict[str, str]) -> dict[str, Path]:
    """The SavedModels of one epoch's training, in each precision, by the same names."""
    exports: dict[str, Path] = {}
    for tool, precision in precisions.items():
        run = OUT / f"bench-run-{name}-{precision}"
        shutil.rmtree(run, ignore_errors=True)
        if exports:  # what is trained goes on with another export
            trained = next(iter(exports.values())).parents[2]
            shutil.copytree(trained, run, ignore=shutil.ignore_patterns("metrics.json", "export"))
        options = {
            "data.train": texts(name),
            "data.max_length": MAX_LENGTHS[name],
            "data.cache_dir": OUT / "cache",
            "model.checkpoint": checkpoint(),
            "train.epochs": 1,
            "monitor.tensorboard": "false",
            "export.name": "bench",
            "export.precision": precision,
            "output": run,
        }
        call(str(ROOT / "train.py"), *(f"--{option}={value}" for option, value in options.items()))
        exports[tool] = run / "export" / "bench" / "1"
    return exports


def weights_of(saved_model: Path, name: str) -> Path:
    """The same weights for the peers."""
    folder = OUT / f"bench-weights-{name}"
    shutil.rmtree(folder, ignore_errors=True)
    script = ROOT / "benchmarks" / "serving" / "peer_checkpoint.py"
    call(str(script), str(saved_model.parents[2]), str(folder))
    return folder


def call(*words: str) -> None:
    """Run a script of this project to its end."""
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=environment(), capture_output=True, text=True
    )
    if done.returncode:
        said = (done.stdout + done.stderr)[-3000:]
        raise SystemExit(f"bench: {words[0]} failed:\n{said}")


def environment() -> dict[str, str]:
    """In which kbert is this one."""
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def kbert(name: str, saved_model: Path) -> list[str]:
    """The call of infer_kbert.py."""
    settings = {"saved_model": str(saved_model), "file": str(texts(name))}
    return [sys.executable, str(HERE / "infer_kbert.py"), json.dumps(settings)]


def peer(name: str, weights: Path, by: str, precision: str) -> list[str]:
    """The call of infer_peer.py."""
    settings = {
        "checkpoint": str(weights),
        "by": by,
        "precision": precision,
        "threads": cpus(),
        "max_length": MAX_LENGTHS[name],
        "file": str(texts(name)),
    }
    return [sys.executable, str(HERE / "infer_peer.py"), json.dumps(settings)]
