"""One worker of a search on this machine: `python -m kbert.worker OPTIONS.yaml`.

`--search.workers` starts it. It gets its trials from the chief of keras-tuner's environment
variables, and ends when its standard input does, which is when the chief is gone.
"""

from __future__ import annotations

import os
import sys
import threading

from kbert.config import parse
from kbert.errors import InputError
from serve.startup import import_tensorflow_quietly

CHIEF_IS_GONE = 75  # EX_TEMPFAIL


def main() -> int:
    """Run trials until none is left; the exit status."""
    threading.Thread(target=_end_with_the_chief, daemon=True).start()
    try:
        config = parse(["--config", sys.argv[1]])
        import_tensorflow_quietly()
        from kbert import run

        return run.run(config)
    except InputError as error:
        print(f"{os.environ['KERASTUNER_TUNER_ID']}: error: {error}", file=sys.stderr)
        return 2


def _end_with_the_chief() -> None:
    # not by sys.stdin: Python aborts at its end when a thread holds a buffered file's lock
    while os.read(0, 1024):
        pass
    os._exit(CHIEF_IS_GONE)


if __name__ == "__main__":
    sys.exit(main())
