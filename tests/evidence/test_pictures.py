"""Heat maps, score charts and tables: bytes that repeat, text that fits, input that means harm."""

import csv
import io
import xml.etree.ElementTree as ET
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations

import matplotlib as mpl
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from tests.evidence.picture_scene import scene

from expunge.evidence.pictures import heat_maps, score_chart, sheet
from expunge.evidence.pictures.bundle import WHICH, Bundle
from expunge.evidence.pictures.heat_maps import forgotten_first, heat_map, triptych
from expunge.evidence.pictures.sheet import balanced, shorten, text_width, wrap
from expunge.evidence.pictures.tables import guarded, matrix_csv, matrix_npy
from expunge.evidence.pictures.thumbnail_strip import (
    MAX_THUMBNAILS,
    Along,
    counted,
    paint_strip,
    shown_of_many,
    strip_thickness,
    ticks,
)

SENTENCE = "The model changed for your images in a way that it did not for others. " * 3
HOSTILE = ["<script>alert(1)</script>", "=1+1", "$\\frac{1}{0}$", "名前/é🐈\n\t\x00" * 40]


def figure_of(bundle: Bundle, *, panels: tuple[str, ...] = WHICH) -> Figure:
    drawing = heat_maps._Drawing(bundle, panels, "encoder", SENTENCE)  # type: ignore[arg-type]
    return drawn(drawing.single_sample if len(bundle.keys) == 1 else drawing.matrices)


def chart_of(m: int, **kind: object) -> Figure:
    report, bundle = scene(m, **kind)  # type: ignore[arg-type]
    return drawn(score_chart._Chart.of(report, bundle, "encoder").draw)


def drawn(compose: object) -> Figure:
    with mpl.rc_context(sheet._style()):
        figure: Figure = compose()  # type: ignore[operator]
        FigureCanvasAgg(figure).draw()
    return figure


def check_texts(figure: Figure) -> None:
    """All text lies inside the figure, and no two lines of it overlap."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    texts = [text for text in figure.findobj(mpl.text.Text) if text.get_text()]
    boxes = [text.get_window_extent(renderer) for text in texts if text.get_visible()]
    width, height = figure.bbox.width, figure.bbox.height
    for box in boxes:
        assert -1 <= box.x0 <= box.x1 <= width + 1
        assert -1 <= box.y0 <= box.y1 <= height + 1
    shrunk = [box.shrunk(0.98, 0.98) for box in boxes]
    for (i, one), (j, other) in combinations(enumerate(shrunk), 2):
        overlap = min(one.x1, other.x1) - max(one.x0, other.x0)
        stacked = min(one.y1, other.y1) - max(one.y0, other.y0)
        # Boxes are as high as the highest letter could be.
        tolerated = 0.35 * min(one.height, other.height)
        assert overlap <= 0 or stacked <= tolerated, (texts[i].get_text(), texts[j].get_text())


@pytest.mark.parametrize("m", [1, 8, 32, 200])
def test_nothing_in_a_triptych_is_cut_off_or_overlaps(m: int) -> None:
    check_texts(figure_of(scene(m)[1]))


def test_nothing_in_a_single_heat_map_is_cut_off_or_overlaps() -> None:
    check_texts(figure_of(scene(5, thumbnails=False)[1], panels=("gap",)))


@pytest.mark.parametrize("m", [1, 8, 32, 200])
def test_nothing_in_a_score_chart_is_cut_off_or_overlaps(m: int) -> None:
    check_texts(chart_of(m))


def test_charts_without_thumbnails_or_reference_are_whole_too() -> None:
    check_texts(chart_of(5, thumbnails=False, others=0))
    check_texts(chart_of(1, others=0))


@pytest.mark.parametrize("m", [1, 4])
def test_hostile_keys_and_sentences_are_only_text(m: int) -> None:
    keys = [f"{HOSTILE[i % len(HOSTILE)]}{i}" for i in range(m)]
    report, bundle = scene(m, keys=keys)
    check_texts(drawn(score_chart._Chart.of(report, bundle, "encoder").draw))
    for data in (
        triptych(bundle, "encoder", sentence="<b>$x_1$</b> & 名前", form="svg"),
        score_chart.score_chart(report, bundle, "encoder", form="svg"),
    ):
        ET.fromstring(data)  # noqa: S314
        assert b"<script" not in data


@pytest.mark.parametrize(("which", "form"), [("before", "png"), ("gap", "svg")])
def test_equal_input_gives_equal_bytes_whatever_the_process_has_set(which: str, form: str) -> None:
    bundle = scene(2)[1]

    def draw() -> bytes:
        return heat_map(bundle, which, "encoder", sentence=SENTENCE, form=form)  # type: ignore[arg-type]

    first = draw()
    style = {"font.size": 30, "axes.facecolor": "red", "savefig.bbox": "tight"}
    with mpl.rc_context({**style, "svg.hashsalt": "other"}):
        assert draw() == first
        assert mpl.rcParams["font.size"] == 30
    if form == "png":
        image = Image.open(io.BytesIO(first))
        assert image.format == "PNG"
        assert "Software" not in image.info
    else:
        assert ET.fromstring(first).tag.endswith("svg")  # noqa: S314
        assert b"Matplotlib v" not in first
        assert b"<dc:date>" not in first


def test_threads_draw_the_same_as_one_after_the_other() -> None:
    report, bundle = scene(1)

    def draw(job: int) -> bytes:
        if job % 2:
            return triptych(bundle, "projector", sentence="", form="svg")
        return score_chart.score_chart(report, bundle, "encoder", form="png")

    alone = [draw(0), draw(1)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(draw, range(4))) == alone * 2


def test_before_and_after_show_equal_values_in_equal_colours() -> None:
    before = np.array([[0.9, 0.2], [0.2, 0.8]], np.float32)
    after = np.array([[0.2, 0.8], [0.9, 0.2]], np.float32)
    matrices = {"before": before, "after": after, "gap": before - after}
    figure = figure_of(Bundle({"encoder": matrices}, None, ("a", "b")))
    shown = [
        image for axes in figure.axes for image in axes.images if image.get_array().shape == (2, 2)
    ]
    assert [image.get_clim() for image in shown[:2]] == [pytest.approx((0.2, 0.9))] * 2
    low, high = shown[2].get_clim()
    assert low == -high


def test_samples_are_ordered_by_forgetting_score_with_their_thumbnails() -> None:
    bundle = scene(5)[1]
    order = forgotten_first(bundle, "encoder")
    scores = np.diagonal(bundle.matrices["encoder"]["gap"])[order]
    assert (np.diff(scores) <= 0).all()
    images = [image for axes in figure_of(bundle).axes for image in axes.images]
    shown = [image.get_array() for image in images]
    ordered = bundle.matrices["encoder"]["before"][np.ix_(order, order)]
    assert any(array.shape == (5, 5) and (array == ordered).all() for array in shown)
    assert bundle.thumbnails is not None
    shown_twice = [array for array in shown if array.ndim == 3]
    assert len(shown_twice) == 4 * 5
    for place, array in enumerate(shown_twice):
        assert (array == bundle.thumbnails[order[place % 5]]).all()


@pytest.mark.parametrize("m", [2, 8, 17, 18, 40, 41, 200])
@pytest.mark.parametrize("along", ["rows", "columns", "below"])
def test_thumbnails_stand_at_their_samples_and_never_overlap(m: int, along: Along) -> None:
    side, pixels = 2.9, np.zeros((m, 4, 4, 3), np.uint8)
    thickness = strip_thickness(m, side, pixels, along)
    sheet_ = sheet.Sheet(4.0, 4.0)
    box = (0.5, 0.5, thickness, side) if along == "rows" else (0.5, 0.5, side, thickness)
    paint_strip(sheet_, pixels, m, box, along)
    (axes,) = sheet_.figure.axes
    extents = [np.array(image.get_extent()).reshape(2, 2) for image in axes.images]
    boxes = [np.sort(extent, axis=1) for extent in extents]
    samples = range(m) if m <= MAX_THUMBNAILS else shown_of_many(m)
    assert len(boxes) == len(samples)
    across, lengthwise = (0, 1) if along == "rows" else (1, 0)
    for sample, found in zip(samples, boxes, strict=True):
        assert found[lengthwise].mean() == pytest.approx((sample + 0.5) * side / m)
        assert np.ptp(found[lengthwise]) >= min(0.13, side / m * 0.9)
        assert -1e-9 <= found[across, 0] <= found[across, 1] <= thickness + 1e-9
    for one, other in combinations(boxes, 2):
        overlap = np.minimum(one[:, 1], other[:, 1]) - np.maximum(one[:, 0], other[:, 0])
        assert overlap.min() < 1e-9


def test_many_samples_show_some_thumbnails_with_their_numbers_or_numbers_alone() -> None:
    def numbers(*, thumbnails: bool) -> set[str]:
        figure = figure_of(scene(64, thumbnails=thumbnails)[1])
        return {text.get_text() for axes in figure.axes for text in axes.texts}

    assert numbers(thumbnails=True) == {str(sample + 1) for sample in shown_of_many(64)}
    assert numbers(thumbnails=False) == {str(number) for number in counted(64)}


@pytest.mark.parametrize("m", [2, 8])
def test_values_fit_their_cells(m: int) -> None:
    figure = figure_of(scene(m)[1])
    renderer = FigureCanvasAgg(figure).get_renderer()
    for axes in figure.axes:
        for text in axes.texts:
            cell = axes.bbox.width / m
            assert text.get_window_extent(renderer).width < 0.95 * cell


def test_without_a_band_the_chart_says_why() -> None:
    assert "Band: means of 3 images that were kept" in words_of(chart_of(3))
    assert "too few to draw 64 at a time" in words_of(chart_of(64))
    assert "no images of others to compare it with" in words_of(chart_of(3, others=0))


def test_pictures_of_images_against_captions_say_so() -> None:
    report, bundle = scene(3)
    for levels in report["levels"], report["null_quantiles"]["levels"]:
        levels["image_text"] = levels["encoder"]
    matrices = {**bundle.matrices, "image_text": bundle.matrices["encoder"]}
    pairs = Bundle(matrices, bundle.thumbnails, bundle.keys)
    chart = words_of(drawn(score_chart._Chart.of(report, pairs, "image_text").draw))
    assert "the image and its caption look less alike" in chart
    assert "views" not in chart
    panels = words_of(drawn(heat_maps._Drawing(pairs, WHICH, "image_text", SENTENCE).matrices))
    assert "your 3 images and captions" in panels
    assert "each column a caption" in panels


def words_of(figure: Figure) -> str:
    return " ".join(text.get_text() for text in figure.findobj(mpl.text.Text))


def test_lines_are_balanced_where_that_takes_no_more_of_them() -> None:
    text = "word " * 21
    wide, even = wrap(text, 5.0, 10.0), balanced(text, 5.0, 10.0)
    assert len(even) == len(wide)
    assert len(even[-1]) >= len(wide[-1])
    assert " ".join(even) == text.strip()


def test_a_level_that_is_not_there_is_named() -> None:
    report, bundle = scene(2)
    for draw in (
        lambda: triptych(bundle, "image_text", sentence=""),
        lambda: score_chart.score_chart(report, bundle, "image_text"),
    ):
        with pytest.raises(ValueError, match=r"no level 'image_text'; .* encoder, projector"):
            draw()


@given(st.text(), st.floats(0.5, 6.0))
@settings(max_examples=40, deadline=None)
def test_wrapping_leaves_nothing_out_and_fits(text: str, width: float) -> None:
    lines = wrap(text, width, 10.0)
    assert "".join("".join(lines).split()) == "".join(text.split())
    assert all(text_width(line, 10.0) <= width or len(line) == 1 for line in lines)


def test_a_long_key_keeps_its_two_ends() -> None:
    key = "holiday/" + "x" * 300 + "/0001"
    short = shorten(key, 1.0, 8.0)
    assert text_width(short, 8.0) <= 1.0
    head, tail = short.split("…")
    assert key.startswith(head)
    assert key.endswith(tail)
    assert shorten("short", 1.0, 8.0) == "short"


def test_ticks_are_few_round_and_inside() -> None:
    for m in (1, 2, 9, 64, 200, 256, 4096):
        numbers = counted(m)
        assert numbers[0] == 1
        assert numbers[-1] <= m
        assert len(numbers) <= 9
    assert ticks(-0.13, 0.13) == pytest.approx(np.array([-0.1, 0, 0.1]), abs=1e-9)


@given(st.lists(st.text(), min_size=1, max_size=4))
def test_a_table_reads_back_to_the_same_matrix_and_keys(keys: list[str]) -> None:
    m = len(keys)
    matrix = np.random.default_rng(m).uniform(-1, 1, (m, m)).astype(np.float32)
    text = matrix_csv(matrix, keys).decode()
    rows = list(csv.reader(io.StringIO(text, newline="")))
    names = [row[0].removeprefix("'") for row in rows[1:]]
    assert names == keys == [name.removeprefix("'") for name in rows[0][1:]]
    assert (np.array([row[1:] for row in rows[1:]], np.float32) == matrix).all()
    assert (np.load(io.BytesIO(matrix_npy(matrix)), allow_pickle=False) == matrix).all()


@pytest.mark.parametrize(
    "key", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", " =1", "＝1", "'a"]
)
def test_no_key_begins_like_a_formula(key: str) -> None:
    assert guarded(key) == f"'{key}"
    assert guarded(f"a{key}") == f"a{key}"


def test_the_gap_of_one_image_is_never_without_what_it_lies_between() -> None:
    _, bundle = scene(1)
    alone, all_three = (figure_of(bundle, panels=panels) for panels in (("gap",), WHICH))
    bars = [
        [bar.get_bbox().bounds for axes in each.axes for bar in axes.patches]
        for each in (alone, all_three)
    ]
    assert bars[0] == bars[1]
    assert len(bars[0]) == len(WHICH)
