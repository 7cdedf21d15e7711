"""Comparisons as the training worker runs them, with their real processes."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, func, select
from tests.worker.lab import SMALLEST_CLIP, Lab, Running, World, eventually, images

from expunge.registry import comparisons, datasets, models
from expunge.registry.checkpoints import promote
from expunge.registry.comparisons import Plan
from expunge.registry.objects import read_bytes
from expunge.registry.tables import Checkpoint, Comparison
from expunge.unlearning.candidates import CandidateSpec
from expunge.unlearning.catalog import PretrainParams
from expunge.worker import oracles
from expunge.worker.context import Context

TINY = {"epochs": 1, "batch_size": 16}
FINE_TUNE = {"method": "fine_tune", "params": TINY}


@pytest.fixture(scope="module")
def lab(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(engine, tmp_path_factory.mktemp("comparisons"))


@pytest.fixture(scope="module")
def trained(lab: Lab) -> World:
    """As elsewhere, with control images, and a data set of one sample among the training data."""
    world = World(lab)
    world.seconds = [lab.sealed(world.model_owner, "single", images("single", 1, 7))]
    training_data = [*world.training_data, *world.seconds]
    lab.runner.run(lab.pretraining(world.model_owner, world.model, training_data))
    with lab.sessions.begin() as session:
        models.set_control(session, world.model_owner, world.model, world.control)
    return world


def asked(lab: Lab, world: World, dataset_ids: list[str], **plan: Any) -> Comparison:
    with lab.sessions.begin() as session:
        return comparisons.create(
            session,
            world.model_owner,
            model_id=world.model,
            dataset_ids=dataset_ids,
            plan=Plan.model_validate({"methods": [FINE_TUNE]} | plan),
        )


def found(lab: Lab, comparison: Comparison) -> Comparison:
    with lab.sessions() as session:
        return session.get_one(Comparison, comparison.id)


def text_of(lab: Lab, row: Comparison, name: str) -> str:
    return read_bytes(lab.store, (row.objects or {})[name]).decode()


def checkpoints(lab: Lab) -> int:
    with lab.sessions() as session:
        return session.scalar(select(func.count()).select_from(Checkpoint)) or 0


@pytest.fixture(scope="module")
def compared(lab: Lab, trained: World) -> Comparison:
    """Two methods against Retrain, of forgetting the first owner's data."""
    methods = [FINE_TUNE, {"method": "alignment_calibration", "params": TINY}]
    plan = {"methods": methods, "with_retrain": True, "retrain_params": TINY, "seeds": [0]}
    before = (lab.head(trained.model), checkpoints(lab))
    row = asked(lab, trained, [trained.first], **plan)
    lab.runner.run(row.job_id)
    assert (lab.head(trained.model), checkpoints(lab)) == before, "nothing was changed"
    return found(lab, row)


def test_a_comparison_records_its_table_and_the_recommended_setting(
    lab: Lab, compared: Comparison
) -> None:
    assert compared.job.state == "succeeded", compared.job.reason
    assert compared.result is not None
    kinds = [row["kind"] for row in compared.result["rows"]]
    assert kinds == ["before", "retrain", "candidate", "candidate"]
    for row in compared.result["rows"]:
        assert row["failure"] is None
        assert set(row["columns"]) == {"emia", "ra", "ta", "ua", "cmia"}
    labels = [row["label"] for row in compared.result["rows"]]
    assert compared.result["recommended"]["label"] in labels[2:]
    assert compared.result["settings"]["sizes"] == {"retain": 53, "forget": 12, "test": 12}
    assert json.loads(text_of(lab, compared, "table.json")) == compared.result
    assert len(text_of(lab, compared, "table.csv").splitlines()) == 1 + len(labels)
    assert labels[3] in text_of(lab, compared, "table.md")
    assert read_bytes(lab.store, (compared.objects or {})["chart.png"]).startswith(b"\x89PNG")


def test_nothing_of_single_samples_leaves(lab: Lab, trained: World, compared: Comparison) -> None:
    lines = text_of(lab, compared, "scores.csv").splitlines()
    assert len(lines) == 1, "twelve samples are no group"
    for name in (compared.objects or {}).keys() - {"chart.png"}:
        text = text_of(lab, compared, name)
        assert "first-0" not in text
        assert f"{trained.first}/" not in text


def test_retrain_is_kept_for_the_next_comparison_of_the_same_removal(
    lab: Lab, trained: World, compared: Comparison
) -> None:
    kept = [path for path in (lab.settings.work_dir / "oracles").rglob("*") if path.is_file()]
    assert len(kept) == 1
    assert kept[0].parent.name == compared.checkpoint_id
    row = asked(lab, trained, [trained.first], with_retrain=True, retrain_params=TINY)
    lab.runner.run(row.job_id)
    result = found(lab, row).result
    assert result is not None
    assert [each["reused"] for each in result["rows"]] == [False, True, False]


def test_a_comparison_whose_every_setting_fails_succeeds_and_recommends_nothing(
    lab: Lab, trained: World
) -> None:
    method = {"method": "gradient_ascent", "params": TINY}
    row = asked(lab, trained, trained.seconds, methods=[method])
    lab.runner.run(row.job_id)
    done = found(lab, row)
    assert done.job.state == "succeeded", done.job.reason
    assert done.result is not None
    assert done.result["recommended"] is None
    assert "single unlearn sample" in done.result["rows"][-1]["failure"]
    assert set(done.objects or {}) == {
        "table.json", "table.csv", "table.md", "chart.png", "scores.csv",
    }  # fmt: skip


def test_a_search_is_a_comparison_of_what_it_tried(lab: Lab, trained: World) -> None:
    search = {"method": "fine_tune", "params": TINY, "trials": 2}
    row = asked(lab, trained, [trained.first], methods=None, search=search, keep_best=True)
    lab.runner.run(row.job_id)
    done = found(lab, row)
    assert done.job.state == "succeeded", done.job.reason
    assert done.result is not None
    tried = [each for each in done.result["rows"] if each["kind"] == "candidate"]
    assert len({each["params"]["learning_rate"] for each in tried}) == 2
    assert {each["params"]["epochs"] for each in tried} == {1}
    assert [each["best_epochs"] for each in tried] == [[1], [1]]


def test_what_cannot_be_measured_fails_the_job_with_the_reason(lab: Lab, trained: World) -> None:
    row = asked(lab, trained, trained.seconds, relearn=True)
    lab.runner.run(row.job_id)
    job = found(lab, row).job
    assert (job.state, job.reason) == ("failed", "relearning needs at least two unlearn samples")


def test_one_that_asks_for_an_unknown_method_waits_for_a_newer_worker(
    lab: Lab, trained: World
) -> None:
    row = asked(lab, trained, [trained.first])
    (candidate,) = row.settings["candidates"]
    with lab.sessions.begin() as session:
        session.get_one(Comparison, row.id).settings = row.settings | {
            "candidates": [candidate | {"method": "from_next_year"}]
        }
    lab.runner.run(row.job_id)
    job = lab.job(row.job_id)
    assert (job.state, job.outages) == ("queued", 1)
    assert job.reason == "its worker is older than what made the job"


def test_a_stopped_worker_gives_a_comparison_back_having_told_how_far_it_was(
    lab: Lab, trained: World
) -> None:
    endless = {"method": "fine_tune", "params": TINY | {"epochs": 10_000}}
    row = asked(lab, trained, [trained.first], methods=[endless])
    with Running(lab, row.job_id) as running:
        process = running.process
        progress = lab.job(row.job_id).progress
        running.context.stopping.set()
        running.thread.join(30)
        assert not process.is_running()
    assert progress is not None
    assert progress["total"] == 2
    job = lab.job(row.job_id)
    assert (job.state, job.attempt, job.progress) == ("queued", 1, None)
    lab.with_settings(job_time_limit_seconds=0.5).run(row.job_id)
    job = lab.job(row.job_id)
    assert (job.state, job.reason) == ("failed", "the time limit of 0.5 seconds was reached")
    assert found(lab, row).result is None


def test_a_grant_withdrawn_while_it_waits_ends_it(lab: Lab, trained: World) -> None:
    row = asked(lab, trained, [trained.first])
    with lab.sessions.begin() as session:
        datasets.withdraw_grant(
            session, trained.second_owner, trained.second, trained.model_owner.id
        )
    lab.runner.run(row.job_id)
    with lab.sessions.begin() as session:
        datasets.grant(session, trained.second_owner, trained.second, trained.model_owner.id)
    job = found(lab, row).job
    assert job.state == "failed"
    assert str(job.reason).startswith("a data set may not be used any more: ")
    assert trained.second in str(job.reason)


def test_an_encoder_of_pairs_is_trained_and_compared_on_captions(lab: Lab, trained: World) -> None:
    owner = trained.model_owner
    kept, gone, control = (
        lab.sealed(owner, name, images(name, 8, number, captioned=True))
        for number, name in enumerate(("kept", "gone", "unseen"))
    )
    model = lab.model(owner, SMALLEST_CLIP, name="pairs", control_dataset_id=control)
    params = PretrainParams(epochs=1, batch_size=8)
    lab.runner.run(lab.pretraining(owner, model, [kept, gone], params))
    with lab.sessions.begin() as session:
        plan = Plan(methods=[CandidateSpec(method="fine_tune", params={"epochs": 1})])
        row = comparisons.create(session, owner, model_id=model, dataset_ids=[gone], plan=plan)
    lab.runner.run(row.job_id)
    done = found(lab, row)
    assert done.job.state == "succeeded", done.job.reason
    assert done.result is not None
    assert "cosine_unlearn" in done.result["columns"]


def test_what_was_retrained_goes_at_the_end_if_the_head_was_replaced_meanwhile(
    lab: Lab, trained: World
) -> None:
    owner, data = trained.model_owner, [trained.own, trained.first]
    model = lab.model(owner, name="replaced", control_dataset_id=trained.control)
    lab.runner.run(lab.pretraining(owner, model, data))
    earlier = str(lab.head(model))
    lab.runner.run(lab.pretraining(owner, model, data))
    endless = {"method": "fine_tune", "params": TINY | {"epochs": 10_000}}
    with lab.sessions.begin() as session:
        plan = {"methods": [endless], "with_retrain": True, "retrain_params": TINY}
        row = comparisons.create(
            session,
            owner,
            model_id=model,
            dataset_ids=[trained.first],
            plan=Plan.model_validate(plan),
        )
    kept = lab.settings.work_dir / "oracles" / row.checkpoint_id
    with Running(lab, row.job_id):
        eventually(lambda: list(kept.glob("*.safetensors")), "Retrain is kept")
        with lab.sessions.begin() as session:
            promote(session, owner, earlier)
    assert not kept.exists()


class TestOracles:
    """Retrain's checkpoints on the worker's machine."""

    @pytest.fixture
    def context(self, lab: Lab, tmp_path: Path) -> Context:
        settings = lab.settings.model_copy(update={"work_dir": tmp_path})
        return Context(settings, lab.sessions, lab.store)

    def test_they_go_when_their_checkpoint_is_no_head_any_more(
        self, context: Context, lab: Lab, trained: World
    ) -> None:
        kept = oracles.folder_of(context, str(lab.head(trained.model)))
        outdated = oracles.folder_of(context, "ckp_" + "0" * 32)
        (outdated / "weights.safetensors").touch()
        oracles.drop_outdated(context)
        assert kept.exists()
        assert not outdated.exists()

    def test_the_newest_of_all_models_are_kept(self, context: Context) -> None:
        for number in range(6):
            path = oracles.folder_of(context, f"ckp_{number % 2}") / f"{number}"
            path.touch()
            os.utime(path, (number, number))
        for most, expected in ((9, "012345"), (6, "012345"), (5, "12345"), (3, "345"), (0, "")):
            oracles.keep_newest(context, most)
            left = (context.settings.work_dir / "oracles").rglob("*")
            assert sorted(path.name for path in left if path.is_file()) == [*expected], most

    def test_there_may_be_none(self, context: Context) -> None:
        oracles.drop_outdated(context)
        oracles.keep_newest(context)
