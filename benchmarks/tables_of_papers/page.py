"""The result of one scale and framework as JSON, CSV, picture and a page beside the paper's numbers."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from expunge.unlearning.comparison import Comparison, to_csv, to_dict, to_markdown, write_chart

REFERENCE = Path(__file__).parent / "reference.json"
CAVEAT = (
    "Best setting of each method by average gap to Retrain, settings that failed under any seed left "
    "out. The paper's gaps (arXiv 2406.03603) are of all of CIFAR-10 or COCO after 800 epochs of "
    "pre-training (CLIP: 35): where less was run here, only the order can be compared."
)


def write(
    folder: Path, name: str, comparison: Comparison, paper: str, facts: Mapping[str, Any]
) -> Path:
    """Write `name`.json, .csv, .png and .md; return the page's path."""
    framework = comparison.settings.framework
    folder.mkdir(parents=True, exist_ok=True)
    content = {**facts, "comparison": to_dict(comparison)}
    (folder / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
    (folder / f"{name}.csv").write_text(to_csv(comparison))
    write_chart(comparison, folder / f"{name}.png")
    conditions = "\n".join(f"- {key.replace('_', ' ')}: {value}" for key, value in facts.items())
    page = folder / f"{name}.md"
    page.write_text(
        f"# {facts['title']}\n\n{conditions}\n\n{to_markdown(comparison)}\n"
        f"![chart]({name}.png)\n\n{_beside(comparison, paper, framework)}"
    )
    return page


def _beside(comparison: Comparison, paper: str, framework: str) -> str:
    """The best setting of each method beside the paper's average gap."""
    table = json.loads(REFERENCE.read_text())["clip_coco_10pct" if framework == "clip" else paper]
    printed = _printed(table, framework)
    best: dict[str, tuple[float, str]] = {}
    for row in comparison.rows:
        if row.failure is None and row.avg_gap is not None and row.method is not None:
            found = (row.avg_gap.value, row.label)
            best[row.method] = min(best.get(row.method, found), found)
    lines = [
        "## Beside the paper",
        "",
        CAVEAT,
        "",
        "| method | our best setting | our avg. gap | paper's avg. gap |",
        "|---|---|---|---|",
    ]
    for method, (gap, label) in sorted(best.items(), key=lambda entry: entry[1]):
        theirs = printed.get(method)
        lines.append(
            f"| {method} | {label} | {gap:.2f} | {theirs if theirs is not None else '-'} |"
        )
    return "\n".join(lines) + "\n"


def _printed(table: Mapping[str, Any], framework: str) -> dict[str, float | None]:
    if framework == "clip":
        return {m: row[2] for m, row in table.items() if isinstance(row, list)}
    rows = table[framework]
    if "avg_gap" in rows:
        return dict(rows["avg_gap"])
    return {method: row[5] for method, row in rows.items()}
