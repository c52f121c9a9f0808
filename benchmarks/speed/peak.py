"""What share of the machine's own matrix products a step reaches.

`python peak.py TYPE` multiplies two matrices of 4096 x 4096 in rounds.
"""

from __future__ import annotations

import functools
import json
import sys
import time
from pathlib import Path
from typing import Any

SIZE = 4096
TYPES = ("float32", "bfloat16")


def matrix_products() -> dict[str, list[str]]:
    """The processes that measure it, by name."""
    return {name_of(kind): [sys.executable, __file__, kind] for kind in TYPES}


def name_of(kind: str) -> str:
    """Of the process that multiplies in a type."""
    return f"products {kind}"


def share_of_peak(
    name: str, rounds: list[dict[str, dict[str, Any]]], *, precision: str, passes: int
) -> dict[str, Any]:
    """Share of the products' speed that kbert reaches, in the same rounds.

    Args:
        name: The data set, all of whose texts are computed in a round.
        rounds: What was said of each.
        precision: kbert's: what its products are computed in.
        passes: 1 for answers; 3 for training, whose backward pass costs twice the forward pass.
    """
    from peers import spread
    from quality import checkpoint
    from texts import word_pieces

    kind = "bfloat16" if precision.startswith("bfloat16") else "float32"
    config = json.loads((Path(str(checkpoint())) / "config.json").read_text(encoding="utf-8"))
    done = passes * sum(forward_operations(config, length) for length in word_pieces(name))
    return spread(
        [
            done / of["kbert"]["seconds"] / (2 * SIZE**3 / of[name_of(kind)]["seconds"])
            for of in rounds
        ]
    )


def forward_operations(config: dict[str, int], length: int) -> float:
    """Of the matrix products of a text of so many word pieces, without padding."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    weights = hidden * (4 * hidden + 2 * inner)
    attention = 2 * hidden * length
    return 2 * config["num_hidden_layers"] * length * (weights + attention)


def main(kind: str) -> None:
    """A product a round."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    from serve.startup import import_tensorflow_quietly

    import_tensorflow_quietly()
    import tensorflow as tf

    matrix = tf.cast(tf.random.normal((SIZE, SIZE)), kind)
    multiply = tf.function(functools.partial(tf.matmul, matrix, matrix))
    for _ in sys.stdin:
        began = time.perf_counter()
        multiply()[0, 0].numpy()
        print(json.dumps({"seconds": time.perf_counter() - began}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
