"""What the code never does: run what a user sent, call out, or open itself to other pages. Read from the source."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from expunge.registry.settings import Settings
from expunge.worker.wakeups import make_celery

SOURCE = Path(__file__).parents[1] / "src" / "expunge"
FILES = sorted(SOURCE.rglob("*.py"))
TREES = {path.relative_to(SOURCE).as_posix(): ast.parse(path.read_text()) for path in FILES}

TALKATIVE = ("client/", "embedded/", "evidence/", "unlearning/", "registry/settings.py")
"""Where addresses may stand as words: defaults, examples, papers."""
UNPICKLERS = {
    "pickle", "_pickle", "pickletools", "dill", "cloudpickle", "joblib", "jsonpickle", "marshal",
    "shelve", "yaml",
}  # fmt: skip
EVALUATORS = {"eval", "exec", "compile", "__import__"}
CALLERS = {
    "httpx": ("client/", "embedded/"),
    "minio": ("registry/objects/",),
    "urllib3": ("registry/objects/",),
    "redis": ("api/rates.py",),
    "celery": ("worker/",),
    "psycopg": ("api/problems.py", "embedded/", "registry/"),
    "socket": ("embedded/", "worker/running.py"),
    "urllib.request": (),
    "http.client": (),
    "requests": (),
    "aiohttp": (),
    "websockets": (),
    "ftplib": (),
    "smtplib": (),
    "telnetlib": (),
    "socketserver": (),
    "torch.hub": (),
    "http.server": (),
    "xmlrpc": (),
    "webbrowser": (),
    "opentelemetry.exporter": ("registry/telemetry.py",),
}
"""Whatever may open a connection, and where it is used: the stores that the operator names, and the client."""


STARTERS = {
    "subprocess": (
        "embedded/",
        "evidence/manifest.py",
        "worker/device.py",
        "worker/watching.py",
    ),
    "pty": (),
    "multiprocessing": ("worker/",),
}
"""Whatever may start a program, and where: none of these modules is part of the api."""


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{each.name}" for each in node.names)


def calls(tree: ast.AST) -> Iterator[tuple[str, dict[str, object]]]:
    """The dotted name of each call, and its keywords as far as they are constants."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            keywords = {
                each.arg: each.value.value
                for each in node.keywords
                if each.arg and isinstance(each.value, ast.Constant)
            }
            yield ast.unparse(node.func), keywords


def test_nothing_is_ever_unpickled_or_evaluated() -> None:
    for file, tree in TREES.items():
        found = {name.partition(".")[0] for name in imported(tree)} & UNPICKLERS
        assert not found, file
        for name, keywords in calls(tree):
            place = f"{name} in {file}"
            assert name not in EVALUATORS, place
            if name in ("np.load", "numpy.load"):
                assert keywords.get("allow_pickle") is False, place
            if name == "torch.load":
                assert keywords.get("weights_only") is True, place
                assert file.startswith("client/"), "a foreign checkpoint is converted at home"
            assert keywords.get("allow_pickle") is not True, place
            assert keywords.get("shell") is not True, place


def test_only_the_stores_and_the_client_are_ever_called() -> None:
    """No address that a user sends is ever called: no web hook, no download, no image by URL."""
    for file, tree in TREES.items():
        for name in imported(tree):
            for caller, places in CALLERS.items():
                if name == caller or name.startswith(f"{caller}."):
                    assert file.startswith(places), f"{file} imports {name}"


def test_programs_are_started_by_the_stack_and_by_workers_only() -> None:
    for file, tree in TREES.items():
        for name in imported(tree):
            for starter, places in STARTERS.items():
                if name == starter or name.startswith(f"{starter}."):
                    assert file.startswith(places), f"{file} imports {name}"
        for name, _ in calls(tree):
            assert not name.startswith(("os.system", "os.popen", "os.exec", "os.spawn")), file


def test_where_the_service_calls_is_said_by_settings_only() -> None:
    """Every address stands in `Settings`: no request, row or file names one."""
    addresses = {"database_url", "redis_url", "s3_endpoint", "s3_public_endpoint", "otlp_endpoint"}
    assert {name for name in Settings.model_fields if re.search("url|endpoint", name)} == addresses
    for file, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                spelt = re.match(r"(https?|ftp|redis|s3)://[^/{}]", node.value)
                assert not spelt or file.startswith(TALKATIVE), f"{node.value!r} in {file}"


def test_no_other_page_may_read_answers() -> None:
    assert not [file for file, tree in TREES.items() if "CORSMiddleware" in ast.dump(tree)]


def test_celery_takes_json_only() -> None:
    settings = Settings(database_url="postgresql+psycopg:///none", object_store="file:///x")
    assert make_celery(settings).conf.accept_content == ("json",)
