"""Many owners, one run: who joins which job, until when, and that races end one way or the other."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from sqlalchemy import func, select
from tests.registry.conftest import LEASE_SECONDS, House, weights
from tests.registry.test_jobs import at_once

from expunge.registry import checkpoints, datasets, jobs, models, requests, waiting
from expunge.registry.errors import NotFound
from expunge.registry.tables import Job, Party, Request, Role
from expunge.registry.transitions import StateChanged, move
from expunge.unlearning import catalog

LONG = 600.0
"""A window in seconds that does not end by itself."""
ROUNDS = 20
CROWD = 12
"""Threads, and the connections of as many."""


@dataclass
class Crowd:
    """A trained model and several data owners with one data set each."""

    house: House
    model_owner: Party
    model: str
    owners: list[Party]
    sets: list[str]

    def ask(self, owner: int, **options: Any) -> str:
        return self.house.ask(self.owners[owner], self.model, self.sets[owner], **options)

    def job_of(self, request_id: str) -> str:
        return str(self.house.request(request_id).job_id)

    def withdraw(self, owner: int, request_id: str) -> Request:
        with self.house.sessions.begin() as session:
            return requests.withdraw(session, self.owners[owner], request_id)

    def approve(self, request_id: str) -> Request:
        with self.house.sessions.begin() as session:
            return requests.approve(session, self.model_owner, request_id)

    def change(self, **policy: Any) -> None:
        with self.house.sessions.begin() as session:
            models.change_policy(session, self.model_owner, self.model, policy)

    def cancel(self, job_id: str) -> None:
        with self.house.sessions.begin() as session:
            job = session.get_one(Job, job_id)
            jobs.cancel(session, job, actor=self.model_owner.id, reason="not now")

    def start(self, job_id: str) -> jobs.Lease | None:
        sessions = self.house.sessions
        return waiting.claim(sessions, job_id, worker="tester", lease_seconds=LEASE_SECONDS)

    def is_due(self, job_id: str) -> bool:
        with self.house.sessions() as session:
            due = session.scalar(select(Job.due_at <= func.now()).where(Job.id == job_id))
            return bool(due)

    def end_window(self, job_id: str) -> None:
        with self.house.sessions.begin() as session:
            session.get_one(Job, job_id).due_at = session.scalar(select(func.now()))


def crowd_of(house: House, samples: list[int], **policy: Any) -> Crowd:
    """One owner for each number of samples."""
    model_owner = house.party(Role.MODEL_OWNER)
    owners = [house.party(Role.DATA_OWNER) for _ in samples]
    sets = []
    with house.sessions.begin() as session:
        for owner, count in zip(owners, samples, strict=True):
            row = datasets.create(session, owner, "photos")
            move(session, row, "sealing")
            move(session, row, "sealed", digest="sha256:0", index_key="none", samples=count)
            datasets.grant(session, owner, row.id, model_owner.id)
            sets.append(row.id)
    model = house.model(model_owner)
    house.pretrained(model_owner, model, [house.sealed(model_owner), *sets])
    crowd = Crowd(house, model_owner, model, owners, sets)
    crowd.change(**{"batch_window_seconds": LONG} | policy)
    return crowd


@pytest.fixture
def three(house: House) -> Crowd:
    """Three owners of ten samples each, and a long window."""
    return crowd_of(house, [10, 10, 10])


def both(*calls: Callable[[], Any]) -> list[Any]:
    """What the calls return that begin together; StateChanged counts as an answer."""
    waiting_calls: Iterator[Callable[[], Any]] = iter(calls)

    def one() -> Any:
        call = next(waiting_calls)
        try:
            return call, call()
        except StateChanged as refused:
            return call, refused

    answers = dict(at_once(len(calls), one))
    return [answers[call] for call in calls]


class TestJoining:
    """Requests of one model, method and parameters become one job, until it starts."""

    def test_requests_in_a_window_share_a_job(self, three: Crowd) -> None:
        asked = [three.ask(owner) for owner in range(3)]
        assert len({three.job_of(each) for each in asked}) == 1
        assert not three.is_due(three.job_of(asked[0]))

    def test_a_job_that_is_due_and_not_started_is_still_joined(self, three: Crowd) -> None:
        first = three.ask(0)
        three.end_window(three.job_of(first))
        assert three.job_of(three.ask(1)) == three.job_of(first)

    def test_later_ones_wait_for_the_next_job(self, three: Crowd) -> None:
        first = three.ask(0)
        three.end_window(three.job_of(first))
        three.house.claim(three.job_of(first))
        second, third = three.ask(1), three.ask(2)
        assert three.job_of(second) == three.job_of(third) != three.job_of(first)

    def test_a_job_that_was_given_back_is_not_joined(self, three: Crowd) -> None:
        first = three.ask(0)
        three.end_window(three.job_of(first))
        lease = three.house.claim(three.job_of(first))
        with three.house.sessions.begin() as session:
            jobs.release(session, lease, "its worker was stopped")
        assert three.job_of(three.ask(1)) != three.job_of(first)

    def test_other_parameters_make_another_job(self, three: Crowd) -> None:
        plain, other = three.ask(0), three.ask(1, params={"epochs": 3})
        assert three.job_of(plain) != three.job_of(other)
        assert three.job_of(three.ask(2, params={"epochs": 3})) == three.job_of(other)

    def test_a_default_written_out_is_the_same_parameter(self, three: Crowd) -> None:
        default = catalog.METHODS["alignment_calibration"].defaults_for("simclr")["epochs"]
        plain, spelled = three.ask(0), three.ask(1, params={"epochs": default})
        assert three.job_of(plain) == three.job_of(spelled)

    def test_models_do_not_share_jobs(self, house: House) -> None:
        crowds = [crowd_of(house, [10]) for _ in range(2)]
        assert len({crowd.job_of(crowd.ask(0)) for crowd in crowds}) == 2

    def test_without_a_window_the_job_is_due_at_once(self, three: Crowd) -> None:
        three.change(batch_window_seconds=0)
        assert three.is_due(three.job_of(three.ask(0)))

    def test_a_queued_job_keeps_its_window_when_the_policy_changes(self, three: Crowd) -> None:
        job_id = three.job_of(three.ask(0))
        three.change(batch_window_seconds=0)
        assert three.job_of(three.ask(1)) == job_id
        assert not three.is_due(job_id)


class TestSampleLimit:
    """A job takes no more samples than the policy allows, and a full one does not wait."""

    def test_exactly_as_many_fit_and_end_the_window(self, house: House) -> None:
        crowd = crowd_of(house, [60, 40, 1], max_batch_samples=100)
        first, second, third = (crowd.ask(owner) for owner in range(3))
        assert crowd.job_of(first) == crowd.job_of(second) != crowd.job_of(third)
        assert crowd.is_due(crowd.job_of(first))
        assert not crowd.is_due(crowd.job_of(third))

    def test_one_more_goes_into_the_next_and_ends_the_window(self, house: House) -> None:
        crowd = crowd_of(house, [60, 41, 20], max_batch_samples=100)
        first, second, third = (crowd.ask(owner) for owner in range(3))
        assert crowd.job_of(first) != crowd.job_of(second) == crowd.job_of(third)
        assert crowd.is_due(crowd.job_of(first))
        assert not crowd.is_due(crowd.job_of(second))

    def test_a_request_beyond_the_limit_runs_alone_and_at_once(self, house: House) -> None:
        crowd = crowd_of(house, [101, 10], max_batch_samples=100)
        large, small = crowd.ask(0), crowd.ask(1)
        assert crowd.job_of(large) != crowd.job_of(small)
        assert crowd.is_due(crowd.job_of(large))

    def test_a_withdrawal_makes_room(self, house: House) -> None:
        crowd = crowd_of(house, [60, 40, 40], max_batch_samples=100)
        first, second = crowd.ask(0), crowd.ask(1)
        crowd.withdraw(1, second)
        assert crowd.job_of(crowd.ask(2)) == crowd.job_of(first)

    def test_many_at_once_fill_one_job_after_the_other(self, house: House) -> None:
        crowd = crowd_of(house, [10] * CROWD, max_batch_samples=40)
        owners = iter(range(CROWD))
        asked = at_once(CROWD, lambda: crowd.ask(next(owners)))
        sizes: dict[str, int] = {}
        for each in asked:
            job_id = crowd.job_of(each)
            sizes[job_id] = sizes.get(job_id, 0) + 10
        assert sorted(sizes.values()) == [40] * (CROWD * 10 // 40)
        assert all(crowd.is_due(each) for each in sizes)


class TestApproval:
    """With a manual policy a request waits for the model's owner."""

    @pytest.fixture
    def manual(self, house: House) -> Crowd:
        return crowd_of(house, [10, 10, 10], approval="manual")

    def test_until_then_it_belongs_to_no_job(self, manual: Crowd) -> None:
        row = manual.house.request(manual.ask(0))
        assert (row.state, row.job_id) == ("received", None)

    def test_the_approved_share_a_job(self, manual: Crowd) -> None:
        asked = [manual.ask(owner) for owner in range(3)]
        for each in asked[:2]:
            assert manual.approve(each).state == "queued"
        assert manual.job_of(asked[0]) == manual.job_of(asked[1])
        assert manual.house.request(asked[2]).state == "received"

    def test_one_approved_late_joins_what_has_not_started(self, manual: Crowd) -> None:
        first, second, third = (manual.ask(owner) for owner in range(3))
        job_id = str(manual.approve(first).job_id)
        manual.end_window(job_id)
        assert manual.approve(second).job_id == job_id
        manual.house.claim(job_id)
        assert manual.approve(third).job_id != job_id

    def test_it_is_decided_once(self, manual: Crowd) -> None:
        first = manual.ask(0)
        manual.approve(first)
        with pytest.raises(StateChanged):
            manual.approve(first)
        with pytest.raises(StateChanged), manual.house.sessions.begin() as session:
            requests.reject(session, manual.model_owner, first, "no")

    def test_a_rejected_one_can_be_asked_again(self, manual: Crowd) -> None:
        first = manual.ask(0)
        with manual.house.sessions.begin() as session:
            requests.reject(session, manual.model_owner, first, "unfounded")
        row = manual.house.request(first)
        assert (row.state, row.reason, row.job_id) == ("rejected", "unfounded", None)
        assert manual.house.request(manual.ask(0)).state == "received"

    def test_nobody_else_decides(self, manual: Crowd) -> None:
        first = manual.ask(0)
        for stranger in (manual.owners[0], manual.house.party(Role.MODEL_OWNER)):
            with pytest.raises(NotFound), manual.house.sessions.begin() as session:
                requests.approve(session, stranger, first)
        assert manual.house.request(first).state == "received"


class TestWithdrawal:
    """A request can be taken back until its job starts, and the answer tells nothing of others."""

    def test_before_approval(self, house: House) -> None:
        crowd = crowd_of(house, [10], approval="manual")
        assert crowd.withdraw(0, crowd.ask(0)).state == "cancelled"

    def test_the_others_go_on(self, three: Crowd) -> None:
        first, second = three.ask(0), three.ask(1)
        row = three.withdraw(0, first)
        assert (row.state, row.job_id, row.reason) == ("cancelled", None, requests.WITHDRAWN)
        assert three.house.request(second).state == "queued"
        assert three.house.job(three.job_of(second)).state == "queued"

    def test_the_last_one_cancels_the_job(self, three: Crowd) -> None:
        first, second = three.ask(0), three.ask(1)
        job_id = three.job_of(first)
        three.withdraw(0, first)
        three.withdraw(1, second)
        assert three.house.job(job_id).state == "cancelled"
        three.end_window(job_id)
        assert three.start(job_id) is None

    def test_again_it_changes_nothing(self, three: Crowd) -> None:
        first = three.ask(0)
        once = three.withdraw(0, first)
        again = three.withdraw(0, first)
        assert (again.state, again.finished_at) == (once.state, once.finished_at)

    def test_then_it_can_be_asked_anew(self, three: Crowd) -> None:
        first = three.ask(0)
        three.withdraw(0, first)
        assert three.house.request(three.ask(0)).state == "queued"

    def test_nobody_withdraws_for_others(self, three: Crowd) -> None:
        first = three.ask(0)
        with pytest.raises(NotFound):
            three.withdraw(1, first)
        assert three.house.request(first).state == "queued"

    @pytest.mark.parametrize("moment", ["running", "evaluating", "given back"])
    def test_too_late_is_said_alike_alone_and_among_others(self, house: House, moment: str) -> None:
        def refusal(*, shared: bool) -> tuple[str, dict[str, Any]]:
            crowd = crowd_of(house, [10, 10])
            first = crowd.ask(0)
            if shared:
                crowd.ask(1)
            crowd.end_window(crowd.job_of(first))
            lease = house.claim(crowd.job_of(first))
            with house.sessions.begin() as session:
                if moment == "evaluating":
                    jobs.start_evaluating(session, lease)
                if moment == "given back":
                    jobs.release(session, lease, "its worker was stopped")
            with pytest.raises(StateChanged) as refused:
                crowd.withdraw(0, first)
            return refused.value.detail.replace(first, "it"), refused.value.extensions

        assert refusal(shared=False) == refusal(shared=True)

    def test_a_completed_one_stays_completed(self, three: Crowd) -> None:
        first = three.ask(0)
        three.end_window(three.job_of(first))
        lease = three.house.claim(three.job_of(first))
        with three.house.sessions.begin() as session:
            checkpoints.record_unlearned(session, lease, weights(), {"seconds": 1.0})
        with pytest.raises(StateChanged, match="is completed"):
            three.withdraw(0, first)


class TestRaces:
    """Whoever comes first: every request agrees with its job, and nobody is told of a deadlock."""

    def settle(self, crowd: Crowd, asked: list[str]) -> list[tuple[str, str | None]]:
        """States of requests, each with its job's, after checking that they agree."""
        found = []
        for each in asked:
            row = crowd.house.request(each)
            job = None if row.job_id is None else crowd.house.job(row.job_id).state
            assert row.state == job or (row.state, job) == ("cancelled", None)
            found.append((row.state, job))
        return found

    def test_a_withdrawal_against_the_start(self, house: House) -> None:
        crowd = crowd_of(house, [10], batch_window_seconds=0)
        for _ in range(ROUNDS):
            request_id = crowd.ask(0)
            job_id = crowd.job_of(request_id)
            answer, lease = both(
                lambda r=request_id: crowd.withdraw(0, r), lambda j=job_id: crowd.start(j)
            )
            withdrawn = not isinstance(answer, StateChanged)
            assert withdrawn == (lease is None)
            expected = ("cancelled", None) if withdrawn else ("running", "running")
            assert self.settle(crowd, [request_id]) == [expected]
            assert house.job(job_id).state == ("cancelled" if withdrawn else "running")
            if not withdrawn:
                crowd.cancel(job_id)

    def test_two_withdrawals_a_start_and_a_cancellation(self, house: House) -> None:
        crowd = crowd_of(house, [10, 10, 10], batch_window_seconds=0)
        for _ in range(ROUNDS):
            asked = [crowd.ask(owner) for owner in range(3)]
            job_id = crowd.job_of(asked[0])
            both(
                lambda a=asked: crowd.withdraw(0, a[0]),
                lambda a=asked: crowd.withdraw(1, a[1]),
                lambda j=job_id: crowd.start(j),
                lambda j=job_id: crowd.cancel(j),
            )
            self.settle(crowd, asked)
            assert house.job(job_id).state == "cancelled"
            assert house.request(asked[2]).state == "cancelled"

    def test_a_new_request_against_the_start(self, house: House) -> None:
        crowd = crowd_of(house, [10, 10], batch_window_seconds=0)
        for _ in range(ROUNDS):
            first = crowd.ask(0)
            job_id = crowd.job_of(first)
            second, lease = both(lambda: crowd.ask(1), lambda j=job_id: crowd.start(j))
            assert lease is not None
            states = self.settle(crowd, [first, second])
            joined = crowd.job_of(second) == job_id
            assert states == [("running", "running"), ("running" if joined else "queued",) * 2]
            for each in {job_id, crowd.job_of(second)}:
                crowd.cancel(each)

    def test_a_new_request_against_the_last_withdrawal(self, house: House) -> None:
        crowd = crowd_of(house, [10, 10])
        for _ in range(ROUNDS):
            first = crowd.ask(0)
            _, second = both(lambda f=first: crowd.withdraw(0, f), lambda: crowd.ask(1))
            assert self.settle(crowd, [first, second]) == [
                ("cancelled", None),
                ("queued", "queued"),
            ]
            crowd.withdraw(1, second)

    def test_many_new_requests_make_one_job(self, house: House) -> None:
        crowd = crowd_of(house, [10] * CROWD)
        owners = iter(range(CROWD))
        asked = at_once(CROWD, lambda: crowd.ask(next(owners)))
        assert len({crowd.job_of(each) for each in asked}) == 1
        assert self.settle(crowd, asked) == [("queued", "queued")] * CROWD
