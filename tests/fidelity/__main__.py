"""All claims of fidelity, in full: what `make fidelity` runs (`make test` has a sample of each).

Prints one line a claim; the exit status is 1 if any of them misses.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from importlib import import_module
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# tests/ for parity.py and conftest.py, and the project itself, in place of this folder
sys.path[:1] = [str(folder) for folder in Path(__file__).resolve().parents[1:3]]

from fidelity.claims import report  # noqa: E402

PARTS = ("tokenizer", "model", "checkpoint", "export", "figures")


def main() -> int:
    """Measure the claims of the parts that are asked for; the exit status."""
    parser = argparse.ArgumentParser(prog="fidelity", description=__doc__.split("\n")[0])
    parser.add_argument("parts", nargs="*", help=f"{', '.join(PARTS)}; all by default")
    asked = parser.parse_args().parts or PARTS
    if unknown := set(asked) - set(PARTS):
        parser.error(f"there is no part {', '.join(sorted(unknown))}, only {', '.join(PARTS)}")
    began, missed = time.monotonic(), 0
    for part in asked:
        for claim in import_module(f"fidelity.{part}").CLAIMS:
            missed += not report(claim)
    seconds = time.monotonic() - began
    print(f"{'all claims hold' if not missed else f'{missed} claims missed'}, {seconds:.0f} s")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
