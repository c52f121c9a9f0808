"""Training and answers of kbert and of what else a user would pick, side by side: `make bench`.

The processes are up at once, and one works at a time: a round is the same work by each, one after
the other, in an order that moves by one each round, and a ratio is that of two neighbours in time.
The first round is not counted. training.py and inference.py say what is done in one; peak.py
measures the machine's matrix products in the same rounds.

Results go to benchmarks/results.json, part by part, and a table of them to the READMEs: what was
measured before stays there until it is measured again.

Exit status: 0 when every goal is reached, 1 when one is missed, 2 when data or packages are absent.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import inference  # noqa: E402
import training  # noqa: E402
from quality import DATA, OUT, describe_machine, what_is_absent  # noqa: E402
from report import goals, times, write_tables  # noqa: E402
from texts import MAX_LENGTHS  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results.json"
PARTS = {"training": training.measure, "inference": inference.measure}


def main() -> int:
    """Run the command line; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {' '.join(PARTS)}; both")
    parser.add_argument("--sets", nargs="+", choices=tuple(MAX_LENGTHS), default=[*MAX_LENGTHS])
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds (default: 5)")
    options = parser.parse_args()
    if unknown := {*options.parts} - {*PARTS}:
        parser.error(f"there is no part {min(unknown)}")
    absent = what_is_absent([]) or next(
        (
            f"../shared/data/{name} is absent."
            for name in options.sets
            if not (DATA / name).is_dir()
        ),
        None,
    )
    if absent:
        print(f"bench: not run: {absent}", file=sys.stderr)
        return 2
    OUT.mkdir(parents=True, exist_ok=True)
    before = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    results: dict[str, Any] = {**before, "machine": describe_machine()}
    for part in options.parts or PARTS:
        for name in options.sets:
            print(f"{part}: {name}, max_length {MAX_LENGTHS[name]}", flush=True)
            results.setdefault(part, {})[name] = PARTS[part](name, options.rounds)
            RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
            write_tables(results)
    lines = [*goals(results)]
    for said, found, goal in lines:
        missed = "" if found["median"] >= goal else ": missed"
        print(f"{said}: {times(found)}, goal {goal}{missed}")
    return 1 if any(found["median"] < goal for _, found, goal in lines) else 0


if __name__ == "__main__":
    sys.exit(main())
