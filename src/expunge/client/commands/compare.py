"""`expunge compare` and `expunge comparisons …`: which method to use for a removal, measured."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from expunge.client.commands.session import (
    CommandError,
    Session,
    command,
    pairs,
    setting,
    value_of,
)
from expunge.client.comparing import follow, result_table, standing
from expunge.client.comparisons import Comparison, ComparisonResult
from expunge.client.resources import FINAL_COMPARISON_STATES

app = typer.Typer(no_args_is_help=True, help="Comparisons of methods (model owners).")

ComparisonId = Annotated[str, typer.Argument(metavar="COMPARISON", help="Id, cmp_…")]
Out = Annotated[
    Path | None,
    typer.Option(help="Folder for tables (JSON, CSV, Markdown), chart and spread of scores."),
]


def add_to(top: typer.Typer) -> None:
    """Register the command, which stands at the top, and the group."""
    command(top, "compare")(compare)
    top.add_typer(app, name="comparisons")


def compare(
    session: Session,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Id, mdl_…")],
    datasets: Annotated[
        list[str], typer.Argument(metavar="DATASET", help="What would be forgotten, dst_…")
    ],
    *,
    method: Annotated[
        list[str] | None,
        typer.Option(help="METHOD or METHOD:name=value,…; repeatable."),
    ] = None,
    grid: Annotated[
        list[str] | None,
        typer.Option(
            help="name=value,value… tries each value with every method that has the parameter; "
            "METHOD:name=value,… with that one; repeatable."
        ),
    ] = None,
    search: Annotated[
        str | None,
        typer.Option(
            help="METHOD or METHOD:name=value,…: search its other parameters instead, for the "
            "smallest gap to Retrain if --with-retrain, else by a proxy."
        ),
    ] = None,
    trials: Annotated[
        int | None, typer.Option(help="Settings that --search tries, 10 if left out.")
    ] = None,
    with_retrain: Annotated[
        bool, typer.Option("--with-retrain", help="Also retrain from scratch, as the yardstick.")
    ] = False,
    retrain_param: Annotated[
        list[str] | None, typer.Option(help="Parameter of Retrain, e.g. epochs=200; repeatable.")
    ] = None,
    seeds: Annotated[str, typer.Option(help="Seeds, with commas between.")] = "0",
    keep_best: Annotated[
        bool,
        typer.Option("--keep-best", help="Keep the epoch of each setting with the best proxy gap."),
    ] = False,
    relearn: Annotated[
        bool, typer.Option("--relearn", help="Measure how soon it is learned again.")
    ] = False,
    protocol: Annotated[str, typer.Option(help="corrected or released.")] = "corrected",
    out: Out = None,
) -> None:
    """Compare unlearning methods on your model's head for one removal; changes nothing.

    Example: expunge compare mdl_… dst_… --method alignment_calibration --grid beta=0,8
    --method fine_tune:epochs=5 --with-retrain --seeds 0,1,2 --out comparison/
    """
    wanted = _search(search, trials, with_retrain=with_retrain)
    if (wanted is None) == (not method):
        raise CommandError("name at least one --method, or else --search one")
    if grid and not method:
        raise CommandError("--grid goes with --method; --search has the ranges of the papers")
    if out is not None:
        # Where it cannot be made, that is said now and not after hours of work.
        out.mkdir(parents=True, exist_ok=True)
    started = session.client.comparisons.create(
        model,
        datasets,
        _methods(session, method, grid or []) if method else None,
        search=wanted,
        with_retrain=with_retrain,
        retrain_params=pairs(retrain_param),
        seeds=_seeds(seeds),
        relearn=relearn,
        keep_best=keep_best,
        protocol=protocol,  # type: ignore[arg-type]  # the service says which there are
        wait=False,
    )
    session.hint(f"It goes on if you leave: expunge comparisons watch {started.id}")
    _finish(session, started.id, out)


@command(app, "list")
def list_(session: Session) -> None:
    """List your comparisons."""
    session.show_list(
        session.client.comparisons.list(),
        [
            ("id", lambda item: item.id),
            ("model", lambda item: item.model_id),
            ("data sets", lambda item: len(item.dataset_ids)),
            ("settings", lambda item: len(item.settings["candidates"]) or "search"),
            ("state", lambda item: item.state),
            ("created", lambda item: f"{item.created_at:%Y-%m-%d %H:%M}"),
        ],
    )


@command(app, "show")
def show(session: Session, comparison: ComparisonId, *, out: Out = None) -> None:
    """Show one comparison as it is now: its table when it has succeeded."""
    found = session.client.comparisons.get(comparison)
    if found.result is not None:
        _show(session, found, found.result, out)
        return
    if out is not None:
        raise CommandError(f"the comparison is {found.state}; there is nothing of it to save")
    if session.as_json:
        session.print_json(found.model_dump(mode="json"))
        return
    for line in standing(found):
        session.out.print(line, highlight=False, markup=False)
    if found.state not in FINAL_COMPARISON_STATES:
        session.hint(f"Next: expunge comparisons watch {found.id}")


@command(app, "watch")
def watch(session: Session, comparison: ComparisonId, *, out: Out = None) -> None:
    """Follow a comparison until it ends, then show it; status 1 if it does not succeed."""
    _finish(session, comparison, out)


@command(app, "cancel")
def cancel(
    session: Session,
    comparison: ComparisonId,
    reason: Annotated[str | None, typer.Option(help="Why, for your own records.")] = None,
) -> None:
    """End a comparison that waits or runs; nothing of it is kept."""
    ended = session.client.comparisons.cancel(comparison, reason)
    if session.as_json:
        session.print_json(ended.model_dump(mode="json"))
    else:
        session.out.print(f"{ended.id} is {ended.state}: {ended.reason}", highlight=False)


def _finish(session: Session, comparison_id: str, out: Path | None) -> None:
    steps = session.client.comparisons.watch(comparison_id)
    done: Comparison | None = None
    if session.as_json:
        for done in steps:  # noqa: B007 - the last one is the answer
            pass
    else:
        done = follow(steps, session.out)
    if done is None or done.result is None:
        reason = (done and done.reason) or "no reason given"
        raise CommandError(f"the comparison {done.state if done else 'is gone'}: {reason}")
    _show(session, done, done.result, out)


def _show(session: Session, done: Comparison, result: ComparisonResult, out: Path | None) -> None:
    saved = session.client.comparisons.save(done.id, out) if out is not None else []
    if session.as_json:
        session.print_json(done.model_dump(mode="json"))
        return
    session.out.print(result_table(result, session.out.width))
    for path in saved:
        session.out.print(f"[dim]{path}", highlight=False)


def _methods(session: Session, given: Sequence[str], grids: Sequence[str]) -> list[dict[str, Any]]:
    """`["fine_tune:epochs=5"]` with `["epochs=1,2"]` as the service takes them."""
    specs = [setting(text) | {"grid": {}} for text in given]
    parameters = (
        {each.id: each.parameters["properties"] for each in session.client.methods()}
        if any(":" not in text for text in grids)
        else {}
    )
    for text in grids:
        name, _, values = text.partition("=")
        method, _, parameter = name.rpartition(":")
        swept = [
            spec
            for spec in specs
            if (
                spec["method"] == method
                if method
                else parameter in parameters.get(spec["method"], {})
            )
            if parameter not in spec["params"]
        ]
        if not swept or not values:
            raise CommandError(
                f"--grid {text}: write name=value,value for a parameter that one of the methods "
                "has and that is not fixed already"
            )
        if any(parameter in spec["grid"] for spec in swept):
            raise CommandError(f"--grid {text}: {parameter} has a grid already; name it once")
        for spec in swept:
            spec["grid"][parameter] = [value_of(each) for each in values.split(",")]
    return [{key: value for key, value in spec.items() if value} for spec in specs]


def _search(text: str | None, trials: int | None, *, with_retrain: bool) -> dict[str, Any] | None:
    if text is None:
        if trials is not None:
            raise CommandError("--trials goes with --search")
        return None
    chosen = {} if trials is None else {"trials": trials}
    return setting(text) | {"objective": "retrain" if with_retrain else "proxy"} | chosen


def _seeds(text: str) -> list[int]:
    try:
        return [int(each) for each in text.split(",")]
    except ValueError:
        raise CommandError(f"--seeds {text}: write whole numbers with commas between") from None
