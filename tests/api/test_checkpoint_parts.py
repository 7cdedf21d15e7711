"""Checkpoints in parts, through the service or to the store: what lacks is known, what is wrong refused."""

import hashlib
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import delete, func, select, update
from tests.api.conftest import ENCODER, Past, User, left_behind, problem_of
from tests.api.test_checkpoints import weights_file
from tests.registry.s3 import public_settings_of, working_server

from expunge.client import Client, UnreachableError, sending, transport
from expunge.client.problems import DoubtError
from expunge.formats.digests import content_digest
from expunge.registry import orphans
from expunge.registry.database import Sessions
from expunge.registry.objects import ObjectStore, StoreUnavailable, open_store
from expunge.registry.parts import MAX_OPEN
from expunge.registry.settings import Settings
from expunge.registry.tables import Checkpoint, PendingObject

MIB = 2**20


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """Address of a running S3 server."""
    with working_server() as endpoint:
        yield endpoint


@pytest.fixture(scope="module", params=["directory", "s3"])
def settings(request: pytest.FixtureRequest, settings: Settings) -> Settings:
    """Settings over a store that owners do not reach, and one that they do."""
    s3 = public_settings_of(request.getfixturevalue("s3")) if request.param == "s3" else {}
    return settings.model_copy(update={"max_checkpoint_bytes": 8 * MIB, **s3})


@pytest.fixture
def store(settings: Settings, url: str) -> ObjectStore:
    assert url
    return open_store(settings)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good checkpoint of several parts."""
    encoder = ENCODER | {"architecture": {"name": "resnet18_cifar", "width": 12}}
    path = weights_file(tmp_path_factory.mktemp("files") / "good.safetensors", encoder)
    assert 1 < path.stat().st_size / MIB < 3
    return path


@dataclass
class Desk:
    """A model without weights, and a file for it."""

    user: User
    model: str
    dataset: str
    data: bytes
    changes: dict[str, Any] = field(default_factory=dict)

    @property
    def parts(self) -> list[bytes]:
        return [self.data[start : start + MIB] for start in range(0, len(self.data), MIB)]

    @property
    def body(self) -> dict[str, Any]:
        return {
            "bytes": len(self.data),
            "sha256": sha256(self.data),
            "part_bytes": MIB,
            "parts": list(map(sha256, self.parts)),
        } | self.changes

    def announce(self, user: User | None = None) -> httpx.Response:
        return (user or self.user).post(f"/models/{self.model}/checkpoints/parts", self.body)

    def missing(self) -> list[dict[str, Any]]:
        answer = self.announce()
        assert answer.status_code == 200, answer.text
        found: list[dict[str, Any]] = answer.json()["missing"]
        return found

    def send(self, part: dict[str, Any], data: bytes | None = None) -> httpx.Response:
        """The part, or something else in its place, to the service."""
        sent = next(each for each in self.parts if sha256(each) == part["sha256"])
        return self.user.http.put(part["path"], content=sent if data is None else data)

    def complete(self, **headers: str) -> httpx.Response:
        body = self.body | {"dataset_ids": [self.dataset]}
        return self.user.post(f"/models/{self.model}/checkpoints/complete", body, headers=headers)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def desk(model_owner: User, past: Past, file: Path) -> Desk:
    encoder = ENCODER | {"architecture": {"name": "resnet18_cifar", "width": 12}}
    model = model_owner.model(encoder=encoder)
    return Desk(model_owner, model, past.sealed(model_owner), file.read_bytes())


@pytest.fixture(autouse=True)
def _leaves_nothing(
    settings: Settings, session_factory: Sessions, store: ObjectStore
) -> Iterator[None]:
    yield
    assert left_behind(settings) == []
    with session_factory.begin() as session:
        session.execute(delete(PendingObject).where(PendingObject.key.startswith("uploads/")))
    for key in parts_in(store):
        store.delete(key)


def parts_in(store: ObjectStore) -> list[str]:
    return list(store.keys("uploads"))


@pytest.mark.usefixtures("worker")
def test_parts_become_the_checkpoint_that_one_call_makes(desk: Desk, store: ObjectStore) -> None:
    missing = desk.missing()
    assert [each["sha256"] for each in missing] == desk.body["parts"]
    assert [each["bytes"] for each in missing] == list(map(len, desk.parts))
    for part in missing:
        assert desk.send(part).status_code == 204
    assert desk.missing() == []
    answer = desk.complete(Prefer="wait=30")
    assert answer.status_code == 200, answer.text
    assert answer.json()["state"] == "ready"
    assert answer.json()["digest"] == f"sha256:{sha256(desk.data)}"
    assert answer.json()["trained_on"] == [desk.dataset]
    assert parts_in(store) == []
    again = desk.user.http.post(
        f"/models/{desk.model}/checkpoints",
        params={"dataset_ids": desk.dataset},
        content=desk.data,
        headers={"Content-Digest": content_digest(sha256(desk.data)), "Prefer": "wait=30"},
    )
    same = ("digest", "release_digest", "bytes", "state", "trained_on")
    assert {name: again.json()[name] for name in same} == {
        name: answer.json()[name] for name in same
    }


def test_what_has_arrived_is_not_asked_for_again(desk: Desk) -> None:
    first, *rest = desk.missing()
    desk.send(first)
    answer = desk.announce().json()
    assert [each["sha256"] for each in answer["missing"]] == [each["sha256"] for each in rest]
    assert answer["missing_bytes"] == len(desk.data) - MIB
    found = problem_of(desk.complete(), 409, "part-missing")
    assert found["part"] == rest[0]["sha256"]


def test_completing_again_gives_the_same_checkpoint(desk: Desk, session_factory: Sessions) -> None:
    for part in desk.missing():
        desk.send(part)
    answers: list[httpx.Response] = []
    key = {"Idempotency-Key": f"once-{desk.model}"}
    threads = [
        threading.Thread(target=lambda: answers.append(desk.complete(**key))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    answers.append(desk.complete(**key))
    assert [each.status_code for each in answers] == [202] * 4
    assert len({each.json()["id"] for each in answers}) == 1
    with session_factory() as session:
        made = select(func.count()).where(Checkpoint.model_id == desk.model)
        assert session.scalar(made) == 1
    problem_of(desk.complete(), 409, "part-missing")


@pytest.mark.parametrize("how", ["other bytes", "too short"])
def test_a_part_that_is_another_is_refused(desk: Desk, store: ObjectStore, how: str) -> None:
    part, *_ = desk.missing()
    data = {"other bytes": b"x" * MIB, "too short": desk.data[:99]}[how]
    problem_of(desk.send(part, data), 422, "digest-mismatch")
    assert parts_in(store) == []


def test_a_part_is_no_larger_than_it_was_announced(desk: Desk, store: ObjectStore) -> None:
    """Whatever its digest: what is open of a file is never more than the file."""
    large = b"x" * (MIB + 1)
    desk.changes = {"parts": [sha256(large), *desk.body["parts"][1:]]}
    part, *_ = desk.missing()
    answer = desk.user.http.put(part["path"], content=large)
    assert problem_of(answer, 413, "content-too-large")["limit"] == MIB
    assert parts_in(store) == []


@pytest.mark.parametrize(
    "other",
    [
        {"bytes": 2 * MIB, "parts": ["0" * 64, "1" * 64]},
        {"bytes": 4 * MIB, "part_bytes": 2 * MIB, "parts": ["0" * 64, "1" * 64]},
        {"bytes": 1, "part_bytes": 4 * MIB, "parts": ["0" * 64]},
    ],
    ids=["as many", "larger ones", "one"],
)
def test_an_open_file_takes_no_other_parts(
    desk: Desk, session_factory: Sessions, other: dict[str, Any]
) -> None:
    """Each list would bring objects that nobody counts."""
    desk.send(desk.missing()[0])
    before = notes(session_factory)
    desk.changes = other | {"sha256": desk.body["sha256"]}
    refused = problem_of(desk.announce(), 409, "parts-differ")
    assert refused["part_bytes"] == MIB
    assert refused["expires_at"]
    assert notes(session_factory) == before
    desk.changes = {}
    assert len(desk.missing()) == len(desk.parts) - 1, "the same ones go on"


def notes(sessions: Sessions) -> set[str]:
    """Keys of parts that are announced, or were, and are not swept."""
    with sessions() as session:
        of_parts = PendingObject.key.startswith("uploads/parts/")
        unswept = select(PendingObject.key).where(of_parts, PendingObject.lease_token.is_(None))
        return set(session.scalars(unswept))


def test_what_the_store_lets_pass_is_found_and_removed(desk: Desk, store: ObjectStore) -> None:
    """Not every server compares what is sent to it directly with what was announced."""
    parts = desk.missing()
    for part in parts:
        desk.send(part)
    spoiled = next(key for key in parts_in(store) if key.endswith(parts[0]["sha256"]))
    for data in (b"x" * MIB, b"short", b"x" * (MIB + 1)):
        overwrite(store, spoiled, data)
        found = problem_of(desk.complete(), 422, "digest-mismatch")
        assert found["parts"] == [parts[0]["sha256"]]
        assert [each["sha256"] for each in desk.missing()] == found["parts"]
        desk.send(parts[0])
    assert desk.complete().status_code == 202


def overwrite(store: ObjectStore, key: str, data: bytes) -> None:
    """Other bytes under a key, as a server has them that does not compare."""
    store.delete(key)
    folder, _, digest = key.rpartition("/")
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        store.put(Path(file.name), digest, under=folder)


def test_parts_of_another_file_are_not_that_file(desk: Desk) -> None:
    desk.changes = {"sha256": "0" * 64}
    for part in desk.missing():
        desk.send(part)
    found = problem_of(desk.complete(), 422, "digest-mismatch")
    assert "parts" not in found


def test_a_file_that_is_no_checkpoint_is_refused(desk: Desk) -> None:
    desk.data = b"\x80\x04 a pickle" * 100
    for part in desk.missing():
        desk.send(part)
    problem_of(desk.complete(), 422, "invalid-checkpoint")


@pytest.mark.parametrize(
    "changes",
    [
        {"bytes": 0},
        {"bytes": 10**400},
        {"part_bytes": MIB - 1},
        {"parts": []},
        {"parts": ["0" * 64]},
        {"parts": ["x"]},
        {"sha256": "0"},
    ],
)
def test_an_announcement_that_does_not_add_up_is_refused(
    desk: Desk, changes: dict[str, Any]
) -> None:
    desk.changes = changes
    problem_of(desk.announce(), 422, "invalid")
    problem_of(desk.complete(), 422, "invalid")


def test_a_file_over_the_limit_is_refused_before_it_is_sent(desk: Desk) -> None:
    desk.changes = {"bytes": 8 * MIB + 1, "parts": ["0" * 64] * 9}
    found = problem_of(desk.announce(), 413, "content-too-large")
    assert found["limit"] == 8 * MIB


def test_so_many_files_may_be_open(desk: Desk) -> None:
    for number in range(MAX_OPEN):
        desk.changes = {"sha256": f"{number:064}"}
        desk.missing()
    desk.changes = {"sha256": f"{MAX_OPEN:064}"}
    assert problem_of(desk.announce(), 409, "conflict")["allowed"] == MAX_OPEN
    desk.changes = {"sha256": f"{0:064}"}
    desk.missing()


def test_a_part_that_nobody_announced_is_refused(desk: Desk) -> None:
    part, *_ = desk.missing()
    other = part["path"].rpartition("/")[0] + "/" + "1" * 64
    problem_of(desk.user.http.put(other, content=b"x"), 409, "part-missing")


def test_others_learn_and_change_nothing(
    desk: Desk, other_model_owner: User, store: ObjectStore, data_owner: User
) -> None:
    parts = desk.missing()
    desk.send(parts[0])
    problem_of(desk.announce(other_model_owner), 404, "not-found")
    answer = other_model_owner.http.put(parts[1]["path"], content=desk.parts[1])
    problem_of(answer, 404, "not-found")
    problem_of(desk.announce(data_owner), 403, "forbidden")
    theirs = Desk(other_model_owner, other_model_owner.model(), desk.dataset, desk.data)
    assert len(theirs.missing()) == len(desk.parts), "what others have sent is not shared"
    assert len(parts_in(store)) == 1


def test_a_sweep_takes_what_was_given_up_and_nothing_before(
    desk: Desk, store: ObjectStore, session_factory: Sessions
) -> None:
    for part in desk.missing():
        desk.send(part)
    orphans.sweep(session_factory, store, grace_seconds=0)
    assert len(parts_in(store)) == len(desk.parts)
    expire(session_factory)
    orphans.sweep(session_factory, store, grace_seconds=0)
    assert parts_in(store) == []
    problem_of(desk.complete(), 409, "part-missing")
    for part in desk.missing():
        assert desk.send(part).status_code == 204
    assert desk.complete().status_code == 202, "under another name than what was swept"


def expire(sessions: Sessions) -> None:
    with sessions.begin() as session:
        of_parts = PendingObject.key.startswith("uploads/parts/")
        session.execute(update(PendingObject).where(of_parts).values(noted_at=func.now()))


def test_what_has_expired_goes_on_until_it_is_swept(desk: Desk, session_factory: Sessions) -> None:
    first, *rest = desk.missing()
    desk.send(first)
    expire(session_factory)
    problem_of(desk.send(rest[0]), 409, "part-missing")
    assert [part["sha256"] for part in desk.missing()] == [part["sha256"] for part in rest]
    assert desk.send(rest[0]).status_code == 204


def test_what_has_expired_counts_until_it_is_swept(
    desk: Desk, session_factory: Sessions, store: ObjectStore
) -> None:
    for number in range(MAX_OPEN):
        desk.changes = {"sha256": f"{number:064}"}
        desk.missing()
    expire(session_factory)
    desk.changes = {"sha256": f"{MAX_OPEN:064}"}
    problem_of(desk.announce(), 409, "conflict")
    orphans.sweep(session_factory, store, grace_seconds=0)
    desk.missing()


def test_what_a_sweep_could_not_remove_counts_until_one_does(
    desk: Desk, session_factory: Sessions, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.data = b"of one part"
    for number in range(MAX_OPEN):
        desk.changes = {"sha256": f"{number:064}"}
        desk.send(desk.missing()[0])
    expire(session_factory)

    def away(*_: object) -> None:
        raise StoreUnavailable("away")

    with monkeypatch.context() as patch:
        patch.setattr(type(store), "delete", away)
        with pytest.raises(StoreUnavailable):
            orphans.sweep(session_factory, store, grace_seconds=0)
    assert len(parts_in(store)) == MAX_OPEN
    desk.changes = {"sha256": f"{0:064}"}
    problem_of(desk.announce(), 409, "conflict")
    orphans.sweep(session_factory, store, grace_seconds=0)
    desk.missing()


class TestClient:
    """The SDK sends what lacks, wherever it can."""

    @pytest.fixture(autouse=True)
    def _small(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("expunge.client.models.IN_PARTS_FROM_BYTES", MIB)
        monkeypatch.setattr(sending, "PART_BYTES", MIB)
        monkeypatch.setattr(transport, "RETRY_BASE_SECONDS", 0.001)

    @pytest.fixture
    def sdk(self, url: str, model_owner: User) -> Iterator[Client]:
        key = model_owner.http.headers["Authorization"].removeprefix("Bearer ")
        with Client(url, key) as client:
            yield client

    @pytest.mark.usefixtures("worker")
    @pytest.mark.parametrize("direct", [None, False])
    def test_a_large_file_goes_in_parts(
        self, sdk: Client, desk: Desk, file: Path, direct: bool | None
    ) -> None:
        found = sdk.upload_checkpoint(desk.model, file, [desk.dataset], direct=direct)
        assert found.state == "ready"
        assert found.digest == f"sha256:{sha256(desk.data)}"

    def test_it_goes_on_where_it_was_stopped(
        self, sdk: Client, desk: Desk, file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sent: list[int] = []
        send = transport.Transport.send

        def stopped(self: Any, method: str, path: str, body: Any = None, **others: Any) -> Any:
            if method == "PUT":
                if len(sent) == 1:
                    sent.append(0)
                    raise KeyboardInterrupt
                sent.append(body.start)
            return send(self, method, path, body or transport.NO_BODY, **others)

        monkeypatch.setattr(transport.Transport, "send", stopped)
        with pytest.raises(KeyboardInterrupt):
            sdk.upload_checkpoint(desk.model, file, [desk.dataset], wait=False, direct=False)
        sdk.upload_checkpoint(desk.model, file, [desk.dataset], wait=False, direct=False)
        assert sorted(sent) == sorted([0, 0, *range(MIB, len(desk.data), MIB)])

    def test_what_arrived_damaged_is_sent_again(
        self,
        sdk: Client,
        desk: Desk,
        file: Path,
        store: ObjectStore,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        complete, spoiled = sending.create, iter(range(1))

        def create(*given: Any, **named: Any) -> Any:
            if next(spoiled, None) is not None:
                overwrite(store, parts_in(store)[0], b"half of a part")
            return complete(*given, **named)

        monkeypatch.setattr(sending, "create", create)
        found = sdk.upload_checkpoint(desk.model, file, [desk.dataset], wait=False)
        assert found.digest == f"sha256:{sha256(desk.data)}"

    def test_a_store_out_of_reach_is_gone_around(
        self, sdk: Client, desk: Desk, file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def unreachable(*_: Any) -> None:
            raise UnreachableError("no way")

        monkeypatch.setattr(transport.Transport, "send_elsewhere", unreachable)
        sdk.upload_checkpoint(desk.model, file, [desk.dataset], wait=False)

    def test_what_does_not_arrive_is_not_sent_for_ever(
        self, sdk: Client, desk: Desk, file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sending, "_went_directly", lambda *_: True)
        send = transport.Transport.send

        def lost(self: Any, method: str, *others: Any, **named: Any) -> Any:
            return None if method == "PUT" else send(self, method, *others, **named)

        monkeypatch.setattr(transport.Transport, "send", lost)
        with pytest.raises(DoubtError, match="did not arrive"):
            sdk.upload_checkpoint(desk.model, file, [desk.dataset], wait=False)
