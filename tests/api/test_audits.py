"""What may be asked of an audit, and its files: for whom they are, and what they hold."""

import csv
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.api.conftest import Cast, Past, User, problem_of

from expunge.evidence.audit import Outputs, audit
from expunge.evidence.pictures.bundle import Bundle, pack
from expunge.evidence.protocol import views_seed
from expunge.formats.shards import SampleRecord
from expunge.registry import audits, datasets
from expunge.registry.objects import put_bytes
from expunge.registry.tables import Audit, Party, Role
from expunge.registry.transitions import move

KEYS = ("ada-1", "=ada-2", "ada/3")
FILES = (
    "report.html",
    "triptych.svg",
    "scores.png",
    "scores.svg",
    *(f"{which}.{suffix}" for which in ("before", "after", "gap") for suffix in ("csv", "npy")),
    "gap.png",
)


def indexed(past: Past, owner: User, keys: tuple[str, ...], name: str) -> str:
    """A sealed data set whose index names these samples; without shards."""
    records = [SampleRecord(key, "a.tar", "png", 0, 1, "0" * 64, 1, 1, None, None) for key in keys]
    data, digest = datasets.encode_index(records)
    index_key = put_bytes(past.store, data, past.folder)
    with past.sessions.begin() as session:
        dataset = datasets.create(session, session.get_one(Party, owner.id), name)
        session.flush()
        move(session, dataset, "sealing")
        move(session, dataset, "sealed", digest=digest, index_key=index_key, samples=len(keys))
        return dataset.id


@dataclass(frozen=True)
class Finished:
    """A completed request over two data sets, and an audit of it that is there."""

    request: str
    datasets: tuple[str, str]
    audit: str
    report: dict[str, Any]
    bundle: Bundle


@pytest.fixture(scope="module")
def finished(past: Past, data_owner: User, model_owner: User) -> Finished:
    own = (indexed(past, data_owner, KEYS, "first"), indexed(past, data_owner, KEYS, "second"))
    for each in own:
        data_owner.post(f"/datasets/{each}/grants", {"party_id": model_owner.id})
    model = model_owner.model()
    past.trained(model_owner, model, [*own, past.sealed(model_owner)])
    asked = data_owner.post("/requests", {"model_id": model, "dataset_ids": list(own)})
    request = str(asked.json()["id"])
    past.unlearned(request)
    audit_id = str(data_owner.post("/audit", {"request_id": request}).json()["id"])
    report, bundle = measured(KEYS)
    record(past, audit_id, report, bundle)
    return Finished(request, own, audit_id, report, bundle)


def measured(keys: tuple[str, ...]) -> tuple[dict[str, Any], Bundle]:
    """An audit's report and pictures' data, of outputs drawn at random."""
    rng = np.random.default_rng(0)

    def outputs() -> np.ndarray[Any, np.dtype[np.float32]]:
        drawn = rng.normal(size=(3, len(keys), 8))
        return (drawn / np.linalg.norm(drawn, axis=2, keepdims=True)).astype(np.float32)

    found = audit({"encoder": Outputs.of(outputs(), outputs())}, keys)
    pixels = rng.integers(0, 256, (len(keys), 8, 8, 3), dtype=np.uint8)
    bundle = Bundle(dict(found.matrices.items()), pixels, tuple(found.matrix_keys))
    return found.to_dict(), bundle


def record(past: Past, audit_id: str, report: dict[str, Any], bundle: Bundle) -> None:
    """End the audit's job as a worker does."""
    with past.sessions() as session:
        lease = past.claimed(session.get_one(Audit, audit_id).job_id)
    key = put_bytes(past.store, pack(bundle), past.folder)
    with past.sessions.begin() as session:
        audits.record(session, lease, report, key)


def test_an_owner_reads_every_file_of_an_audit(finished: Finished, data_owner: User) -> None:
    answers = {name: data_owner.get(f"/audits/{finished.audit}/{name}") for name in FILES}
    assert {name: answer.status_code for name, answer in answers.items()} == dict.fromkeys(
        FILES, 200
    )
    assert all("immutable" in answer.headers["cache-control"] for answer in answers.values())
    for which, expected in finished.bundle.matrices["encoder"].items():
        array = np.load(io.BytesIO(answers[f"{which}.npy"].content), allow_pickle=False)
        np.testing.assert_array_equal(array, expected)
        header, *rows = csv.reader(io.StringIO(answers[f"{which}.csv"].text))
        assert header == [
            "key",
            *("'=ada-2" if key == "=ada-2" else key for key in finished.bundle.keys),
        ]
        table = np.array([[float(value) for value in row[1:]] for row in rows], np.float32)
        np.testing.assert_array_equal(table, expected)
    for name in ("gap.png", "scores.png"):
        Image.open(io.BytesIO(answers[name].content)).verify()
        assert answers[name].headers["content-type"] == "image/png"
    for name in ("triptych.svg", "scores.svg"):
        assert answers[name].headers["content-type"].startswith("image/svg+xml")
    page = answers["report.html"]
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert finished.report["verdict"]["sentence"] in page.text
    assert "<script" not in page.text


def test_files_are_the_same_when_they_are_asked_for_again(
    finished: Finished, data_owner: User
) -> None:
    path = f"/audits/{finished.audit}/gap.png"
    assert data_owner.get(path).content == data_owner.get(path).content


@pytest.mark.parametrize("role", [Role.DATA_OWNER, Role.MODEL_OWNER, Role.AUDITOR])
def test_nobody_else_finds_an_audit_or_a_file_of_it(
    cast: Cast, finished: Finished, role: Role
) -> None:
    stranger = cast.party(role)
    for name in ("", *(f"/{file}" for file in FILES)):
        problem_of(stranger.get(f"/audits/{finished.audit}{name}"), 404, "not-found")
    assert stranger.get("/audits").json()["items"] == []
    problem_of(stranger.post("/audit", {"request_id": finished.request}), 404, "not-found")
    # Neither existing nor missing keys make a difference to somebody else.
    for key in (f"{finished.datasets[0]}/ada-1", f"{finished.datasets[0]}/nobody"):
        asked = {"request_id": finished.request, "sample_keys": [key]}
        problem_of(stranger.post("/audit", asked), 404, "not-found")


def test_the_model_owner_finds_no_audit_of_an_owners_request(
    finished: Finished, model_owner: User
) -> None:
    for name in ("", *(f"/{file}" for file in FILES)):
        problem_of(model_owner.get(f"/audits/{finished.audit}{name}"), 404, "not-found")


@pytest.mark.parametrize(
    "name",
    ["gap.png?level=projector", "triptych.csv", "triptych.npy", "scores.csv", "gap.jpg", "all.png"],
)
def test_a_file_that_an_audit_does_not_have_is_not_found(
    finished: Finished, data_owner: User, name: str
) -> None:
    problem_of(data_owner.get(f"/audits/{finished.audit}/{name}"), 404, "not-found")


def test_an_audit_that_waits_has_no_files_yet(finished: Finished, data_owner: User) -> None:
    waiting = data_owner.post("/audit", {"request_id": finished.request}).json()
    assert (waiting["state"], waiting["pictures"], waiting["page"]) == ("queued", None, None)
    for name in ("gap.png", "report.html"):
        problem_of(data_owner.get(f"/audits/{waiting['id']}/{name}"), 404, "not-found")


def test_pictures_that_were_deleted_with_the_samples_are_said_to_be_gone(
    past: Past, finished: Finished, data_owner: User
) -> None:
    audit_id = data_owner.post("/audit", {"request_id": finished.request}).json()["id"]
    record(past, audit_id, finished.report, finished.bundle)
    with past.sessions.begin() as session:
        session.get_one(Audit, audit_id).objects = None
    found = data_owner.get(f"/audits/{audit_id}").json()
    assert (found["state"], found["pictures"]) == ("succeeded", None)
    problem = problem_of(data_owner.get(f"/audits/{audit_id}/gap.png"), 404, "not-found")
    assert "deleted" in problem["detail"]


def test_the_answer_repeats_which_samples_were_asked_for(
    finished: Finished, data_owner: User
) -> None:
    first, second = finished.datasets
    keys = [f"{second}/ada/3", f"{first}/ada-1"]
    draw = {"samples": 1, "seed": 7}
    asked = {"request_id": finished.request, "sample_keys": keys, "draw": draw}
    answer = data_owner.post("/audit", asked)
    assert answer.status_code == 202, answer.text
    found = data_owner.get(f"/audits/{answer.json()['id']}").json()
    assert (sorted(found["sample_keys"]), found["draw"]) == (sorted(keys), draw)
    one = {"request_id": finished.request, "dataset_ids": [first], "sample_keys": ["ada/3"]}
    assert data_owner.post("/audit", one).status_code == 202


def test_without_a_seed_the_views_are_those_of_the_services_own_audits(
    finished: Finished, data_owner: User
) -> None:
    model_id = data_owner.get(f"/requests/{finished.request}").json()["model_id"]
    for given, expected in (({}, views_seed(model_id)), ({"seed": 0}, 0), ({"seed": 5}, 5)):
        answer = data_owner.post("/audit", {"request_id": finished.request} | given)
        assert data_owner.get(f"/audits/{answer.json()['id']}").json()["seed"] == expected


@pytest.mark.parametrize(
    ("only_first", "keys", "named"),
    [
        (True, ["ada-1", "ada-9", "Ada-1"], ["Ada-1", "ada-9"]),
        (False, ["ada-1"], ["ada-1"]),
        (True, ["SECOND/ada-1"], ["SECOND/ada-1"]),
        (False, ["FIRST/ada-1", "FIRST/nobody"], ["FIRST/nobody"]),
    ],
)
def test_keys_of_no_sample_are_named(
    *, finished: Finished, data_owner: User, only_first: bool, keys: list[str], named: list[str]
) -> None:
    first, second = finished.datasets
    full = {"FIRST": first, "SECOND": second}

    def qualified(key: str) -> str:
        head, slash, rest = key.partition("/")
        return full.get(head, head) + slash + rest

    asked: dict[str, Any] = {
        "request_id": finished.request,
        "sample_keys": [qualified(key) for key in keys],
    }
    if only_first:
        asked["dataset_ids"] = [first]
    before = data_owner.get("/audits").json()
    problem = problem_of(data_owner.post("/audit", asked), 422, "invalid")
    assert problem["sample_keys"] == [qualified(key) for key in named]
    assert all(repr(qualified(key)) in problem["detail"] for key in named)
    assert data_owner.get("/audits").json() == before


@pytest.mark.parametrize(
    ("members", "pointer"),
    [
        ({"sample_keys": []}, "/sample_keys"),
        ({"sample_keys": ["x"] * 5_001}, "/sample_keys"),
        ({"sample_keys": ["x" * 301]}, "/sample_keys/0"),
        ({"draw": {"samples": 0}}, "/draw/samples"),
        ({"draw": {"samples": 1_000_001}}, "/draw/samples"),
        ({"draw": {"samples": 2, "seed": -1}}, "/draw/seed"),
        ({"draw": {"samples": 2, "sed": 1}}, "/draw/sed"),
    ],
)
def test_what_is_out_of_bounds_is_pointed_at(
    finished: Finished, data_owner: User, members: dict[str, Any], pointer: str
) -> None:
    answer = data_owner.post("/audit", {"request_id": finished.request} | members)
    assert [each["pointer"] for each in problem_of(answer, 422, "invalid")["errors"]] == [pointer]
