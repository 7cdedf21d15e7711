"""The compose file's processes on two machines that share the stores: both work, one dies, the other finishes."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.docker.fleet import Fleet
from tests.faults.reference import quick_weights
from tests.faults.users import Cast

TRAINING_SECONDS = 1.5
"""Of a job, roughly: long enough for both machines to be met in the middle of one."""


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    # Not below pytest's own folder, which other accounts cannot enter: PostgreSQL runs as one.
    with (
        tempfile.TemporaryDirectory(prefix="expunge-fleet-") as folder,
        Fleet(Path(folder)) as fleet,
    ):
        yield fleet


def test_a_machine_dies_and_the_other_finishes_its_job(fleet: Fleet, tmp_path: Path) -> None:
    weights = quick_weights(tmp_path)
    with Cast(fleet, tmp_path / "cast") as cast:
        removals = [cast.removal(weights, TRAINING_SECONDS, owner) for owner in range(2)]
        jobs = [removal.job_id for removal in removals]
        fleet.eventually(
            lambda: {fleet.machine_of(job) for job in jobs} == {fleet.first, fleet.second},
            "both machines train",
        )
        survivor, orphan = sorted(jobs, key=lambda job: fleet.machine_of(job) is fleet.second)
        fleet.until_snapshot(orphan)
        fleet.second.die()
        assert fleet.until_ended(survivor)["attempt"] == 1
        finished = fleet.until_ended(orphan)
    assert (finished["state"], finished["attempt"]) == ("succeeded", 2)
    assert "resumed" in {row["event"] for row in fleet.log(orphan)}
    fleet.check_at_rest()


@pytest.mark.parametrize("service", ["api", "dispatch", "interactive", "train"])
def test_a_service_passes_the_health_check_of_its_container(fleet: Fleet, service: str) -> None:
    fleet.eventually(
        lambda: fleet.first.is_healthy(service),
        f"{service} is healthy; it said: {fleet.first.log(service).read_text()[-2000:]}",
    )
