"""`expunge audit`: what a completed request did to one's own samples, as numbers and heat maps."""

from pathlib import Path
from typing import Annotated, get_args

import typer

from expunge.client.commands.session import CommandError, Session, command
from expunge.client.findings import findings_table
from expunge.client.heatmap import SHADES, heat_map, letter_map
from expunge.client.reports import Audit
from expunge.client.resources import Level, Which
from expunge.evidence.pictures.scales import alignment_scale, gap_scale

LEVELS: tuple[Level, ...] = get_args(Level)
PICTURES: tuple[Which, ...] = get_args(Which)


def add_to(app: typer.Typer) -> None:
    """Register the command; it stands at the top, not in a group."""
    command(app, "audit")(audit)


def audit(
    session: Session,
    request: Annotated[str, typer.Argument(metavar="REQUEST", help="A completed request, req_…")],
    *,
    dataset: Annotated[
        list[str] | None, typer.Option("--dataset", help="Only these of its data sets; repeatable.")
    ] = None,
    matrix_size: Annotated[int | None, typer.Option(help="Samples in the matrices.")] = None,
    views: Annotated[int | None, typer.Option(help="Random views per sample.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the views.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the heat maps (PNG); made if missing.")
    ] = None,
) -> None:
    """Audit a completed request over your own samples.

    Shows forgetting score and negative alignment next to control images that nobody asked to
    forget, and draws the alignment matrices before and after and the gap between them.

    Example: expunge audit req_… --out audit/
    """
    done = session.client.audit(
        request, dataset_ids=dataset, matrix_size=matrix_size, views=views, seed=seed
    )
    if done.state != "succeeded" or done.report is None:
        raise CommandError(f"the audit {done.state}: {done.reason or 'no reason given'}")
    saved = save_pictures(session, done, out) if out is not None else []
    if session.as_json:
        session.print_json(done.model_dump(mode="json"))
        return
    for level in LEVELS:
        if level in done.report.levels:
            _draw(session, done, level)
    session.out.print(findings_table(done.report))
    session.out.print(f"[bold]{done.report.verdict.sentence}")
    for path in saved:
        session.out.print(f"[dim]{path}", highlight=False)


def save_pictures(session: Session, done: Audit, out: Path) -> list[Path]:
    """Save every picture the audit has into `out`."""
    out.mkdir(parents=True, exist_ok=True)
    return [
        session.client.download_picture(done.id, which, level, out / f"{level}-{which}.png")
        for level in LEVELS
        if level in (done.pictures or {})
        for which in PICTURES
    ]


def _draw(session: Session, done: Audit, level: Level) -> None:
    matrices = {which: session.client.matrix(done.id, which, level) for which in PICTURES}
    alike = alignment_scale(matrices["before"], matrices["after"])
    for which, matrix in matrices.items():
        scale, centre = (gap_scale(matrix), ", white 0") if which == "gap" else (alike, "")
        if session.out.color_system is None:
            ends = f"'{SHADES[0]}' {scale.low:+.3g} to '{SHADES[-1]}' {scale.high:+.3g}"
            session.out.print(f"{level}, {which} ({ends})", highlight=False)
            session.out.print(letter_map(matrix, scale), markup=False, highlight=False)
            continue
        low, high = ("blue", "orange") if which == "gap" else ("dark", "bright")
        ends = f"{low} {scale.low:+.3g}{centre}, {high} {scale.high:+.3g}"
        session.out.print(f"[bold]{level}, {which}[/] [dim]({ends})")
        session.out.print(heat_map(matrix, scale))
