"""What somebody with a valid key learns about another owner's samples: nothing, by whatever way they ask."""

import hashlib
import io
import json
import tarfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import numpy as np
import pytest
from sqlalchemy import Engine, event
from tests.api.conftest import Cast, Past, User, images, problem_of
from tests.api.removed import Removal, quick_worker, removed

from expunge.formats.digests import content_digest
from expunge.formats.shards import Sample
from expunge.registry.settings import Settings
from expunge.registry.tables import Role

MISSING = "0" * 32
VICTIMS, ATTACKERS = 80, 8
PAUSE_SECONDS, ROUNDS = 0.1, 2000
HANDLER_THREADS = "AnyIO worker thread"


@dataclass
class Scene:
    """A model keeps the victim's samples; the attacker holds copies, and an own completed request."""

    victim: User
    attacker: User
    model_owner: User
    kept: str
    """The victim's data set."""
    copied: str
    """The attacker's, with the victim's images; nobody trained on it."""
    mine: str
    removal: Removal
    theirs: Removal
    """The victim's own, of another model."""
    samples: list[Sample]
    """The victim's."""


@pytest.fixture(scope="module")
def scene(past: Past, cast: Cast, engine: Engine, settings: Settings) -> Iterator[Scene]:
    victim, attacker = cast.party(Role.DATA_OWNER), cast.party(Role.DATA_OWNER)
    model_owner = cast.party(Role.MODEL_OWNER)
    secrets = images("secret", VICTIMS, seed=2)
    with quick_worker(settings, engine):
        kept, mine = victim.sealed(secrets), attacker.sealed(images("mine", ATTACKERS, seed=1))
        copied = attacker.sealed(secrets[:ATTACKERS])
        more = victim.sealed(images("other", 2, seed=5))
        removal = removed(past, model_owner, attacker, mine, {kept: victim})
        theirs = removed(past, model_owner, victim, more, {past.sealed(model_owner): model_owner})
        yield Scene(victim, attacker, model_owner, kept, copied, mine, removal, theirs, secrets)


@contextmanager
def statements() -> Iterator[list[str]]:
    """What the handlers ask the database meanwhile."""
    found: list[str] = []

    def note(_: Any, __: Any, statement: str, *___: Any) -> None:
        if threading.current_thread().name == HANDLER_THREADS:
            found.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    yield found
    event.remove(Engine, "before_cursor_execute", note)


def told(answer: httpx.Response, asked: str) -> tuple[int, str, list[str]]:
    """All that an answer says but the id that was asked for and the time."""
    names = sorted(name for name in answer.headers if name not in ("date", "x-request-id"))
    return answer.status_code, answer.text.replace(asked, "ID"), names


class TestForeignAndMissingAreAlike:
    """Whether an id exists cannot be told, by answer or by work done."""

    def both(self, send: Any, foreign: str, prefix: str) -> None:
        missing = f"{prefix}_{MISSING}"
        send(missing)
        seen = []
        for each in (foreign, missing):
            with statements() as asked:
                answer = send(each)
            seen.append((told(answer, each), len(asked)))
        assert seen[0] == seen[1]
        (status, *_), work = seen[0]
        assert status in (404, 422)
        assert work > 0

    @pytest.mark.parametrize("path", ["/audit", "/encode"])
    def test_requests(self, scene: Scene, path: str) -> None:
        self.both(
            lambda each: scene.attacker.post(path, {"request_id": each}),
            scene.theirs.request,
            "req",
        )

    @pytest.mark.parametrize("path", ["/audit", "/encode"])
    def test_data_sets_of_an_own_request(self, scene: Scene, path: str) -> None:
        def send(each: str) -> httpx.Response:
            return scene.attacker.post(
                path, {"request_id": scene.removal.request, "dataset_ids": [each]}
            )

        self.both(send, scene.kept, "dst")

    def test_data_sets_to_delegate(self, scene: Scene, cast: Cast) -> None:
        auditor = cast.party(Role.AUDITOR).id

        def send(each: str) -> httpx.Response:
            body = {"auditor_id": auditor, "dataset_ids": [each], "expires_at": soon()}
            return scene.attacker.post("/delegations", body)

        self.both(send, scene.kept, "dst")

    def test_parties_to_delegate_to(self, scene: Scene) -> None:
        def send(each: str) -> httpx.Response:
            body = {"auditor_id": each, "dataset_ids": [scene.mine], "expires_at": soon()}
            return scene.attacker.post("/delegations", body)

        self.both(send, scene.victim.id, "pty")

    @pytest.mark.parametrize("path", ["/audits", "/encodings"])
    def test_answers_that_others_got(self, scene: Scene, path: str) -> None:
        ask = {"/audits": "/audit", "/encodings": "/encode"}[path]
        theirs = scene.victim.post(ask, {"request_id": scene.theirs.request}).json()["id"]
        self.both(lambda each: scene.attacker.get(f"{path}/{each}"), theirs, theirs[:3])


def soon() -> str:
    return (datetime.now(UTC) + timedelta(days=1)).isoformat()


class TestCopiesOfTheVictimsImages:
    """Holding an image is not enough to ask about it: it must have been one's own, and forgotten on request."""

    @pytest.mark.parametrize("path", ["/audit", "/encode"])
    def test_a_registered_copy_is_no_part_of_the_own_request(self, scene: Scene, path: str) -> None:
        body = {"request_id": scene.removal.request}
        answer = scene.attacker.post(path, body | {"dataset_ids": [scene.copied]})
        problem_of(answer, 422, "invalid")
        named = f"{scene.copied}/{scene.samples[0].key}"
        answer = scene.attacker.post(path, body | {"sample_keys": [named]})
        problem_of(answer, 422, "invalid")

    def test_nor_can_it_be_made_one(self, scene: Scene) -> None:
        body = {"model_id": scene.removal.model, "dataset_ids": [scene.copied]}
        problem_of(scene.attacker.post("/requests", body), 422, "not-in-training-data")

    def test_sent_as_a_view_of_an_own_sample_it_is_refused(self, scene: Scene) -> None:
        sample = f"{scene.mine}/mine-000"
        data = tar_of([(sample, each.image) for each in scene.samples[:2]])
        answer = scene.attacker.http.post(
            "/encode/views",
            content=data,
            params={"request_id": scene.removal.request},
            headers={"Content-Digest": content_digest(hashlib.sha256(data).hexdigest())},
        )
        found = settled(scene.attacker, answer)
        assert (found["state"], found["outputs"], found["receipt"]) == ("failed", None, None)
        assert "not recognised" in found["reason"]

    def test_sent_as_a_view_of_the_copy_or_of_the_victims_sample_it_is_refused(
        self, scene: Scene
    ) -> None:
        for dataset in (scene.copied, scene.kept):
            sample = f"{dataset}/{scene.samples[0].key}"
            data = tar_of([(sample, scene.samples[0].image)] * 2)
            digest = content_digest(hashlib.sha256(data).hexdigest())
            answer = scene.attacker.http.post(
                "/encode/views",
                content=data,
                params={"request_id": scene.removal.request},
                headers={"Content-Digest": digest},
            )
            problem_of(answer, 422, "invalid")


def tar_of(views: list[tuple[str, bytes]]) -> bytes:
    """Whole images as views of the samples."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for number, (sample, image) in enumerate(views):
            told = {"sample": sample, "crop": [0, 0, 16, 16], "flip": False}
            for suffix, data in (("png", image), ("json", json.dumps(told).encode())):
                info = tarfile.TarInfo(f"v__{number}.{suffix}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def finished(user: User, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """The answer once its job has ended."""
    return settled(user, user.post(path, body))


def settled(user: User, answer: httpx.Response) -> dict[str, Any]:
    assert answer.status_code == 202, answer.text
    place = answer.headers["location"]
    for _ in range(ROUNDS):
        found: dict[str, Any] = user.get(place).json()
        if found["state"] in ("succeeded", "failed"):
            return found
        time.sleep(PAUSE_SECONDS)
    pytest.fail(f"{place} does not end")


def test_nothing_that_names_the_victims_samples_is_in_anything_that_the_attacker_reads(
    scene: Scene,
) -> None:
    attacker, request = scene.attacker, scene.removal.request
    audit = finished(attacker, "/audit", {"request_id": request, "views": 2})
    assert audit["report"]["n_retained"] == VICTIMS
    assert audit["report"]["null_quantiles"] is not None
    encoding = finished(attacker, "/encode", {"request_id": request, "views": 2})
    read = [
        attacker.get(path).text
        for path in (
            "/datasets",
            "/models",
            "/requests",
            "/audits",
            "/encodings",
            "/delegations",
            "/log",
            f"/requests/{request}/log",
            f"/requests/{request}/residue",
            f"/audits/{audit['id']}",
            f"/audits/{audit['id']}/report.html",
            f"/encodings/{encoding['id']}",
        )
    ]
    outputs = np.load(io.BytesIO(attacker.get(encoding["outputs"]).content))
    read.append(" ".join([*outputs["keys"].tolist(), *outputs["sha256"].tolist()]))
    copies = {each.sha256 for each in scene.samples[:ATTACKERS]}
    for text in read:
        assert scene.kept not in text
        assert scene.victim.id not in text
        for sample in scene.samples:
            assert f'"{sample.key}"' not in text
            assert sample.sha256 in copies or sample.sha256 not in text


def test_the_model_owner_reads_no_score_of_single_samples_either(scene: Scene) -> None:
    owner, request = scene.model_owner, scene.removal.request
    shown = owner.get(f"/requests/{request}")
    assert shown.status_code == 200
    for path in ("/audits", "/encodings"):
        assert owner.get(path).json()["items"] == []
    for path in ("/audit", "/encode"):
        problem_of(owner.post(path, {"request_id": request}), 404, "not-found")
