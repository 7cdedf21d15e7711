"""The demo's steps, in order. Everything the service does is asked for over HTTP through the SDK."""

import time
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from rich.console import Console

from expunge.client import ProblemError
from expunge.client.commands.audit import LEVELS, PICTURES
from expunge.client.progress import Followed, follow
from expunge.client.reports import Audit, AuditReport
from expunge.client.resources import Checkpoint, Dataset, Job, Model, RemovalRequest
from expunge.embedded.demonstration.cast import Actor, Cast, DemoError, sealed
from expunge.embedded.demonstration.setting import Setting


@dataclass(frozen=True)
class OwnerOutcome:
    """What one data owner asked for and found."""

    owner: Actor
    dataset: Dataset
    request: RemovalRequest
    audit: Audit
    report: AuditReport
    pictures: list[Path]
    audit_seconds: float


@dataclass(frozen=True)
class Outcome:
    """Everything the summary is written from."""

    model: Model
    control: Dataset
    retained: Dataset
    pretraining: Job
    unlearning: Job
    base: Checkpoint
    result: Checkpoint
    owners: list[OwnerOutcome]


@dataclass(frozen=True)
class Story:
    """One run of the demo."""

    console: Console
    setting: Setting
    seed: int
    out: Path
    logs: Path

    def tell(self, cast: Cast, shards: dict[str, list[Path]]) -> Outcome:
        """All steps.

        Raises:
            DemoError, ProblemError, UnreachableError: the first step that went wrong.
        """
        trainer = cast.model_owner
        self._title("1", "Four data sets are uploaded, checked and sealed")
        retained = self._upload(trainer, "own photos", shards["retained"])
        control = self._upload(trainer, "control, never trained on", shards["control"])
        photos = [
            self._upload(owner, "my photos", shards[part])
            for owner, part in zip(cast.owners, ("owner_a", "owner_b"), strict=True)
        ]
        for owner, dataset in zip(cast.owners, photos, strict=True):
            owner.client.grant(dataset.id, trainer.party.id)
            self._say(f"{owner.name} lets the model owner train on {dataset.samples} photos")

        self._title("2", "The model owner trains an encoder on everybody's images")
        model = self._create_model(trainer, control)
        pretraining = self._pretrain(trainer, model, [retained, *photos])

        self._title("3", "Both owners want out; neither knows of the other")
        requests = self._ask(cast, model, photos)
        self._check_isolation(cast, requests, photos)
        unlearning = self._forget(cast, requests)

        self._title("4", "Each owner checks what happened to their photos")
        owners = [
            self._audit(owner, dataset, request)
            for owner, dataset, request in zip(cast.owners, photos, requests, strict=True)
        ]
        return Outcome(
            model=trainer.client.model(model.id),
            control=control,
            retained=retained,
            pretraining=pretraining,
            unlearning=unlearning,
            base=trainer.client.checkpoint(str(unlearning.base_checkpoint_id)),
            result=trainer.client.checkpoint(str(unlearning.result_checkpoint_id)),
            owners=owners,
        )

    def _upload(self, actor: Actor, name: str, shards: list[Path]) -> Dataset:
        dataset = sealed(actor, name, shards)
        self._say(f"{actor.name}: {name}, {dataset.samples:,} images, {dataset.digest}")
        return dataset

    def _create_model(self, trainer: Actor, control: Dataset) -> Model:
        policy = {"batch_window_seconds": self.setting.batch_window_seconds}
        return trainer.client.create_model(
            "demo encoder", self.setting.encoder, control_dataset_id=control.id, policy=policy
        )

    def _pretrain(self, trainer: Actor, model: Model, datasets: list[Dataset]) -> Job:
        job = trainer.client.pretrain(
            model.id,
            [dataset.id for dataset in datasets],
            self.setting.pretraining,
            seed=self.seed,
        )
        ended = follow(trainer.client.watch_job(job.id), self.console, "pre-training")
        return self._succeeded(trainer, job.id, ended)

    def _ask(self, cast: Cast, model: Model, photos: list[Dataset]) -> list[RemovalRequest]:
        requests = []
        for owner, dataset in zip(cast.owners, photos, strict=True):
            request = owner.client.create_request(
                model.id, [dataset.id], self.setting.method, self.setting.unlearning
            )
            self._say(f"{owner.name}: POST /requests → {request.id} ({request.state})")
            requests.append(request)
        return requests

    def _check_isolation(
        self, cast: Cast, requests: list[RemovalRequest], photos: list[Dataset]
    ) -> None:
        """Neither owner can see the other's request, its events or the other's data set."""
        for owner, request, dataset in zip(
            cast.owners, reversed(requests), reversed(photos), strict=True
        ):
            for look in (
                lambda client, them=request.id: client.request(them),
                lambda client, them=request.id: list(client.watch_request(them)),
                lambda client, them=dataset.id: client.dataset(them),
            ):
                try:
                    look(owner.client)
                except ProblemError as problem:
                    if problem.status == HTTPStatus.NOT_FOUND:
                        continue
                    raise
                raise DemoError(f"{owner.name} can see what belongs to the other owner")
            self._say(f"{owner.name} looks for the other's request and photos: 404, 404, 404")

    def _forget(self, cast: Cast, requests: list[RemovalRequest]) -> Job:
        trainer, first = cast.model_owner, cast.owners[0]
        for owner, request in zip(cast.owners, requests, strict=True):
            title = "unlearning" if owner is first else f"{owner.name}'s request"
            ended = follow(owner.client.watch_request(request.id), self.console, title)
            if ended.state != "completed":
                raise DemoError(
                    f"{owner.name}'s request {ended.state}: {ended.reason or 'no reason given'} "
                    f"(logs: {self.logs})"
                )
        asked = {request.id for request in requests}
        for job in trainer.client.jobs():
            if asked <= set(job.request_ids):
                self._say(f"The model owner sees one job for both requests: {job.id}")
                return trainer.client.job(job.id)
        raise DemoError("the two requests were not answered by one job")

    def _audit(self, owner: Actor, dataset: Dataset, request: RemovalRequest) -> OwnerOutcome:
        started = time.monotonic()
        audit = owner.client.audit(
            request.id,
            matrix_size=self.setting.matrix_size,
            views=self.setting.views,
            seed=self.seed,
        )
        seconds = time.monotonic() - started
        report = audit.report
        if report is None:
            raise DemoError(f"{owner.name}'s audit {audit.state}: {audit.reason}")
        self._check_own_samples_only(owner, dataset, report)
        folder = self.out / owner.slug
        folder.mkdir(parents=True, exist_ok=True)
        pictures = [
            owner.client.download_picture(audit.id, which, level, folder / f"{level}-{which}.png")
            for level in LEVELS
            if level in report.levels
            for which in PICTURES
        ]
        self._say(
            f"{owner.name}: POST /audit → {audit.id} in {seconds:.1f} s, pictures in {folder}"
        )
        return OwnerOutcome(
            owner=owner,
            dataset=dataset,
            request=owner.client.request(request.id),
            audit=audit,
            report=report,
            pictures=pictures,
            audit_seconds=seconds,
        )

    def _check_own_samples_only(self, owner: Actor, dataset: Dataset, report: AuditReport) -> None:
        own = {sample.key for sample in owner.client.samples(dataset.id)}
        named = set[str]()
        for level in report.levels.values():
            named |= set(level.forgetting_score.per_sample or {})
        if named != own or report.n_own != len(own):
            raise DemoError(f"{owner.name}'s audit is not about exactly their own photos")

    def _succeeded(self, trainer: Actor, job_id: str, ended: Followed) -> Job:
        job = trainer.client.job(job_id)
        if ended.state != "succeeded":
            raise DemoError(
                f"the {job.kind} job {ended.state}: {job.reason or 'no reason given'} "
                f"(logs: {self.logs})"
            )
        return job

    def _title(self, number: str, text: str) -> None:
        self.console.print(f"\n[bold]{number}. {text}[/]")

    def _say(self, text: str) -> None:
        self.console.print(f"  {text}", highlight=False, soft_wrap=True)
