"""POST /encode over HTTP: who may ask for what, how much of it, and what comes back."""

import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sqlalchemy import func, select
from tests.api.conftest import Cast, Past, User, images, problem_of, shard_of

from expunge.evidence import encoding as evidence
from expunge.evidence.audit import Outputs
from expunge.evidence.encoding import Encoded, Inputs, Weights
from expunge.evidence.protocol import views_seed
from expunge.formats.digests import content_digest, sha256_file
from expunge.formats.shards import index_shard
from expunge.registry import access, datasets, encodings
from expunge.registry.objects import put_bytes
from expunge.registry.settings import Settings
from expunge.registry.tables import Dataset, Encoding, Query, Role, Shard

SIZE, SAMPLES = 16, 4


class Case:
    """A completed request about a data set with a real index."""

    def __init__(self, past: Past, owner: User, model_owner: User) -> None:
        self.past, self.owner = past, owner
        self.dataset = past.granted(owner, model_owner, SAMPLES)
        self._index()
        self.model = model_owner.model()
        past.trained(model_owner, self.model, [past.sealed(model_owner), self.dataset])
        asked = {"model_id": self.model, "dataset_ids": [self.dataset]}
        self.request = str(owner.post("/requests", asked).json()["id"])
        past.unlearned(self.request)

    def _index(self) -> None:
        path = shard_of(self.past.folder, images("cat", SAMPLES))
        data, digest = datasets.encode_index(index_shard(path, "a.tar"))
        key = put_bytes(self.past.store, data, self.past.folder)
        shard = self.past.store.put(path, sha256_file(path))
        with self.past.sessions.begin() as session:
            row = session.get_one(Dataset, self.dataset)
            row.index_key, row.digest = key, digest
            session.add(
                Shard(
                    dataset_id=row.id,
                    name="a.tar",
                    digest="",
                    bytes=1,
                    samples=SAMPLES,
                    object_key=shard,
                )
            )

    def encode(self, user: User | None = None, **body: Any) -> Any:
        return (user or self.owner).post("/encode", {"request_id": self.request} | body)

    def send(self, data: bytes, user: User | None = None, **params: str) -> Any:
        return self.send_body(data, data, user, **params)

    def send_body(
        self, body: bytes | Iterator[bytes], data: bytes, user: User | None = None, **params: str
    ) -> Any:
        """An iterator is sent without a length."""
        return (user or self.owner).http.post(
            "/encode/views",
            content=body,
            params={"request_id": self.request} | params,
            headers={"Content-Digest": content_digest(hashlib.sha256(data).hexdigest())},
        )

    def charged(self) -> int:
        """Queries of the request."""
        with self.past.sessions() as session:
            of_request = Query.request_id == self.request
            return session.scalar(select(func.count()).where(of_request)) or 0

    def views(self, **told: Any) -> bytes:
        """A tar of two views of one sample."""
        out = io.BytesIO()
        picture = io.BytesIO()
        Image.fromarray(np.zeros((SIZE, SIZE, 3), np.uint8)).save(picture, "PNG")
        with tarfile.open(fileobj=out, mode="w") as archive:
            for number in range(2):
                description = {
                    "sample": f"{self.dataset}/cat-000",
                    "crop": [0, 0, SIZE, SIZE],
                    "flip": False,
                }
                text = json.dumps(description | told).encode()
                for suffix, content in (("png", picture.getvalue()), ("json", text)):
                    info = tarfile.TarInfo(f"a__{number}.{suffix}")
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
        return out.getvalue()

    def answered(self, encoding_id: str) -> bytes:
        """What a worker does."""
        raw = np.random.default_rng(0).normal(size=(2, 2, 3, 8)).astype(np.float32)
        before, after = raw / np.linalg.norm(raw, axis=3, keepdims=True)
        names = [f"cat-{number:03d}" for number in range(3)]
        encoded = Encoded(names, ["0" * 64] * 3, {"encoder": Outputs.of(before, after)}, 0)
        data = evidence.pack(encoded)
        with self.past.sessions() as session:
            row = session.get_one(Encoding, encoding_id)
            statement = evidence.statement(
                encoding_id=row.id,
                request_id=row.request_id,
                before=Weights(row.before.id, row.before.digest, row.before.release_digest),
                after=Weights(row.after.id, row.after.digest, row.after.release_digest),
                inputs=Inputs("registered-samples", 3, "sha256:0"),
                encoded=encoded,
                data=data,
                code_version="test",
                issued_at="2026-01-31T12:00:00Z",
            )
            lease = self.past.claimed(row.job_id)
        key = put_bytes(self.past.store, data, self.past.folder)
        with self.past.sessions.begin() as session:
            receipt = {"statement": statement, "envelope": None}
            encodings.record(session, lease, key, receipt)
        return data


@pytest.fixture(scope="module")
def case(past: Past, data_owner: User, model_owner: User) -> Case:
    return Case(past, data_owner, model_owner)


def test_an_encoding_is_asked_for_shown_and_fetched(case: Case) -> None:
    answer = case.encode(views=3, seed=4, sample_keys=["cat-001"])
    assert answer.status_code == 202, answer.text
    first = answer.json()
    assert answer.headers["location"] == f"/encodings/{first['id']}"
    assert (first["state"], first["outputs"], first["receipt"]) == ("queued", None, None)
    assert (first["views"], first["seed"], first["sample_keys"]) == (3, 4, ["cat-001"])
    problem_of(case.owner.get(f"/encodings/{first['id']}/outputs.npz"), 404, "not-found")
    data = case.answered(first["id"])
    shown = case.owner.get(f"/encodings/{first['id']}").json()
    assert shown["state"] == "succeeded"
    assert shown["receipt"]["statement"]["before"].items() >= shown["before"].items()
    assert case.owner.get(shown["outputs"]).content == data
    assert first["id"] in [each["id"] for each in case.owner.get("/encodings").json()["items"]]


def test_without_a_seed_the_views_are_those_of_the_services_own_audits(case: Case) -> None:
    assert case.encode().json()["seed"] == views_seed(case.model)
    assert case.encode(seed=0).json()["seed"] == 0


def test_the_weights_are_those_that_the_request_names(case: Case) -> None:
    shown = case.encode().json()
    result = case.owner.get(f"/requests/{case.request}").json()["result"]
    assert shown["before"]["digest"] == result["before_digest"]
    assert shown["after"]["digest"] == result["digest"]


def test_the_same_call_again_is_one_encoding_and_one_query(case: Case) -> None:
    headers = {"Idempotency-Key": "encode-once"}
    body = {"request_id": case.request, "views": 2}
    answers = [case.owner.post("/encode", body, headers=headers) for _ in range(2)]
    assert answers[0].json()["id"] == answers[1].json()["id"]
    changed = case.owner.post("/encode", body | {"seed": 1}, headers=headers)
    problem_of(changed, 422, "idempotency-key-reused")
    with case.past.sessions() as session:
        found = session.scalars(select(Query).where(Query.request_id == case.request)).all()
    ids = [each["id"] for each in case.owner.get("/encodings").json()["items"]]
    assert len(found) == len(ids)


def test_others_get_what_they_would_get_for_nothing(case: Case, cast: Cast) -> None:
    encoding = case.encode().json()["id"]
    for role in (Role.DATA_OWNER, Role.MODEL_OWNER, Role.AUDITOR):
        other = cast.party(role)
        problem_of(case.encode(other), 404, "not-found")
        problem_of(case.send(case.views(), other), 404, "not-found")
        for path in (f"/encodings/{encoding}", f"/encodings/{encoding}/outputs.npz"):
            problem_of(other.get(path), 404, "not-found")
        assert other.get("/encodings").json()["items"] == []


@pytest.mark.parametrize(
    "body",
    [
        {"views": 1},
        {"views": 33},
        {"views": "3"},
        {"seed": -1},
        {"sample_keys": []},
        {"sample_keys": ["dog-000"]},
        {"dataset_ids": []},
        {"dataset_ids": [f"dst_{'0' * 32}"]},
        {"draw": {"samples": 0}},
        {"more": 1},
    ],
)
def test_what_cannot_be_encoded_is_refused(case: Case, body: dict[str, Any]) -> None:
    problem_of(case.encode(**body), 422, "invalid")


def test_more_than_one_encoding_holds_is_refused_and_not_charged(case: Case) -> None:
    with case.past.sessions.begin() as session:
        session.get_one(Dataset, case.dataset).samples = 5000
        before = len(session.scalars(select(Query)).all())
    problem = problem_of(case.encode(), 422, "invalid")
    assert problem["allowed"] == {"samples": 1024, "sample_views": 16384}
    with case.past.sessions.begin() as session:
        session.get_one(Dataset, case.dataset).samples = SAMPLES
        assert len(session.scalars(select(Query)).all()) == before
    assert case.encode(draw={"samples": 2, "seed": 1}).status_code == 202


class TestOwnViews:
    def test_a_tar_of_views_is_taken(self, case: Case) -> None:
        answer = case.send(case.views())
        assert answer.status_code == 202, answer.text
        assert (answer.json()["views"], answer.json()["seed"]) == (2, None)
        assert answer.json()["sample_keys"] == [f"{case.dataset}/cat-000"]

    @pytest.mark.parametrize(
        ("told", "words"),
        [
            ({"crop": [0, 0, 99, 99]}, "a__0.png: crop"),
            ({"flip": "no"}, "a__0.png: flip"),
            ({"more": 1}, "a__0.png: its description"),
        ],
    )
    def test_what_breaks_a_rule_is_named(
        self, case: Case, told: dict[str, Any], words: str
    ) -> None:
        problem = problem_of(case.send(case.views(**told)), 422, "invalid-views")
        assert words in problem["detail"]

    def test_views_of_what_is_no_sample_of_the_request_are_refused(self, case: Case) -> None:
        problem_of(case.send(case.views(sample=f"{case.dataset}/dog-000")), 422, "invalid")
        stranger = f"dst_{'0' * 32}/cat-000"
        problem_of(case.send(case.views(sample=stranger)), 422, "invalid")

    def test_they_are_charged_before_they_are_read_and_once(self, case: Case) -> None:
        problem_of(case.send(b"no tar"), 422, "invalid-views")
        assert case.send(case.views()).status_code == 202
        with case.past.sessions() as session:
            charged = select(Query).where(Query.request_id == case.request).order_by(Query.id)
            *_, refused, taken = session.scalars(charged).all()
        assert (refused.samples, refused.views, taken.samples, taken.views) == (0, 0, 1, 2)

    def test_a_repeated_call_is_not_charged_again(self, case: Case) -> None:
        data = case.views(crop=[0, 0, 8, 8])
        before = case.charged()
        for _ in range(2):
            answer = case.owner.http.post(
                "/encode/views",
                content=data,
                params={"request_id": case.request},
                headers={
                    "Content-Digest": content_digest(hashlib.sha256(data).hexdigest()),
                    "Idempotency-Key": f"views-{case.request}",
                },
            )
            assert answer.status_code == 202
        assert case.charged() == before + 1

    @pytest.mark.parametrize("announced", [True, False])
    def test_what_the_disk_has_no_room_for_is_not_charged(
        self, case: Case, monkeypatch: pytest.MonkeyPatch, announced: bool
    ) -> None:
        data, charged = case.views(), case.charged()
        fill_disk(monkeypatch)
        refused = case.send_body(data if announced else iter([data]), data)
        problem_of(refused, 503, "unavailable")
        assert case.charged() == charged

    @pytest.mark.parametrize("announced", [True, False])
    def test_what_is_charged_has_its_room(
        self, case: Case, monkeypatch: pytest.MonkeyPatch, announced: bool
    ) -> None:
        """Whatever others take meanwhile."""
        data, reserve = case.views(), encodings.reserve

        def then_full(*args: Any, **named: Any) -> int | None:
            fill_disk(monkeypatch)
            return reserve(*args, **named)

        monkeypatch.setattr(encodings, "reserve", then_full)
        taken = case.send_body(data if announced else iter([data]), data)
        assert taken.status_code == 202, taken.text

    def test_what_is_too_large_is_not_charged(
        self, case: Case, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        data, charged = case.views(), case.charged()
        monkeypatch.setattr("expunge.api.routes.encodings.MAX_VIEWS_BYTES", len(data) - 1)
        problem_of(case.send_body(data, data), 413, "content-too-large")
        assert case.charged() == charged

    def test_what_nobody_may_ask_any_more_is_refused_unread(
        self, past: Past, data_owner: User, model_owner: User
    ) -> None:
        case = Case(past, data_owner, model_owner)
        spend(case.past, case.request, case.owner)
        answer = case.owner.http.post(
            "/encode/views",
            content=b"not what is announced",
            params={"request_id": case.request},
            headers={"Content-Digest": content_digest("0" * 64)},
        )
        problem_of(answer, 429, "budget-spent")

    def test_the_body_has_the_digest_that_it_announces(self, case: Case) -> None:
        data = case.views()
        answer = case.owner.http.post(
            "/encode/views",
            content=data + b"x",
            params={"request_id": case.request},
            headers={"Content-Digest": content_digest("0" * 64)},
        )
        problem_of(answer, 422, "digest-mismatch")
        answer = case.owner.http.post(
            "/encode/views", content=data, params={"request_id": case.request}
        )
        problem_of(answer, 400, "content-digest-needed")


def fill_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    full = shutil.disk_usage("/")._replace(free=0)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)


def spend(past: Past, request: str, party: User) -> None:
    """All queries of the request's day."""
    query = {"request_id": request, "party_id": party.id, "kind": "audit", "samples": 1, "views": 1}
    with past.sessions.begin() as session:
        session.add_all(Query(**query) for _ in range(access.STANDARD.queries))


@pytest.mark.parametrize("path", ["/encode", "/audit"])
def test_a_spent_budget_is_told_with_what_is_allowed_and_when(
    past: Past, data_owner: User, model_owner: User, path: str
) -> None:
    case = Case(past, data_owner, model_owner)
    spend(past, case.request, data_owner)
    answer = data_owner.post(path, {"request_id": case.request})
    problem = problem_of(answer, 429, "budget-spent")
    assert problem["allowed"]["queries"] == access.STANDARD.queries
    assert 0 < int(answer.headers["retry-after"]) <= 24 * 3600


def test_the_budget_of_the_settings_is_the_standard_one(settings: Settings) -> None:
    assert access.Budget.of(settings) == access.STANDARD
