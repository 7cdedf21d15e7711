"""A job that only a newer version understands is given back for it, and does not fail."""

from typing import Any

import pytest
from sqlalchemy import update
from tests.worker.lab import SHORT, Lab, images

from expunge.registry.tables import Job, Role


@pytest.mark.parametrize(
    "change",
    [{"params": {"novelty": 1}}, {"method": "from_next_year", "params": {"epochs": 1}}],
    ids=["parameter", "method"],
)
def test_a_training_that_asks_for_what_is_unknown_waits_for_a_newer_worker(
    lab: Lab, change: dict[str, Any]
) -> None:
    owner = lab.party("model owner", Role.MODEL_OWNER)
    model = lab.model(owner)
    job_id = lab.pretraining(owner, model, [lab.sealed(owner, "own", images("own", 20, 0))], SHORT)
    params = lab.job(job_id).params
    asked = params | change | {"params": params["params"] | change["params"]}
    with lab.sessions.begin() as session:
        session.execute(update(Job).where(Job.id == job_id).values(params=asked))
    lab.runner.run(job_id)
    job = lab.job(job_id)
    assert (job.state, job.attempt, job.outages, job.failure) == ("queued", 1, 1, None)
    assert job.reason == "its worker is older than what made the job"
