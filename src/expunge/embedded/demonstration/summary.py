"""What the demo leaves behind: summary.json for programs, a table and plain sentences for people."""

import json
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.padding import Padding

from expunge.client.findings import findings_table
from expunge.client.reports import AuditReport, Difference
from expunge.client.resources import Job
from expunge.embedded.demonstration.setting import Setting
from expunge.embedded.demonstration.story import Outcome, OwnerOutcome


@dataclass(frozen=True)
class Run:
    """What belongs to the run, not to the outcome."""

    setting: Setting
    seed: int
    data: str
    startup_seconds: float
    total_seconds: float


def write_summary(path: Path, outcome: Outcome, run: Run) -> None:
    """Write summary.json."""
    document = {
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "expunge": version("expunge"),
        "data": run.data,
        "seed": run.seed,
        "setting": asdict(run.setting),
        "images": {
            "retained": outcome.retained.samples,
            "control": outcome.control.samples,
            **{found.owner.slug: found.dataset.samples for found in outcome.owners},
        },
        "owners": [_owner(found, path.parent) for found in outcome.owners],
        "checkpoints": {
            "base": {"id": outcome.base.id, "digest": outcome.base.digest},
            "result": {"id": outcome.result.id, "digest": outcome.result.digest},
        },
        "seconds": {
            "startup": round(run.startup_seconds, 2),
            "pretraining": _metric(outcome.pretraining, "seconds"),
            "unlearning": _metric(outcome.unlearning, "seconds"),
            "audits": [round(found.audit_seconds, 2) for found in outcome.owners],
            "total": round(run.total_seconds, 2),
        },
        "images_per_second": {
            "pretraining": _metric(outcome.pretraining, "images_per_second"),
            "unlearning": _metric(outcome.unlearning, "images_per_second"),
        },
        "hardware": {
            **{
                name: _metric(outcome.unlearning, name)
                for name in ("hardware", "device", "precision")
            },
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
            "platform": platform.platform(),
            "python": platform.python_version(),
        },
    }
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def print_summary(console: Console, outcome: Outcome, run: Run) -> None:
    """The tables and what they mean."""
    for found in outcome.owners:
        console.print()
        console.print(findings_table(found.report, title=f"[bold]{found.owner.name}"))
        console.print(f"[bold]Verdict:[/] {found.report.verdict.sentence}", highlight=False)
    console.print("\n[bold]What this means[/]")
    for sentence in explanation([found.report for found in outcome.owners]):
        console.print(Padding(f"• {sentence}", (0, 0, 0, 2)), highlight=False)
    jobs = {"pre-training": outcome.pretraining, "unlearning": outcome.unlearning}
    console.print("\n[bold]What it cost[/]")
    for name, job in jobs.items():
        speed = float(_metric(job, "images_per_second") or 0)
        seconds = float(_metric(job, "seconds") or 0)
        console.print(f"  {name}: {seconds:.1f} s, {speed:,.0f} images/s", highlight=False)
    console.print(
        f"  start of the stack: {run.startup_seconds:.1f} s; all: {run.total_seconds:.0f} s; "
        f"{_metric(outcome.unlearning, 'hardware')}, {_metric(outcome.unlearning, 'precision')}",
        highlight=False,
    )
    console.print("\n[bold]Checkpoints[/]")
    for name, checkpoint in (("before", outcome.base), ("after", outcome.result)):
        console.print(f"  {name}: {checkpoint.digest}", soft_wrap=True, highlight=False)


def explanation(reports: list[AuditReport]) -> list[str]:
    """What the numbers say and what they do not say, in sentences."""
    terms = (
        "Forgetting score: how much less alike two views of one photo look to the encoder than "
        "before. Negative alignment: how alike different photos of one owner look to it."
    )
    sentences = [terms]
    detected = sum(report.verdict.code == "forgotten" for report in reports)
    sentences.append(
        f"For {detected} of {len(reports)} owners the audit finds that the encoder changed on their "
        "photos in another way than on photos that it kept. These change too: a heat map alone is "
        "no evidence."
    )
    sentences += [_about(level, reports) for level in ("encoder", "projector")]
    sentences.append(
        "No audit of outputs can prove that nothing is left of the photos: it shows that and how "
        "the encoder was changed for them."
    )
    return sentences


def _about(level: str, reports: list[AuditReport]) -> str:
    """One level's two statistics: how many owners' intervals exclude zero."""
    counts = {"forgetting score": 0, "change of negative alignment": 0}
    for report in reports:
        contrast = report.levels[level].contrast
        if contrast is None:
            return f"{level}: no comparison with control photos was possible."
        looks = (contrast.forgetting_score, contrast.negative_alignment_change)
        for name, look in zip(counts, looks, strict=True):
            counts[name] += _excludes_zero(look)
    found = "; ".join(
        f"the {name} {'differs' if count else 'does not differ'} from the control's"
        + (f" for {count} of {len(reports)} owners" if count else "")
        for name, count in counts.items()
    )
    return f"{level.capitalize()} outputs: {found}."


def _excludes_zero(look: Difference | None) -> bool:
    if look is None or look.interval is None:
        return False
    low, high = look.interval
    return low > 0 or high < 0


def _owner(found: OwnerOutcome, folder: Path) -> dict[str, Any]:
    levels = {}
    for name, level in found.report.levels.items():
        document = level.model_dump(mode="json")
        document["forgetting_score"].pop("per_sample", None)
        levels[name] = document
    return {
        "name": found.owner.name,
        "images": found.dataset.samples,
        "request_id": found.request.id,
        "audit_id": found.audit.id,
        "verdict": found.report.verdict.model_dump(mode="json"),
        "levels": levels,
        "pictures": [str(picture.relative_to(folder)) for picture in found.pictures],
    }


def _metric(job: Job, name: str) -> Any:
    metrics: Mapping[str, Any] = job.metrics or {}
    return metrics.get(name)
