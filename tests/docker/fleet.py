"""Machines that share the three stores and nothing else: the processes of docker-compose.yml, with other addresses.

A machine is a set of processes with an address and folders of its own; its death is that of all of them.
"""

import json
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import httpx
import psutil
from tests.docker.compose import command_of, environment_of, services
from tests.docker.stores import Stores, free_port, replaced, running
from tests.faults.object_server import settings_for
from tests.faults.rig import SETTINGS, Rig

from expunge.registry.database import connect
from expunge.registry.objects import open_store

SPEED = SETTINGS | {
    "EXPUNGE_DEVICE": "cpu",
    "EXPUNGE_SNAPSHOT_SECONDS": "0.3",
    "EXPUNGE_TRAINING_NICENESS": "0",
}
"""Seconds where others have minutes; and whatever else the tests' machine does, there is training."""
STOP_SECONDS = 90.0
SCRIPTS = Path(sys.executable).parent


class Machine:
    """One address, one folder, and the services that were started there."""

    def __init__(self, address: str, folder: Path, stores: Stores) -> None:
        self.address = address
        self.folder = folder
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.port = free_port(address)
        """Of the api, if it runs here."""
        self._metrics = {name: free_port(address) for name in services()}
        self._stores = stores
        for part in ("keys", "objects", "work", "tmp", "logs"):
            (folder / part).mkdir(parents=True)

    def environment(self, service: str) -> dict[str, str]:
        """What the container would find, with this machine's places."""
        own = {key: self._here(service, value) for key, value in environment_of(service).items()}
        # A container inherits nothing from its host.
        return own | SPEED | {"PATH": f"{SCRIPTS}:/usr/bin:/bin"}

    def command(self, service: str) -> list[str]:
        """What the container would execute, with this machine's places."""
        return [self._here(service, part) for part in command_of(service)]

    def run(self, service: str) -> str:
        """Run a service that ends; its output."""
        done = subprocess.run(
            self.command(service),
            env=self.environment(service),
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def start(self, service: str) -> None:
        """Start a service that stays up."""
        with self.log(service).open("wb") as output:
            self.processes[service] = subprocess.Popen(
                self.command(service),
                env=self.environment(service),
                cwd=self.folder,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def log(self, service: str) -> Path:
        """What a service said."""
        return self.folder / "logs" / service

    def is_healthy(self, service: str) -> bool:
        """What the health check of its container says."""
        kind, *command = services()[service]["healthcheck"]["test"]
        assert kind == "CMD"
        done = subprocess.run(
            [self._here(service, part) for part in command],
            env=self.environment(service),
            capture_output=True,
            check=False,
        )
        return done.returncode == 0

    def die(self) -> None:
        """Every process of this machine is gone at once, with all that it started."""
        doomed = [psutil.Process(each.pid) for each in self.processes.values()]
        doomed += [child for parent in doomed for child in parent.children(recursive=True)]
        for each in doomed:
            each.kill()
        for started in self.processes.values():
            started.wait()
        self.processes.clear()

    def stop(self) -> None:
        """Ask every process to stop, and wait until it has."""
        for started in self.processes.values():
            started.terminate()
        try:
            for started in self.processes.values():
                started.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.die()
            raise

    def _here(self, service: str, text: str) -> str:
        metrics = f"{self.address}:{self._metrics[service]}"
        places = {
            "/run/secrets": str(self._stores.secrets),
            "/var/lib/expunge": str(self.folder),
            "/tmp": str(self.folder / "tmp"),  # noqa: S108 - the container's
            "http://objects:7070": self._stores.s3_endpoint,
            "0.0.0.0:9101": metrics,
            "127.0.0.1:9101": metrics,
            "127.0.0.1:8000": f"{self.address}:{self.port}",
            "0.0.0.0": self.address,  # noqa: S104 - what is replaced
        }
        return str(self.port) if text == "8000" else replaced(text, places)


class Fleet(Rig):
    """Two machines: one with everything, one that only trains. Looked at as the fault lab looks at its service."""

    def _start(self, stack: ExitStack) -> None:
        self.stores = stack.enter_context(running(self._folder))
        self.first = Machine("127.0.0.2", self._folder / "first", self.stores)
        self.second = Machine("127.0.0.3", self._folder / "second", self.stores)
        self.first.run("prepare")
        self.first.run("migrate")
        for machine, names in {
            self.first: ("api", "dispatch", "interactive", "train"),
            self.second: ("train",),
        }.items():
            stack.callback(machine.stop)
            for name in names:
                machine.start(name)
        key = json.loads(self.first.run("operator-key"))
        self.stack = SimpleNamespace(  # type: ignore[assignment]
            url=f"http://{self.first.address}:{self.first.port}",
            operator=SimpleNamespace(party_id=key["party_id"], secret=key["secret"]),
        )
        database_url = (self.stores.secrets / "expunge_database_url").read_text()
        self.engine = connect(database_url)
        stack.callback(self.engine.dispose)
        self.store = open_store(settings_for(database_url, self.stores.s3_endpoint))
        self.eventually(self._api_is_ready, "the api is ready")

    def _api_is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.stack.url}/readyz", trust_env=False).is_success
        except httpx.TransportError:
            return False

    def machine_of(self, job_id: str) -> Machine | None:
        """Where a job runs now, if it does."""
        worker = str(self.job(job_id)["worker"])
        for machine in (self.first, self.second):
            train = machine.processes.get("train")
            if train is not None and worker.startswith(f"train-{train.pid}."):
                return machine
        return None
