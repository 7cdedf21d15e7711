"""`expunge models …`: create, list, show, policy, lineage, pretrain, upload-checkpoint, download, promote."""

from pathlib import Path
from typing import Annotated, Any

import typer

from expunge.client.commands.jobs import watch_job
from expunge.client.commands.session import CommandError, Session, command, pairs
from expunge.client.resources import Model
from expunge.client.telling import advice, lineage_table

app = typer.Typer(no_args_is_help=True, help="Models and their checkpoints (model owners).")

ModelId = Annotated[str, typer.Argument(metavar="MODEL", help="Id, mdl_…")]
Datasets = Annotated[
    list[str], typer.Option("--dataset", help="A data set it is trained on, dst_…; repeatable.")
]


@command(app, "create")
def create(
    session: Session,
    name: Annotated[str, typer.Argument(help="Any name.")],
    *,
    framework: Annotated[
        str, typer.Option(help="simclr, moco, byol, clip or supervised.")
    ] = "simclr",
    architecture: Annotated[
        str | None,
        typer.Option(
            help="Encoder network, resnet18_cifar if left out; of CLIP, open_clip's name."
        ),
    ] = None,
    width: Annotated[int, typer.Option(help="Channels of the first stage.")] = 64,
    image_size: Annotated[int, typer.Option(help="Pixels a side.")] = 32,
    objective: Annotated[
        list[str] | None, typer.Option(help="Setting of the framework, e.g. temperature=0.2.")
    ] = None,
    control: Annotated[
        str | None, typer.Option(help="Data set of never-trained images for audits, dst_…")
    ] = None,
    batch_window: Annotated[
        int, typer.Option(help="Seconds to gather removal requests into one job.")
    ] = 0,
    promotion: Annotated[str, typer.Option(help="automatic or manual.")] = "automatic",
) -> None:
    """Create a model.

    Example: expunge models create shop --framework moco --width 32 --objective temperature=0.1
    """
    encoder: dict[str, Any] = {
        "objective": {"framework": framework, **pairs(objective)},
        "image_size": image_size,
    }
    if framework != "clip":
        encoder["architecture"] = {"name": architecture or "resnet18_cifar", "width": width}
    elif architecture is not None:
        encoder["architecture"] = {"name": "open_clip", "model": architecture}
    policy = {"batch_window_seconds": batch_window, "promotion": promotion}
    model = session.client.create_model(name, encoder, control_dataset_id=control, policy=policy)
    session.show(model, hint=f"Next: expunge models pretrain {model.id} --dataset dst_… --watch")


@command(app, "list")
def list_(session: Session) -> None:
    """List the models you may see."""
    session.show_list(
        session.client.models(),
        [
            ("id", lambda item: item.id),
            ("name", lambda item: item.name),
            ("framework", lambda item: item.framework or _framework(item.encoder)),
            ("head", lambda item: item.head_checkpoint_id),
        ],
    )


@command(app, "show")
def show(session: Session, model: ModelId) -> None:
    """Show one model, and whether it should be trained anew."""
    _show(session, session.client.model(model))


@command(app, "policy")
def policy(
    session: Session,
    model: ModelId,
    change: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME=VALUE]...", help="What to change; null takes a limit away."),
    ] = None,
) -> None:
    """Show a model's policy towards removal requests, or change parts of it.

    approval (automatic, manual), batch_window_seconds, max_batch_samples, promotion (automatic,
    manual), min_forgetting, max_utility_loss, time_limit_seconds, keep_days (of checkpoints that
    hold what was forgotten), worker_labels (a list), and when a retrain is advised:
    max_forgotten_share, max_utility_lost, max_alignment_drift.

    Example: expunge models policy mdl_… approval=manual batch_window_seconds=3600
    """
    found = session.client.model(model)
    if change:
        changes, known = pairs(change), found.policy or {}
        if known and (unknown := sorted(changes.keys() - known)):
            raise CommandError(f"a policy has no {unknown[0]!r}; it has {', '.join(known)}")
        found = session.client.set_policy(model, **changes)
    if session.as_json:
        session.print_json(found.policy)
        return
    for name, value in (found.policy or {}).items():
        session.out.print(f"[bold]{name}[/] {'none' if value is None else value}", highlight=False)


@command(app, "lineage")
def lineage(session: Session, model: ModelId) -> None:
    """Tell a model's history, oldest first, and to which checkpoint one can go back."""
    session.show_table(session.client.lineage(model), lineage_table)


def _show(session: Session, model: Model) -> None:
    session.show(model)
    if not session.as_json and model.drift is not None:
        for line in advice(model.drift):
            session.out.print(line, highlight=False)


@command(app, "checkpoints")
def checkpoints(session: Session, model: ModelId) -> None:
    """List a model's checkpoints, what each was trained on and has forgotten."""
    session.show_list(
        session.client.checkpoints(model),
        [
            ("id", lambda item: item.id),
            ("state", lambda item: item.state),
            ("head", lambda item: "yes" if item.is_head else ""),
            ("trained on", lambda item: len(item.trained_on)),
            ("forgotten", lambda item: len(item.forgotten)),
            ("digest", lambda item: item.digest),
        ],
    )


@command(app, "pretrain")
def pretrain(
    session: Session,
    model: ModelId,
    *,
    dataset: Datasets,
    param: Annotated[
        list[str] | None, typer.Option(help="Training parameter, e.g. epochs=60; repeatable.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the whole run.")] = 0,
    watch: Annotated[bool, typer.Option("--watch", help="Follow the job.")] = False,
) -> None:
    """Train a model's first checkpoint, as a job.

    Example: expunge models pretrain mdl_… --dataset dst_… --param epochs=60 --watch
    """
    job = session.client.pretrain(model, dataset, pairs(param), seed=seed)
    if watch:
        watch_job(session, job.id)
    else:
        session.show(job, hint=f"Next: expunge jobs watch {job.id}")


@command(app, "upload-checkpoint")
def upload_checkpoint(
    session: Session,
    model: ModelId,
    path: Annotated[Path, typer.Argument(help="A safetensors file.")],
    dataset: Datasets,
) -> None:
    """Upload a checkpoint that was trained elsewhere."""
    checkpoint = session.client.upload_checkpoint(model, path, dataset)
    session.show(checkpoint)
    if checkpoint.state == "invalid":
        problem = checkpoint.problem
        detail = problem if isinstance(problem, str | None) else problem.detail
        raise CommandError(f"the checkpoint was refused: {detail}")


@command(app, "download")
def download(
    session: Session,
    checkpoint: Annotated[str, typer.Argument(metavar="CHECKPOINT", help="Id, ckp_…")],
    out: Annotated[Path, typer.Option(help="File to write.")] = Path("encoder.safetensors"),
) -> None:
    """Download what may leave the house: encoder and projector weights.

    A download that broke off goes on where it was when it is asked for again.
    """
    digest = session.client.download_weights(checkpoint, out)
    if session.as_json:
        session.print_json({"path": str(out), "digest": digest})
    else:
        session.out.print(f"{out}  {digest}", highlight=False)


@command(app, "promote")
def promote(
    session: Session,
    checkpoint: Annotated[str, typer.Argument(metavar="CHECKPOINT", help="Id, ckp_…")],
) -> None:
    """Make a checkpoint the model's head: a result that waits, or an earlier head to go back to."""
    _show(session, session.client.promote(checkpoint))


def _framework(encoder: dict[str, Any] | None) -> str:
    return str((encoder or {}).get("objective", {}).get("framework", ""))
