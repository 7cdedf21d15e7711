"""The `expunge` command: the client's command line plus what starts processes on this machine."""

from expunge.client.cli import build_app
from expunge.embedded.commands import add_to

app = build_app()
add_to(app)
