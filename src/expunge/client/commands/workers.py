"""`expunge worker status`."""

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from expunge.client.commands.session import Session, command
from expunge.client.durations import in_words
from expunge.client.fleet import Fleet, HeldJob, Queue, Worker

app = typer.Typer(no_args_is_help=True, help="Who works, and what there is to do (operators).")

GIB = 2**30
STATE_STYLES = {"busy": "green", "stopping": "yellow", "gone": "red"}


@command(app, "status")
def status(session: Session) -> None:
    """Show workers with device, labels and job, what waits, and what nobody can do."""
    fleet = session.client.fleet()
    if session.as_json:
        session.print_json(fleet.model_dump(mode="json"))
    else:
        session.out.print(drawn(fleet))


def drawn(fleet: Fleet) -> RenderableType:
    """Two tables, and below them what an operator should look at."""
    return Group(
        _workers(fleet.workers) if fleet.workers else "[dim]no worker is there",
        _queues(fleet.queues),
        *_notices(fleet),
    )


def _workers(workers: list[Worker]) -> Table:
    table = _table("worker", "state", "device", "labels", "works at", "heard of")
    table.columns[0].no_wrap = True
    for each in workers:
        table.add_row(
            escape(each.name),
            f"[{STATE_STYLES.get(each.state, 'none')}]{each.state}",
            escape(_device(each)),
            escape(", ".join(each.labels)),
            escape("\n".join(_work(job) for job in each.jobs)),
            f"{in_words(each.silent_seconds)} ago",
        )
    return table


def _device(worker: Worker) -> str:
    if worker.memory_bytes is None:
        return worker.device
    name = f"\n{worker.device_name}" if worker.device_name else ""
    return f"{worker.device}, {worker.memory_bytes / GIB:.0f} GiB{name}"


def _work(job: HeldJob) -> str:
    done = "" if job.share_done is None else f" {job.share_done:.0%}"
    left = "" if job.eta_seconds is None else f", {in_words(job.eta_seconds)} left"
    return f"{job.kind}{done}{left}\n{job.id}"


def _queues(queues: list[Queue]) -> Table:
    table = _table("jobs", "waiting", "oldest", "later", "running")
    for column in table.columns[1:]:
        column.justify = "right"
    for each in queues:
        oldest = "" if each.oldest_seconds is None else in_words(each.oldest_seconds)
        counts = (each.waiting, oldest, each.later, each.running)
        style = None if each.waiting or each.later or each.running else "dim"
        table.add_row(each.kind, *map(str, counts), style=style)
    return table


def _notices(fleet: Fleet) -> list[str]:
    notices = []
    for each in fleet.unserved:
        waiting = "1 job waits" if each.jobs == 1 else f"{each.jobs} jobs wait"
        notices.append(f"[bold yellow]{waiting}:[/] {escape(each.reason)}")
    for worker in fleet.workers:
        if worker.shares_device_with:
            others = escape(", ".join(worker.shares_device_with))
            notices.append(
                f"[bold yellow]{escape(worker.name)}[/] shares {escape(worker.device)} with {others}"
            )
    return notices


def _table(*titles: str) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for title in titles:
        table.add_column(title, overflow="fold")
    return table
