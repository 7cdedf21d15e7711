"""`expunge audit`: what a completed request did to one's own samples, as numbers and heat maps."""

from pathlib import Path
from typing import Annotated, get_args

import typer

from expunge.client.commands.encodings import audit_here
from expunge.client.commands.replay import replay_here
from expunge.client.commands.session import CommandError, Session, command
from expunge.client.findings import evidence, findings_table
from expunge.client.heatmap import SHADES, heat_map, letter_map
from expunge.client.reports import Audit, AuditReport
from expunge.client.resources import Level, Which
from expunge.evidence.pictures.scales import alignment_scale, gap_scale

LEVELS: tuple[Level, ...] = get_args(Level)
PICTURES: tuple[Which, ...] = get_args(Which)


def add_to(app: typer.Typer) -> None:
    """Register the command; it stands at the top, not in a group."""
    command(app, "audit")(audit)


def audit(
    session: Session,
    request: Annotated[
        str | None, typer.Argument(metavar="REQUEST", help="A completed request, req_…")
    ] = None,
    *,
    dataset: Annotated[
        list[str] | None, typer.Option("--dataset", help="Only these of its data sets; repeatable.")
    ] = None,
    sample: Annotated[
        list[str] | None,
        typer.Option(
            "--sample", help="Only these samples: KEY, or dst_…/KEY of several; repeatable."
        ),
    ] = None,
    draw: Annotated[int | None, typer.Option(min=1, help="Only so many, drawn at random.")] = None,
    draw_seed: Annotated[int, typer.Option(min=0, help="Seed of the draw.")] = 0,
    matrix_size: Annotated[int | None, typer.Option(help="Samples in the matrices.")] = None,
    views: Annotated[int | None, typer.Option(help="Random views per sample.")] = None,
    seed: Annotated[
        int | None,
        typer.Option(help="Seed of the views; without it the one of the service's own audits."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the report and the heat maps; made if missing.")
    ] = None,
    local: Annotated[
        bool, typer.Option("--local", help="Compute it here, from both encoders' outputs.")
    ] = False,
    signing_key: Annotated[
        list[Path] | None,
        typer.Option(
            help="With --local or --replay: a public key (PEM) that must have signed; repeatable."
        ),
    ] = None,
    replay: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|AUDIT",
            help="Repeat an earlier audit here and compare: what `--json` printed, or its id, aud_….",
        ),
    ] = None,
) -> None:
    """Audit a completed request over your own samples.

    Shows forgetting score and negative alignment next to images that the model kept and others
    that it never saw, what a test makes of them, and draws the alignment matrices before and after
    and the gap between them.

    Example: expunge audit req_… --out audit/
    """
    if replay is not None:
        if request is not None:
            raise CommandError("--replay says itself which request")
        replay_here(session, replay, signing_key or [])
        return
    if request is None:
        raise CommandError("name a completed request, req_…, or an audit to --replay")
    drawn = None if draw is None else {"samples": draw, "seed": draw_seed}
    if local:
        audit_here(
            session,
            request,
            out=out,
            signing_key=signing_key or [],
            dataset_ids=dataset,
            sample_keys=sample,
            draw=drawn,
            matrix_size=matrix_size,
            views=views,
            seed=seed,
        )
        return
    done = session.client.audit(
        request,
        dataset_ids=dataset,
        sample_keys=sample,
        draw=drawn,
        matrix_size=matrix_size,
        views=views,
        seed=seed,
    )
    if done.state != "succeeded" or done.report is None:
        raise CommandError(f"the audit {done.state}: {done.reason or 'no reason given'}")
    _tell(session, done, done.report, out)


def _tell(session: Session, done: Audit, report: AuditReport, out: Path | None) -> None:
    saved = save_pictures(session, done, out) if out is not None else []
    if session.as_json:
        session.print_json(done.as_told())
        return
    for level in LEVELS:
        if level in report.levels:
            _draw(session, done, level)
    session.out.print(findings_table(report))
    session.out.print(f"[bold]{report.verdict.sentence}")
    for sentence in evidence(report):
        session.out.print(sentence, highlight=False)
    session.hint(f"Audit {done.id} of {done.request_id}")
    for path in saved:
        session.hint(str(path))


def save_pictures(session: Session, done: Audit, out: Path) -> list[Path]:
    """Save the report and every heat map that the audit has into `out`."""
    out.mkdir(parents=True, exist_ok=True)
    page = session.client.download_report(done.id, out / "report.html")
    return [
        page,
        *(
            session.client.download_picture(done.id, which, level, out / f"{level}-{which}.png")
            for level in LEVELS
            if level in (done.pictures or {})
            for which in PICTURES
        ),
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
