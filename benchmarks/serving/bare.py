"""The SavedModel alone, without a server: `python bare.py SAVED_MODEL`, jobs on stdin, a line each.

A job is {"texts": [...], "rows": rows a call, "threads": N, "seconds": S, "warm_up": S}: each
thread runs the signature in a loop, as TF Serving runs it (a session, tensors by name). For each
job a line {"count": calls, "seconds", "milliseconds"} is printed.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf
import tensorflow_text  # noqa: F401  (registers its ops)


def main(saved_model: str) -> None:
    """Answer jobs until stdin ends."""
    session = tf.compat.v1.Session(graph=tf.Graph())
    with session.graph.as_default():
        meta_graph = tf.compat.v1.saved_model.loader.load(session, ["serve"], saved_model)
        signature = meta_graph.signature_def["serving_default"]
        [feed] = [info.name for info in signature.inputs.values()]
        run = session.make_callable(
            [info.name for info in signature.outputs.values()], feed_list=[feed]
        )
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(measure(run, json.loads(line))), flush=True)


def measure(run: Callable[[np.ndarray], Any], job: dict[str, Any]) -> dict[str, Any]:
    """Run a job; see the module."""
    texts = [text.encode() for text in job["texts"]]
    rows = job["rows"]
    batches = [
        np.array(texts[begin : begin + rows], object)
        for begin in range(0, len(texts) - rows + 1, rows)
    ]
    start = time.perf_counter() + job["warm_up"]
    stop = start + job["seconds"]
    milliseconds: list[float] = []

    def loop(place: int) -> None:
        while (began := time.perf_counter()) < stop:
            run(batches[place % len(batches)])
            place += 1
            ended = time.perf_counter()
            if began >= start and ended <= stop:
                milliseconds.append((ended - began) * 1000)

    step = max(1, len(batches) // job["threads"])
    threads = [threading.Thread(target=loop, args=(row * step,)) for row in range(job["threads"])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {"count": len(milliseconds), "seconds": job["seconds"], "milliseconds": milliseconds}


if __name__ == "__main__":
    main(sys.argv[1])
