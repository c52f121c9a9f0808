"""A real TensorBoard and a real browser for tests, and pictures of TensorBoard's pages."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, FrameLocator, Page

STATUSES = ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING"]


class Board:
    """A TensorBoard that is looking at a folder.

    Args:
        process: It.
        log: Its output.
    """

    def __init__(self, process: subprocess.Popen, log: Path) -> None:
        self.process = process
        self.log = log
        self.url = ""

    def wait(self) -> None:
        """Until it serves."""
        until(self._find_url, self.log)

    def read(self, path: str) -> bytes:
        """What a page would get from below `data/`."""
        with urllib.request.urlopen(f"{self.url}data/{path}", timeout=10) as response:
            return response.read()

    def get(self, path: str, **query: object) -> Any:
        """An answer of a tab's backend."""
        return json.loads(self.read(f"plugin/{path}?{urllib.parse.urlencode(query)}"))

    def runs(self) -> list[str]:
        """Names of the runs that it has found."""
        return json.loads(self.read("runs"))

    def ask(self, path: str, **body: object) -> dict:
        """A question to the HParams tab's backend."""
        request = urllib.request.Request(
            f"{self.url}data/plugin/hparams/{path}",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=10) as response:
            return json.load(response)

    def rows(self) -> dict[str, dict]:
        """Rows of the HParams tab, as it asks for them."""
        answer = self.ask("session_groups", allowedStatuses=STATUSES, sliceSize=100)
        assert answer["totalSize"] == len(answer["sessionGroups"])
        return {group["name"]: group for group in answer["sessionGroups"]}

    def _find_url(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        found = re.search(r"http://127\.0\.0\.1:\d+/", self.log.read_text())
        self.url = found[0] if found else ""
        return bool(found)


def until(ready: Callable[[], object], log: Path, *, seconds: float = 90) -> None:
    """Wait for something that a process is to do.

    Raises:
        AssertionError: with the process's log, it takes longer.
    """
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.1)


@contextlib.contextmanager
def tensorboard(logdir: Path, *, load_fast: bool = True) -> Iterator[Board]:
    """Start a TensorBoard on loopback, at a port that is free, and stop it at the end.

    It does not serve before `wait`, so that several may start side by side.

    Args:
        logdir: What it shows.
        load_fast: Whether it reads by its data server in Rust, else in Python.
    """
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "tensorboard.log"
        command = [
            sys.executable, "-m", "tensorboard.main", "--logdir", logdir, "--host", "127.0.0.1",
            "--port", "0", "--reload_interval", "0.3", "--load_fast", str(load_fast).lower(),
        ]  # fmt: skip
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"}
        with log.open("w") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
        try:
            yield Board(process, log)
        finally:
            process.kill()  # its data server ends with it
            process.wait()


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """Debian's Chromium without a screen; a test without it is skipped.

    Example:

    ```python
    with chromium() as browser:
        page = browser.new_page()
        errors = console_errors(page)
        page.goto(report.as_uri())
        assert not errors
    ```
    """
    path = shutil.which("chromium")
    if path is None:
        reason = "no Chromium here: `apt-get install chromium`"
        print(reason, file=sys.__stderr__)
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    # WebGL, for the projector, is drawn by the processor
    arguments = ["--no-sandbox", "--enable-unsafe-swiftshader"]
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path, args=arguments, env={**os.environ, **_fonts(Path(folder))}
        )
        try:
            yield browser
        finally:
            browser.close()


def _fonts(folder: Path) -> dict[str, str]:
    """Environment in which fontconfig finds a font with Chinese, Japanese and Korean too."""
    spec = importlib.util.find_spec("mplfonts")
    if spec is None or not spec.submodule_search_locations:
        return {}
    (package,) = spec.submodule_search_locations
    config = folder / "fonts.conf"
    config.write_text(
        '<?xml version="1.0"?><!DOCTYPE fontconfig SYSTEM "fonts.dtd"><fontconfig>'
        '<include ignore_missing="yes">/etc/fonts/fonts.conf</include>'
        f"<dir>{package}/fonts</dir><cachedir>{folder}</cachedir></fontconfig>"
    )
    return {"FONTCONFIG_FILE": str(config)}


def console_errors(page: Page) -> list[str]:
    """Errors of a page, from now on: what it wrote to the console, threw, or could not load."""
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda line: errors.append(line.text) if line.type == "error" else None)
    return errors


PAGES = {
    "timeseries": "time-series",
    "scalars": "scalars",
    "custom_scalars": "custom-scalars",
    "hparams": "hparams",
    "pr_curves": "pr-curves",
    "images": "images",
    "text": "text",
    "projector": "projector",
    "graphs": "graphs",
    "histograms": "histograms",
}
"""TensorBoard's pages as its addresses have them, and the names of their pictures."""


def save_screenshots(board_url: str, folder: Path) -> list[Path]:
    """Save pictures of TensorBoard's pages, each 1400 x 900, once it has settled.

    Args:
        board_url: Where a TensorBoard serves.
        folder: Where tensorboard-PAGE.png are written.

    Returns:
        The pictures' paths.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    with chromium() as browser:
        context = browser.new_context(viewport={"width": 1400, "height": 900})
        for address, name in PAGES.items():
            page = context.new_page()
            page.goto(f"{board_url.rstrip('/')}/#{address}")
            page.wait_for_load_state("networkidle")
            if address == "projector":
                _colour_by_first_column(page)
            paths.append(folder / f"tensorboard-{name}.png")
            paths[-1].write_bytes(_settled(page))
            page.close()
    return paths


def projector(page: Page) -> FrameLocator:
    """What is inside the Projector's page, which stands in a frame in a frame."""
    return page.frame_locator("iframe").frame_locator("iframe")


def _colour_by_first_column(page: Page) -> None:
    """The last points, those of after the training, each in the colour of its label."""
    frame = projector(page)
    frame.get_by_text("Points:").wait_for()
    panel = frame.locator("vz-projector-data-panel")
    panel.evaluate("panel => { panel.selectedRun = panel.runNames.at(-1) }")
    page.wait_for_load_state("networkidle")
    panel.evaluate("panel => { panel.selectedColorOptionName = panel.selectedLabelOption }")


def _settled(page: Page, *, seconds: float = 20) -> bytes:
    """A picture that is the same as the one before it, or the last one."""
    end = time.monotonic() + seconds
    last, picture = b"", page.screenshot()
    while picture != last and time.monotonic() < end:
        page.wait_for_timeout(700)
        last, picture = picture, page.screenshot()
    return picture
