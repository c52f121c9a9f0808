"""Training rows a second of kbert, HuggingFace's Trainer and keras-hub.

All train the same sizes on the same 1,920 texts, 60 steps of 32 an epoch, which is a round. The
Trainer pads to the longest of a batch, groups by length, and has fused AdamW; of its precisions
and torch.compile the one that is fastest on a third of the texts is compared.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

from peak import matrix_products, share_of_peak
from peers import FAR_SLOWER, in_turn, spread, started
from quality import OUT, PEER, checkpoint, cpus
from texts import MAX_LENGTHS, ROWS, texts

HERE = Path(__file__).resolve().parent
BATCH_SIZE = 32
FEW = ROWS // 3  # to find the Trainer's fastest way
EPOCHS = 1000  # more than are asked for
HUB_LENGTH = 128  # keras-hub has one length for all texts
COMMON = {"batch_size": BATCH_SIZE, "warmup": 0.1, "weight_decay": 0.01, "clip_norm": 1.0}
TRAINERS = {
    "Trainer bfloat16": {"precision": "bfloat16", "compile": False},
    "Trainer float32": {"precision": "float32", "compile": False},
    "Trainer bfloat16, torch.compile": {"precision": "bfloat16", "compile": True},
}
HUB_SETS = ("sst2", "clinc150")
GOALS = {"Trainer": 1.5, "keras-hub": 4.0}


def measure(name: str, rounds: int) -> dict[str, Any]:
    """Epochs of kbert, of the fastest Trainer and of keras-hub on one data set."""
    best = fastest_trainer(name)
    commands = {"kbert": kbert(name), "Trainer": trainer(name, **TRAINERS[best])}
    if name in HUB_SETS:
        commands["keras-hub"] = keras_hub(name)
    commands |= matrix_products()
    _, counted = in_turn(commands, {"": ("", "")}, rounds)
    epochs = counted[""]
    for of in epochs:
        told = ", ".join(
            f"{tool} {ROWS / of[tool]['seconds']:.0f} rows/s" for tool in commands if tool in GOALS
            or tool == "kbert"
        )  # fmt: skip
        print(f"  {told}", flush=True)
    ratios = {
        tool: spread([of[tool]["seconds"] / of["kbert"]["seconds"] for of in epochs])
        for tool in GOALS
        if tool in commands
    }
    share = share_of_peak(name, epochs, precision=epochs[0]["kbert"]["precision"], passes=3)
    return {"trainer": best, "epochs": epochs, "ratios": ratios, "share_of_peak": share}


def fastest_trainer(name: str) -> str:
    """Which of the Trainer's ways is fastest here, by the second epoch of each.

    One that compiles nothing, and is far slower in its first epoch, has no second one.
    """
    seconds: dict[str, float] = {}
    for way, settings in TRAINERS.items():
        try:
            with started(way, trainer(name, **settings, rows=FEW)) as peer:
                first = peer.round()["seconds"]
                most = FAR_SLOWER * min(seconds.values(), default=math.inf)
                is_hopeless = not settings["compile"] and first > most
                seconds[way] = first if is_hopeless else peer.round()["seconds"]
        except ChildProcessError as error:
            print(f"  {way}: does not run ({str(error).strip().splitlines()[-1]})", flush=True)
        else:
            print(f"  {way}: {FEW / seconds[way]:.0f} rows/s", flush=True)
    return min(seconds, key=lambda way: seconds[way])


def kbert(name: str) -> list[str]:
    """The call of train_kbert.py: the options are auto."""
    options = {
        "data.train": texts(name),
        "data.max_length": MAX_LENGTHS[name],
        "data.cache_dir": OUT / "cache",
        "model.checkpoint": checkpoint(),
        "train.epochs": EPOCHS,
        "train.learning_rate": 1e-5,
        "output": OUT / "none",
        **{f"train.{option}": value for option, value in COMMON.items()},
    }
    words = [f"--{option}={value}" for option, value in options.items()]
    return [sys.executable, str(HERE / "train_kbert.py"), *words]


def trainer(name: str, *, precision: str, compile: bool, rows: int = ROWS) -> list[str]:
    """The call of train_trainer.py."""
    told = {"max_length": MAX_LENGTHS[name], "precision": precision, "compile": compile}
    settings = json.dumps({**common_settings(name, rows), **COMMON, **PEER, **told})
    return [sys.executable, str(HERE / "train_trainer.py"), settings]


def keras_hub(name: str) -> list[str]:
    """The call of train_keras_hub.py."""
    settings = json.dumps(
        {**common_settings(name, ROWS), "batch_size": BATCH_SIZE, "sequence_length": HUB_LENGTH}
    )
    return [sys.executable, str(HERE / "train_keras_hub.py"), settings]


def common_settings(name: str, rows: int) -> dict[str, Any]:
    """What both peers are told."""
    return {
        "seed": 0,
        "file": str(texts(name, rows)),
        "checkpoint": str(checkpoint()),
        "threads": cpus(),
        "epochs": EPOCHS,
        "learning_rate": 1e-5,
    }
