"""Import TensorFlow without its greetings."""

from __future__ import annotations

import os
import sys
import tempfile
from importlib import import_module


def import_tensorflow_quietly() -> None:
    """Import TensorFlow; what its C++ part says of oneDNN and CUDA is shown only if that fails.

    It says so before its log levels are in force, so TF_CPP_MIN_LOG_LEVEL does not silence it.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.stderr.flush()
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 2)
        try:
            import_module("tensorflow")
        except BaseException:
            said.seek(0)
            os.write(terminal, said.read())
            raise
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)
