"""Requests a second, p50 and p99 of the local server beside the bare SavedModel and its peers.

The demo's model and real texts, one text a request, closed loop. All servers are up at once, and
each round measures all of them one after the other, in an order that moves by one each round: a
ratio is that of two neighbours in time. The servers have as many handler threads as clients can
come, so that every client is at work. The peers are ONNX Runtime and torch on the same weights,
behind a gRPC server that does nothing else; they have as many compute threads as there are cores,
as TensorFlow has.

Exit status: 0 when both goals are reached, 1 when one is missed, 2 when it cannot run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from statistics import mean, median
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent)]

import numpy as np  # noqa: E402
import peer_checkpoint  # noqa: E402
from demo_model import ROOT, demo_export, mixed_texts, short_texts  # noqa: E402
from rich import box  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402
from systems import Bare, Result, Served, bare_model, model_server, thin_server  # noqa: E402

CLIENTS = (1, 8, 32)
MOST_CLIENTS = max(CLIENTS)
TEXTS = 512
THREADS = (f"--rest_api_num_threads={2 * MOST_CLIENTS}", f"--grpc_max_threads={2 * MOST_CLIENTS}")
BATCHING = ("--enable_batching", f"--batching_parameters_file={ROOT / 'serve/batching.config'}")
LARGEST_COST = 0.15  # of the bare SavedModel's throughput, at 32 clients
SMALLEST_GAIN = 2.0  # of batching, for short texts at 32 clients

System = Served | Bare
Measured = dict[tuple[str, str, int], list[Result]]
"""(texts, system, clients) -> a result a round."""


def main() -> int:
    """Run the command line; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="of all systems (default: 5)")
    parser.add_argument("--seconds", type=float, default=4, help="of one measurement (default: 4)")
    parser.add_argument(
        "--output", type=Path, default=ROOT / "benchmarks/out/serving.json", help="all figures"
    )
    options = parser.parse_args()
    exported = demo_export()
    texts = {"mixed": mixed_texts(TEXTS), "short": short_texts(TEXTS)}
    with ExitStack() as stack:
        systems = start(exported, stack)
        measured = measure(systems, texts, options.rounds, options.seconds)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(as_json(measured, options), indent=1) + "\n")
    return report(measured)


def start(exported: Path, stack: ExitStack) -> list[System]:
    """All systems, up and waiting."""
    cores = len(os.sched_getaffinity(0))
    checkpoint = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "checkpoint"
    peer_checkpoint.main(exported.parents[2], checkpoint)
    grpc, rest, _ = stack.enter_context(model_server(exported.parent, *THREADS))
    batched_grpc, batched_rest, _ = stack.enter_context(
        model_server(exported.parent, *THREADS, *BATCHING)
    )
    bare = stack.enter_context(bare_model(exported))
    return [
        Bare("bare", bare),
        named(grpc, "gRPC"),
        named(rest, "REST"),
        named(batched_grpc, "gRPC, batching"),
        named(batched_rest, "REST, batching"),
        Bare("bare, 32 rows a call", bare, rows=32),
        stack.enter_context(thin_server("onnxruntime", checkpoint, cores)),
        stack.enter_context(thin_server("torch", checkpoint, cores)),
    ]


def named(served: Served, name: str) -> Served:
    return Served(name, served.kind, served.address, served.target, served.form)


def measure(
    systems: list[System], texts: dict[str, list[str]], rounds: int, seconds: float
) -> Measured:
    """All systems at all numbers of clients, round after round."""
    cases = [("mixed", clients) for clients in CLIENTS] + [("short", MOST_CLIENTS)]
    measured: Measured = {}
    for turn in range(rounds):
        order = systems[turn % len(systems) :] + systems[: turn % len(systems)]
        for kind, clients in cases:
            for system in order:
                threads = clients if rows(system) == 1 else 1
                result = system.measure(texts[kind], threads, seconds)
                measured.setdefault((kind, system.name, clients), []).append(result)
            print(f"round {turn + 1}/{rounds}: {kind} texts, {clients} clients", flush=True)
    return measured


def rows(system: System) -> int:
    return system.rows if isinstance(system, Bare) else 1


def rate(name: str, result: Result) -> float:
    """Texts a second."""
    return result["count"] * (32 if "32 rows" in name else 1) / result["seconds"]


def report(measured: Measured) -> int:
    """Print the tables and the goals; 1 when a goal is missed."""
    for kind in ("mixed", "short"):
        table = Table(
            f"{kind} texts", "clients", "texts/s", "range", "p50 ms", "p99 ms", "of bare",
            box=box.SIMPLE_HEAD,
        )  # fmt: skip
        for (of, name, clients), results in sorted(measured.items(), key=lambda item: item[0][2]):
            if of == kind:
                table.add_row(*line(measured, name, clients, results, kind))
        Console(width=110).print(table)
    costs = {name: 1 - median(ratios(measured, "mixed", name, "bare")) for name in ("gRPC", "REST")}
    gains = {
        name: median(ratios(measured, "short", f"{name}, batching", name))
        for name in ("gRPC", "REST")
    }
    peer = median(ratios(measured, "mixed", "gRPC, batching", "onnxruntime"))
    print(
        f"at {MOST_CLIENTS} clients: the server costs {costs['gRPC']:.1%} (gRPC) and "
        f"{costs['REST']:.1%} (REST) of the bare SavedModel's throughput (goal: at most "
        f"{LARGEST_COST:.0%})\nbatching gives {gains['gRPC']:.2f} times (gRPC) and "
        f"{gains['REST']:.2f} times (REST) the throughput for short texts (goal: at least "
        f"{SMALLEST_GAIN:.0f})\nby gRPC with batching {peer:.2f} times ONNX Runtime's"
    )
    reached = max(costs.values()) <= LARGEST_COST and min(gains.values()) >= SMALLEST_GAIN
    return 0 if reached else 1


def line(
    measured: Measured, name: str, clients: int, results: list[Result], kind: str
) -> tuple[str, ...]:
    """A row of the table."""
    rates = [rate(name, result) for result in results]
    taken = np.concatenate([result["milliseconds"] for result in results])
    beside = ratios(measured, kind, name, "bare", clients)
    return (
        name,
        str(clients),
        f"{mean(rates):.1f}",
        f"{min(rates):.1f} - {max(rates):.1f}",
        f"{np.percentile(taken, 50):.1f}",
        f"{np.percentile(taken, 99):.1f}",
        f"{median(beside):.2f}",
    )


def ratios(
    measured: Measured, kind: str, name: str, other: str, clients: int = MOST_CLIENTS
) -> list[float]:
    """Throughput over another's, round by round."""
    pairs = zip(measured[kind, name, clients], measured[kind, other, clients], strict=True)
    return [rate(name, one) / rate(other, two) for one, two in pairs]


def as_json(measured: Measured, options: argparse.Namespace) -> dict[str, Any]:
    """All figures, without the single times of requests."""
    return {
        "machine": {"cores": len(os.sched_getaffinity(0)), "python": platform.python_version()},
        "seconds": options.seconds,
        "results": [
            {
                "texts": kind,
                "system": name,
                "clients": clients,
                "texts_per_second": [rate(name, result) for result in results],
                "p50_ms": [float(np.percentile(r["milliseconds"], 50)) for r in results],
                "p99_ms": [float(np.percentile(r["milliseconds"], 99)) for r in results],
            }
            for (kind, name, clients), results in measured.items()
        ],
    }


if __name__ == "__main__":
    sys.exit(main())
