"""The SDK against the real service."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from tests.client.conftest import Service
from tests.client.relay import Relay

from expunge.client import Client, ProblemError, UnreachableError
from expunge.client.problems import LostSecretError
from expunge.client.resources import End, StateChange


def test_the_gap_matrix_is_before_minus_after(service: Service) -> None:
    found = service.outcome.owners[0]
    client = found.owner.client
    before, after, gap = (
        client.matrix(found.audit.id, which, "projector") for which in ("before", "after", "gap")
    )
    assert before.shape == (8, 8)
    assert before.dtype == np.float32
    np.testing.assert_allclose(gap, before - after, atol=1e-6)


def test_pictures_are_png_files(service: Service) -> None:
    for found in service.outcome.owners:
        assert len(found.pictures) == 6
        for picture in found.pictures:
            assert picture.read_bytes().startswith(b"\x89PNG\r\n")


def test_lists_go_on_over_pages(service: Service) -> None:
    client = service.cast.owners[0].client
    made = {client.create_dataset(f"empty {number}").id for number in range(3)}
    assert made <= {dataset.id for dataset in client.datasets()}
    index = list(client.samples(service.outcome.owners[0].dataset.id))
    assert len({sample.key for sample in index}) == 10


def test_sealing_what_is_broken_says_why(service: Service, tmp_path: Path) -> None:
    client = service.cast.owners[0].client
    shard = service.folder / "shards" / "owner_a.tar"
    dataset = client.create_dataset("twice the same")
    client.upload_shard(dataset.id, shard, "a-00.tar")
    client.upload_shard(dataset.id, shard, "a-01.tar")
    sealed = client.seal(dataset.id)
    assert sealed.state == "invalid"
    assert sealed.problem is not None
    assert sealed.problem.code == "duplicate-key"


def test_released_weights_come_whole_and_can_be_uploaded_elsewhere(
    service: Service, tmp_path: Path
) -> None:
    trainer = service.cast.model_owner.client
    result = service.outcome.result
    digest = trainer.download_weights(result.id, tmp_path / "encoder.safetensors")
    assert digest == result.release_digest
    content = (tmp_path / "encoder.safetensors").read_bytes()
    assert digest == f"sha256:{hashlib.sha256(content).hexdigest()}"
    model = trainer.create_model("second", dict(service.outcome.model.encoder or {}))
    checkpoint = trainer.upload_checkpoint(
        model.id, tmp_path / "encoder.safetensors", [service.outcome.retained.id]
    )
    assert checkpoint.state == "ready"
    assert trainer.model(model.id).head_checkpoint_id == checkpoint.id


def test_a_cut_event_stream_goes_on_where_it_broke_off(service: Service) -> None:
    found = service.outcome.owners[0]
    straight = list(found.owner.client.watch_request(found.request.id))
    assert isinstance(straight[-1], End)
    with (
        Relay.before(service.url, 700, 800, 900) as relay,
        Client(relay.url, found.owner.key.secret) as client,
    ):
        broken = list(client.watch_request(found.request.id))
        assert relay.connections > 1
    states = [event for event in straight if isinstance(event, StateChange)]
    assert [event for event in broken if isinstance(event, StateChange)] == states
    assert broken[-1] == straight[-1]


def test_reading_is_repeated_while_the_service_is_away(service: Service) -> None:
    secret = service.cast.owners[0].key.secret
    with Relay.before(service.url, None, 0) as relay, Client(relay.url, secret) as client:
        assert client.me().party.name == "Ada"
        assert relay.connections == 3


def test_what_could_act_twice_is_not_repeated(service: Service) -> None:
    secret = service.cast.model_owner.key.secret
    request = service.outcome.owners[0].request.id
    with Relay.before(service.url, None, None) as relay, Client(relay.url, secret) as client:
        with pytest.raises(ProblemError) as caught:
            client.approve_request(request)
        assert caught.value.status == 503
        with pytest.raises(ProblemError):
            client.reject_request(request, "no")
        assert relay.connections == 2


def test_what_was_created_while_the_answer_was_lost_is_created_once(service: Service) -> None:
    """The first connection breaks before the first byte of the answer: the call was carried out."""
    secret = service.cast.owners[0].key.secret
    with Relay.before(service.url, 0) as relay, Client(relay.url, secret) as client:
        made = client.create_dataset("made once")
        assert relay.connections == 2
        assert [each.id for each in client.datasets() if each.name == "made once"] == [made.id]


def test_a_key_whose_secret_was_lost_is_said_to_be(service: Service) -> None:
    operator, party = service.operator_secret, service.cast.owners[0].party
    with Relay.before(service.url, 0) as relay, Client(relay.url, operator) as client:
        with pytest.raises(LostSecretError, match=r"Key key_\w+ was made .* revoke it"):
            client.create_key(party.id)
        assert client.create_key(party.id).secret.startswith("xpk_")


def test_a_request_whose_answer_was_lost_is_made_once(service: Service, tmp_path: Path) -> None:
    trainer, ada = service.cast.model_owner.client, service.cast.owners[0]
    photos = service.outcome.owners[0].dataset
    weights = tmp_path / "encoder.safetensors"
    trainer.download_weights(service.outcome.base.id, weights)
    model = trainer.create_model(
        "patient",
        dict(service.outcome.model.encoder or {}),
        policy={"batch_window_seconds": 86_400},
    )
    trainer.upload_checkpoint(model.id, weights, [service.outcome.retained.id, photos.id])
    # The first connection breaks before the first byte of the answer: the request was carried out.
    with Relay.before(service.url, 0) as relay, Client(relay.url, ada.key.secret) as client:
        request = client.create_request(model.id, [photos.id])
        assert relay.connections == 2
    assert [each.id for each in ada.client.requests() if each.model_id == model.id] == [request.id]


def test_nobody_there_is_said_with_the_address() -> None:
    with (
        Client("http://127.0.0.1:9", "xpk_none") as client,
        pytest.raises(
            UnreachableError, match=r"No answer from the service at http://127\.0\.0\.1:9"
        ),
    ):
        client.me()


def test_a_problem_carries_its_type_and_extensions(service: Service) -> None:
    ada = service.cast.owners[0].client
    with pytest.raises(ProblemError) as caught:
        ada.create_request(
            service.outcome.model.id, [service.outcome.owners[0].dataset.id], "wishful_thinking"
        )
    assert caught.value.type.startswith("urn:expunge:problem:")
    assert "alignment_calibration" in str(caught.value)
