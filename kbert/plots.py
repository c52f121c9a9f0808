"""What all figures have in common: fonts, texts that can be drawn, files. Knows no Keras.

matplotlib's objects alone are used, never pyplot: it keeps every figure, and may open windows.
"""

from __future__ import annotations

import functools
import importlib.metadata
import io
import itertools
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib
import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.textpath import text_to_path
from PIL import Image

from kbert.whole_files import written_whole

DOTS_PER_INCH = 150  # of a file
SCREEN_DOTS_PER_INCH = 100  # of a picture for TensorBoard: 8 x 6 inches are 800 x 600 dots
COMPRESSION = 4  # of 9, by which files are a little larger, and written several times as fast
# blue and orange differ for all kinds of colour blindness
BLUE, ORANGE, RED, GREY, PALE = "#2f7fc1", "#e8710a", "#c5221f", "#5f6368", "#e3e5e8"
ORDER = LinearSegmentedColormap.from_list("order", ["#a9cce8", BLUE, "#0b2f5c"])
# matplotlib brings DejaVu Sans; the others are asked for what that lacks, the first one that is
# installed, then the one that a distribution brings
FONT = "DejaVu Sans"
CJK_FONTS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Noto Sans CJK KR",
    "Noto Sans SC",
    "Source Han Sans SC",
    "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei",
    "PingFang SC",
    "Microsoft YaHei",
    "SimHei",
    "Hiragino Sans",
    "Yu Gothic",
    "Apple SD Gothic Neo",
    "Malgun Gothic",
)
BROUGHT_FONT = ("mplfonts", "NotoSansCJKsc-Regular.otf")  # distribution, file
# for browsers; Verdana is as wide as DejaVu Sans, by which the texts are placed
CSS_FONTS = ", ".join([*(f"'{name}'" for name in (FONT, "Verdana", *CJK_FONTS)), "sans-serif"])
_svg_numbers = itertools.count(1)


def new_figure(width: float, height: float) -> Figure:
    """An empty figure whose parts are laid out such that they do not overlap.

    Args:
        width: Inches.
        height: Inches.
    """
    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08)
    figure = Figure(figsize=(width, height), layout=layout)
    FigureCanvasAgg(figure)
    return figure


def frame(axes: Axes) -> None:
    """The look of a panel: lines at its left and its bottom, pale ones across it."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=PALE, linewidth=0.8)
    axes.set_axisbelow(True)


def as_text() -> dict[str, Any]:
    """Keywords of a matplotlib text that comes from outside: our fonts, a dollar is a dollar.

    It is not bold, which the fonts for Chinese need not have.
    """
    return {"fontfamily": list(_fonts()), "fontweight": "normal", "parse_math": False}


def drawable(text: str) -> str:
    r"""The text with \u escapes for what no font can draw."""
    return "".join(_drawable_letters(text))


def ending(text: str, longest: int) -> str:
    """The text as `drawable`, or its end if it is wider, where names of models differ.

    Args:
        text: Any.
        longest: As many letters as it may have; Chinese ones count twice.
    """
    letters = _drawable_letters(text)
    kept = _fitting(letters[::-1], longest)
    return drawable(text) if kept == len(letters) else "…" + "".join(letters[len(letters) - kept :])


def shortened(text: str, longest: int) -> str:
    """The text as `drawable`, or its beginning and its end if it is wider.

    Args:
        text: Any.
        longest: As many letters as it may have; Chinese ones count twice.
    """
    letters = _drawable_letters(text)
    if _fitting(letters, longest) == len(letters):
        return "".join(letters)
    last = _fitting(letters[::-1], (longest - 1) // 3)
    first = _fitting(letters, longest - 1 - width("".join(letters[len(letters) - last :])))
    return "".join([*letters[:first], "…", *letters[len(letters) - last :]])


def width(text: str) -> int:
    """Room that a text takes, in letters; Chinese, Japanese and Korean ones count twice."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


def widest(texts: Iterable[str], *, size: float) -> float:
    """Inches that the widest of the texts takes, drawn `as_text`.

    Args:
        texts: Such as `drawable` gives them.
        size: Points.
    """
    font = font_manager.FontProperties(family=list(_fonts()), size=size)
    widths = (text_to_path.get_text_width_height_descent(text, font, False)[0] for text in texts)
    return max(widths, default=0.0) / 72


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure, whole or not at all, in the format of the suffix, such as .png."""
    with written_whole(path) as beside:
        figure.savefig(beside, format=path.suffix.removeprefix("."), dpi=DOTS_PER_INCH)


def png(figure: Figure) -> bytes:
    """The figure as a PNG file, 100 dots an inch.

    As fast as it gets: `savefig` would draw it twice, once for the layout.
    """
    figure.dpi = SCREEN_DOTS_PER_INCH
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    file = io.BytesIO()
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
    picture.save(file, format="png", compress_level=COMPRESSION)
    return file.getvalue()


def svg(figure: Figure, *, title: str) -> str:
    """The figure as an <svg> element to put into an HTML page, or into a file as it is.

    Its texts are texts, which a browser draws with the reader's fonts. Nothing in it acts on the
    page around it, and no two elements made by a process have an id in common.

    Args:
        figure: Any.
        title: What it shows, for those who do not see it.
    """
    title = "".join(letter if letter.isprintable() else " " for letter in title)
    prefix = f"figure{next(_svg_numbers)}-"
    file = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "kbert"}):
        figure.savefig(file, format="svg", metadata={"Date": None})
    root = ElementTree.fromstring(file.getvalue())
    _take_out(root, {"metadata", "style"})
    for element in root.iter():
        _make_inline(element, prefix)
    style = "max-width: 100%; height: auto; stroke-linejoin: round; stroke-linecap: butt"
    root.attrib |= {
        "xmlns": "http://www.w3.org/2000/svg",
        "role": "img",
        "aria-label": title,
        "style": f"{style}; font-family: {CSS_FONTS}",
    }
    caption = ElementTree.Element("title")
    caption.text = title
    root.insert(0, caption)
    return ElementTree.tostring(root, encoding="unicode")


def _take_out(root: ElementTree.Element, names: set[str]) -> None:
    for parent in list(root.iter()):
        for child in list(parent):
            if _local(child.tag) in names:
                parent.remove(child)


def _make_inline(element: ElementTree.Element, prefix: str) -> None:
    """Names without name spaces, which HTML has not; ids of this figure; the page's fonts."""
    element.tag = _local(element.tag)
    for name, value in list(element.attrib.items()):
        del element.attrib[name]
        name = _local(name)
        if name == "id":
            value = prefix + value
        elif name == "href" and value.startswith("#"):
            value = f"#{prefix}{value[1:]}"
        elif name == "style":
            parts = (part.strip() for part in value.split(";"))
            value = "; ".join(part for part in parts if not part.startswith("font-family:"))
        element.attrib[name] = value.replace("url(#", f"url(#{prefix}")


def _local(name: str) -> str:
    return name.rpartition("}")[2]


def _drawable_letters(text: str) -> list[str]:
    return [
        letter if _is_drawable(letter) else letter.encode("unicode-escape").decode("ascii")
        for letter in text
    ]


def _is_drawable(letter: str) -> bool:
    # fonts have blanks for control letters such as the newline
    return ord(letter) in _letters() and unicodedata.category(letter)[0] != "C"


def _fitting(letters: Sequence[str], longest: int) -> int:
    """How many of the letters have room."""
    ends = itertools.accumulate(map(width, letters))
    return sum(1 for _ in itertools.takewhile(lambda end: end <= longest, ends))


@functools.cache
def _fonts() -> tuple[str, ...]:
    """Names of the fonts that are asked for a letter, one after the other."""
    installed = {font.name for font in font_manager.fontManager.ttflist}
    fonts = [FONT, *[name for name in CJK_FONTS if name in installed][:1]]
    brought = _brought_font()
    if brought is not None:
        name = font_manager.FontProperties(fname=brought).get_name()
        if name not in installed:
            font_manager.fontManager.addfont(brought)
        fonts.append(name)
    return tuple(dict.fromkeys(fonts))


def _brought_font() -> str | None:
    """The file of the font that a distribution brings, None where that is not installed."""
    distribution, name = BROUGHT_FONT
    try:
        # not imported: it sets matplotlib's defaults, and pyplot comes with it
        files = importlib.metadata.files(distribution) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    paths = (Path(str(file.locate())) for file in files if file.name == name)
    return next((str(path) for path in paths if path.is_file()), None)


@functools.cache
def _letters() -> frozenset[int]:
    """Code points that the fonts can draw."""
    fonts = (font_manager.findfont(name) for name in _fonts())
    return frozenset(point for font in fonts for point in font_manager.get_font(font).get_charmap())
