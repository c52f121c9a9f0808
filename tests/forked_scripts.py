"""Run the scripts that check an export without importing TensorFlow, or torch, each time.

A process for each script imports what the script imports and no more, and then forks for every run
of it: the child is as fresh as a process of its own, seconds earlier. `forked` stands in place of
`subprocess.run` in kbert.fresh_process; other interpreters than this one start as they always do.
"""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
import tempfile
import threading
import traceback
from typing import Any

# what transformers imports when it is first asked for it
LAZY = ("BertTokenizerFast", "BertForSequenceClassification")
_lock = threading.Lock()
_processes: dict[str, tuple[subprocess.Popen[str], threading.Lock]] = {}


def forked(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """Like `subprocess.run` for [python, "-P", script, argument, ...]; stderr is what it wrote."""
    python, _, script, *arguments = command
    if python != sys.executable:
        return subprocess.run(command, **options)
    with _lock:
        if script not in _processes:
            words = [python, "-P", __file__, script]
            pipe = subprocess.PIPE
            process = subprocess.Popen(
                words, stdin=pipe, stdout=pipe, text=True, env=options["env"]
            )
            _processes[script] = process, threading.Lock()
    process, lock = _processes[script]
    with lock, tempfile.NamedTemporaryFile() as errors:
        question = {"words": [script, *arguments], "env": options["env"], "stderr": errors.name}
        print(json.dumps(question), file=process.stdin, flush=True)
        returncode = int(process.stdout.readline())
        stderr = errors.read().decode("utf-8", "replace")
    return subprocess.CompletedProcess(command, returncode, "", stderr)


def end() -> None:
    """End the processes."""
    for process, _ in _processes.values():
        process.communicate()
    _processes.clear()


def main(script: str) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    imported = runpy.run_path(script, run_name="imported")
    if "transformers" in imported:
        for name in LAZY:
            getattr(imported["transformers"], name)
    for line in sys.stdin:
        if child := os.fork():
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            print(status, file=answers, flush=True)
        else:
            _run(**json.loads(line))


def _run(words: list[str], env: dict[str, str], stderr: str) -> None:
    """Run the script in this process, and end it."""
    os.dup2(os.open(stderr, os.O_WRONLY), 2)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = words
    try:
        runpy.run_path(words[0], run_name="__main__")
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    main(sys.argv[1])
