"""A comparison as JSON, CSV and Markdown. Computes no statistic."""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from expunge.unlearning.comparison.records import Cell, Comparison, Gap, Relearning, Row

Array = NDArray[np.float64]

TITLES = {
    "emia": "EMIA",
    "ra": "RA",
    "ta": "TA",
    "ua": "UA",
    "cmia": "CMIA",
    "cosine_retain": "Cosine on R",
    "cosine_unlearn": "Cosine on U",
}
OVERDONE, RECALLED = "†", "‡"
LEGEND = {
    OVERDONE: "beyond Retrain on the side of forgetting by more than the uncertainty: over-unlearned",
    RECALLED: "time of the run that made the kept weights",
}

MIN_GROUP = 20
"""Samples behind each number of the scores' groups: fewer would tell of single ones, which are their owners'."""
MAX_GROUPS = 10
SCORE_COLUMNS = ("label", "seed", "score", "group", "n", "mean")


def to_dict(comparison: Comparison) -> dict[str, Any]:
    """All but the per-sample values, ready for JSON; every number with its samples and seeds."""
    agreement, recommended = comparison.rank_agreement, comparison.recommended
    return {
        "settings": asdict(comparison.settings),
        "columns": columns_of(comparison),
        "rows": [asdict(row) for row in comparison.rows],
        "rank_agreement": asdict(agreement) if agreement else None,
        "recommended": asdict(recommended) if recommended else None,
        "notes": list(comparison.notes),
    }


def columns_of(comparison: Comparison) -> list[str]:
    """Ids of the columns that gaps are averaged over, in the table's order."""
    return list(comparison.rows[0].columns)


def to_csv(comparison: Comparison) -> str:
    """One line a row, with everything that Markdown leaves out; empty where there is nothing."""
    columns = columns_of(comparison)
    records = [_record(row, columns) for row in comparison.rows]
    return _csv(records, records[0])


def scores_csv(comparison: Comparison) -> str:
    """How the unlearn samples' scores are spread, for each row of the table and seed.

    Sorted and cut into at most MAX_GROUPS groups of at least MIN_GROUP samples, of which the mean is
    told and no single score; nothing where there are fewer samples.
    """
    lines: list[dict[str, object]] = []
    for scores in comparison.samples:
        arrays = {"emia": scores.alignment, "forgetting_score": scores.forgetting_score}
        if scores.confidence is not None:
            arrays["cmia"] = scores.confidence
        for name, values in arrays.items():
            lines += [
                {
                    "label": scores.label,
                    "seed": scores.seed,
                    "score": name,
                    "group": number,
                    "n": len(group),
                    "mean": f"{group.mean():.6f}",
                }
                for number, group in enumerate(_groups(values), 1)
            ]
    return _csv(lines, SCORE_COLUMNS)


def _groups(values: Array) -> list[Array]:
    """Of sorted values, lowest first."""
    count = min(MAX_GROUPS, len(values) // MIN_GROUP)
    return np.array_split(np.sort(values), count) if count else []


def to_markdown(comparison: Comparison) -> str:
    """The paper's table: value (gap) by column, with the recommended row in bold and the reason."""
    columns = columns_of(comparison)
    header = ["Method", *(title(column) for column in columns), "Avg. gap", "Proxy gap", "FS"]
    header.append("RTE (min)")
    relearned = any(row.relearning for row in comparison.rows)
    if relearned:
        header.append("Relearn (epochs)")
    chosen = comparison.recommended.label if comparison.recommended else None
    body = []
    for row in comparison.rows:
        texts = [row.label, *_figures(row, columns)]
        if relearned:
            texts.append(relearning_text(row.relearning))
        bold = row.label == chosen and row.kind == "candidate"
        body.append([f"**{text}**" if bold else text for text in texts])
    align = ["---", *["--:"] * (len(header) - 1)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in (header, align, *body))
    return "\n\n".join([table, *_remarks(comparison, table)]) + "\n"


def title(column: str) -> str:
    """A column's name as tables show it."""
    return TITLES.get(column, column.replace("_", " "))


def relearning_text(relearning: Relearning | None) -> str:
    """Epochs by seed, `>10` where the cap was not enough."""
    if relearning is None:
        return "–"
    cap = f">{relearning.cap}"
    return ", ".join(cap if epochs is None else str(epochs) for epochs in relearning.epochs)


def _figures(row: Row, columns: Sequence[str]) -> list[str]:
    if not row.columns:
        return ["failed", *["–"] * (len(columns) + 3)]
    values = [_value_and_gap(row, column) for column in columns]
    minutes = "–" if row.minutes is None else f"{row.minutes.mean:.2f}"
    return [
        *values,
        _number(row.avg_gap, 2),
        _number(row.proxy_gap, 2),
        _number(row.forgetting_score, 4, row.forgetting_score_gap),
        minutes + RECALLED * row.reused,
    ]


def _value_and_gap(row: Row, column: str) -> str:
    mark = OVERDONE if column in row.over_unlearned else ""
    return _number(row.columns[column], 2, row.gaps.get(column)) + mark


def _number(figure: Cell | Gap | None, digits: int, gap: Gap | None = None) -> str:
    if figure is None:
        return "–"
    text = f"{figure.mean if isinstance(figure, Cell) else figure.value:.{digits}f}"
    if isinstance(figure, Cell) and figure.std is not None:
        text += f" ± {figure.std:.{digits}f}"
    return text if gap is None else f"{text} ({gap.value:.{digits}f})"


def _remarks(comparison: Comparison, table: str) -> Iterable[str]:
    settings = comparison.settings
    chosen = comparison.recommended
    if chosen:
        yield f"Recommended: {chosen.why.replace(chosen.label, f'**{chosen.label}**', 1)}"
    else:
        yield "Nothing is recommended: no candidate succeeded."
    yield (
        "Percent, or cosines times 100, and in brackets the gap to Retrain; ± is the standard "
        "deviation over seeds. "
        f"{settings.sizes['retain']} retained, {settings.sizes['forget']} unlearn and "
        f"{settings.sizes['test']} test samples; seeds {', '.join(map(str, settings.seeds))}; "
        f"protocol {settings.protocol}; {settings.device}, {settings.precision}."
    )
    for mark, meaning in LEGEND.items():
        if mark in table:
            yield f"{mark} {meaning}."
    agreement = comparison.rank_agreement
    if agreement:
        yield (
            f"The proxy gap orders the {agreement.n} settings as the average gap does with Kendall's "
            f"tau {agreement.kendall_tau:.2f} and Spearman's rho {agreement.spearman_rho:.2f}."
        )
    failed = [f"{row.label} failed: {row.failure}." for row in comparison.rows if row.failure]
    yield from [*failed, *comparison.notes]


def _record(row: Row, columns: Sequence[str]) -> dict[str, object]:
    record: dict[str, object] = {
        "label": row.label,
        "kind": row.kind,
        "method": row.method or "",
        "params": "" if row.params is None else json.dumps(row.params, sort_keys=True),
        "failure": row.failure or "",
    }
    for column in columns:
        record |= _cell_fields(column, row.columns.get(column))
        record |= _gap_fields(f"{column}_gap", row.gaps.get(column))
    record |= _gap_fields("avg_gap", row.avg_gap)
    record |= _gap_fields("proxy_gap", row.proxy_gap)
    record |= _cell_fields("forgetting_score", row.forgetting_score)
    record |= _gap_fields("forgetting_score_gap", row.forgetting_score_gap)
    record |= _cell_fields("minutes", row.minutes)
    tests = {
        "ks": [each.kolmogorov_smirnov for each in row.tests],
        "mann_whitney": [each.mann_whitney for each in row.tests],
    }
    for name, results in tests.items():
        record[f"{name}_statistic"] = " ".join(f"{each.statistic:.6g}" for each in results)
        record[f"{name}_p"] = " ".join(f"{each.p_value:.6g}" for each in results)
    record["tow"] = "" if row.tow is None else f"{row.tow:.6g}"
    record["over_unlearned"] = " ".join(row.over_unlearned)
    record["relearn_epochs"] = "" if row.relearning is None else relearning_text(row.relearning)
    record["reused"] = int(row.reused)
    return record


def _cell_fields(name: str, cell: Cell | None) -> dict[str, object]:
    interval = cell.interval if cell and cell.interval else [None, None]
    return {
        name: _plain(cell.mean if cell else None),
        f"{name}_std": _plain(cell.std if cell else None),
        f"{name}_low": _plain(interval[0]),
        f"{name}_high": _plain(interval[1]),
        f"{name}_n": "" if cell is None or cell.n is None else cell.n,
        f"{name}_seeds": " ".join(map(str, cell.seeds)) if cell else "",
    }


def _gap_fields(name: str, gap: Gap | None) -> dict[str, object]:
    return {
        name: _plain(gap.value if gap else None),
        f"{name}_uncertainty": _plain(gap.uncertainty if gap else None),
    }


def _plain(value: float | None) -> str:
    return "" if value is None else f"{value:.8g}"


def _csv(lines: Sequence[Mapping[str, object]], columns: Iterable[str]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()
