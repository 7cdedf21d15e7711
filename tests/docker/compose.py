"""docker-compose.yml and docker/Dockerfile, as a test reads them.

Knows what this project writes, not all of either format.
"""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
COMPOSE_FILE = ROOT / "docker-compose.yml"
DOCKERFILE = ROOT / "docker" / "Dockerfile"
VARIABLE = re.compile(r"\$\{(\w+):-([^}]*)\}")


@cache
def compose() -> dict[str, Any]:
    """The compose file, variables at their defaults, anchors and merges resolved."""
    text = VARIABLE.sub(lambda found: found[2], COMPOSE_FILE.read_text())
    return dict(yaml.safe_load(text))


def services() -> dict[str, dict[str, Any]]:
    """All services by name."""
    return dict(compose()["services"])


def own_services() -> dict[str, dict[str, Any]]:
    """Those that run an image of this project."""
    return {name: each for name, each in services().items() if "build" in each}


@cache
def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions in order: name and arguments, continued lines joined."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [
        (name, rest)
        for name, _, rest in (line.partition(" ") for line in joined.splitlines() if line.strip())
    ]


@cache
def stages() -> dict[str, list[tuple[str, str]]]:
    """The instructions of each stage, its FROM first, by the stage's name."""
    found: dict[str, list[tuple[str, str]]] = {}
    for name, rest in instructions():
        if name == "FROM":
            found[rest.split(" AS ")[1]] = current = []
        if found:
            current.append((name, rest))
    return found


def inherited(stage: str) -> list[tuple[str, str]]:
    """The instructions of a stage and of all that it is made from, oldest first."""
    (_, source), *_ = stages()[stage]
    parent = source.split(" AS ")[0]
    return [*(inherited(parent) if parent in stages() else []), *stages()[stage]]


def last(stage: str, instruction: str) -> str | None:
    """The arguments of the last such instruction that is in force in a stage."""
    found = [rest for name, rest in inherited(stage) if name == instruction]
    return found[-1] if found else None


def command_of(service: str) -> list[str]:
    """What the container of a service of this project executes."""
    asked = services()[service]
    if "command" in asked:
        return [str(part) for part in asked["command"]]
    return [str(part) for part in json.loads(last(asked["build"]["target"], "CMD") or "[]")]


def environment_of(service: str) -> dict[str, str]:
    """What the container of a service of this project finds in its environment: the image's, then its own."""
    asked = services()[service]
    pairs = [
        pair.partition("=")
        for name, rest in inherited(asked["build"]["target"])
        if name == "ENV"
        for pair in rest.split()
    ]
    own = {key: str(value) for key, value in asked.get("environment", {}).items()}
    return {key: value for key, _, value in pairs} | own
