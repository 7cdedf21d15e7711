"""The one-page report: everything on it, nothing from elsewhere, nothing unescaped."""

import base64
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, get_args

import pytest
from tests.evidence.picture_scene import scene

from expunge.evidence.audit import report as reports
from expunge.evidence.audit.report import VerdictCode
from expunge.evidence.audit.verdict import verdict
from expunge.evidence.pictures.report import HEADLINES, NO_TEST, STATISTICS, report_html
from expunge.evidence.wording import percentage, probability

AUDIT = {"id": "aud_1", "finished_at": "2026-01-01T00:00:00Z"}
PROTOCOL = {
    "subset": {"samples": 3, "digest": "sha256:cc"},
    "before": "sha256:aa",
    "after": "sha256:bb",
    "code": "expunge 0.1.0",
}
REQUEST = {"id": "req_1", "model_id": "mdl_1", "method": "alignment_calibration"}
CHROMIUM = shutil.which("chromium")
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Tags, attributes and text of a document whose tags all close."""

    def __init__(self, html: bytes) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html.decode())
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.text += " "
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data

    @property
    def words(self) -> str:
        return " ".join(self.text.split())

    @property
    def pictures(self) -> list[bytes]:
        sources = [str(attributes["src"]) for tag, attributes in self.tags if tag == "img"]
        prefix = "data:image/svg+xml;base64,"
        assert all(source.startswith(prefix) for source in sources)
        return [base64.b64decode(source.removeprefix(prefix)) for source in sources]


def test_the_page_says_what_was_compared_found_and_how_to_check_it() -> None:
    report, bundle = scene(3)
    report["protocol"] = PROTOCOL
    page = Page(report_html(report, bundle, audit=AUDIT, request=REQUEST))
    assert report["verdict"]["sentence"] in page.words
    assert report["test"]["hypothesis"] in page.words
    for fact in (
        "Your images 3 Images of others, kept 96 Images never seen (control) 96",
        f"p-value {probability(report['test']['p'])}",
        f"Power {percentage(report['power']['power'])}",
        "encoder forgetting score +",
        "projector forgetting score +",
        "neighbourhood, rearranged +",
        "expunge audit req_1 --local",
        "expunge verify",
        "Weights before sha256:aa Weights after sha256:bb",
        "Digests of your images sha256:cc · expunge 0.1.0",
        "alignment_calibration · model mdl_1",
        "aud_1 · 2026-01-01T00:00:00Z",
        "The pictures alone prove nothing",
    ):
        assert fact in page.words
    assert len(page.pictures) == 2
    assert all(picture.startswith(b"<?xml") for picture in page.pictures)


@pytest.mark.parametrize("m", [2, 64])
def test_every_size_has_its_page_without_request_and_audit_too(m: int) -> None:
    report, bundle = scene(m)
    assert report["verdict"]["sentence"] in Page(report_html(report, bundle)).words


def test_equal_input_gives_equal_bytes() -> None:
    report, bundle = scene(1)
    assert report_html(report, bundle) == report_html(report, bundle)


def test_nothing_is_loaded_from_elsewhere_and_nothing_runs() -> None:
    report, bundle = scene(1)
    html = report_html(report, bundle, audit=AUDIT, request=REQUEST)
    page = Page(html)
    assert not {"script", "link", "iframe", "form", "object"} & {tag for tag, _ in page.tags}
    names = {name for _, attributes in page.tags for name in attributes}
    assert not {name for name in names if name.startswith("on")} | ({"href", "action"} & names)
    assert b"url(" not in html
    policy = next(a["content"] for t, a in page.tags if t == "meta" and "http-equiv" in a)
    assert str(policy).startswith("default-src 'none'; img-src data:")


def test_hostile_words_are_escaped() -> None:
    attack = '"><script>alert(1)</script>{{ 7 * 7 }}'
    report, bundle = scene(1, keys=[attack])
    report["verdict"] = {"code": attack, "sentence": attack * 8}
    hostile = {**REQUEST, "id": attack, "method": attack}
    html = report_html(report, bundle, audit={**AUDIT, "id": attack}, request=hostile)
    page = Page(html)
    assert b"<script" not in html
    assert attack * 8 in page.text
    assert not any(b"<script" in picture for picture in page.pictures)


def test_without_a_reference_the_page_says_so() -> None:
    report, bundle = scene(1, others=0)
    page = Page(report_html(report, bundle))
    assert report["verdict"]["code"] == "no_reference"
    assert HEADLINES["no_reference"][1] in page.words
    assert "No test, for the reason named above." in page.words
    assert "p-value" not in page.words
    report["verdict"]["code"] = "unchanged"
    assert NO_TEST in Page(report_html(report, bundle)).words


def test_the_page_says_which_part_was_audited_and_of_which_version() -> None:
    report, bundle = scene(3)
    drawn = {**AUDIT, "purpose": "later_head", "draw": {"samples": 3, "seed": 7}}
    words = Page(report_html(report, bundle, audit=drawn)).words
    assert "audit of a later version of the model" in words
    assert "Your images 3 drawn at random with seed 7" in words
    named = {**AUDIT, "purpose": "asked", "draw": None, "sample_keys": ["a", "b", "c"]}
    words = Page(report_html(report, bundle, audit=named)).words
    assert "Expunge · audit of a removal aud_1" in words
    assert "Your images 3 chosen by name" in words


def test_the_page_speaks_of_one_image_as_one() -> None:
    report, bundle = scene(1)
    report["verdict"]["code"] = "forgotten"
    words = Page(report_html(report, bundle)).words
    assert "Evidence that your image was forgotten" in words
    assert "honestly retrained without your image." in words
    report["membership"]["p"] = 0.002
    assert "views of your image look more alike" in Page(report_html(report, bundle)).words
    assert "Share of your image and at least 96 kept ones of the same kind" in words


@pytest.mark.parametrize(
    ("p", "said"),
    [
        (0.002, "views of your images look more alike to the model"),
        (0.3, "your images do not look clearly more familiar to the model"),
    ],
)
def test_a_trace_is_told_only_where_it_was_found(p: float, said: str) -> None:
    report, bundle = scene(3)
    report["membership"]["p"] = p
    assert said in Page(report_html(report, bundle)).words


def test_no_estimate_is_told_as_certain() -> None:
    report, bundle = scene(3)
    report["power"] |= {"power": 1.0, "samples_needed": 2}
    assert "Power over 99%" in Page(report_html(report, bundle)).words


def test_every_statistic_of_the_test_has_its_row() -> None:
    report, bundle = scene(3)
    test = report["test"]
    test["looks"].append({**test["looks"][0], "statistic": "something_new", "p": 0.125})
    words = Page(report_html(report, bundle)).words
    for look in test["looks"]:
        name = STATISTICS.get(look["statistic"], "something new")
        assert re.search(rf"{name} [^a-z]* {re.escape(probability(look['p']))} ", words)


def test_every_verdict_has_its_headline() -> None:
    assert set(HEADLINES) == set(get_args(VerdictCode))
    report, bundle = scene(1)
    report["verdict"]["code"] = "not_for_you"
    page = Page(report_html(report, bundle))
    assert "✗ No sign that yours was forgotten" in page.words
    assert ("div", {"class": "verdict not_for_you"}) in page.tags


def test_the_pictures_are_of_the_level_that_decided_or_of_the_one_asked_for() -> None:
    report, bundle = scene(1)
    for look in report["test"]["looks"]:
        look["p"] = 0.5 if look["level"] == "encoder" else 0.25
    assert shown_level(report_html(report, bundle)) == "projector outputs"
    assert shown_level(report_html(report, bundle, level="encoder")) == "encoder outputs"
    with pytest.raises(ValueError, match="no level 'image_text'"):
        report_html(report, bundle, level="image_text")


def test_a_picture_of_a_part_is_called_one() -> None:
    report: dict[str, Any]
    report, bundle = scene(1)
    report["n_own"] = 5000
    page = Page(report_html(report, bundle))
    assert "The matrices show 1 of your 5,000 images; all numbers are of all." in page.words


def shown_level(html: bytes) -> str:
    alternatives = [str(a["alt"]) for t, a in Page(html).tags if t == "img"]
    found = {re.findall(r"\((.*)\)$", text)[0] for text in alternatives}
    assert len(found) == 1
    return str(found.pop())


@pytest.mark.skipif(CHROMIUM is None, reason="no browser is installed")
@pytest.mark.parametrize("m", [1, 8, 32])
def test_up_to_32_images_print_on_one_sheet(m: int, tmp_path: Path) -> None:
    """With the longest that stands on it: a verdict that leaves all open, digests, a revision."""
    report, bundle = scene(m)
    test = reports.Test(**report["test"]) if report["test"] else None
    looked = replace(test, p=0.0102, n=max(1, m - 1)) if test else None
    power = reports.Power(effect={}, power=0.5, target=0.9, samples_needed=15_763)
    told = verdict(0.1, m, report["n_retained"], looked, power)
    digest = f"sha256:{'a' * 64}"
    report["verdict"]["sentence"] = told.sentence
    report["protocol"] = {
        "subset": {"samples": m, "digest": digest},
        "before": digest,
        "after": digest,
        "code": f"expunge 0.1.0, revision {'b' * 40}-dirty",
    }
    ids = {"id": f"req_{'0' * 32}", "model_id": f"mdl_{'0' * 32}"}
    page, printed = tmp_path / "report.html", tmp_path / "report.pdf"
    page.write_bytes(report_html(report, bundle, audit=AUDIT, request=REQUEST | ids))
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu"]
    command += ["--no-pdf-header-footer", f"--user-data-dir={tmp_path}"]
    command += [f"--print-to-pdf={printed}", page.as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    assert len(re.findall(rb"/Type\s*/Page\b", printed.read_bytes())) == 1
