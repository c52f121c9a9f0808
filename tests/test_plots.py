"""What all figures have in common: which texts are drawn how, and the files."""

from __future__ import annotations

import re
import subprocess
import sys
import warnings
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from kbert import plots
from kbert.plots import (
    as_text,
    drawable,
    ending,
    new_figure,
    png,
    save_figure,
    shortened,
    svg,
    widest,
    width,
)

ROOT = Path(__file__).resolve().parents[1]


def pixels(text: str, **look: object) -> np.ndarray:
    """The text alone, drawn with warnings as errors."""
    figure = Figure(figsize=(1, 1))
    figure.text(0.1, 0.2, text, **{"fontsize": 30, **as_text(), **look})
    canvas = FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., 0].copy()


def box(letter: str) -> np.ndarray:
    """What matplotlib draws where its own font lacks a letter."""
    figure = Figure(figsize=(1, 1))
    figure.text(0.1, 0.2, letter, fontsize=30, fontfamily="DejaVu Sans")
    canvas = FigureCanvasAgg(figure)
    with pytest.warns(UserWarning, match="missing from font"):
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., 0].copy()


def small_figure(text: str = "模型 $5") -> Figure:
    figure = new_figure(3, 2)
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], marker="o")
    axes.imshow([[0, 1]], aspect="auto")
    axes.set_title(text, **as_text())
    return figure


@pytest.mark.parametrize("pair", ["模型", "漢語", "かな", "カナ", "한국", "，。"])
def test_chinese_japanese_and_korean_are_drawn(pair: str) -> None:
    one, other = pair
    assert drawable(pair) == pair
    assert pixels(one).min() == 0  # there is ink
    assert not np.array_equal(pixels(one), pixels(other))
    for letter in pair:
        assert not np.array_equal(pixels(letter), box(letter))


def test_what_no_font_has_is_escaped() -> None:
    assert drawable("a🤗b") == "a\\U0001f917b"
    assert drawable("a\nb\t\x00\u200d\ud800") == "a\\nb\\t\\x00\\u200d\\ud800"
    assert drawable("a\u00a0é\u3000。") == "a\u00a0é\u3000。"
    pixels(drawable("🤗"))


def test_a_dollar_is_a_dollar() -> None:
    for text in ("$5", "$x$", "$x_{$", "a_b^c"):
        pixels(text)
    assert not np.array_equal(pixels("$x$"), pixels("x"))
    assert not np.array_equal(pixels("$x$"), pixels("$x$", parse_math=True))


def test_texts_are_shortened_to_their_width() -> None:
    assert width("a模b한") == 6
    assert shortened("abcdefgh", 8) == "abcdefgh"
    assert shortened("abcdefghijklmnop", 8) == "abcde…op"
    assert shortened("模型模型模型", 9) == "模型模…型"
    assert ending("abcdefghi", 9) == "abcdefghi"
    assert ending("abcdefghijkl", 5) == "…hijkl"
    assert ending("模型模型模型", 5) == "…模型"
    assert shortened("🤗🤗🤗", 12) == "\\U0001f917…"  # an escape is not cut


@pytest.mark.parametrize("longest", [1, 2, 5, 10, 11, 30])
@pytest.mark.parametrize("text", ["", "abc", "模型和文字", "a🤗b🤗", "word " * 20, "模" * 40])
def test_nothing_shortened_is_too_wide(text: str, longest: int) -> None:
    assert width(shortened(text, longest)) <= longest
    if width(drawable(text)) <= longest:
        assert shortened(text, longest) == drawable(text)


def test_widths_are_as_drawn() -> None:
    for text in ("WWW", "iii", "模型"):
        columns = np.flatnonzero((pixels(text, fontsize=10) < 128).any(axis=0))
        drawn = (columns[-1] - columns[0] + 1) / 100  # inches
        assert widest([text, "."], size=10) == pytest.approx(drawn, abs=0.04)
    assert widest([], size=10) == 0


def test_fonts_are_registered_once_and_late() -> None:
    code = """
import sys
import kbert.plots
from matplotlib import font_manager

name = "NotoSansCJKsc-Regular.otf"
count = lambda: sum(font.fname.endswith(name) for font in font_manager.fontManager.ttflist)
before = count()
kbert.plots.as_text()
once = count()
kbert.plots.as_text(), kbert.plots.drawable("模型")
print(before, once > 0, count() == once, {"mplfonts", "matplotlib.pyplot"} & set(sys.modules))
"""
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert process.stdout.strip() == "0 True True set()", process.stderr


def test_the_distribution_of_the_font_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Path(str(plots._brought_font())).is_file()
    monkeypatch.setattr(plots, "BROUGHT_FONT", ("no-such-distribution", "font.otf"))
    assert plots._brought_font() is None
    monkeypatch.setattr(plots, "BROUGHT_FONT", ("numpy", "font.otf"))
    assert plots._brought_font() is None


def test_png_is_what_save_figure_writes_at_another_size(tmp_path: Path) -> None:
    data = png(small_figure())
    (tmp_path / "screen.png").write_bytes(data)
    save_figure(small_figure(), tmp_path / "file.png")
    with Image.open(tmp_path / "screen.png") as screen, Image.open(tmp_path / "file.png") as file:
        assert (screen.format, screen.size, file.size) == ("PNG", (300, 200), (450, 300))
        likeness = file.convert("L").resize(screen.size)
        difference = np.asarray(likeness, int) - np.asarray(screen.convert("L"), int)
    assert abs(difference).mean() < 8


def test_svg_has_its_texts_as_texts() -> None:
    title = 'a "title" <of> 模型 & \x00'
    text = svg(small_figure("模型 <b>&amp; $5"), title=title)
    root = ElementTree.fromstring(text)
    space = "{http://www.w3.org/2000/svg}"
    assert root.tag == f"{space}svg" and text.startswith("<svg")  # no prologue, no name spaces
    assert root[0].tag == f"{space}title"
    assert root[0].text == root.get("aria-label") == title.replace("\x00", " ")
    assert root.get("role") == "img"
    texts = [element.text for element in root.iter(f"{space}text")]
    assert "模型 <b>&amp; $5" in texts
    style = root.get("style") or ""
    assert "Noto Sans CJK SC" in style and style.endswith("sans-serif")
    assert text.count("font-family") == 1


def test_svg_acts_on_nothing_around_it() -> None:
    texts = [svg(small_figure(), title="the same") for _ in range(2)]
    ids = [re.findall(r'\bid="([^"]+)"', text) for text in texts]
    assert len(set(ids[0]) | set(ids[1])) == len(ids[0]) + len(ids[1]) > 10
    for text, own in zip(texts, ids, strict=True):
        used = re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', text)
        assert {one or other for one, other in used} <= set(own) and len(used) > 2
        tags = {element.tag.rpartition("}")[2] for element in ElementTree.fromstring(text).iter()}
        assert not tags & {"style", "script", "metadata"}
        assert not re.findall(r'href="(?!#|data:)', text)  # nothing from elsewhere


def test_no_figure_is_left_half_written(tmp_path: Path) -> None:
    path = tmp_path / "figure.png"
    figure = small_figure()
    save_figure(figure, path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="Format 'nothing' is not supported"):
        save_figure(figure, tmp_path / "figure.nothing")
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["figure.png"]
