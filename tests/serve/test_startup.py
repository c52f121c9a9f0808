"""TensorFlow's greetings are held back, its errors are not."""

from __future__ import annotations

import os

import pytest

from serve import startup


def test_what_an_import_says_is_held_back(monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    monkeypatch.setattr(startup, "import_module", lambda _: os.write(2, b"Could not find CUDA\n"))
    startup.import_tensorflow_quietly()
    assert capfd.readouterr().err == ""
    os.write(2, b"from now on all is shown")
    assert capfd.readouterr().err == "from now on all is shown"


def test_what_a_failed_import_says_is_shown(monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    def fail(_: str) -> None:
        os.write(2, b"libtensorflow: no such symbol\n")
        raise ImportError("it does not load")

    monkeypatch.setattr(startup, "import_module", fail)
    with pytest.raises(ImportError, match="it does not load"):
        startup.import_tensorflow_quietly()
    assert capfd.readouterr().err == "libtensorflow: no such symbol\n"
