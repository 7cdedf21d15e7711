"""The lives of requests, jobs, checkpoints and heads once more, slow and obvious: dicts and loops, no database.

Ids are the registry's. Whether a call must be refused is asked first, then what it does is done.
"""

from dataclasses import dataclass, field

from expunge.registry.errors import AlreadyForgotten, Conflict, DomainError, NotInTrainingData
from expunge.registry.transitions import StateChanged

LIVE = {"running", "evaluating"}
NOT_CARRIED_OUT = {"cancelled", "rejected", "failed"}
ENDS = NOT_CARRIED_OUT | {"completed", "succeeded"}
REQUEST_PATHS = {
    None: {"received"},
    "received": {"approved", "rejected", "cancelled"},
    "approved": {"queued"},
    "queued": {"running", "cancelled"},
    "running": {"queued", "completed", "failed", "cancelled"},
}
JOB_PATHS = {
    None: {"queued"},
    "queued": {"running", "cancelled"},
    "running": {"evaluating", "queued", "succeeded", "failed", "cancelled"},
    "evaluating": {"queued", "succeeded", "failed", "cancelled"},
}

Sets = frozenset[str]
Refusal = type[DomainError] | None


@dataclass
class TwinRequest:
    """`way` is its method and parameters."""

    owner: str
    model: str
    sets: Sets
    way: int
    state: str = "received"
    job: str | None = None


@dataclass
class TwinJob:
    """`sets` are those of a pre-training; a removal's are its requests'."""

    model: str
    kind: str
    way: int = 0
    sets: Sets = frozenset()
    state: str = "queued"
    due: bool = True
    started: bool = False
    token: str | None = None
    attempt: int = 0
    outages: int = 0
    priority: int = 0
    step: int | None = None
    crashed_at: int = -1
    crashes: int = 0
    base: str | None = None
    result: str | None = None


@dataclass
class Measured:
    """What a job found out about its result."""

    forgetting: float | None = 0.2
    retain: float = 0.0
    loss: float | None = 0.0


@dataclass
class TwinCheckpoint:
    """`held` is what it was trained on, less what was forgotten."""

    model: str
    trained: Sets
    forgotten: Sets = frozenset()
    parent: str | None = None
    job: str | None = None
    withheld: bool = False
    measured: Measured = field(default_factory=Measured)

    @property
    def held(self) -> Sets:
        return self.trained - self.forgotten


@dataclass
class TwinPolicy:
    """As the registry's, without what only estimates read."""

    approval: str = "automatic"
    batch_window_seconds: float = 0
    max_batch_samples: int | None = None
    promotion: str = "automatic"
    min_forgetting: float | None = None
    max_utility_loss: float | None = None


@dataclass
class TwinModel:
    """A model; its head is the empty string before the first one."""

    head: str = ""
    policy: TwinPolicy = field(default_factory=TwinPolicy)


class Twin:
    """Everything that the machine has made, in the order in which it was made."""

    def __init__(self, samples: dict[str, int]) -> None:
        self.samples = samples
        self.models: dict[str, TwinModel] = {}
        self.checkpoints: dict[str, TwinCheckpoint] = {}
        self.requests: dict[str, TwinRequest] = {}
        self.jobs: dict[str, TwinJob] = {}

    # What is the case.

    def size(self, sets: Sets) -> int:
        return sum(self.samples[each] for each in sets)

    def asked(self, model: str, states: set[str]) -> Sets:
        """What requests in these states are about."""
        found = [r.sets for r in self.requests.values() if r.model == model and r.state in states]
        return frozenset().union(*found)

    def owed(self, checkpoint: TwinCheckpoint) -> Sets:
        return checkpoint.held & self.asked(checkpoint.model, {"completed"})

    def of_job(self, job_id: str) -> list[TwinRequest]:
        return [r for r in self.requests.values() if r.job == job_id]

    def is_done_already(self, job_id: str) -> bool:
        """A removal of what is not there any more."""
        return self.jobs[job_id].kind == "unlearn" and not self.to_forget(job_id)

    def busy(self, model: str) -> bool:
        return any(job.model == model and job.state in LIVE for job in self.jobs.values())

    def claimable(self) -> list[str]:
        return [
            job_id
            for job_id, job in self.jobs.items()
            if job.state == "queued" and job.due and not self.busy(job.model)
        ]

    def effective(self, request: TwinRequest) -> bool:
        """Carried out, and the head in force holds none of it."""
        head = self.checkpoints[self.models[request.model].head]
        return request.state == "completed" and not request.sets & head.held

    def to_forget(self, job_id: str) -> Sets:
        """What the base that the job has, or would have, still holds of what it has to forget."""
        job = self.jobs[job_id]
        base = self.checkpoints[job.base if job.token and job.base else self.base(job.model)]
        wanted = [request.sets for request in self.of_job(job_id)]
        return base.held & (self.owed(base) | frozenset().union(*wanted))

    def base(self, model: str) -> str:
        """The newest result upon the head that waits for promotion, with nothing poor below it; else the head."""
        head = newest = self.models[model].head
        for checkpoint_id in self.checkpoints:
            line = self.line(checkpoint_id)
            if head in line and not any(step.withheld for step in self.steps(checkpoint_id, head)):
                newest = checkpoint_id
        return newest

    def steps(self, checkpoint_id: str, head: str) -> list[TwinCheckpoint]:
        """What lies between the head and a checkpoint made from it, which is the first."""
        line = self.line(checkpoint_id)
        return [self.checkpoints[each] for each in line[: line.index(head)]]

    def line(self, checkpoint_id: str) -> list[str]:
        """The checkpoint and all that it was made from, newest first."""
        found = [checkpoint_id]
        while parent := self.checkpoints[found[-1]].parent:
            found.append(parent)
        return found

    def drift(self, checkpoint_id: str) -> dict[str, float]:
        """Sums over the removals since the full training."""
        line = [self.checkpoints[each] for each in self.line(checkpoint_id)]
        removals = line[:-1]
        return {
            "jobs": len(removals),
            "forgotten_samples": self.size(line[0].forgotten - line[-1].forgotten),
            "utility_lost": sum(each.measured.loss or 0 for each in removals),
            "alignment_drift": sum(each.measured.retain for each in removals),
        }

    # What must be refused.

    def refuses_request(self, model: str, sets: Sets) -> Refusal:
        head = self.checkpoints[self.models[model].head]
        open_or_done = set(REQUEST_PATHS) - {None} | {"completed"}
        if sets - head.trained:
            return NotInTrainingData
        if sets & (head.forgotten | self.asked(model, open_or_done)):
            return AlreadyForgotten
        return None

    def refuses_training(self, model: str, sets: Sets) -> Refusal:
        wanted_back = [
            r.sets
            for r in self.requests.values()
            if r.model == model and r.state not in NOT_CARRIED_OUT
        ]
        return AlreadyForgotten if sets & frozenset().union(*wanted_back) else None

    def refuses_withdrawal(self, request: TwinRequest) -> Refusal:
        if request.state == "cancelled":
            return None
        late = request.job is not None and self.jobs[request.job].started
        return StateChanged if late or request.state in ENDS else None

    def refuses_promotion(self, checkpoint: TwinCheckpoint) -> Refusal:
        return Conflict if self.owed(checkpoint) or self.busy(checkpoint.model) else None

    # What happens.

    def take_up(self, request: TwinRequest, job_id: str) -> None:
        """Approve: the request joins the newest job that may be joined, or makes `job_id`."""
        policy = self.models[request.model].policy
        size, limit = self.size(request.sets), policy.max_batch_samples or 10**9
        joined = None
        for candidate, job in self.jobs.items():
            if (job.model, job.kind, job.way) == (request.model, "unlearn", request.way):  # noqa: SIM102
                if job.state == "queued" and not job.started:
                    joined = candidate
        if joined is not None:
            together = size + sum(self.size(each.sets) for each in self.of_job(joined))
            self.jobs[joined].due |= together >= limit
            if together > limit:
                joined = None
        if joined is None:
            assert job_id not in self.jobs
            joined, due = job_id, size >= limit or not policy.batch_window_seconds
            self.jobs[job_id] = TwinJob(request.model, "unlearn", way=request.way, due=due)
        request.job, request.state = joined, "queued"

    def train(self, job_id: str, model: str, sets: Sets) -> None:
        self.jobs[job_id] = TwinJob(model, "pretrain", sets=sets)

    def withdraw(self, request: TwinRequest) -> None:
        job_id, request.job, request.state = request.job, None, "cancelled"
        if job_id is not None and not self.of_job(job_id):
            self.end(job_id, "cancelled", "cancelled")

    def start(self, job_id: str, token: str) -> None:
        job = self.jobs[job_id]
        job.state, job.token, job.started = "running", token, True
        job.attempt += 1
        if job.kind == "unlearn":
            job.base = self.base(job.model)
        self._move_requests(job_id, "running")

    def end_at_once(self, job_id: str) -> None:
        """Started and done."""
        self.start(job_id, "none")
        self.end(job_id, "succeeded", "completed")

    def requeue(self, job_id: str, *, due: bool) -> None:
        job = self.jobs[job_id]
        job.state, job.token, job.due = "queued", None, due
        self._move_requests(job_id, "queued")

    def crash(self, job_id: str, *, max_attempts: int, due: bool) -> None:
        """Again, unless it was at the same place so many times in a row."""
        job = self.jobs[job_id]
        step = job.step or 0
        job.crashes = job.crashes + 1 if step <= job.crashed_at else 1
        job.crashed_at = max(step, job.crashed_at)
        if job.crashes >= max_attempts:
            self.end(job_id, "failed", "failed")
        else:
            self.requeue(job_id, due=due)

    def outage(self, job_id: str, *, max_outages: int, due: bool) -> None:
        job = self.jobs[job_id]
        if job.outages >= max_outages:
            self.end(job_id, "failed", "failed")
        else:
            job.outages += 1
            self.requeue(job_id, due=due)

    def end(self, job_id: str, state: str, request_state: str) -> None:
        job = self.jobs[job_id]
        job.state, job.token, job.step = state, None, None
        self._move_requests(job_id, request_state)

    def pretrained(self, job_id: str, checkpoint_id: str) -> None:
        job = self.jobs[job_id]
        self.checkpoints[checkpoint_id] = TwinCheckpoint(job.model, job.sets, job=job_id)
        self._succeed(job_id, checkpoint_id)
        model = self.models[job.model]
        if not model.head or model.policy.promotion == "automatic":
            model.head = checkpoint_id

    def unlearned(self, job_id: str, checkpoint_id: str, measured: Measured) -> None:
        job = self.jobs[job_id]
        base, model = self.checkpoints[str(job.base)], self.models[job.model]
        self.checkpoints[checkpoint_id] = TwinCheckpoint(
            job.model,
            base.trained,
            forgotten=base.forgotten | self.to_forget(job_id),
            parent=job.base,
            job=job_id,
            measured=measured,
        )
        self._succeed(job_id, checkpoint_id)
        if model.policy.promotion == "automatic":
            steps = self.steps(checkpoint_id, model.head)
            poor = [step for step in steps if _fails(model.policy, step.measured)]
            for step in [*poor, *steps[:1]] if poor else []:
                step.withheld = True
            if not poor:
                model.head = checkpoint_id

    def _succeed(self, job_id: str, checkpoint_id: str) -> None:
        self.jobs[job_id].result = checkpoint_id
        self.end(job_id, "succeeded", "completed")

    def _move_requests(self, job_id: str, state: str) -> None:
        for request in self.of_job(job_id):
            request.state = state


def _fails(policy: TwinPolicy, measured: Measured) -> bool:
    """What was not measured does not pass."""
    forgot_enough = policy.min_forgetting is None or (
        measured.forgetting is not None and measured.forgetting >= policy.min_forgetting
    )
    useful_enough = policy.max_utility_loss is None or (
        measured.loss is not None and measured.loss <= policy.max_utility_loss
    )
    return not (forgot_enough and useful_enough)
