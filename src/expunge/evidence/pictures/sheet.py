"""A sheet to draw on, laid out in inches from its top left corner. Never touches pyplot's or the caller's settings.

Text is measured before it is placed, so nothing is cut off and no two things overlap by chance.
"""

import io
import threading
from collections.abc import Callable
from functools import cache
from typing import Any, Literal

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.textpath import text_to_path

from expunge.evidence.pictures.colours import scale

Format = Literal["png", "svg"]

DOTS_PER_INCH = 160
POINTS_PER_INCH = 72
LINE_SPACING = 1.4
"""Between base lines, in multiples of the type size."""
MISSING_GLYPH = "□"
ELLIPSIS = "…"
FAMILY = "DejaVu Sans"
"""Comes with matplotlib: the same letters on every machine."""
DARK, MUTED, FAINT = "#1a1a1a", "#555555", "#c8c8c8"

_STYLED = ("axes.", "figure.", "font.", "image.", "lines.", "patch.", "path.", "savefig.")
_STYLED_TEXT = ("svg.", "text.", "xtick.", "ytick.")
_OWN_STYLE = {
    "font.family": FAMILY,
    "axes.linewidth": 0.6,
    "svg.fonttype": "path",
    # Without it every file gets random ids.
    "svg.hashsalt": "expunge",
    # Keys are never formulas.
    "text.parse_math": False,
}
_turn = threading.Lock()
"""matplotlib's settings are one for all threads: drawings take turns."""


def render(compose: Callable[[], Figure], form: Format, title: str) -> bytes:
    """Draw what `compose` returns as PNG or SVG (`title` is the SVG's); same figure, same bytes.

    `compose` runs under matplotlib's own default style, whatever the process has set.
    Safe to call from several threads.
    """
    # Entries that would stamp the date and the library's version.
    metadata: dict[str, Any] = (
        {"Software": None} if form == "png" else {"Title": title, "Date": None, "Creator": None}
    )
    out = io.BytesIO()
    with _turn, mpl.rc_context(_style()):
        compose().savefig(out, format=form, dpi=DOTS_PER_INCH, metadata=metadata)
    return out.getvalue()


def colour_map(anchors: tuple[str, ...]) -> ListedColormap:
    """One of the two scales as matplotlib knows it."""
    return ListedColormap(scale(anchors))


class Sheet:
    """A figure of a fixed size (inches); positions are inches from the left and from the top."""

    def __init__(self, width: float, height: float) -> None:
        self.width, self.height = width, height
        self.figure = Figure(figsize=(width, height), facecolor="white")

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        """Axes that fill the rectangle exactly."""
        bottom = self.height - top - height
        return self.figure.add_axes(
            (left / self.width, bottom / self.height, width / self.width, height / self.height)
        )

    def write(
        self,
        lines: list[str] | str,
        left: float,
        top: float,
        *,
        points: float,
        colour: str = DARK,
        align: Literal["left", "center", "right"] = "left",
        bold: bool = False,
    ) -> None:
        """Write lines as they are, the first one's upper edge at `top`; see `wrap`."""
        for number, line in enumerate([lines] if isinstance(lines, str) else lines):
            base = top + points / POINTS_PER_INCH + number * line_height(points)
            self.figure.text(
                left / self.width,
                1 - base / self.height,
                printable(line),
                fontsize=points,
                color=colour,
                ha=align,
                va="baseline",
                weight="bold" if bold else "normal",
            )


def line_height(points: float) -> float:
    """Inches between base lines."""
    return points * LINE_SPACING / POINTS_PER_INCH


def text_width(text: str, points: float, *, bold: bool = False) -> float:
    """Inches that a line takes."""
    font = FontProperties(family=FAMILY, size=points, weight="bold" if bold else "normal")
    width, _, _ = text_to_path.get_text_width_height_descent(printable(text), font, ismath=False)
    return float(width) / POINTS_PER_INCH


def wrap(text: str, width: float, points: float, *, bold: bool = False) -> list[str]:
    """`text` in lines of at most `width` inches; a longer word is broken, nothing is left out."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and text_width(longer, points, bold=bold) <= width:
            lines[-1] = longer
            continue
        rest = word
        while text_width(rest, points, bold=bold) > width:
            fitting = _fitting(rest, width, points, bold=bold)
            lines.append(rest[:fitting])
            rest = rest[fitting:]
        lines.append(rest)
    return lines


def balanced(text: str, width: float, points: float) -> list[str]:
    """`wrap` into as few lines, none of them much shorter than the others."""
    lines = wrap(text, width, points)
    for share in (0.6, 0.7, 0.8, 0.9):
        if len(closer := wrap(text, width * share, points)) == len(lines):
            return closer
    return lines


def shorten(text: str, width: float, points: float) -> str:
    """`text`, or its two ends around an ellipsis where it is wider than `width` inches."""
    if text_width(text, points) <= width:
        return text
    kept = _fitting(text, width - text_width(ELLIPSIS, points), points)
    head = (kept + 1) // 2
    return text[:head] + ELLIPSIS + text[len(text) - (kept - head) :]


def number(value: float, spec: str) -> str:
    """`value` formatted, with a real minus and without a negative zero."""
    text = format(value, spec)
    if float(text) == 0:
        text = text.replace("-", "+" if "+" in spec else "")
    return text.replace("-", "−")


def printable(text: str) -> str:
    """`text` with a box for each character that the font does not have, line ends included."""
    known = _glyphs()
    return "".join(letter if ord(letter) in known else MISSING_GLYPH for letter in text)


def _fitting(text: str, width: float, points: float, *, bold: bool = False) -> int:
    """How many letters fit into `width` inches at least; never less than one."""
    low, high = 1, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        if text_width(text[:middle], points, bold=bold) <= width:
            low = middle
        else:
            high = middle - 1
    return low


@cache
def _glyphs() -> frozenset[int]:
    return frozenset(get_font(findfont(FAMILY)).get_charmap())


@cache
def _style() -> Any:
    defaults = {
        name: value
        for name, value in dict.items(mpl.rcParamsDefault)
        if name.startswith(_STYLED + _STYLED_TEXT)
    }
    return defaults | _OWN_STYLE
