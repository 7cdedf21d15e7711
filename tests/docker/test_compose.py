"""What every service of docker-compose.yml must be: confined, watched, pinned, and given only what exists."""

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.docker.compose import (
    COMPOSE_FILE,
    DOCKERFILE,
    ROOT,
    compose,
    environment_of,
    own_services,
    services,
    stages,
)
from typer.main import get_command

from expunge.cli import app
from expunge.evidence.manifest import REVISION_VARIABLE
from expunge.registry.settings import SECRETS_DIR, Settings

DOCKER_COMPOSE = Path(sys.executable).parent / "docker-compose"
PINNED = re.compile(r"^[\w./-]+:(?!latest)[\w.-]*\d[\w.-]*(@sha256:[0-9a-f]{64})?$")
SECONDS = {"s": 1, "m": 60}
CONDITIONS = {
    "service_completed_successfully": lambda service: "restart" not in service,
    "service_healthy": lambda service: "healthcheck" in service,
}
"""What a service must be for others to wait for it in that way."""

every_service = pytest.mark.parametrize("name", services())


def service(name: str) -> dict[str, Any]:
    return services()[name]


@every_service
def test_a_service_is_confined(name: str) -> None:
    asked = service(name)
    assert asked["read_only"] is True
    assert asked["cap_drop"] == ["ALL"]
    assert "cap_add" not in asked
    assert "privileged" not in asked
    assert asked["security_opt"] == ["no-new-privileges:true"]
    user, group = asked["user"].split(":")
    assert int(user) > 0
    assert int(group) > 0
    assert any(mount.startswith("/tmp:") for mount in asked["tmpfs"])  # noqa: S108 - the container's


@every_service
def test_an_image_is_pinned(name: str) -> None:
    assert PINNED.fullmatch(service(name)["image"]), service(name)["image"]


@every_service
def test_what_stays_up_is_watched_limited_and_given_time_to_stop(name: str) -> None:
    asked = service(name)
    if "restart" not in asked:
        return
    assert asked["restart"] == "unless-stopped"
    assert asked["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL")
    assert {"cpus", "memory", "pids"} <= asked["deploy"]["resources"]["limits"].keys()
    assert asked["init"] is True
    assert seconds(asked["stop_grace_period"]) >= 30


@every_service
def test_a_machine_of_two_cores_can_start_it(name: str) -> None:
    limits = service(name).get("deploy", {}).get("resources", {}).get("limits", {})
    assert float(limits.get("cpus", 0)) <= 2, (
        "Docker starts no container with more cores than are there"
    )


@every_service
def test_what_a_service_waits_for_ends_or_says_that_it_is_healthy(name: str) -> None:
    for other, how in service(name).get("depends_on", {}).items():
        assert CONDITIONS[how["condition"]](service(other)), f"{name} waits for {other}"


@every_service
def test_what_a_service_mounts_is_declared(name: str) -> None:
    asked = service(name)
    assert set(asked.get("secrets", [])) <= compose()["secrets"].keys()
    assert set(asked["networks"]) <= compose()["networks"].keys()
    assert {each["source"] for each in asked.get("configs", [])} <= compose()["configs"].keys()
    for volume in asked.get("volumes", []):
        assert volume.split(":")[0] in compose()["volumes"], "no folder of the host is mounted"


def test_only_the_api_is_reached_from_outside_and_only_from_this_machine() -> None:
    published = {name: each["ports"] for name, each in services().items() if "ports" in each}
    assert published == {"api": ["127.0.0.1:8000:8000"]}
    assert compose()["networks"]["inside"] == {"internal": True}
    assert [name for name, each in services().items() if each["networks"] != ["inside"]] == ["api"]


@pytest.mark.parametrize("name", own_services())
def test_settings_are_known_and_no_secret_stands_in_the_environment(name: str) -> None:
    known = {f"EXPUNGE_{field}".upper() for field in Settings.model_fields}
    ours = {key for key in environment_of(name) if key.startswith("EXPUNGE_")}
    assert ours <= known | {SECRETS_DIR, REVISION_VARIABLE}
    assert not {key for key in ours if "SECRET_KEY" in key or "URL" in key}


def test_secrets_of_the_service_are_files_named_as_settings() -> None:
    known = {f"expunge_{field}" for field in Settings.model_fields}
    named = {each for each in compose()["secrets"] if each.startswith("expunge_")}
    assert named <= known
    for name, each in own_services().items():
        assert set(each["secrets"]) <= named, f"{name} sees secrets of the stores"


def test_each_secret_is_made_once_and_hidden_from_others(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    make = [ROOT / "docker" / "make-secrets.sh", folder]
    subprocess.run(make, check=True)
    made = {file.name: file.read_text() for file in folder.iterdir()}
    assert made.keys() == {Path(each["file"]).name for each in compose()["secrets"].values()}
    assert folder.stat().st_mode & 0o777 == 0o700
    assert made["postgres_password"] in made["expunge_database_url"]
    assert made["redis.conf"].split()[1] in made["expunge_redis_url"]
    subprocess.run(make, check=True)
    assert {file.name: file.read_text() for file in folder.iterdir()} == made


def test_the_signing_key_is_mounted_where_something_is_signed() -> None:
    mounts = {name: " ".join(each.get("volumes", [])) for name, each in services().items()}
    signing = {"api", "dispatch", "interactive"}
    assert {name for name, each in mounts.items() if "keys:" in each} == {"prepare", *signing}
    assert all("keys:/var/lib/expunge/keys:ro" in mounts[name] for name in signing)
    assert {
        name for name in own_services() if "EXPUNGE_SIGNING_KEY_FILE" in environment_of(name)
    } == signing


def documented(verb: str) -> list[list[str]]:
    """The words after `docker compose VERB` and its options, for each time the guide says so."""
    guide = (ROOT / "docs" / "how-to" / "compose.md").read_text()
    lines = re.findall(rf"^docker compose {verb} (.*?)(?: +#.*)?$", guide, re.MULTILINE)
    options = re.compile(r"^(?:--rm |-T |--volume \S+ )+")
    return [shlex.split(options.sub("", line)) for line in lines]


def test_what_the_guide_runs_is_there() -> None:
    found = documented("run")
    known = get_command(app).commands  # type: ignore[attr-defined]  # It is a group.
    assert {name for name, *_ in found} <= services().keys()
    assert {words[2] for words in found if words[1:2] == ["expunge"]} <= known.keys()


def test_a_restore_has_the_key_and_the_stores_before_it_begins() -> None:
    key, bucket, restore, fsck = documented("run")[-4:]
    assert key[:3] == ["prepare", "sh", "-c"]
    # In the image's working directory, where the volume is.
    assert "cat > keys/signing-key.pem" in key[3]
    assert "keys:/var/lib/expunge/keys" in service("prepare")["volumes"]
    assert bucket == ["bucket"]
    assert "objects" in service("bucket")["depends_on"]
    assert restore == ["migrate", "expunge", "restore", "/backups/expunge"]
    assert "postgres" in service("migrate")["depends_on"]
    assert service("migrate")["secrets"] == service("train")["secrets"]
    assert fsck == ["api", "expunge", "fsck"]


def test_a_worker_is_stopped_later_than_its_training_process() -> None:
    for name in ("train", "train-gpu"):
        grace = float(environment_of(name)["EXPUNGE_STOP_GRACE_SECONDS"])
        assert seconds(service(name)["stop_grace_period"]) >= 2 * grace


def test_jobs_are_done_with_either_profile() -> None:
    with_profile = {
        name: each["profiles"] for name, each in services().items() if "profiles" in each
    }
    assert with_profile == {"operator-key": ["operator"], "train": ["cpu"], "train-gpu": ["gpu"]}


def test_images_are_built_from_stages_that_exist() -> None:
    for name, each in own_services().items():
        assert each["build"]["target"] in stages(), name
        assert ROOT / each["build"]["dockerfile"] == DOCKERFILE


def test_docker_compose_itself_accepts_the_file() -> None:
    command = [DOCKER_COMPOSE, "--file", COMPOSE_FILE, "--profile", "*", "config", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def seconds(span: str) -> int:
    """Of a span such as 30s or 2m."""
    return int(span[:-1]) * SECONDS[span[-1]]
