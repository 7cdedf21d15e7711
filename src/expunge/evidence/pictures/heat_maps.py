"""Alignment matrices as heat maps that can be compared by eye: one scale for before and after, one for the gap.

Draws what a bundle holds, in the order of its forgetting scores; computes no statistic.
"""

from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from expunge.evidence.pictures.bundle import WHICH, Bundle, Matrix, Pixels, Which
from expunge.evidence.pictures.colours import DIVERGING, SEQUENTIAL, ink_on
from expunge.evidence.pictures.scales import Scale, alignment_scale, gap_scale
from expunge.evidence.pictures.sheet import (
    DARK,
    MUTED,
    POINTS_PER_INCH,
    Format,
    Sheet,
    balanced,
    colour_map,
    line_height,
    number,
    render,
    text_width,
    wrap,
)
from expunge.evidence.pictures.thumbnail_strip import (
    MAX_THUMBNAILS,
    paint_strip,
    strip_thickness,
    ticks,
)

MAX_WRITTEN = 8
"""Samples up to which each cell also says its value."""

PANEL, SINGLE_PANEL = 2.9, 4.6
PORTRAIT, SINGLE_WIDTH = 1.7, 7.6
MARGIN, GUTTER, BAR_HEIGHT = 0.25, 0.36, 0.13
HEADING_PT, SUBHEADING_PT, TEXT_PT, SMALL_PT = 13.0, 11.0, 9.5, 8.5
LARGEST_CELL_PT, CELL_FILLED = 12.0, 0.86
"""Of a cell's value: its type size at most, and of the cell's width."""

LEVELS = {
    "encoder": "encoder outputs",
    "projector": "projector outputs",
    "image_text": "images against captions",
}
PANEL_TITLES: dict[Which, str] = {
    "before": "Before",
    "after": "After",
    "gap": "Gap: before − after",
}
ALIGNMENT_CAPTION = "alignment (cosine): 1 = alike to the model, 0 = unrelated"
GAP_CAPTION = "orange: less alike than before · blue: more alike"


def heat_map(
    bundle: Bundle, which: Which, level: str, *, sentence: str, form: Format = "png"
) -> bytes:
    """One matrix as a picture, with `sentence` (may be empty) under it; equal input gives equal bytes.

    `before` and `after` have one scale, so that two pictures can be compared; the gap's is centred
    on zero. Raises ValueError for a level that the bundle does not have.
    """
    return _draw(bundle, (which,), level, sentence, form)


def triptych(bundle: Bundle, level: str, *, sentence: str, form: Format = "png") -> bytes:
    """Before, after and gap side by side, with `sentence` under them; otherwise as `heat_map`."""
    return _draw(bundle, WHICH, level, sentence, form)


def forgotten_first(bundle: Bundle, level: str) -> list[int]:
    """Positions of the samples, highest forgetting score (the gap's diagonal) first."""
    scores = np.diagonal(bundle.matrices[level]["gap"])
    return [int(i) for i in np.argsort(-scores, kind="stable")]


def level_name(level: str) -> str:
    """A level in words."""
    return LEVELS.get(level, f"{level} outputs")


def _draw(
    bundle: Bundle, panels: tuple[Which, ...], level: str, sentence: str, form: Format
) -> bytes:
    if level not in bundle.matrices:
        raise ValueError(f"no level {level!r}; this audit has {', '.join(bundle.levels)}")
    drawing = _Drawing(bundle, panels, level, sentence)
    compose = drawing.single_sample if len(bundle.keys) == 1 else drawing.matrices
    return render(compose, form, _heading(bundle, level))


def _heading(bundle: Bundle, level: str) -> str:
    m = len(bundle.keys)
    if level == "image_text":
        what = "your image and its caption" if m == 1 else f"your {m} images and captions"
        return f"How alike {what} look to the model"
    what = "views of your image" if m == 1 else f"your {m} images"
    return f"How alike {what} look to the model ({level_name(level)})"


def _scale(bundle: Bundle, which: Which, level: str) -> Scale:
    matrices = bundle.matrices[level]
    if which == "gap":
        return gap_scale(matrices["gap"])
    return alignment_scale(matrices["before"], matrices["after"])


def _written(value: float, which: Which) -> str:
    """`0.93`, and `+.093` for a gap: without the zero it fits a cell."""
    if which != "gap":
        return number(value, ".2f")
    return number(value, "+.3f").replace("0.", ".", 1) if round(value, 3) else "0"


@dataclass(frozen=True)
class _Drawing:
    """One picture in the making."""

    bundle: Bundle
    panels: tuple[Which, ...]
    level: str
    sentence: str

    @property
    def _side(self) -> float:
        return PANEL if len(self.panels) > 1 else SINGLE_PANEL

    @property
    def _cell_points(self) -> float:
        """Type size at which the widest value of all panels fits its cell."""
        matrices = self.bundle.matrices[self.level]
        widest = max(
            text_width(_written(float(value), which), 1.0)
            for which in self.panels
            for value in matrices[which].flat
        )
        cell = self._side / len(self.bundle.keys)
        return min(LARGEST_CELL_PT, cell * CELL_FILLED / widest)

    def matrices(self) -> Figure:
        """Panels in a row: samples on both axes, colour bars and the sentence below."""
        m, side = len(self.bundle.keys), self._side
        order = forgotten_first(self.bundle, self.level)
        pixels: Pixels | None = None
        if self.bundle.thumbnails is not None:
            pixels = self.bundle.thumbnails[order]
        beside = strip_thickness(m, side, pixels, "rows")
        above = strip_thickness(m, side, pixels, "columns")
        count = len(self.panels)
        width = 2 * MARGIN + beside + count * side + (count - 1) * GUTTER
        inner = width - 2 * MARGIN
        heading = wrap(_heading(self.bundle, self.level), inner, HEADING_PT, bold=True)
        note = wrap(self._note(), inner, TEXT_PT)
        sentence = balanced(self.sentence, inner, SUBHEADING_PT)
        note_top = MARGIN + len(heading) * line_height(HEADING_PT)
        titles_top = note_top + len(note) * line_height(TEXT_PT) + 0.12
        panels_top = titles_top + line_height(SUBHEADING_PT) + 0.04 + above
        bars_top = panels_top + side + 0.14
        captions_end = bars_top + BAR_HEIGHT + 0.22 + line_height(SMALL_PT)
        sentence_top = captions_end + (0.2 if sentence else 0.0)
        height = sentence_top + len(sentence) * line_height(SUBHEADING_PT) + MARGIN

        sheet = Sheet(width, height)
        sheet.write(heading, MARGIN, MARGIN, points=HEADING_PT, bold=True)
        sheet.write(note, MARGIN, note_top, points=TEXT_PT, colour=MUTED)
        lefts = [MARGIN + beside + i * (side + GUTTER) for i in range(count)]
        for which, left in zip(self.panels, lefts, strict=True):
            centre = left + side / 2
            title = PANEL_TITLES[which]
            sheet.write(title, centre, titles_top, points=SUBHEADING_PT, bold=True, align="center")
            axes = sheet.axes(left, panels_top, side, side)
            matrix = self.bundle.matrices[self.level][which][np.ix_(order, order)]
            self._paint(axes, matrix, which)
            paint_strip(sheet, pixels, m, (left, panels_top - above, side, above), "columns")
        paint_strip(sheet, pixels, m, (MARGIN, panels_top, beside, side), "rows")
        self._bars(sheet, lefts, bars_top)
        sheet.write(sentence, MARGIN, sentence_top, points=SUBHEADING_PT)
        return sheet.figure

    def _note(self) -> str:
        some = ""
        if self.bundle.thumbnails is not None and len(self.bundle.keys) > MAX_THUMBNAILS:
            some = " (some shown)"
        if self.level == "image_text":
            return (
                f"Each row is one of your images{some}, each column a caption, highest forgetting "
                "score first. The diagonal compares an image with its own caption."
            )
        return (
            f"Each row and column is one of your images{some}, highest forgetting score first. "
            "The diagonal compares views of one image among themselves."
        )

    def _paint(self, axes: Axes, matrix: Matrix, which: Which) -> None:
        scale = _scale(self.bundle, which, self.level)
        axes.imshow(
            matrix,
            cmap=colour_map(scale.anchors),
            vmin=scale.low,
            vmax=scale.high,
            interpolation="nearest" if len(matrix) <= MAX_THUMBNAILS else "auto",
            aspect="auto",
        )
        axes.set_xticks([])
        axes.set_yticks([])
        if len(matrix) > MAX_WRITTEN:
            return
        cells, points = scale.colours(matrix) / 255, self._cell_points
        for row, column in np.ndindex(*matrix.shape):
            axes.text(
                column,
                row,
                _written(float(matrix[row, column]), which),
                ha="center",
                va="center",
                fontsize=points,
                color=ink_on(cells[row, column]),
            )

    def _bars(self, sheet: Sheet, lefts: list[float], top: float) -> None:
        """One bar under the panels that share a scale."""
        groups: tuple[tuple[Which, ...], ...] = (("before", "after"), ("gap",))
        for group in groups:
            places = [
                left for which, left in zip(self.panels, lefts, strict=True) if which in group
            ]
            if places:
                self._bar(sheet, group[0], places[0], places[-1] + self._side, top)

    def _bar(self, sheet: Sheet, which: Which, left: float, right: float, top: float) -> None:
        scale = _scale(self.bundle, which, self.level)
        axes = sheet.axes(left, top, right - left, BAR_HEIGHT)
        axes.imshow(
            np.linspace(0, 1, 257)[np.newaxis],
            cmap=colour_map(scale.anchors),
            extent=(scale.low, scale.high, 0, 1),
            aspect="auto",
        )
        axes.set_yticks([])
        at = ticks(scale.low, scale.high)
        spec = "+.3g" if which == "gap" else ".3g"
        labels = [number(value, spec) if value else "0" for value in at]
        axes.set_xticks(at, labels, fontsize=SMALL_PT, color=DARK)
        axes.tick_params(length=2, width=0.6, pad=2)
        caption = wrap(GAP_CAPTION if which == "gap" else ALIGNMENT_CAPTION, right - left, SMALL_PT)
        sheet.write(
            caption,
            (left + right) / 2,
            top + BAR_HEIGHT + 0.22,
            points=SMALL_PT,
            colour=MUTED,
            align="center",
        )

    def single_sample(self) -> Figure:
        """One image: what would be single cells, as bars beside it."""
        values = {which: float(self.bundle.matrices[self.level][which][0, 0]) for which in WHICH}
        heading = wrap(
            _heading(self.bundle, self.level), SINGLE_WIDTH - 2 * MARGIN, HEADING_PT, bold=True
        )
        sentence = balanced(self.sentence, SINGLE_WIDTH - 2 * MARGIN, SUBHEADING_PT)
        top = MARGIN + len(heading) * line_height(HEADING_PT) + 0.15
        sentence_top = top + PORTRAIT + (0.3 if sentence else 0.0)
        height = sentence_top + len(sentence) * line_height(SUBHEADING_PT) + MARGIN
        sheet = Sheet(SINGLE_WIDTH, height)
        sheet.write(heading, MARGIN, MARGIN, points=HEADING_PT, bold=True)
        sheet.write(sentence, MARGIN, sentence_top, points=SUBHEADING_PT)
        left = MARGIN
        if self.bundle.thumbnails is not None:
            portrait = sheet.axes(MARGIN, top, PORTRAIT, PORTRAIT)
            portrait.imshow(self.bundle.thumbnails[0], aspect="auto", interpolation="nearest")
            portrait.set_axis_off()
            left += PORTRAIT + GUTTER
        self._value_bars(sheet, left, top, values)
        return sheet.figure

    def _value_bars(
        self, sheet: Sheet, left: float, top: float, values: dict[Which, float]
    ) -> None:
        """The values on one axis: before and after from zero, the gap as the piece between them, never alone."""
        panels = WHICH if "gap" in self.panels else self.panels
        names = [PANEL_TITLES[which] for which in panels]
        start = left + max(text_width(name, TEXT_PT) for name in names) + 0.12
        room = text_width("+0.000", SUBHEADING_PT, bold=True) + 0.12
        tall = PORTRAIT - line_height(SMALL_PT) * 2 - 0.22
        axes = sheet.axes(start, top, SINGLE_WIDTH - MARGIN - room - start, tall)
        spans = {
            "before": (0.0, values["before"]),
            "after": (0.0, values["after"]),
            "gap": (values["after"], values["before"]),
        }
        low = min(0.0, values["before"], values["after"])
        for row, which in enumerate(panels):
            first, last = spans[which]
            axes.barh(row, last - first, left=first, height=0.55, color=_bar_colour(which, values))
            middle = top + (row + 0.5) * tall / len(panels)
            value = number(values[which], "+.3f" if which == "gap" else ".3f")
            for text, right, points in (
                (PANEL_TITLES[which], start - 0.12, TEXT_PT),
                (value, SINGLE_WIDTH - MARGIN, SUBHEADING_PT),
            ):
                raised = middle - points / POINTS_PER_INCH / 2
                sheet.write(text, right, raised, points=points, bold=text == value, align="right")
        axes.set(xlim=(low, 1.0), ylim=(len(panels) - 0.5, -0.5), yticks=[])
        at = ticks(low, 1.0)
        axes.set_xticks(at, [number(value, ".3g") for value in at], fontsize=SMALL_PT)
        axes.tick_params(length=2, width=0.6, pad=2)
        axes.spines[["top", "right"]].set_visible(False)
        caption = wrap(ALIGNMENT_CAPTION, SINGLE_WIDTH - MARGIN - start, SMALL_PT)
        sheet.write(caption, start, top + tall + 0.22, points=SMALL_PT, colour=MUTED)


def _bar_colour(which: Which, values: dict[Which, float]) -> str:
    if which != "gap":
        return SEQUENTIAL[1] if which == "before" else SEQUENTIAL[2]
    return DIVERGING[3] if values["gap"] > 0 else DIVERGING[1]
