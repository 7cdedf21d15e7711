"""`expunge encode` and `expunge audit --local`: outputs of both encoders, kept and audited on this machine."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from expunge.client.commands.session import CommandError, Session, command
from expunge.client.problems import DoubtError

if TYPE_CHECKING:
    from expunge.client.encodings import Receipt
    from expunge.client.local_audit import LocalAudit
    from expunge.evidence.signing import PublicKey

OUTPUTS_FILE, RECEIPT_FILE = "outputs.npz", "receipt.json"

PLACED = {
    "forgetting_score": "forgetting score",
    "negative_alignment_change": "change of alignment",
}
"""What own numbers are placed by, in words."""


def add_to(app: typer.Typer) -> None:
    """Register the command that stands at the top."""
    command(app, "encode")(encode)


def encode(
    session: Session,
    request: Annotated[str, typer.Argument(metavar="REQUEST", help="A completed request, req_…")],
    *,
    out: Annotated[Path, typer.Option(help="Folder for outputs and receipt; made if missing.")],
    dataset: Annotated[
        list[str] | None, typer.Option("--dataset", help="Only these of its data sets; repeatable.")
    ] = None,
    sample: Annotated[
        list[str] | None, typer.Option("--sample", help="Only these samples; repeatable.")
    ] = None,
    views: Annotated[int | None, typer.Option(help="Random views per sample.")] = None,
    seed: Annotated[
        int | None,
        typer.Option(help="Seed of the views; without it the one of the service's own audits."),
    ] = None,
    own_views: Annotated[
        Path | None, typer.Option(help="A tar of views that you made, instead of all the above.")
    ] = None,
) -> None:
    """Fetch what the encoders before and after a request say about your samples, with a signed receipt.

    Example: expunge encode req_… --out encoding/
    """
    if own_views is not None and (dataset or sample or views is not None or seed is not None):
        raise CommandError("--own-views says itself which samples and views; leave out the others")
    made = (
        session.client.encode(
            request, dataset_ids=dataset, sample_keys=sample, views=views, seed=seed
        )
        if own_views is None
        else session.client.encode_views(request, own_views)
    )
    if made.state != "succeeded" or made.receipt is None:
        raise DoubtError(f"the encoding {made.state}: {made.reason}")
    _keep(out, session.client.encoding_outputs(made.id), made.receipt.model_dump(mode="json"))
    if session.as_json:
        session.print_json(made.model_dump(mode="json"))
        return
    kept = f"{made.id}: outputs of {made.before.checkpoint_id} and {made.after.checkpoint_id}"
    session.out.print(f"{kept}, {made.views} views a sample", highlight=False)
    session.hint(f"Kept in {out}: {OUTPUTS_FILE}, {RECEIPT_FILE}; {_signature(made.receipt)}")


def _signature(receipt: "Receipt") -> str:
    # Imported here: as little as a command needs.
    from expunge.evidence.signing import BadSignature, signed_by  # noqa: PLC0415

    if receipt.envelope is None:
        return "the receipt is not signed: this service has no signing key"
    try:
        return f"the receipt is signed as key {signed_by(receipt.envelope)}, not checked here"
    except BadSignature as error:
        raise DoubtError(f"the receipt: {error}") from error


def public_keys(paths: Sequence[Path]) -> "list[PublicKey]":
    """The keys in these files.

    Raises:
        CommandError: one of them holds none.
    """
    # Imported here: as little as a command needs.
    from expunge.evidence.signing import PublicKey, UnusableKey  # noqa: PLC0415

    found = []
    for path in paths:
        try:
            found.append(PublicKey.from_pem(path.read_bytes()))
        except UnusableKey as error:
            raise CommandError(f"{path}: {error}") from error
    return found


def audit_here(
    session: Session,
    request: str,
    *,
    out: Path | None,
    signing_key: Sequence[Path],
    **asked: Any,
) -> None:
    """`expunge audit --local`: the same statistics, computed from outputs on this machine."""
    given = {name: value for name, value in asked.items() if value is not None}
    found = session.client.audit_at_home(request, keys=public_keys(signing_key), **given)
    saved = [] if out is None else _save(session, found, out)
    if session.as_json:
        session.print_json(
            {
                "encoding": found.encoding.model_dump(mode="json"),
                "report": found.report.to_dict(),
                "places": found.places,
                "p": found.p,
                "signed_by": found.signed_by,
            }
        )
        return
    for level, report in found.report.levels.items():
        score, negative = report.own.forgetting_score, report.own.negative_alignment
        session.out.print(f"[bold]{level}[/] forgetting score {_shown(score)}", highlight=False)
        if negative is not None:
            session.out.print(f"  change of alignment {_shown(negative.change)}", highlight=False)
        for name, (low, high) in ((found.places or {}).get(level) or {}).items():
            session.out.print(
                f"  [dim]among kept images, by its {PLACED[name]}: p from {low:.3g} to {high:.3g}",
                highlight=False,
            )
    session.out.print(f"[bold]{found.sentence}")
    signed = (
        f"signed by {found.signed_by}"
        if found.signed_by
        else "signature not checked (--signing-key)"
    )
    session.out.print(f"[dim]outputs fit the receipt and the request's weights; {signed}")
    for path in saved:
        session.out.print(f"[dim]{path}", highlight=False)


def _shown(statistic: Any) -> str:
    interval = statistic.interval
    ends = "" if interval is None else f" [{interval[0]:+.4f},{interval[1]:+.4f}]"
    return f"{statistic.mean:+.4f}{ends}"


def _save(session: Session, found: "LocalAudit", out: Path) -> list[Path]:
    """Outputs, receipt and the heat maps that `expunge audit --out` would fetch."""
    from expunge.evidence.pictures.heat_maps import triptych  # noqa: PLC0415 - brings matplotlib

    encoding = found.encoding
    assert encoding.receipt is not None  # noqa: S101 - an audit was made from it
    data = session.client.encoding_outputs(encoding.id)
    saved = _keep(out, data, encoding.receipt.model_dump(mode="json"))
    for level in found.bundle.levels:
        path = out / f"{level}.png"
        path.write_bytes(triptych(found.bundle, level, sentence=found.sentence))
        saved.append(path)
    return saved


def _keep(out: Path, data: bytes, receipt: dict[str, Any]) -> list[Path]:
    out.mkdir(parents=True, exist_ok=True)
    paths = [out / OUTPUTS_FILE, out / RECEIPT_FILE]
    paths[0].write_bytes(data)
    paths[1].write_text(json.dumps(receipt, indent=2) + "\n")
    return paths
