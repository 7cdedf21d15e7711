"""The `expunge` command line as far as it speaks to a running service."""

import typer

from expunge.client.commands import (
    alerts,
    audit,
    certificates,
    compare,
    datasets,
    delegations,
    encodings,
    estimate,
    jobs,
    log,
    models,
    parties,
    requests,
    workers,
)

EPILOG = """The service's address and your key come from EXPUNGE_URL and EXPUNGE_KEY.
Every command that asks it takes --json for scripts and ends with status 1 if something went wrong."""


def build_app() -> typer.Typer:
    """The command line; the composition root adds the commands that start processes."""
    app = typer.Typer(
        no_args_is_help=True,
        help="Make trained contrastive encoders forget, and check that they did.",
        epilog=EPILOG,
        pretty_exceptions_enable=False,
        rich_markup_mode="markdown",
    )
    app.add_typer(datasets.app, name="datasets")
    app.add_typer(models.app, name="models")
    app.add_typer(requests.app, name="requests")
    app.add_typer(jobs.app, name="jobs")
    app.add_typer(workers.app, name="worker")
    app.add_typer(alerts.app, name="alerts")
    app.add_typer(log.app, name="log")
    app.add_typer(delegations.app, name="delegations")
    estimate.add_to(app)
    audit.add_to(app)
    encodings.add_to(app)
    certificates.add_to(app)
    compare.add_to(app)
    parties.add_to(app)
    app.add_typer(parties.parties, name="parties")
    app.add_typer(parties.keys, name="keys")
    return app
