"""Estimates over HTTP: who may ask for what, on what they rest, and what has to be waited for. No worker runs here."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from sqlalchemy import update
from tests.api.conftest import ENCODER, Past, User, problem_of

from expunge.api.schemas import estimates as schemas
from expunge.registry import estimates, jobs
from expunge.registry.database import Sessions
from expunge.registry.settings import Settings
from expunge.registry.tables import Job

SAMPLES = 100
"""In every data set of these tests."""
_sizes = iter(range(17, 200))


@dataclass(frozen=True)
class Scene:
    """A model of an architecture that no other test has, trained on data of two owners."""

    past: Past
    model_owner: User
    data_owner: User
    encoder: dict[str, Any]
    model: str
    own: str
    mine: str
    theirs: str

    def ask(self, user: User | None = None, **changes: Any) -> httpx.Response:
        body = {"model_id": self.model, "dataset_ids": [self.mine]} | changes
        return (user or self.data_owner).post("/estimates", body)

    def one(
        self, method: str = "fine_tune", user: User | None = None, **params: Any
    ) -> dict[str, Any]:
        """The estimate of one method."""
        answer = self.ask(user, methods=[{"method": method, "params": params}])
        assert answer.status_code == 200, answer.text
        (found,) = answer.json()["items"]
        assert found["method"] == method
        return dict(found)

    def removal(self, **params: Any) -> str:
        """A request for the owner's own data, by fine-tuning."""
        body = {"model_id": self.model, "dataset_ids": [self.mine], "method": "fine_tune"}
        answer = self.data_owner.post("/requests", body | {"params": params})
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])


@pytest.fixture
def scene(past: Past, model_owner: User, data_owner: User, other_owner: User) -> Scene:
    own = past.sealed(model_owner, SAMPLES)
    mine, theirs = (
        past.granted(owner, model_owner, SAMPLES) for owner in (data_owner, other_owner)
    )
    encoder = ENCODER | {"image_size": next(_sizes)}
    model = model_owner.model(encoder=encoder)
    past.trained(model_owner, model, [own, mine, theirs], seconds=1.0)
    return Scene(past, model_owner, data_owner, encoder, model, own, mine, theirs)


@pytest.fixture
def measured(scene: Scene) -> Scene:
    """The same, trained anew for 800 epochs of 300 images in 2,400 seconds: 100 images a second."""
    data = [scene.own, scene.mine, scene.theirs]
    samples = {"retain": 3 * SAMPLES, "unlearn": 0}
    scene.past.trained(scene.model_owner, scene.model, data, seconds=2400.0, samples=samples)
    return scene


@pytest.fixture(autouse=True)
def alone(session_factory: Sessions) -> Iterator[None]:
    """No test leaves jobs behind for which the next one would have to wait."""
    yield
    with session_factory.begin() as session:
        session.execute(
            update(Job)
            .where(Job.state.in_(("queued", "running", "evaluating")))
            .values(state="cancelled", lease_token=None)
        )


class TestWhatIsSaid:
    """Seconds, cost and the basis of both."""

    def test_jobs_that_say_nothing_of_their_samples_are_no_basis(self, scene: Scene) -> None:
        found = scene.one()
        assert (found["basis"], found["seconds"], found["cost"]) == ("none", None, None)

    def test_every_method_for_the_framework_is_estimated_with_its_defaults(
        self, measured: Scene, data_owner: User
    ) -> None:
        found = {each["method"]: each for each in measured.ask().json()["items"]}
        methods = data_owner.get("/methods").json()["items"]
        fitting = {each["id"]: each for each in methods if "simclr" in each["frameworks"]}
        assert found.keys() == fitting.keys()
        for name, each in found.items():
            assert each["params"] == fitting[name]["defaults"]["simclr"]
            assert each["basis"] == "this model's jobs"

    def test_seconds_follow_from_the_work_to_two_digits(self, measured: Scene) -> None:
        """At 100 images a second; 200 are retained and 100 unlearned."""
        expected = {
            ("fine_tune", 10): 20.0,
            ("fine_tune", 11): 22.0,
            ("fine_tune", 123): 250.0,
            ("neg_grad", 10): 30.0,
            ("gradient_ascent", 10): 10.0,
            ("alignment_calibration", 10): 36.0,
            ("gradient_penalty", 10): 360.0,
            ("retrain", 800): 1600.0,
        }
        for (method, epochs), seconds in expected.items():
            found = measured.one(method, epochs=epochs)["seconds"]
            assert found["expected"] == seconds, method
            assert found["low"] < seconds < found["high"]

    def test_a_job_that_took_twice_as_long_moves_the_estimate(self, measured: Scene) -> None:
        before = measured.one(epochs=10)["seconds"]["expected"]
        removal = measured.removal(epochs=10)
        measured.past.unlearned(removal, seconds=40.0, samples={"retain": 200, "unlearn": 100})
        again = {
            "dataset_ids": [measured.theirs],
            "methods": [{"method": "fine_tune", "params": {"epochs": 20}}],
        }
        (after,) = measured.ask(measured.model_owner, **again).json()["items"]
        assert before == 20.0
        assert after["seconds"]["expected"] == 40.0, "20 epochs of the 100 images that are left"
        assert after["n_jobs"] == 2

    def test_other_models_of_the_architecture_serve_until_there_are_own_jobs(
        self, measured: Scene, other_model_owner: User
    ) -> None:
        past = measured.past
        data = past.sealed(other_model_owner, SAMPLES), past.sealed(other_model_owner, SAMPLES)
        for encoder, basis in (
            (measured.encoder, "jobs of this architecture"),
            (measured.encoder | {"image_size": next(_sizes)}, "none"),
        ):
            model = other_model_owner.model(encoder=encoder)
            past.trained(other_model_owner, model, [*data])
            body = {"model_id": model, "dataset_ids": [data[0]]}
            methods = [{"method": "fine_tune", "params": {"epochs": 10}}]
            answer = other_model_owner.post("/estimates", body | {"methods": methods})
            (found,) = answer.json()["items"]
            assert (found["basis"], found["n_jobs"]) == (basis, None)
            if basis != "none":
                assert found["seconds"] == {"expected": 10.0, "low": 5.0, "high": 20.0}

    def test_how_many_jobs_there_were_is_told_to_the_models_owner_only(
        self, measured: Scene
    ) -> None:
        assert measured.one()["n_jobs"] is None
        assert measured.one(user=measured.model_owner)["n_jobs"] == 1

    def test_without_a_price_there_is_no_cost(self, measured: Scene) -> None:
        assert measured.one()["cost"] is None

    def test_a_price_gives_the_cost_of_the_expected_seconds(self, settings: Settings) -> None:
        seconds = estimates.Span(expected=5400.0, low=1.0, high=1e5)
        basis = "this model's jobs"
        found = estimates.Estimate("fine_tune", {}, seconds, 0.0, basis=basis, n_jobs=None)
        priced = settings.model_copy(update={"price_per_device_hour": 2.5, "currency": "CHF"})
        told = schemas.Estimate.of(found, priced)
        assert told.cost == schemas.Cost(amount=3.8, currency="CHF")


class TestWaiting:
    """The window, or the jobs ahead if they take longer."""

    def test_an_idle_service_waits_for_the_window_only(self, measured: Scene) -> None:
        assert measured.one()["waiting_seconds"] == 0
        policy = {"batch_window_seconds": 125}
        measured.model_owner.http.patch(f"/models/{measured.model}/policy", json=policy)
        assert measured.one()["waiting_seconds"] == 120

    def test_a_running_job_of_the_model_is_waited_for(self, measured: Scene) -> None:
        lease = measured.past.claimed(measured.past.job_of(measured.removal()))
        running(measured.past, lease, 300.0)
        assert measured.one()["waiting_seconds"] == 300

    def test_a_job_that_would_take_the_request_along_is_not(self, measured: Scene) -> None:
        measured.past.unlearned(measured.removal())
        let_jobs_have_taken(measured.past, 500.0)
        body = {"model_id": measured.model, "dataset_ids": [measured.own], "method": "fine_tune"}
        waiting = measured.model_owner.post("/requests", body | {"params": {"epochs": 3}})
        assert waiting.json()["state"] == "queued"
        for epochs, seconds in ((3, 0), (4, 500)):
            methods = [{"method": "fine_tune", "params": {"epochs": epochs}}]
            answer = measured.ask(
                measured.model_owner, dataset_ids=[measured.theirs], methods=methods
            )
            assert answer.json()["items"][0]["waiting_seconds"] == seconds

    def test_where_other_models_jobs_are_held_up_workers_are_shared(
        self, measured: Scene, other_model_owner: User
    ) -> None:
        past = measured.past
        started = [pretraining(past, other_model_owner) for _ in range(3)]
        running(past, past.claimed(started[0]), 1000.0)
        let_jobs_have_taken(past, 500.0)
        assert measured.one()["waiting_seconds"] == 2000
        running(past, past.claimed(started[1]), 1000.0)
        assert measured.one()["waiting_seconds"] == 1200, "1250, rounded"
        running(past, past.claimed(started[2]), 1000.0)
        assert measured.one()["waiting_seconds"] == 0, "nothing is held up: a worker may be free"


def let_jobs_have_taken(past: Past, seconds: float) -> None:
    """From start to end, all of them."""
    with past.sessions.begin() as session:
        done = update(Job).where(Job.state == "succeeded")
        session.execute(done.values(seconds_used=seconds))


def running(past: Past, lease: jobs.Lease, eta_seconds: float) -> None:
    """Let the attempt say how long it still takes."""
    progress = {
        "phase": "unlearn",
        "epoch": 1,
        "epochs": 3,
        "losses": {},
        "eta_seconds": eta_seconds,
    }
    with past.sessions.begin() as session:
        jobs.heartbeat(session, lease, lease_seconds=60, progress=progress)


def pretraining(past: Past, owner: User) -> str:
    """A queued job of a model of its own."""
    model, data = owner.model(), past.sealed(owner)
    answer = owner.post(f"/models/{model}/pretrain", {"dataset_ids": [data]})
    return str(answer.json()["id"])


class TestWhoMayAsk:
    """Data owners about their own data, a model's owner about all that the model retains."""

    def test_an_owner_about_data_of_another_finds_nothing(self, scene: Scene) -> None:
        answer = scene.ask(dataset_ids=[scene.mine, scene.theirs])
        assert scene.theirs in problem_of(answer, 404, "not-found")["detail"]

    def test_the_models_owner_about_all_of_it(self, scene: Scene) -> None:
        answer = scene.ask(scene.model_owner, dataset_ids=[scene.mine, scene.theirs])
        assert answer.status_code == 200

    def test_others_find_no_model(self, scene: Scene, other_model_owner: User) -> None:
        problem_of(scene.ask(other_model_owner), 404, "not-found")

    def test_data_that_the_head_does_not_hold_is_refused(self, scene: Scene, past: Past) -> None:
        unused = past.sealed(scene.data_owner)
        problem = problem_of(scene.ask(dataset_ids=[unused]), 422, "not-in-training-data")
        assert problem["dataset_ids"] == [unused]
        past.unlearned(scene.removal())
        problem = problem_of(scene.ask(), 409, "already-forgotten")
        assert problem["dataset_ids"] == [scene.mine]

    @pytest.mark.parametrize(
        ("change", "slug", "pointer"),
        [
            ({"dataset_ids": []}, "invalid", None),
            ({"methods": []}, "invalid", "/methods"),
            ({"methods": [{"method": "burn"}]}, "unknown-method", None),
            ({"methods": [{"method": "coun"}]}, "invalid", None),
            (
                {
                    "methods": [
                        {"method": "retrain"},
                        {"method": "retrain", "params": {"epochs": 0}},
                    ]
                },
                "invalid-parameters",
                "/methods/1/params/epochs",
            ),
        ],
    )
    def test_what_makes_no_sense_is_refused(
        self, scene: Scene, change: dict[str, Any], slug: str, pointer: str | None
    ) -> None:
        problem = problem_of(scene.ask(**change), 422, slug)
        if pointer is not None:
            assert problem["errors"][0]["pointer"] == pointer

    def test_a_model_without_weights_has_nothing_to_forget(self, model_owner: User) -> None:
        body = {"model_id": model_owner.model(), "dataset_ids": ["dst_" + "0" * 32]}
        problem_of(model_owner.post("/estimates", body), 409, "conflict")
