"""An audit on one page: verdict, pictures, numbers, limits, and how to check them. Words what is measured elsewhere.

One self-contained HTML document: no scripts, nothing loaded from anywhere; every string is escaped.
"""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from expunge.evidence.pictures.bundle import Bundle
from expunge.evidence.pictures.heat_maps import level_name, triptych
from expunge.evidence.pictures.score_chart import score_chart
from expunge.evidence.pictures.sheet import number
from expunge.evidence.wording import TRACE_ALPHA, percentage, probability

Report = Mapping[str, Any]

TEMPLATE = "report.html.j2"
NOT_THERE = "–"
HEADLINES = {
    "forgotten": ("✓", "Evidence that your images were forgotten"),
    "unchanged": ("✗", "Nothing changed"),
    "not_for_you": ("✗", "No sign that yours were forgotten"),
    "not_enough_evidence": ("?", "Not enough evidence"),
    "no_reference": ("?", "No verdict"),
}
"""Sign and headline of each verdict."""
LEVELS = {"image_text": "image–text"}
"""Where a level's own name is no word."""
STATISTICS = {
    "forgetting_score": "forgetting score",
    "negative_alignment_change": "pair alignment, change",
    "profile_change": "neighbourhood, rearranged",
    "neighbourhood_alignment": "alignment with all, change",
}
IN_GROUPS = ("forgetting_score", "negative_alignment_change")
"""Statistics that own, kept and control images have each; others are of own among kept ones."""
KEPT = {"plain": "kept ones", "matched": "kept ones of the same kind"}
"""What the test draws from, besides the own images."""
TEST = (
    "Share of {draws:,} random draws from your images and at least {n_alike:,} {kept} that look at least as "
    "unusual; {alpha:g} or less counts as found."
)
ONE = (
    "Share of your image and at least {n_alike:,} {kept} that look at least as unusual; {alpha:g} or less "
    "counts as found."
)
USED = (
    " Without the projector, which only training uses, it is {p}; {alpha:g} or less is needed too."
)
POWER = (
    "Estimated: how often this audit would notice that the model was honestly retrained without "
    "your images."
)
TRACE = {
    True: "Even after the removal, views of your images look more alike to the model than those of "
    "images that it never saw, as views of images that it knows do.",
    False: "After the removal, your images do not look clearly more familiar to the model than "
    "images that it never saw.",
}
"""By whether membership was found."""
KINDS = {
    "asked": "audit of a removal",
    "protocol": "audit of a removal, as fixed beforehand",
    "later_head": "audit of a later version of the model",
}
"""What an audit is about, by its purpose."""
OF_ONE = (
    ("your images were", "your image was"),
    ("yours were", "yours was"),
    ("views of your images look", "views of your image look"),
    ("your images do", "your image does"),
    ("your images", "your image"),
)
"""What is said of many images, and of one."""
NO_TEST = "Too few images of others that the model kept for a test."
NO_REFERENCE = "No test, for the reason named above."


def report_html(
    report: Report,
    bundle: Bundle,
    *,
    audit: Report | None = None,
    request: Report | None = None,
    level: str | None = None,
) -> bytes:
    """The audit as one HTML page; up to 32 images it prints on one sheet of A4.

    Args:
        report: `AuditReport.to_dict()`, with the `protocol` that a service adds to it.
        bundle: its matrices and thumbnails.
        audit: as `GET /audits/{id}` answers: id and time.
        request: as `GET /requests/{id}` answers: id, model, method.
        level: the pictures' level; that of the statistic that stands out most if None.

    Raises:
        ValueError: report or bundle has no such level.
    """
    shown = level or _deciding_level(report)
    sign, headline = HEADLINES.get(report["verdict"]["code"], ("?", report["verdict"]["code"]))
    return (
        _template()
        .render(
            sign=sign,
            headline=_of_one(headline) if report["n_own"] == 1 else headline,
            code=report["verdict"]["code"],
            # The headline has said it already.
            sentence=report["verdict"]["sentence"].removeprefix(f"{headline}. "),
            kind=KINDS[(audit or {}).get("purpose", "asked")],
            compared=_compared(report, audit or {}),
            conclusions=_conclusions(report),
            heat_maps=_embedded(triptych(bundle, shown, sentence="", form="svg")),
            shown=level_name(shown),
            scores=_embedded(score_chart(report, bundle, shown, form="svg")),
            in_picture=len(bundle.keys),
            n=report["n_own"],
            confidence=f"{report['confidence']:.0%}",
            no_test=NO_REFERENCE if report["verdict"]["code"] == "no_reference" else NO_TEST,
            rows=_rows(report),
            hypothesis=report["test"] and report["test"]["hypothesis"],
            audit=audit or {},
            request=request or {},
            protocol=report.get("protocol"),
        )
        .encode()
    )


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("expunge.evidence.pictures", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(TEMPLATE)


def _embedded(svg: bytes) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"


def _deciding_level(report: Report) -> str:
    looks = report["test"]["looks"] if report["test"] else []
    if not looks:
        return str(next(iter(report["levels"])))
    return str(min(looks, key=lambda look: (look["p"], -look["z"]))["level"])


def _of_one(words: str) -> str:
    for plural, singular in OF_ONE:
        words = words.replace(plural, singular)
    return words


def _compared(report: Report, audit: Report) -> list[tuple[str, str]]:
    """What stood on either side, as terms with their values."""
    chosen = []
    if audit.get("draw"):
        chosen = [("drawn at random with seed", f"{audit['draw']['seed']}")]
    elif audit.get("sample_keys"):
        chosen = [("chosen", "by name")]
    return [
        ("Your images", f"{report['n_own']:,}"),
        *chosen,
        ("Images of others, kept", f"{report['n_retained']:,}"),
        ("Images never seen (control)", f"{report['n_control']:,}"),
        ("Random views of each image", f"{report['views']}"),
        ("Seed of the views", f"{report['seed']}"),
    ]


def _conclusions(report: Report) -> list[tuple[str, str, str]]:
    """Name, figure and meaning of what the test found."""
    found = []
    test, power, membership = report["test"], report["power"], report["membership"]
    if test:
        words = ONE if report["n_own"] == 1 else TEST
        drawn = words.format(kept=KEPT[test["reference"]], **test)
        if "p_used" in test and any(look["level"] == "projector" for look in test["looks"]):
            drawn += USED.format(p=probability(test["p_used"]), alpha=test["alpha_used"])
        found.append(("p-value", probability(test["p"]), drawn))
    if power:
        found.append(("Power", percentage(power["power"]), POWER))
    if membership:
        seen = TRACE[membership["p"] <= TRACE_ALPHA]
        found.append(("Trace left", f"p = {probability(membership['p'])}", seen))
    if report["n_own"] == 1:
        return [(name, figure, _of_one(meaning)) for name, figure, meaning in found]
    return found


@dataclass(frozen=True)
class Row:
    """One line of the table of numbers; figures as text."""

    level: str
    """Named in the first row of each level only."""
    statistic: str
    own: str
    kept: str
    control: str
    p: str


def _rows(report: Report) -> list[Row]:
    rows = []
    for level, own in report["levels"].items():
        groups = (own, own["retained"], own["control"])
        looks = {
            look["statistic"]: look
            for look in (report["test"]["looks"] if report["test"] else ())
            if look["level"] == level
        }
        scores = [group and group["forgetting_score"] for group in groups]
        rows.append(_row(LEVELS.get(level, level), "forgetting_score", scores, looks))
        if own["negative_alignment"]:
            negatives = [group and group["negative_alignment"] for group in groups]
            changes = [negative and negative["change"] for negative in negatives]
            rows.append(_row("", "negative_alignment_change", changes, looks))
        rows.extend(_row_of_test(look) for name, look in looks.items() if name not in IN_GROUPS)
    return rows


def _row(
    level: str, statistic: str, groups: list[Report | None], looks: Mapping[str, Report]
) -> Row:
    own, kept, control = (_estimate(group) for group in groups)
    p = probability(looks[statistic]["p"]) if statistic in looks else NOT_THERE
    return Row(level, STATISTICS[statistic], own, kept, control, p)


def _row_of_test(look: Report) -> Row:
    """A statistic that only the test knows: own images have it, and no group by itself."""
    statistic = look["statistic"]
    name = STATISTICS.get(statistic, statistic.replace("_", " "))
    own, p = number(look["value"], "+.4f"), probability(look["p"])
    return Row("", name, own, NOT_THERE, NOT_THERE, p)


def _estimate(estimate: Report | None) -> str:
    """`+0.0120 [+0.0100, +0.0140]`; a dash where there is no number."""
    if not estimate:
        return NOT_THERE
    mean = number(estimate["mean"], "+.4f")
    if not estimate["interval"]:
        return mean
    low, high = (number(end, "+.4f") for end in estimate["interval"])
    return f"{mean} [{low}, {high}]"
