"""The command line against the real service."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from PIL import Image
from tests.client.conftest import Service
from typer.testing import CliRunner

from expunge.client.cli import build_app
from expunge.client.reports import AuditReport
from expunge.evidence.signing import Signer

WIDE = {"COLUMNS": "200"}


def run(service: Service, secret: str | None, *arguments: str) -> Result:
    env = WIDE | {"EXPUNGE_URL": service.url, "EXPUNGE_KEY": secret or ""}
    return CliRunner(env=env).invoke(build_app(), arguments)


def answer(result: Result) -> dict[str, object]:
    assert result.exit_code == 0, result.output
    parsed: dict[str, object] = json.loads(result.stdout)
    return parsed


@pytest.fixture
def ada(service: Service) -> str:
    return service.cast.owners[0].key.secret


@pytest.fixture
def trainer(service: Service) -> str:
    return service.cast.model_owner.key.secret


def test_an_operator_sees_who_works(service: Service) -> None:
    found = answer(run(service, service.operator_secret, "worker", "status", "--json"))
    workers = found["workers"]
    assert isinstance(workers, list)
    assert {"interactive", "train"} <= {each["role"] for each in workers}
    drawn = run(service, service.operator_secret, "worker", "status")
    assert all(each["name"] in drawn.stdout for each in workers)
    assert "unlearn" in drawn.stdout
    refused = run(service, service.cast.model_owner.key.secret, "worker", "status")
    assert (refused.exit_code, "operator keys" in refused.output) == (1, True)


def test_a_folder_of_images_becomes_a_sealed_data_set(
    service: Service, ada: str, tmp_path: Path
) -> None:
    for name in ("cat/1.png", "dog/2.png"):
        (tmp_path / name).parent.mkdir()
        pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / name)
    dataset = answer(run(service, ada, "datasets", "create", "mine", "--json"))
    sealed = answer(
        run(
            service,
            ada,
            "datasets",
            "upload",
            str(dataset["id"]),
            str(tmp_path),
            "--seal",
            "--json",
        )
    )
    assert (sealed["state"], sealed["samples"]) == ("sealed", 2)
    assert str(dataset["id"]) in run(service, ada, "datasets", "list").output


def test_an_audit_draws_heat_maps_saves_them_and_says_the_verdict(
    service: Service, ada: str, tmp_path: Path
) -> None:
    request = service.outcome.owners[0].request.id
    options = ("--matrix-size", "6", "--views", "2", "--out", str(tmp_path / "maps"))
    result = run(service, ada, "audit", request, *options)
    assert result.exit_code == 0, result.output
    assert "encoder, before (' '" in result.output
    assert "@@" in result.output
    assert "forgetting score" in result.output
    newest = next(iter(service.cast.owners[0].client.audits()))
    assert f"Audit {newest.id} of {request}" in result.output
    assert {path.name for path in (tmp_path / "maps").iterdir()} == {
        "report.html",
        *(
            f"{level}-{which}.png"
            for level in ("encoder", "projector")
            for which in ("before", "after", "gap")
        ),
    }


def test_an_audit_can_be_of_chosen_samples_or_of_a_draw(service: Service, ada: str) -> None:
    owner = service.outcome.owners[0]
    key = next(iter(owner.report.levels["encoder"].forgetting_score.per_sample or {}))
    options = ("audit", owner.request.id, "--views", "2", "--json")
    chosen = answer(run(service, ada, *options, "--sample", key))
    assert (chosen["state"], chosen["sample_keys"]) == ("succeeded", [key])
    drawn = answer(run(service, ada, *options, "--draw", "3", "--draw-seed", "5"))
    assert drawn["draw"] == {"samples": 3, "seed": 5}
    assert AuditReport.model_validate(drawn["report"]).n_own == 3
    unknown = run(service, ada, *options, "--sample", "nobody")
    assert unknown.exit_code == 1
    assert "'nobody'" in unknown.output


def test_encoding_says_where_the_receipt_is_and_who_signed_it(
    service: Service, ada: str, tmp_path: Path
) -> None:
    request = service.outcome.owners[0].request.id
    told = run(service, ada, "encode", request, "--views", "2", "--out", str(tmp_path / "kept"))
    assert told.exit_code == 0, told.output
    assert f"Kept in {tmp_path / 'kept'}: outputs.npz, receipt.json" in told.stdout
    assert f"key {service.operator.signing_keys()[0].key_id}" in told.stdout
    receipt = json.loads((tmp_path / "kept" / "receipt.json").read_text())
    assert receipt["envelope"]["payload"] not in told.stdout


def test_watching_a_finished_request_ends_with_its_state(service: Service, ada: str) -> None:
    request = service.outcome.owners[0].request.id
    result = run(service, ada, "requests", "watch", request, "--json")
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert result.exit_code == 0
    assert lines[-1] == {"event": "end", "state": "completed"}
    assert "completed" in run(service, ada, "requests", "list").output


def test_the_model_owner_follows_jobs_and_downloads_the_encoder(
    service: Service, trainer: str, tmp_path: Path
) -> None:
    job = service.outcome.unlearning
    shown = answer(run(service, trainer, "jobs", "show", job.id, "--json"))
    assert shown["kind"] == "unlearn"
    watched = run(service, trainer, "jobs", "watch", job.id).stdout
    assert f"{job.id}: unlearn succeeded in " in watched
    assert service.outcome.result.id in watched
    assert "forgetting score (encoder) " in watched
    assert f"Next: expunge models lineage {job.model_id}" in watched
    assert "history" not in watched
    assert job.id in run(service, trainer, "jobs", "list").output
    out = tmp_path / "encoder.safetensors"
    arguments = ("models", "download", service.outcome.result.id, "--out", str(out), "--json")
    assert answer(run(service, trainer, *arguments))["digest"] == (
        service.outcome.result.release_digest
    )
    checkpoints = run(service, trainer, "models", "checkpoints", service.outcome.model.id)
    assert service.outcome.base.id in checkpoints.output


def test_a_model_is_created_with_its_settings(service: Service, trainer: str) -> None:
    options = ("--framework", "moco", "--width", "4", "--objective", "queue_size=32", "--json")
    model = answer(run(service, trainer, "models", "create", "small", *options))
    assert isinstance(model["encoder"], dict)
    assert model["encoder"]["objective"]["queue_size"] == 32
    assert model["encoder"]["architecture"]["width"] == 4


def test_keys_are_made_and_revoked(service: Service) -> None:
    operator = service.operator
    party = operator.create_party("Eve", "data_owner")
    key = operator.create_key(party.id)
    assert answer(run(service, key.secret, "me", "--json"))["party"] == json.loads(
        party.model_dump_json()
    )
    operator.revoke_key(key.id)
    refused = run(service, key.secret, "me")
    assert refused.exit_code == 1
    assert "HTTP 401" in refused.output


def test_a_key_is_held_to_scopes_listed_and_rotated(service: Service) -> None:
    operator = service.operator
    party = operator.create_party("Mallory", "data_owner")
    key = operator.create_key(party.id, 30, scopes=["read", "keys"])
    assert sorted(key.scopes) == ["keys", "read"]
    refused = run(service, key.secret, "datasets", "create", "photos")
    assert "HTTP 403" in refused.output
    new = answer(run(service, key.secret, "keys", "rotate", key.id, "--json"))
    listed = run(service, str(new["secret"]), "keys", "list", "--json")
    assert {key.id, new["id"]} == {each["id"] for each in json.loads(listed.output)}
    assert {each.id for each in operator.keys(party.id)} == {key.id, new["id"]}
    shown = run(service, str(new["secret"]), "keys", "list").stdout.splitlines()
    asking = next(line for line in shown if f"* │ {new['id']}" in line)
    assert key.id in asking, "which it replaces"
    assert sum("*" in line for line in shown) == 1
    unknown = run(service, None, "keys", "create", party.id, "--scope", "all")
    assert "unknown scope 'all'" in unknown.output


def test_without_a_key_the_hint_says_where_to_put_one(service: Service) -> None:
    result = run(service, None, "me")
    assert result.exit_code == 1
    assert "Set EXPUNGE_KEY or give --key." in result.output


def test_methods_need_no_key_and_show_bounds(service: Service) -> None:
    result = run(service, None, "methods")
    assert result.exit_code == 0
    assert "alignment_calibration" in result.output
    assert "beta = 8.0  ≥ 0" in result.output


def test_a_problem_is_one_paragraph_and_json_on_demand(service: Service, ada: str) -> None:
    theirs = service.outcome.owners[1].dataset.id
    plain = run(service, ada, "datasets", "show", theirs)
    assert plain.exit_code == 1
    assert plain.stderr.startswith("Error: ")
    problem = json.loads(run(service, ada, "datasets", "show", theirs, "--json").stderr)
    assert problem["status"] == 404


def test_a_parameter_that_is_no_pair_is_refused(service: Service, ada: str) -> None:
    photos = service.outcome.owners[0].dataset.id
    arguments = ("requests", "create", service.outcome.model.id, "--dataset", photos)
    result = run(service, ada, *arguments, "--param", "beta")
    assert result.exit_code == 1
    assert "'beta' is not of the form name=value" in result.output


def test_the_audit_of_a_certificate_is_written_as_verify_takes_it(
    service: Service, ada: str, tmp_path: Path
) -> None:
    request = service.outcome.owners[0].request.id
    paper, key, report = (tmp_path / name for name in ("paper.json", "key.pem", "audit.json"))
    kept = ("--out", str(paper), "--report", str(report))
    written = run(service, ada, "certificate", request, *kept)
    assert written.exit_code == 0, written.output
    assert run(service, ada, "signing-keys", "--save", str(key)).exit_code == 0
    given = (str(paper), "--key", str(key), "--report", str(report))
    checked = answer(run(service, None, "verify", *given, "--json"))
    links = checked["links"]
    assert isinstance(links, list)
    assert {link["name"]: link["status"] for link in links}["audit"] == "OK"
    renewed = run(service, ada, "certificate", request, "--renew", *kept).stdout
    assert re.search(r"Edition \d+ of \S+ UTC stands: there is nothing newer to certify\.", renewed)
    assert "nothing newer" not in written.stdout
    report.write_text(report.read_text().replace('"n_own": 10', '"n_own": 11'))
    assert run(service, None, "verify", *given).exit_code == 1


def test_a_signing_key_is_saved_once_and_never_over_another(
    service: Service, tmp_path: Path
) -> None:
    first = service.operator.signing_keys()[0]
    save = ("signing-keys", "--save", str(path := tmp_path / "service.pem"))
    assert f"{path}: key {first.key_id}" in run(service, None, *save).stdout
    assert path.read_text() == first.public_key
    assert f"{path} holds that key already: {first.key_id}" in run(service, None, *save).stdout
    other = Signer.create(tmp_path / "other.pem").public_key
    for content, said in ((other.pem, f"it holds key {other.id}"), ("mine", "holds no public key")):
        path.write_text(content)
        refused = run(service, None, *save)
        assert (refused.exit_code, path.read_text()) == (1, content)
        for part in ("is left as it is", said, first.key_id):
            assert part in " ".join(refused.stderr.split())
