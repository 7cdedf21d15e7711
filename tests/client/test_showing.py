"""What people see: problems, progress, heat maps, tables."""

import io
import json

import numpy as np
import pytest
from rich.console import Console

from expunge.client import comparing
from expunge.client.comparisons import Comparison, ComparisonResult
from expunge.client.findings import evidence, findings_table
from expunge.client.heatmap import heat_map, letter_map, shrink
from expunge.client.problems import problem_of
from expunge.client.progress import describe, follow
from expunge.client.reports import AuditReport
from expunge.client.resources import End, Progress, StateChange
from expunge.evidence.pictures.colours import DIVERGING
from expunge.evidence.pictures.scales import Scale

NOW = "2026-01-01T00:00:00Z"
UNIT = Scale(-1.0, 1.0, DIVERGING)
RESULT = ComparisonResult.model_validate(
    {
        "columns": ["emia"],
        "rows": [
            {
                "kind": "retrain",
                "label": "Retrain",
                "columns": {"emia": {"mean": 60.0}},
                "gaps": {"emia": {"value": 0.0}},
                "avg_gap": {"value": 0.0, "uncertainty": 0.0},
                "over_unlearned": [],
            },
            {
                "kind": "candidate",
                "label": "fine_tune (epochs=[3])",
                "columns": {"emia": {"mean": 72.34}},
                "gaps": {"emia": {"value": 12.34}},
                "avg_gap": {"value": 12.34, "uncertainty": 1.0},
                "forgetting_score": {"mean": 0.0123},
                "minutes": {"mean": 0.5},
                "over_unlearned": ["emia"],
            },
            {
                "kind": "candidate",
                "label": "neg_grad",
                "columns": {},
                "gaps": {},
                "over_unlearned": [],
                "failure": "the loss is not finite in epoch 1",
            },
        ],
        "recommended": {
            "label": "fine_tune (epochs=[3])",
            "method": "fine_tune",
            "params": {},
            "criterion": "retrain",
            "why": "It has the smallest gap.",
        },
        "notes": ["One seed."],
    }
)


def rendered(item: object, *, terminal: bool = False, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=terminal)
    console.print(item)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def step(number: int) -> Progress:
    return Progress(
        phase="unlearn",
        epoch=number,
        epochs=3,
        step=number,
        steps=3,
        losses={"loss": 1.25},
        images_per_second=1234.5,
        eta_seconds=9.6,
    )


def test_a_problem_names_what_is_wrong_and_what_is_allowed() -> None:
    document = {
        "type": "urn:expunge:problem:invalid-request",
        "title": "The request is not valid",
        "status": 422,
        "detail": "one value is out of bounds",
        "errors": [{"pointer": "#/params/beta", "message": "too large", "allowed": "0 to 100"}],
    }
    problem = problem_of(422, "application/problem+json", json.dumps(document).encode())
    assert problem.type == "urn:expunge:problem:invalid-request"
    assert problem.extensions["errors"][0]["pointer"] == "#/params/beta"
    assert str(problem) == (
        "one value is out of bounds (HTTP 422); /params/beta: too large (allowed: 0 to 100)"
    )


def test_a_problem_says_nothing_twice() -> None:
    document = {
        "status": 422,
        "detail": "unknown method 'burn'; known: coun, fine_tune",
        "errors": [{"pointer": "/method", "message": "unknown method 'burn'"}],
        "allowed": ["coun", "fine_tune"],
    }
    problem = problem_of(422, "application/problem+json", json.dumps(document).encode())
    assert str(problem) == "unknown method 'burn'; known: coun, fine_tune (HTTP 422)"


@pytest.mark.parametrize(
    ("message", "allowed"),
    [
        ("Input should be 'automatic' or 'manual'", {"expected": "'automatic' or 'manual'"}),
        ("Input should be less than or equal to 2", {"le": 2.0}),
    ],
)
def test_what_a_value_should_be_is_said_once(message: str, allowed: dict[str, object]) -> None:
    error = {"in": "body", "pointer": "/approval", "message": message, "allowed": allowed}
    document = {"status": 422, "detail": f"/approval: {message}", "errors": [error]}
    problem = problem_of(422, "application/problem+json", json.dumps(document).encode())
    assert str(problem) == f"/approval: {message} (HTTP 422)"
    brief = document | {"detail": "no", "errors": [error | {"message": "wrong"}]}
    told = str(problem_of(422, "application/problem+json", json.dumps(brief).encode()))
    assert told in {
        "no (HTTP 422); /approval: wrong (allowed: 'automatic' or 'manual')",
        "no (HTTP 422); /approval: wrong (allowed: at most 2)",
    }


def test_an_answer_that_is_no_problem_document_is_quoted() -> None:
    problem = problem_of(502, "text/html", b"<h1>Bad gateway</h1>")
    assert (problem.status, str(problem)) == (502, "<h1>Bad gateway</h1> (HTTP 502)")
    assert problem_of(500, "application/json", b"{cut").type == "about:blank"


def test_without_a_terminal_progress_is_few_lines() -> None:
    console = Console(file=io.StringIO(), width=120)
    events = [
        StateChange(state="running", reason=None, at=NOW),
        *(step(number) for number in (1, 2, 3)),
        StateChange(state="failed", reason="out of memory", at=NOW),
        End(state="failed"),
    ]
    ended = follow(events, console, "unlearning")
    assert (ended.state, ended.reason, ended.progress) == ("failed", "out of memory", step(3))
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue().splitlines() == [
        "  unlearning: running",
        "  unlearning: failed: out of memory",
    ]


def test_in_a_terminal_progress_shows_epoch_loss_speed_and_time_left() -> None:
    console = Console(file=io.StringIO(), width=160, force_terminal=True)
    follow([step(2), End(state="completed")], console, "unlearning")
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert "completed" in shown
    assert describe(step(2)) == "loss 1.250 · 1,234 images/s · 10 s left"
    assert "epoch 2/3" in shown


def test_without_colours_a_matrix_is_drawn_in_letters() -> None:
    matrix = np.array([[1.0, -1.0], [0.0, 5.0]], dtype=np.float32)
    assert letter_map(matrix, UNIT) == "@@  \n++@@"
    assert len(letter_map(np.eye(100, dtype=np.float32), UNIT).splitlines()) == 24


def test_a_heat_map_has_two_rows_a_line_and_one_column_a_sample() -> None:
    lines = rendered(heat_map(np.eye(5, dtype=np.float32), UNIT)).splitlines()
    assert [len(line) for line in lines] == [5, 5, 5]


def test_a_terminal_shows_the_colours_of_the_pictures() -> None:
    matrix = np.array([[1, -1], [0, 0]], dtype=np.float32)
    segments = list(heat_map(matrix, UNIT).segments)
    colours = [segment.style.color.triplet for segment in segments if segment.style]
    orange, blue = (bytes.fromhex(DIVERGING[end][1:]) for end in (-1, 0))
    assert [tuple(colour) for colour in colours] == [tuple(orange), tuple(blue)]


def test_large_matrices_are_averaged_over_blocks() -> None:
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(7, 7)).astype(np.float32)
    shrunk = shrink(matrix, 3)
    edges = [0, 2, 4, 7]
    for row in range(3):
        for column in range(3):
            rows = slice(edges[row], edges[row + 1])
            columns = slice(edges[column], edges[column + 1])
            expected = float(matrix[rows, columns].mean())
            assert abs(float(shrunk[row, column]) - expected) < 1e-6
    assert shrink(matrix, 7) is matrix


@pytest.fixture
def report() -> AuditReport:
    statistic = {"mean": 0.02, "std": 0.1, "interval": [0.01, 0.03], "n": 64}
    other = {"mean": 0.001, "std": 0.1, "interval": [-0.01, 0.01], "n": 400}
    group = {"before": statistic, "after": statistic, "change": statistic}
    level = {
        "forgetting_score": {**statistic, "per_sample": {"a": 0.02}},
        "negative_alignment": group,
        "retained": {"forgetting_score": other, "negative_alignment": None},
        "control": None,
    }
    test = {"hypothesis": "H0", "alpha": 0.01, "p": 0.0004, "n": 64, "n_reference": 400}
    look = {"level": "encoder", "statistic": "forgetting_score", "value": 0.02, "p": 0.0004}
    test |= {"draws": 4999, "reference": "matched", "n_alike": 168, "looks": [look]}
    return AuditReport.model_validate(
        {
            "levels": {"encoder": level, "image_text": level},
            "n_own": 64,
            "n_retained": 400,
            "views": 10,
            "seed": 0,
            "confidence": 0.95,
            "verdict": {"code": "forgotten", "sentence": "Changed."},
            "test": test,
            "power": {"effect": {}, "power": 0.4, "target": 0.9, "samples_needed": 250},
            "membership": {"p": 0.3, "difference": {"encoder": 0.001}},
        }
    )


def test_the_findings_table_puts_own_images_beside_others(report: AuditReport) -> None:
    shown = " ".join(rendered(findings_table(report)).split())
    assert "+0.0200 [+0.0100,+0.0300] +0.0010 [-0.0100,+0.0100] –" in shown
    assert "images against captions" in shown
    assert "95% intervals over 64 own, 400 kept and 0 never seen images, 10 views each" in shown


def test_the_evidence_says_what_the_test_found_and_how_much_it_could(report: AuditReport) -> None:
    test, power, membership = evidence(report)
    assert test == (
        "p = 0.0004: the share of 4,999 random draws of 64 from your images and at least 168 of the "
        "same kind that the model kept which look at least as unusual; 0.01 or less counts as found."
    )
    assert "found with about 40% probability." in power
    assert "p = 0.3: not clearly." in membership
    assert report.power is not None
    assert report.membership is not None
    strong = report.power.model_copy(update={"power": 1.0, "samples_needed": 4})
    left = report.membership.model_copy(update={"p": 0.002})
    _, power, membership = evidence(report.model_copy(update={"power": strong, "membership": left}))
    assert power.endswith("found with over 99% probability.")
    assert "p = 0.002: yes." in membership
    assert report.test is not None
    look = report.test.looks[0].model_copy(update={"level": "projector"})
    also = report.test.model_copy(update={"looks": [look], "p_used": 0.49, "alpha_used": 0.05})
    assert evidence(report.model_copy(update={"test": also}))[0].endswith(
        "0.01 or less counts as found. It also has to show without the projector, which only serves "
        "training: there p = 0.49, and 0.05 or less counts."
    )
    bare = report.model_copy(update={"test": None, "power": None, "membership": None})
    assert evidence(bare) == []


def comparison(state: str, done: int | None = None) -> Comparison:
    """A comparison of two runs with this many done."""
    progress = None
    if done is not None:
        progress = {"done": done, "total": 2, "label": "fine_tune [x]", "seed": 3}
        progress |= {"training": step(2).model_dump(), "eta_seconds": 9.6}
    return Comparison.model_validate(
        {
            "id": "cmp_1",
            "model_id": "mdl_1",
            "checkpoint_id": "ckp_1",
            "dataset_ids": [],
            "control_dataset_id": "dst_1",
            "settings": {},
            "state": state,
            "reason": "it broke" if state == "failed" else None,
            "progress": progress,
            "created_at": NOW,
            "finished_at": NOW if state == "failed" else None,
        }
    )


def test_the_table_of_a_comparison_shows_gaps_failures_and_what_is_recommended() -> None:
    text = rendered(comparing.result_table(RESULT), width=100)
    assert "72.3! (12.3)" in text
    assert "12.3 ± 1.0" in text
    assert "+0.0123" in text
    assert "neg_grad: the loss is not finite in epoch 1" in text
    assert "One seed." in text
    assert "Recommended: fine_tune (epochs=[3])" in text
    assert "It has the smallest gap." in text


def test_in_a_narrow_terminal_gaps_stand_below_their_values() -> None:
    lines = rendered(comparing.result_table(RESULT, 44), width=44).splitlines()
    value = next(number for number, line in enumerate(lines) if "72.3!" in line)
    assert "(12.3)" not in lines[value]
    assert "(12.3)" in lines[value + 1]
    assert "± 1.0" in lines[value + 1]


def test_without_retrain_the_proxy_takes_the_place_of_gaps() -> None:
    rows = [
        row.model_copy(update={"avg_gap": None, "gaps": {}, "proxy_gap": row.avg_gap})
        for row in RESULT.rows
    ]
    result = RESULT.model_copy(update={"rows": rows, "recommended": None})
    text = rendered(comparing.result_table(result), width=100)
    assert "proxy gap" in text
    assert "No setting can be recommended." in text


def test_a_comparison_is_followed_to_its_end_in_lines_or_with_a_bar() -> None:
    steps = [comparison("queued"), comparison("running", 1), comparison("failed")]
    for terminal in (False, True):
        console = Console(file=io.StringIO(), width=120, force_terminal=terminal)
        assert comparing.follow(iter(steps), console) == steps[-1]
        assert isinstance(console.file, io.StringIO)
        assert "failed" in console.file.getvalue()
    assert comparing.standing(steps[1]) == [
        "comparison cmp_1: running",
        "1 of 2 runs; fine_tune [x], seed 3, epoch 2/3 · 10 s left",
    ]
    assert comparing.standing(steps[2]) == ["comparison cmp_1: failed: it broke"]
    assert steps[1].progress is not None
    assert comparing.describe(steps[1].progress) == ("fine_tune [x], seed 3, epoch 2/3 · 10 s left")
