"""The record over HTTP: own rows with proofs that hold, and nothing of anybody else's."""

from dataclasses import dataclass
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import select, text
from tests.api.conftest import Cast, Past, User, problem_of

from expunge.evidence.chain import ROW_MEMBERS, Row
from expunge.evidence.heads import PAYLOAD_TYPE, opened
from expunge.evidence.merkle import check_consistency, check_inclusion
from expunge.evidence.signing import Signer
from expunge.registry import log, signing_keys
from expunge.registry.database import Sessions
from expunge.registry.record import sealing
from expunge.registry.tables import LogLeaf, LogRow, Role

SIGNER = Signer(Ed25519PrivateKey.generate())


@dataclass(frozen=True)
class Story:
    """Two owners who asked one model in one batch, and strangers."""

    model_owner: User
    first: User
    second: User
    model: str
    datasets: tuple[str, str]
    requests: tuple[str, str]
    job: str


def seal(sessions: Sessions) -> None:
    with sessions.begin() as session:
        signing_keys.admit(session, SIGNER)
        sealing.seal(session, SIGNER)


@pytest.fixture(scope="module")
def story(cast: Cast, past: Past, session_factory: Sessions) -> Story:
    model_owner, first, second = (
        cast.party(role) for role in (Role.MODEL_OWNER, Role.DATA_OWNER, Role.DATA_OWNER)
    )
    model = model_owner.model(policy={"batch_window_seconds": 1000})
    firsts, seconds = past.granted(first, model_owner), past.granted(second, model_owner)
    own = past.sealed(model_owner)
    past.trained(model_owner, model, [own, firsts, seconds])
    seal(session_factory)
    requests = []
    for owner, dataset in ((first, firsts), (second, seconds)):
        answer = owner.post("/requests", {"model_id": model, "dataset_ids": [dataset]})
        assert answer.status_code == 202, answer.text
        requests.append(answer.json()["id"])
    job = past.job_of(requests[0])
    assert past.job_of(requests[1]) == job
    seal(session_factory)
    return Story(
        model_owner, first, second, model, (firsts, seconds), (requests[0], requests[1]), job
    )


def rows_of(user: User, **params: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    cursor = None
    while True:
        query = params | {"limit": 3} | ({"cursor": cursor} if cursor else {})
        answer = user.get("/log", params=query)
        assert answer.status_code == 200, answer.text
        page = answer.json()
        found += page["items"]
        cursor = page["next_cursor"]
        if cursor is None:
            return found


def subjects(user: User) -> set[str]:
    return {row["subject_id"] for row in rows_of(user)}


def leaf_of(row: dict[str, Any]) -> bytes:
    return Row(**{name: row[name] for name in ROW_MEMBERS}).leaf()


def test_every_row_is_complete_and_proven_by_the_signed_head(story: Story) -> None:
    head = story.first.get("/log/head").json()
    stated = opened(head["envelope"], [SIGNER.public_key])
    assert (stated.size, stated.root_hash.hex()) == (head["size"], head["root_hash"])
    rows = rows_of(story.first, size=head["size"])
    assert [row["seq"] for row in rows] == sorted(row["seq"] for row in rows)
    for row in rows:
        assert row["sealed"]
        leaf = leaf_of(row)
        assert leaf.hex() == row["leaf_hash"]
        path = [bytes.fromhex(each) for each in row["path"]]
        check_inclusion(leaf, row["position"], head["size"], path, stated.root_hash)
        alone = story.first.get(f"/log/{row['seq']}/proof").json()
        assert alone == {"row": row, "head": head}


def test_a_later_head_continues_an_earlier_one(story: Story, session_factory: Sessions) -> None:
    old = story.first.get("/log/head").json()
    story.first.open_dataset()
    seal(session_factory)
    new = story.first.get("/log/head").json()
    assert new["size"] > old["size"]
    assert story.first.get("/log/head", params={"size": old["size"]}).json() == old
    sizes = {"first": old["size"], "second": new["size"]}
    answer = story.second.get("/log/consistency", params=sizes).json()
    roots = [bytes.fromhex(each["root_hash"]) for each in (old, new)]
    path = [bytes.fromhex(each) for each in answer["path"]]
    check_consistency(old["size"], new["size"], *roots, path)


def test_a_row_waits_for_its_seal_and_a_smaller_tree_does_not_hold_it(
    cast: Cast, session_factory: Sessions
) -> None:
    owner = cast.party(Role.DATA_OWNER)
    seal(session_factory)
    before = owner.get("/log/head").json()["size"]
    dataset = owner.open_dataset()
    (row,) = rows_of(owner, subject=dataset, size=before)
    assert (row["sealed"], row["position"], row["leaf_hash"], row["path"]) == (False,) + (None,) * 3
    problem_of(owner.get(f"/log/{row['seq']}/proof"), 409, "conflict")
    seal(session_factory)
    (row,) = rows_of(owner, subject=dataset, size=before)
    assert (row["sealed"], row["path"]) == (True, None)
    answer = owner.get(f"/log/{row['seq']}/proof", params={"size": before})
    problem_of(answer, 409, "conflict")
    assert owner.get(f"/log/{row['seq']}/proof").status_code == 200


class TestWhoReadsWhat:
    """Own rows, completely; nothing of anybody else's."""

    def test_an_owner_reads_their_request_and_nothing_of_its_job_or_of_others(
        self, story: Story
    ) -> None:
        found = subjects(story.first)
        assert {story.datasets[0], story.requests[0], story.first.id} <= found
        told = str(rows_of(story.first))
        hidden = (story.second.id, story.datasets[1], story.requests[1], story.job)
        assert not [each for each in hidden if each in told]

    def test_the_models_owner_reads_its_model_jobs_requests_and_consents(
        self, story: Story
    ) -> None:
        rows = rows_of(story.model_owner)
        found = {row["subject_id"] for row in rows}
        assert {story.model, story.job, *story.requests} <= found
        of_datasets = [row for row in rows if row["subject_id"] in story.datasets]
        assert [row["event"] for row in of_datasets] == ["granted", "granted"]
        assert {row["detail"]["party_id"] for row in of_datasets} == {story.model_owner.id}

    def test_an_operator_reads_of_parties_and_keys_and_no_content(
        self, story: Story, operator: User, session_factory: Sessions
    ) -> None:
        with session_factory.begin() as session:
            log.append(session, log.SERVICE, "objects", "swept", count=1)
        found = subjects(operator)
        assert {story.first.id, "objects", SIGNER.key_id} <= found
        assert {each.partition("_")[0] for each in found} == {
            "pty",
            "key",
            "objects",
            SIGNER.key_id,
        }

    def test_strangers_read_nothing_of_it(
        self, story: Story, cast: Cast, other_owner: User, other_model_owner: User
    ) -> None:
        of_story = {story.model, story.job, *story.requests, *story.datasets, story.first.id}
        for user in (other_owner, other_model_owner, cast.party(Role.AUDITOR)):
            assert not subjects(user) & of_story
            assert SIGNER.key_id in subjects(user), "the service's keys concern everybody"

    def test_a_proof_of_anothers_row_is_no_more_there_than_one_of_no_row(
        self, story: Story, other_owner: User
    ) -> None:
        for row in rows_of(story.first, subject=story.requests[0]):
            answer = other_owner.get(f"/log/{row['seq']}/proof")
            problem = problem_of(answer, 404, "not-found")
            nothing = problem_of(other_owner.get("/log/99999999/proof"), 404, "not-found")
            assert problem["detail"].replace(str(row["seq"]), "99999999") == nothing["detail"]

    def test_rows_about_anothers_resource_are_an_empty_list(
        self, story: Story, other_owner: User
    ) -> None:
        assert rows_of(other_owner, subject=story.requests[0]) == []

    def test_a_consent_that_was_withdrawn_before_any_training_is_read_no_more(
        self, cast: Cast, past: Past
    ) -> None:
        owner, model_owner = cast.party(Role.DATA_OWNER), cast.party(Role.MODEL_OWNER)
        dataset = past.granted(owner, model_owner)
        assert [row["event"] for row in rows_of(model_owner, subject=dataset)] == ["granted"]
        owner.http.delete(f"/datasets/{dataset}/grants/{model_owner.id}")
        assert rows_of(model_owner, subject=dataset) == []

    def test_no_row_is_read_by_nobody_but_those_of_jobs_that_are_not_a_model_owners(
        self, story: Story, operator: User, session_factory: Sessions, cast: Cast
    ) -> None:
        read = {row["seq"] for user in cast.users for row in rows_of(user)}
        with session_factory() as session:
            left = session.scalars(select(LogRow).where(LogRow.seq.not_in(read))).all()
        assert {row.subject_id.partition("_")[0] for row in left} <= {"job"}


class TestVerify:
    """The service's own check, a part a call."""

    def test_what_is_sealed_is_in_order(self, story: Story, other_owner: User) -> None:
        answer = other_owner.get("/log/verify").json()
        size = story.first.get("/log/head").json()["size"]
        assert answer == {
            "ok": True,
            "size": size,
            "start": 0,
            "end": size,
            "next": None,
            "unsigned_heads": 0,
            "broken": None,
        }
        assert other_owner.get("/log/verify", params={"start": 10**9}).json()["ok"]

    def test_of_a_broken_row_only_the_place_is_told(
        self, story: Story, other_owner: User, session_factory: Sessions
    ) -> None:
        seal(session_factory)
        (seq, *_) = (row["seq"] for row in rows_of(story.first, subject=story.requests[0]))
        with session_factory() as session:
            position = session.scalars(select(LogLeaf.position).where(LogLeaf.seq == seq)).one()
        change = text("UPDATE log SET event = translate(event, 'er', 're') WHERE seq = :seq")
        with session_factory.begin() as session:
            session.execute(text("SET LOCAL session_replication_role = replica"))
            session.execute(change, {"seq": seq})
        try:
            answer = other_owner.get("/log/verify").json()
        finally:
            with session_factory.begin() as session:
                session.execute(text("SET LOCAL session_replication_role = replica"))
                session.execute(change, {"seq": seq})
        assert (answer["ok"], answer["next"]) == (False, None)
        assert answer["broken"] == {
            "kind": "row-changed",
            "seq": seq,
            "position": position,
            "size": None,
            "detail": "",
        }
        assert other_owner.get("/log/verify").json()["ok"]


def test_a_head_that_was_never_made_is_not_found(story: Story) -> None:
    for path in ("/log/head", "/log"):
        answer = story.first.get(path, params={"size": 10**9})
        problem_of(answer, 404, "not-found")


@pytest.mark.parametrize(
    ("path", "params"),
    [
        ("/log", {"cursor": "!"}),
        ("/log", {"cursor": "YQ"}),
        ("/log", {"subject": "\0"}),
        ("/log", {"size": 0}),
        ("/log", {"size": 2**63}),
        ("/log/head", {"size": 0}),
        ("/log/consistency", {"first": 0, "second": 1}),
        ("/log/consistency", {"first": 2, "second": 1}),
        ("/log/consistency", {"first": 1, "second": 10**9}),
        ("/log/consistency", {"first": 1}),
        ("/log/verify", {"start": -1}),
    ],
)
def test_bad_values_are_refused(story: Story, path: str, params: dict[str, Any]) -> None:
    problem_of(story.first.get(path, params=params), 422, "invalid")


@pytest.mark.parametrize("seq", ["0", "-1", "x", str(2**63)])
def test_what_is_no_number_of_a_row_is_not_found(story: Story, seq: str) -> None:
    problem_of(story.first.get(f"/log/{seq}/proof"), 404, "not-found")


def test_a_number_that_could_not_be_sealed_is_refused(model_owner: User) -> None:
    model = model_owner.model()
    answer = model_owner.http.patch(f"/models/{model}/policy", json={"max_batch_samples": 2**60})
    problem_of(answer, 422, "invalid")


def test_the_envelope_is_of_the_kind_that_clients_expect(story: Story) -> None:
    assert story.first.get("/log/head").json()["envelope"]["payloadType"] == PAYLOAD_TYPE
