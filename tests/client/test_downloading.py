"""Weights over connections that break: what came is kept, what lacks is asked for, other bytes are not handed out."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.client.conftest import Service
from tests.client.relay import Relay

from expunge.client import Client, UnreachableError, transport
from expunge.client.downloading import download
from expunge.client.problems import DoubtError, ProblemError
from expunge.client.transport import Transport

HEAD = 2_000
"""Bytes of an answer that hold its head and a bit of its body."""


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "RETRY_BASE_SECONDS", 0.001)


@pytest.fixture
def checkpoint_id(service: Service) -> str:
    return service.outcome.result.id


@pytest.fixture
def whole(service: Service, checkpoint_id: str, tmp_path: Path) -> bytes:
    service.cast.model_owner.client.download_weights(checkpoint_id, tmp_path / "whole")
    return (tmp_path / "whole").read_bytes()


def parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.part"))


@pytest.fixture
def fetched(service: Service, checkpoint_id: str, tmp_path: Path) -> Callable[..., bytes]:
    """Downloads through a relay with these faults, after the call that tells the digest."""

    def fetch(*faults: int | None) -> bytes:
        secret = service.cast.model_owner.key.secret
        digest = service.outcome.result.release_digest.removeprefix("sha256:")
        target = tmp_path / "encoder.safetensors"
        with Relay.before(service.url, *faults) as relay:
            sender = Transport(relay.url, secret, 30)
            try:
                download(sender, f"/checkpoints/{checkpoint_id}/weights", target, digest)
            finally:
                sender.close()
            assert relay.connections == len(faults) + 1
        return target.read_bytes()

    return fetch


def test_a_download_goes_on_where_it_broke_off(
    fetched: Callable[..., bytes], whole: bytes, tmp_path: Path
) -> None:
    assert len(whole) > 4 * HEAD
    assert fetched(HEAD, 2 * HEAD, None, 0, HEAD) == whole
    assert parts(tmp_path) == []


def test_a_later_call_asks_only_for_the_rest(
    fetched: Callable[..., bytes], whole: bytes, tmp_path: Path
) -> None:
    with pytest.raises(UnreachableError):
        fetched(HEAD, *[0] * 5)
    [part] = parts(tmp_path)
    kept = part.read_bytes()
    assert 0 < len(kept) < HEAD
    assert whole.startswith(kept)
    assert fetched() == whole
    assert parts(tmp_path) == []


@pytest.mark.parametrize("left", ["more than all", "all"])
def test_what_was_left_need_not_be_a_beginning(
    fetched: Callable[..., bytes], whole: bytes, tmp_path: Path, service: Service, left: str
) -> None:
    digest = service.outcome.result.release_digest.removeprefix("sha256:")
    part = tmp_path / f"encoder.safetensors.{digest[:16]}.part"
    if left == "all":
        part.write_bytes(whole)
        with Client(service.url, service.cast.model_owner.key.secret) as client:
            client.download_weights(service.outcome.result.id, tmp_path / "encoder.safetensors")
        assert (tmp_path / "encoder.safetensors").read_bytes() == whole
    else:
        part.write_bytes(whole + b"!")
        assert fetched() == whole


def test_other_bytes_are_not_kept(
    fetched: Callable[..., bytes], whole: bytes, tmp_path: Path, service: Service
) -> None:
    digest = service.outcome.result.release_digest.removeprefix("sha256:")
    part = tmp_path / f"encoder.safetensors.{digest[:16]}.part"
    part.write_bytes(b"x" * 100)
    with pytest.raises(DoubtError, match="nothing of it is kept"):
        fetched()
    assert parts(tmp_path) == []
    assert not (tmp_path / "encoder.safetensors").exists()
    assert fetched() == whole


def test_what_is_refused_leaves_no_file(service: Service, tmp_path: Path) -> None:
    with pytest.raises(ProblemError):
        service.cast.owners[0].client.download_weights(
            service.outcome.result.id, tmp_path / "encoder.safetensors"
        )
    assert list(tmp_path.iterdir()) == []
