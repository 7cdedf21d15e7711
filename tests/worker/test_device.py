"""Which device a worker's processes see, and what it is called."""

import pytest

from expunge.worker.device import CPU, VISIBLE, NoSuchDevice, find, visible_devices


@pytest.mark.parametrize(
    ("device", "given", "visible"),
    [
        ("cpu", None, ""),
        ("cpu", "0,1", ""),
        ("auto", None, "0"),
        ("cuda", None, "0"),
        ("cuda:1", None, "1"),
        ("cuda", "3", "3"),
        ("cuda:1", "2, 3", "3"),
        ("cuda:1", "GPU-a,MIG-b", "MIG-b"),
        ("cuda:2", "0,1", ""),
        ("auto", "", ""),
    ],
)
def test_a_job_sees_its_workers_device_alone(device: str, given: str | None, visible: str) -> None:
    assert visible_devices(device, given) == {VISIBLE: visible}


def test_the_processor_is_always_there() -> None:
    assert find("cpu") == CPU


def test_a_gpu_that_is_not_there_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VISIBLE, "")
    with pytest.raises(NoSuchDevice, match=r"cuda:1, but .* among CUDA_VISIBLE_DEVICES=\.$"):
        find("cuda:1")
