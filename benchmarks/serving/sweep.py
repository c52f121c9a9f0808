"""Which batching parameters serve best: texts a second and p99 of each, at 32 clients by gRPC.

`python benchmarks/serving/sweep.py`: for each setting a server of its own, on mixed and on short
texts, round after round. serve/batching.config holds what this chose.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
from pathlib import Path
from statistics import median

sys.path[:0] = [str(Path(__file__).resolve().parent)]

import numpy as np  # noqa: E402
from demo_model import ROOT, demo_export, mixed_texts, short_texts  # noqa: E402
from rich import box  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402
from systems import model_server  # noqa: E402

CLIENTS = 32
THREADS = (f"--rest_api_num_threads={2 * CLIENTS}", f"--grpc_max_threads={2 * CLIENTS}")
SIZES, TIMEOUTS, BATCH_THREADS = (8, 16, 32), (0, 2000, 10000), (1, 2)
SECONDS = 4.0


def main() -> int:
    """Run the command line; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=2, help="of all settings (default: 2)")
    parser.add_argument(
        "--output", type=Path, default=ROOT / "benchmarks/out/batching.json", help="all figures"
    )
    options = parser.parse_args()
    base_path = demo_export().parent
    texts = {"mixed": mixed_texts(512), "short": short_texts(512)}
    settings = [None, *itertools.product(SIZES, TIMEOUTS, BATCH_THREADS)]
    found: dict[tuple, dict[str, list[tuple[float, float]]]] = {}
    for turn, setting in itertools.product(range(options.rounds), settings):
        with tempfile.NamedTemporaryFile("w", suffix=".config") as file:
            file.write(parameters(setting))
            file.flush()
            flags = ["--enable_batching", f"--batching_parameters_file={file.name}"]
            with model_server(base_path, *THREADS, *(flags if setting else ())) as (grpc, _, _):
                for kind, sample in texts.items():
                    result = grpc.measure(sample, CLIENTS, SECONDS)
                    figures = result["count"] / SECONDS, np.percentile(result["milliseconds"], 99)
                    found.setdefault(setting or (), {}).setdefault(kind, []).append(figures)
        print(f"round {turn + 1}: {setting or 'no batching'}", flush=True)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps([[*key, value] for key, value in found.items()]) + "\n")
    show(found)
    return 0


def parameters(setting: tuple[int, int, int] | None) -> str:
    """The text of a batching.config."""
    if setting is None:
        return ""
    size, timeout, threads = setting
    return (
        "enable_large_batch_splitting { value: true }\nmax_batch_size { value: 512 }\n"
        f"max_execution_batch_size {{ value: {size} }}\n"
        f"batch_timeout_micros {{ value: {timeout} }}\n"
        f"num_batch_threads {{ value: {threads} }}\nmax_enqueued_batches {{ value: 100 }}\n"
    )


def show(found: dict[tuple, dict[str, list[tuple[float, float]]]]) -> None:
    """The table: medians of the rounds."""
    titles = ("rows a batch", "timeout us", "threads", "mixed texts/s", "p99 ms")
    table = Table(*titles, "short texts/s", "p99 ms", box=box.SIMPLE_HEAD)
    for setting, kinds in found.items():
        cells = [str(value) for value in setting] or ["no batching", "", ""]
        for kind in ("mixed", "short"):
            cells += [
                f"{median(rate for rate, _ in kinds[kind]):.1f}",
                f"{median(p99 for _, p99 in kinds[kind]):.0f}",
            ]
        table.add_row(*cells)
    Console(width=110).print(table)


if __name__ == "__main__":
    sys.exit(main())
