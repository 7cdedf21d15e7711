"""Forgetting scores, image by image, and their mean against the means of images that the model kept.

Draws an audit's report; computes no statistic.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from expunge.evidence.pictures.bundle import Bundle, Pixels
from expunge.evidence.pictures.colours import DIVERGING
from expunge.evidence.pictures.heat_maps import (
    HEADING_PT,
    MARGIN,
    SINGLE_WIDTH,
    SMALL_PT,
    TEXT_PT,
    level_name,
)
from expunge.evidence.pictures.sheet import (
    DARK,
    FAINT,
    MUTED,
    Format,
    Sheet,
    line_height,
    number,
    render,
    shorten,
    wrap,
)
from expunge.evidence.pictures.thumbnail_strip import (
    MAX_THUMBNAILS,
    paint_strip,
    strip_thickness,
    ticks,
)

MAX_NAMED = 12
"""Images up to which each has its value and its key beside it."""
BAND_PERCENT = (2.5, 25.0, 50.0, 75.0, 97.5)
"""Of the kept images' draws: outer band, inner band, middle."""
OUTER_BAND, INNER_BAND, MIDDLE = "#e4e4e4", "#c2c2c2", "#6b6b6b"
UP, DOWN = DIVERGING[3], DIVERGING[1]
LEAST_SPAN = 0.004
"""Of a score axis: rounding errors of equal encoders must not look like a change."""

WIDTH, PLOT_HEIGHT, MEAN_WIDTH = 10.0, 1.6, 2.6
TICKS_WIDTH = 0.6
NAME_PT = 7.0
NOTE = "Above zero: random views of the image look less alike to the model than before."
CAPTION_NOTE = "Above zero: the image and its caption look less alike to the model than before."
SCORES_TITLE, MEAN_TITLE, KEPT_TITLE = "Image by image", "Their mean", "Among images that were kept"
HALO = (withStroke(linewidth=3, foreground="white"),)
"""Around figures that stand on lines or bands."""


def score_chart(
    report: Mapping[str, Any], bundle: Bundle, level: str, *, form: Format = "png"
) -> bytes:
    """Scores of the own images, highest first, and their mean with interval.

    Args:
        report: `AuditReport.to_dict()`; its `null_quantiles` give the band behind the mean.
        bundle: its thumbnails stand under the scores where all images have one.

    Raises:
        ValueError: the report has no such level.
    """
    if level not in report["levels"]:
        raise ValueError(f"no level {level!r}; this report has {', '.join(report['levels'])}")
    chart = _Chart.of(report, bundle, level)
    return render(chart.draw, form, chart.title)


@dataclass(frozen=True)
class _Chart:
    """What is drawn: scores in order, and what their mean is held against."""

    title: str
    note: str
    keys: Sequence[str]
    scores: Sequence[float]
    pixels: Pixels | None
    mean: float
    interval: Sequence[float] | None
    confidence: float
    band: Sequence[float] | None
    """At `BAND_PERCENT` of the kept images' means."""
    tested: bool
    """Whether there were kept images to test against, however few for a band."""

    @classmethod
    def of(cls, report: Mapping[str, Any], bundle: Bundle, level: str) -> "_Chart":
        own = report["levels"][level]["forgetting_score"]
        ordered = sorted(own["per_sample"].items(), key=lambda each: -each[1])
        null = report["null_quantiles"]
        band = None
        if null is not None:
            quantiles = null["levels"][level]["forgetting_score"]
            band = [float(q) for q in np.interp(BAND_PERCENT, null["percentiles"], quantiles)]
        n = len(ordered)
        whose = "your image" if n == 1 else f"each of your {n:,} images"
        return cls(
            title=f"Forgetting score of {whose} ({level_name(level)})",
            note=CAPTION_NOTE if level == "image_text" else NOTE,
            keys=[key for key, _ in ordered],
            scores=[score for _, score in ordered],
            pixels=_pixels(bundle, [key for key, _ in ordered]),
            mean=own["mean"],
            interval=own["interval"],
            confidence=report["confidence"],
            band=band,
            tested=report["test"] is not None,
        )

    def draw(self) -> Figure:
        """Scores at the left (not for a single image), the mean at the right."""
        n = len(self.scores)
        width = WIDTH if n > 1 else SINGLE_WIDTH
        inner = width - 2 * MARGIN
        heading = wrap(self.title, inner, HEADING_PT, bold=True)
        note = wrap(self.note, inner, TEXT_PT)
        note_top = MARGIN + len(heading) * line_height(HEADING_PT)
        titles_top = note_top + len(note) * line_height(TEXT_PT) + 0.1
        plot_top = titles_top + line_height(TEXT_PT) + 0.08
        mean_left = width - MARGIN - MEAN_WIDTH if n > 1 else MARGIN + TICKS_WIDTH
        words_left = mean_left if n > 1 else mean_left + MEAN_WIDTH + 0.3
        words = wrap(self._words(), width - MARGIN - words_left, SMALL_PT)
        below = len(words) * line_height(SMALL_PT) + 0.08 if n > 1 else 0.0
        scores_width = mean_left - 0.15 - 2 * TICKS_WIDTH - MARGIN
        if n > 1:
            below = max(below, self._strip(scores_width) + line_height(NAME_PT) + 0.08)
        sheet = Sheet(width, plot_top + PLOT_HEIGHT + below + MARGIN)
        sheet.write(heading, MARGIN, MARGIN, points=HEADING_PT, bold=True)
        sheet.write(note, MARGIN, note_top, points=TEXT_PT, colour=MUTED)
        if n > 1:
            self._scores(sheet, MARGIN + TICKS_WIDTH, plot_top, scores_width)
            for title, left in ((SCORES_TITLE, MARGIN + TICKS_WIDTH), (MEAN_TITLE, mean_left)):
                sheet.write(title, left, titles_top, points=TEXT_PT, bold=True)
        elif self.band is not None:
            sheet.write(KEPT_TITLE, mean_left, titles_top, points=TEXT_PT, bold=True)
        self._mean(sheet.axes(mean_left, plot_top, MEAN_WIDTH, PLOT_HEIGHT))
        words_top = plot_top + (PLOT_HEIGHT + 0.08 if n > 1 else 0.1)
        sheet.write(words, words_left, words_top, points=SMALL_PT, colour=MUTED)
        return sheet.figure

    def _words(self) -> str:
        n = len(self.scores)
        subject = "Point: your image" if n == 1 else "Point: the mean of your images"
        if self.interval is not None:
            subject += f" with its {self.confidence:.0%} interval"
        if self.band is None and self.tested:
            return (
                f"{subject}. No band: of images that the model kept there are too few to draw "
                f"{n:,} at a time."
            )
        if self.band is None:
            return f"{subject}. There are no images of others to compare it with."
        kept = "single images" if n == 1 else f"means of {n:,} images"
        return f"{subject}. Band: {kept} that were kept (95%; dark: half)."

    def _strip(self, width: float) -> float:
        return strip_thickness(len(self.scores), width, self.pixels, "below")

    def _scores(self, sheet: Sheet, left: float, top: float, width: float) -> None:
        """One stem an image, and what tells which image it is."""
        self._stems(sheet.axes(left, top, width, PLOT_HEIGHT))
        n, strip, strip_top = len(self.scores), self._strip(width), top + PLOT_HEIGHT
        paint_strip(sheet, self.pixels, n, (left, strip_top, width, strip), "below")
        cell = width / n
        for i, key in enumerate(self.keys if n <= MAX_NAMED else ()):
            sheet.write(
                shorten(key, cell * 0.9, NAME_PT),
                left + (i + 0.5) * cell,
                strip_top + strip + 0.02,
                points=NAME_PT,
                colour=MUTED,
                align="center",
            )

    def _stems(self, axes: Axes) -> None:
        n = len(self.scores)
        _value_axis(axes, [*self.scores, 0.0], headroom=0.16 if n <= MAX_NAMED else 0.06)
        axes.set(xlim=(-0.5, n - 0.5), xticks=[])
        colours = [UP if score > 0 else DOWN for score in self.scores]
        if n <= MAX_THUMBNAILS:
            axes.vlines(range(n), 0, self.scores, colors=colours, linewidth=2.0)
        size = 36.0 if n <= MAX_THUMBNAILS else 6.0
        axes.scatter(range(n), self.scores, s=size, c=colours, linewidths=0, zorder=3)
        if n > MAX_NAMED:
            return
        for i, score in enumerate(self.scores):
            axes.annotate(
                number(score, "+.3f"),
                (i, score),
                xytext=(0, 6 if score > 0 else -6),
                textcoords="offset points",
                ha="center",
                va="bottom" if score > 0 else "top",
                fontsize=NAME_PT + 1,
                path_effects=HALO,
            )

    def _mean(self, axes: Axes) -> None:
        _value_axis(axes, [self.mean, 0.0, *(self.interval or ()), *(self.band or ())])
        axes.set(xlim=(0, 1), xticks=[])
        if self.band is not None:
            outer_low, inner_low, middle, inner_high, outer_high = self.band
            axes.axhspan(outer_low, outer_high, color=OUTER_BAND, linewidth=0, zorder=0)
            axes.axhspan(inner_low, inner_high, color=INNER_BAND, linewidth=0, zorder=0)
            axes.axhline(middle, color=MIDDLE, linewidth=1.0, zorder=0)
        if self.interval is not None:
            low, high = self.interval
            axes.vlines(0.5, low, high, colors=DARK, linewidth=2.0, zorder=3)
        colour = UP if self.mean > 0 else DOWN
        axes.scatter([0.5], [self.mean], s=80, c=colour, edgecolors=DARK, linewidths=1.0, zorder=4)
        axes.annotate(
            number(self.mean, "+.4f"),
            (0.5, self.mean),
            xytext=(9, 0),
            textcoords="offset points",
            va="center",
            fontsize=TEXT_PT,
            weight="bold",
            path_effects=HALO,
        )


def _pixels(bundle: Bundle, keys: Sequence[str]) -> Pixels | None:
    """(n, S, S, 3) thumbnails of the keys in their order; None where one is missing."""
    if bundle.thumbnails is None or set(keys) - set(bundle.keys):
        return None
    places = {key: place for place, key in enumerate(bundle.keys)}
    return bundle.thumbnails[[places[key] for key in keys]]


def _value_axis(axes: Axes, values: Sequence[float], *, headroom: float = 0.1) -> None:
    """Limits around `values` (zero among them), few ticks, a line at zero."""
    low, high = min(values), max(values)
    span = max(high - low, LEAST_SPAN)
    low, high = low - headroom * span, high + headroom * span
    at = ticks(low, high)
    axes.set_ylim(low, high)
    axes.set_yticks(
        at, [number(value, "+.3g") if value else "0" for value in at], fontsize=SMALL_PT
    )
    axes.tick_params(length=2, width=0.6, pad=2)
    axes.axhline(0, color=DARK, linewidth=0.8, zorder=1)
    axes.grid(visible=True, axis="y", color=FAINT, linewidth=0.4)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "bottom"]].set_visible(False)
