"""What is committed for Prometheus and Grafana speaks of metrics that the service tells, and each one is explained."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from tests.api.conftest import User

from expunge.registry.settings import Settings
from expunge.worker import metering

ROOT = Path(__file__).parents[2]
DASHBOARD = ROOT / "deploy" / "grafana" / "expunge.json"
RULES = ROOT / "deploy" / "prometheus" / "alerts.yml"
SCRAPING = ROOT / "deploy" / "prometheus" / "prometheus.yml"
REFERENCE = ROOT / "docs" / "reference" / "metrics.md"

SELECTOR = re.compile(r"\b(expunge_[a-z_]+|process_[a-z_]+|up)\b(?:\{([^}]*)\})?")
MATCHER = re.compile(r'([a-z_]+)\s*(=~|!~|!=|=)\s*"([^"]*)"')
GROUPING = re.compile(r"\b(?:by|on)\s*\(([^)]*)\)")
OF_SCRAPES = {"instance", "job"}
"""Labels that Prometheus itself adds."""
SUFFIXES = {
    "counter": ("_total",),
    "histogram": ("_bucket", "_sum", "_count"),
    "summary": ("_sum", "_count"),
}
DURATION = re.compile(r"\d+[smhd]")


@pytest.fixture(scope="module")
def told(operator: User, settings: Settings) -> dict[str, Metric]:
    """The families of a scrape of the api, and of one of a process beside it, over HTTP."""
    server = metering.serve(settings.model_copy(update={"metrics_listen": "127.0.0.1:0"}))
    assert server is not None
    beside = httpx.get(f"http://127.0.0.1:{server.server_port}/metrics", trust_env=False)
    server.shutdown()
    server.server_close()
    operator.get("/me")
    expositions = (operator.get("/metrics").text, beside.text)
    return {
        family.name: family
        for exposition in expositions
        for family in text_string_to_metric_families(exposition)
    }


@pytest.fixture(scope="module")
def series(told: dict[str, Metric]) -> dict[str, set[str]]:
    """Every name that an expression may ask for, with the labels that it was seen with."""
    found: dict[str, set[str]] = {"up": set()}
    for family in told.values():
        labels = {name for sample in family.samples for name in sample.labels}
        for suffix in SUFFIXES.get(family.type, ("",)):
            found[family.name + suffix] = labels
    return found


def dashboard() -> dict[str, Any]:
    read: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return read


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def expressions() -> Iterator[tuple[str, str]]:
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]
    for rule in rules():
        yield rule["alert"], rule["expr"]


@pytest.mark.parametrize(("where", "expression"), list(expressions()))
def test_an_expression_asks_for_what_is_told(
    where: str, expression: str, series: dict[str, set[str]]
) -> None:
    names = SELECTOR.findall(expression)
    assert names, where
    for name, matchers in names:
        assert name in series, f"{where}: nothing tells {name}"
        for label, _, pattern in MATCHER.findall(matchers):
            assert label in series[name] | OF_SCRAPES or not series[name], (where, name, label)
            re.compile(pattern)
    plain = re.sub(r'"[^"]*"', "", expression)
    for opening, closing in ("()", "[]", "{}"):
        assert plain.count(opening) == plain.count(closing), where
    known = set().union(*(series[name] for name, _ in names)) | OF_SCRAPES | {"le", "class"}
    for grouped in GROUPING.findall(plain):
        unknown = {each.strip() for each in grouped.split(",")} - known
        # A family without samples says nothing of its labels.
        assert not unknown or not all(series[name] for name, _ in names), (where, unknown)


def test_matched_values_are_ones_that_are_told(told: dict[str, Metric]) -> None:
    values: dict[str, set[str]] = {}
    for name in ("expunge_jobs", "expunge_workers", "expunge_requests", "expunge_check_ok"):
        for sample in told[name].samples:
            for label, value in sample.labels.items():
                values.setdefault(f"{name}.{label}", set()).add(value)
    for where, expression in expressions():
        for name, matchers in SELECTOR.findall(expression):
            for label, operator, pattern in MATCHER.findall(matchers):
                known = values.get(f"{name}.{label}")
                if known is None or operator in ("!=", "!~"):
                    continue
                for each in pattern.split("|"):
                    assert each in known, (where, name, label, each)


def test_rules_say_how_urgent_they_are_and_what_is_the_matter() -> None:
    names = [rule["alert"] for rule in rules()]
    assert len(names) == len(set(names))
    for rule in rules():
        assert rule.keys() <= {"alert", "expr", "for", "labels", "annotations"}
        assert DURATION.fullmatch(rule.get("for", "0s")), rule["alert"]
        assert rule["labels"]["severity"] in {"page", "ticket"}, rule["alert"]
        assert rule["annotations"]["summary"].endswith((".", "?")), rule["alert"]
        for used in re.findall(r"\$labels\.([a-z]+)", rule["annotations"]["summary"]):
            kept = GROUPING.search(rule["expr"])
            assert kept is None or used in kept.group(1), rule["alert"]


def test_panels_of_the_dashboard_fit_beside_each_other() -> None:
    board = dashboard()
    assert (board["uid"], board["schemaVersion"]) == ("expunge", 39)
    [source] = board["templating"]["list"]
    assert (source["name"], source["type"], source["query"]) == (
        "datasource", "datasource", "prometheus",
    )  # fmt: skip
    panels = board["panels"]
    ids = [panel["id"] for panel in panels]
    assert len(ids) == len(set(ids))
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24, panel["title"]
        cells = {
            (place["x"] + right, place["y"] + down)
            for right in range(place["w"])
            for down in range(place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
        if panel["type"] == "row":
            continue
        assert panel["type"] in {"stat", "timeseries"}
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        references = [target["refId"] for target in panel["targets"]]
        assert len(references) == len(set(references)) > 0
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]


def test_the_example_of_scraping_names_the_jobs_that_rules_ask_for() -> None:
    config = yaml.safe_load(SCRAPING.read_text())
    assert [RULES.name] == config["rule_files"]
    jobs = {each["job_name"] for each in config["scrape_configs"]}
    asked = {
        pattern
        for _, expression in expressions()
        for _, matchers in SELECTOR.findall(expression)
        for label, _, pattern in MATCHER.findall(matchers)
        if label == "job"
    }
    assert asked <= jobs


def test_every_metric_is_explained_and_nothing_else(told: dict[str, Metric]) -> None:
    explained = set(re.findall(r"^\| `(expunge_[a-z_]+)", REFERENCE.read_text(), re.MULTILINE))
    exported = {
        family.name + ("_total" if family.type == "counter" else "")
        for family in told.values()
        if family.name.startswith("expunge_")
    }
    assert explained == exported
