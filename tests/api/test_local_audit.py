"""An audit computed at home equals the service's, and notices what does not fit."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import Engine
from tests.api.conftest import Cast, Past, User, images
from tests.api.removed import quick_worker, removed
from typer.testing import CliRunner

from expunge.client import Client
from expunge.client.calls import get
from expunge.client.cli import build_app
from expunge.client.problems import DoubtError, ProblemError
from expunge.evidence.encoding import check
from expunge.evidence.signing import PublicKey, Signer
from expunge.evidence.succession import KnownKey, Succession
from expunge.formats.home_views import View, write_views
from expunge.registry.settings import Settings
from expunge.registry.tables import Role

OWN, RETAINED = 8, 80


@pytest.fixture(scope="module")
def settings(settings: Settings, signing_key: str) -> Settings:
    return settings.model_copy(update={"signing_key_file": signing_key})


@dataclass
class Case:
    """A completed request about eight samples, beside 80 that the model keeps."""

    owner: Client
    other: Client
    request: str
    key: PublicKey
    dataset: str
    auditor: str


def client(user: User, url: str) -> Client:
    return Client(url, user.http.headers["authorization"].removeprefix("Bearer "))


@pytest.fixture(scope="module")
def case(past: Past, cast: Cast, engine: Engine, settings: Settings, url: str) -> Iterator[Case]:
    owner, kept = cast.party(Role.DATA_OWNER), cast.party(Role.DATA_OWNER)
    with quick_worker(settings, engine):
        mine = owner.sealed(images("mine", OWN, seed=1))
        others = kept.sealed(images("kept", RETAINED, seed=2))
        done = removed(past, cast.party(Role.MODEL_OWNER), owner, mine, {others: kept})
        key = Signer.load(Path(settings.signing_key_file)).public_key
        with client(owner, url) as first, client(kept, url) as second:
            yield Case(first, second, done.request, key, mine, cast.party(Role.AUDITOR).id)


def flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every number of a document by its path."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from flat(inner, f"{path}/{name}")
    elif isinstance(value, list | tuple):
        for place, inner in enumerate(value):
            yield from flat(inner, f"{path}/{place}")
    else:
        yield path, value


def test_local_numbers_equal_the_services(case: Case) -> None:
    asked: dict[str, Any] = {"views": 3, "seed": 4, "matrix_size": 5}
    local = case.owner.audit_at_home(case.request, keys=[case.key], **asked)
    service = case.owner.audit(case.request, **asked)
    assert service.report is not None
    theirs, mine = service.report.model_dump(), local.report.to_dict()
    for level, numbers in mine["levels"].items():
        for name in ("forgetting_score", "negative_alignment"):
            found, wanted = (dict(flat(each[name])) for each in (numbers, theirs["levels"][level]))
            assert found == pytest.approx(wanted, abs=1e-9), level
    assert local.signed_by == case.key.id
    for level in ("encoder", "projector"):
        for which in ("before", "after", "gap"):
            np.testing.assert_allclose(
                local.bundle.matrices[level][which],
                case.owner.matrix(service.id, which, level),
                atol=1e-6,
            )


def test_own_numbers_are_placed_among_those_of_retained_samples(case: Case) -> None:
    local = case.owner.audit_at_home(case.request, views=3)
    assert local.places is not None
    assert local.p is not None
    assert local.places.keys() == local.report.levels.keys()
    assert 0 <= local.p[0] <= local.p[1] <= 1
    assert "between" in local.sentence


def test_another_key_than_the_services_is_not_taken(case: Case, tmp_path: Path) -> None:
    stranger = Signer.create(tmp_path / "stranger.pem").public_key
    with pytest.raises(DoubtError, match="not signed as it should be"):
        case.owner.audit_at_home(case.request, views=2, keys=[stranger])


def test_outputs_that_are_not_those_of_the_receipt_are_noticed(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = case.owner.encoding_outputs

    def changed(encoding_id: str) -> bytes:
        data = bytearray(honest(encoding_id))
        data[len(data) // 2] ^= 1
        return bytes(data)

    monkeypatch.setattr(case.owner, "encoding_outputs", changed)
    with pytest.raises(DoubtError, match="SHA-256"):
        case.owner.audit_at_home(case.request, views=2)


@pytest.mark.parametrize(
    "asked",
    [
        {"views": 3, "seed": 1},
        {"views": 2, "seed": 2},
        {"views": 2, "seed": 1, "draw": {"samples": 3, "seed": 0}},
        {"views": 2, "seed": 1, "sample_keys": ["mine-000"]},
    ],
)
def test_the_answer_to_another_question_is_noticed(
    case: Case, monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any]
) -> None:
    other = case.owner.encode(case.request, views=2, seed=1)
    monkeypatch.setattr(case.owner, "encode", lambda *_, **__: other)
    with pytest.raises(DoubtError, match=r"for (another question|other samples)"):
        case.owner.audit_at_home(case.request, keys=[case.key], **asked)


def test_a_key_from_before_a_rotation_is_followed(
    case: Case, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first = Signer.create(tmp_path / "first.pem")
    introduced = Succession.signed(first, case.key, datetime.now(UTC))
    known = [
        KnownKey(key_id=key.id, public_key=key.pem, since="", introduced_by=how)
        for key, how in ((first.public_key, None), (case.key, introduced))
    ]
    monkeypatch.setattr(case.owner, "signing_keys", lambda: known)
    asked: dict[str, Any] = {"views": 2, "keys": [first.public_key]}
    assert case.owner.audit_at_home(case.request, **asked).signed_by == case.key.id
    forged = known[1].model_copy(update={"introduced_by": None})
    monkeypatch.setattr(case.owner, "signing_keys", lambda: [known[0], forged])
    with pytest.raises(DoubtError, match="succession"):
        case.owner.audit_at_home(case.request, **asked)


def recorded(case: Case, **asked: Any) -> dict[str, Any]:
    """An audit as the service tells of it."""
    made = case.owner.audit(case.request, views=3, seed=4, matrix_size=5, **asked)
    return made.model_dump(mode="json", exclude_unset=True)


@pytest.mark.parametrize("asked", [{}, {"sample_keys": ["mine-002", "mine-005"]}])
def test_a_recorded_audit_is_repeated_digest_by_digest_and_number_by_number(
    case: Case, asked: dict[str, Any]
) -> None:
    again = case.owner.replay_audit(recorded(case, **asked), keys=[case.key])
    assert again.differing == []
    assert again.largest_difference < 1e-9
    assert again.compared > 30
    assert again.signed_by == case.key.id


def test_whatever_of_a_record_is_not_repeated_is_named(case: Case) -> None:
    record = recorded(case)
    changes: list[tuple[str, Any]] = [
        ("protocol/before", "sha256:0"),
        ("protocol/subset/digest", "sha256:1"),
        ("levels/encoder/forgetting_score/mean", 0.5),
        ("levels/projector/forgetting_score/per_sample/mine-003", -0.5),
        ("levels/projector/negative_alignment/change/interval/0", -3.0),
    ]
    for place, value in changes:
        *path, last = place.split("/")
        part = record["report"]
        for name in path:
            part = part[name]
        part[int(last) if isinstance(part, list) else last] = value
    del record["report"]["levels"]["encoder"]["forgetting_score"]["per_sample"]["mine-001"]
    found = {each.place: each.recorded for each in case.owner.replay_audit(record).differing}
    assert found == dict(changes) | {"levels/encoder/forgetting_score/per_sample/mine-001": None}


def test_only_a_finished_audit_can_be_repeated(case: Case) -> None:
    for record in ({}, recorded(case) | {"report": None}):
        with pytest.raises(DoubtError, match=r"no audit as the service|no report of how"):
            case.owner.replay_audit(record)


def test_anybody_else_audits_nothing(case: Case) -> None:
    with pytest.raises(ProblemError) as error:
        case.other.audit_at_home(case.request, views=2)
    assert error.value.status == 404


@pytest.fixture
def command_line(case: Case, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Runs a command as the owner and returns what it prints."""
    secret = case.owner._transport._http.headers["authorization"].removeprefix("Bearer ")
    monkeypatch.setenv("EXPUNGE_URL", case.owner.base_url)
    monkeypatch.setenv("EXPUNGE_KEY", secret)

    def run(*arguments: str) -> str:
        result = CliRunner().invoke(build_app(), arguments)
        assert result.exit_code == 0, result.output
        return result.output

    return run


def test_the_command_line_repeats_an_audit_and_fails_where_it_differs(
    case: Case, tmp_path: Path, command_line: Callable[..., str]
) -> None:
    kept = tmp_path / "audit.json"
    kept.write_text(command_line("audit", case.request, "--views", "3", "--json"))
    assert "as recorded" in command_line("audit", "--replay", str(kept))
    told = json.loads(kept.read_text())
    # Member by member, or `verify --report` would find another digest.
    assert told["report"] == get(case.owner._transport, f"/audits/{told['id']}")["report"]
    assert json.loads(command_line("audit", "--replay", told["id"], "--json"))["same"] is True
    told["report"]["levels"]["encoder"]["forgetting_score"]["mean"] += 0.25
    kept.write_text(json.dumps(told))
    failed = CliRunner().invoke(build_app(), ["audit", "--replay", str(kept)])
    assert failed.exit_code == 1
    assert "levels/encoder/forgetting_score/mean" in failed.output
    kept.write_text(json.dumps(told | {"id": "[/no] markup"}))
    failed = CliRunner().invoke(build_app(), ["audit", "--replay", str(kept)])
    assert "[/no] markup is not repeated" in failed.output
    (tmp_path / "no.pem").write_text("no key")
    for wrong in (
        ["audit"],
        ["audit", case.request, "--replay", str(kept)],
        ["audit", "--replay", str(kept), "--signing-key", str(tmp_path / "no.pem")],
        ["audit", case.request, "--local", "--signing-key", str(tmp_path / "no.pem")],
    ):
        refused = CliRunner().invoke(build_app(), wrong)
        assert (refused.exit_code, type(refused.exception)) == (1, SystemExit)


def test_delegations_are_given_listed_and_withdrawn(
    case: Case, command_line: Callable[..., str]
) -> None:
    end = datetime.now(UTC) + timedelta(days=2)
    given = case.owner.delegate(case.auditor, [case.dataset], end)
    assert (given.expires_at, given.withdrawn_at) == (end, None)
    made = json.loads(
        command_line("delegations", "create", case.auditor, case.dataset, "--days", "3", "--json")
    )
    command_line("delegations", "withdraw", made["id"])
    assert made["id"] in command_line("delegations", "list", "--json")
    found = {each.id: each for each in case.owner.delegations()}
    assert found[given.id].withdrawn_at is None
    assert found[made["id"]].withdrawn_at is not None


def test_views_made_at_home_are_sent_and_encoded(case: Case, tmp_path: Path) -> None:
    whole = images("mine", 1, seed=1)[0]
    views = [
        (
            View(f"a__{n}.png", f"{case.dataset}/{whole.key}", n, (0, 0, 16, 16), False, 0, 0),
            whole.image,
        )
        for n in range(2)
    ]
    write_views(tmp_path / "views.tar", views)
    made = case.owner.encode_views(case.request, tmp_path / "views.tar")
    assert (made.state, made.seed, made.views) == ("succeeded", None, 2), made.reason
    assert made.receipt is not None
    found = check(made.receipt.statement, case.owner.encoding_outputs(made.id))
    outputs = found.levels["encoder"].before.views
    np.testing.assert_array_equal(outputs[0], outputs[1])
    assert made.id in {each.id for each in case.owner.encodings()}


def test_the_command_line_does_the_same(
    case: Case, tmp_path: Path, command_line: Callable[..., str]
) -> None:
    pem = tmp_path / "service.pem"
    pem.write_text(case.key.pem)
    out = tmp_path / "out"
    asked = ["audit", case.request, "--local", "--views", "2", "--signing-key", str(pem)]
    output = command_line(*asked, "--out", str(out))
    assert "encoder" in output
    assert case.key.id[:12] in output
    assert {path.name for path in out.iterdir()} == {
        "outputs.npz",
        "receipt.json",
        "encoder.png",
        "projector.png",
    }
    again = tmp_path / "again"
    command_line("encode", case.request, "--out", str(again), "--views", "2", "--json")
    assert (again / "outputs.npz").read_bytes() == (out / "outputs.npz").read_bytes()
