"""Trains as train.py does, and says how soon: `python start.py BEGAN STEPS OPTION ...`.

BEGAN is when the process was started, in seconds since 1970. After the first step, and after STEPS
of them, a line of JSON on standard error tells seconds and peak memory so far. With STEPS 0 the
run goes on to its end; otherwise it stops there, as by Ctrl-C.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from kbert.config import parse  # noqa: E402
from serve.startup import import_tensorflow_quietly  # noqa: E402


def main() -> int:
    """The exit status of the run: 130 where it was stopped."""
    began, steps, words = float(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    config = parse(words)
    import_tensorflow_quietly()
    from kbert import retraining, run

    class Counted(retraining.ProgressReport):
        """The progress of the training, which tells of its first steps, too."""

        count = 0

        def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
            super().on_train_batch_end(batch, logs)
            self.count += 1
            if self.count in (1, steps):
                say(began, f"step {self.count}")
            if self.count == steps:
                raise KeyboardInterrupt

    retraining.ProgressReport = Counted
    status = run.run(config)
    say(began, "end")
    return status


def say(began: float, event: str) -> None:
    """A line of JSON: seconds since the process was started, and its peak memory in bytes."""
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    said = {"event": event, "seconds": time.time() - began, "peak_memory": kilobytes * 1024}
    print(json.dumps(said), file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
