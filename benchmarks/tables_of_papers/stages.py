"""One split after the other: pre-train, retrain, every setting; each kept on disk once it is done.

A stage that runs out of time leaves a snapshot and is gone on with by the next call.
"""

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from expunge.unlearning import checkpoints
from expunge.unlearning.candidates import (
    REFERENCE_METHOD,
    Candidate,
    CandidateSpec,
    expand,
    label_of,
)
from expunge.unlearning.catalog import parse_params
from expunge.unlearning.comparison import Comparison, OracleStore
from expunge.unlearning.comparison.comparing import tabulate
from expunge.unlearning.comparison.oracle import identity_of
from expunge.unlearning.comparison.records import Settings
from expunge.unlearning.comparison.running import Bench, ComparisonProgress, Laboratory
from expunge.unlearning.comparison.runs import Reference, Setting
from expunge.unlearning.data.image_set import ImageSet
from expunge.unlearning.progress import Progress
from expunge.unlearning.training import Snapshots, pretrain, unlearn
from tables_of_papers import run_store
from tables_of_papers.scales import Encoder, Entries, Scale

SNAPSHOT_SECONDS = 60.0
SHARED = {"batch_size", "weight_decay", "epochs"}
"""Parameters that labels leave out."""


class OutOfTime(Exception):
    """The limit of this call is reached; the next one goes on."""


@dataclass(frozen=True)
class Split:
    """One seed's samples."""

    retain: ImageSet
    forget: ImageSet
    test: ImageSet


@dataclass(frozen=True)
class Deadline:
    """Stops a run through its progress callback."""

    ends: float
    say: Callable[[str], None]

    def training(self, progress: Progress) -> None:
        """Called with the progress of pre-training and retraining."""
        self.say(f"{progress.phase}: epoch {progress.epoch} of {progress.epochs}")
        self._check()

    def comparison(self, progress: ComparisonProgress) -> None:
        """Called with the progress of a setting."""
        self.say(f"seed {progress.seed}: {progress.label}")
        self._check()

    def _check(self) -> None:
        if time.monotonic() > self.ends:
            raise OutOfTime


def split(scale: Scale, images: ImageSet, test: ImageSet, seed: int, *, paired: bool) -> Split:
    """A seeded permutation: validation first, then U, then R, as the paper's code does.

    Raises SystemExit for fewer images than the scale has: U would be a larger share of them.
    """
    needed = 1 + scale.caption_unlearn if paired else scale.validation + scale.train
    if len(images) < needed:
        raise SystemExit(f"scale {scale.name} needs {needed} images, not {len(images)}")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    train = len(images) if paired else scale.train
    used = order[scale.validation : scale.validation + train]
    unlearn_size = scale.caption_unlearn if paired else scale.unlearn
    return Split(
        retain=images.subset(used[unlearn_size:]),
        forget=images.subset(used[:unlearn_size]),
        test=test if paired else test.subset(range(min(scale.test, len(test)))),
    )


@dataclass(frozen=True)
class Finished:
    """One seed's results."""

    settings: Settings
    reference: Reference
    candidates: list[Setting]


class Seed:
    """All stages of one framework under one seed, in one folder."""

    def __init__(
        self,
        folder: Path,
        *,
        encoder: Encoder,
        parts: Split,
        seed: int,
        device: str,
        deadline: Deadline,
    ) -> None:
        self.folder = folder
        self.encoder = encoder
        self.split = parts
        self.seed = seed
        self.device = device
        self.deadline = deadline
        folder.mkdir(parents=True, exist_ok=True)

    def pretrain(self) -> None:
        """Train the encoder that is to forget, unless it is there."""
        if self._pretrained.exists():
            return
        result = pretrain(
            self.encoder.spec,
            ImageSet.concat([self.split.retain, self.split.forget]),
            self.encoder.pretraining,
            seed=self.seed,
            device=self.device,
            on_progress=self.deadline.training,
            snapshots=Snapshots(self.folder / "pretrain.snapshot", SNAPSHOT_SECONDS),
        )
        extra = {
            "seconds": repr(result.seconds),
            "images_per_second": repr(result.images_per_second),
        }
        checkpoints.save(result.learner, self._pretrained, extra=extra)

    def retrain(self) -> None:
        """Train the reference on R alone and put it where comparisons look for it."""
        learner = checkpoints.load(self._pretrained)
        params = parse_params(REFERENCE_METHOD, learner.spec.framework, self._retrain_params)
        sets = (self.split.retain, self.split.forget)
        identity = identity_of(
            learner, self.split.retain, params, seed=self.seed, device=self.device
        )
        if self._oracle.find(identity):
            return
        result = unlearn(
            learner,
            *sets,
            REFERENCE_METHOD,
            params,
            seed=self.seed,
            device=self.device,
            on_progress=self.deadline.training,
            snapshots=Snapshots(self.folder / "retrain.snapshot", SNAPSHOT_SECONDS),
        )
        self._oracle.keep_weights(identity, result.learner, result.seconds)

    def compare(self, entries: Entries) -> None:
        """Run every setting that has no result yet."""
        wanted = self._candidates(entries)
        missing = [candidate for candidate in wanted if not self._result(candidate).exists()]
        if not missing and self._reference("before").exists():
            return
        bench = Bench(
            learner=checkpoints.load(self._pretrained),
            retain=self.split.retain,
            forget=self.split.forget,
            test=self.split.test,
            seeds=[self.seed],
            retrain=self._retrain_params,
            device=self.device,
            oracle=self._oracle,
        )
        laboratory = Laboratory(bench, len(missing), self.deadline.comparison)
        reference = laboratory.reference
        assert reference.retrain is not None  # noqa: S101 - the bench was given Retrain
        run_store.write(self._reference("before"), reference.before)
        run_store.write(self._reference("retrain"), reference.retrain)
        self._settings.write_text(json.dumps(asdict(bench.settings())))
        for candidate in missing:
            run_store.write(self._result(candidate), laboratory.run(candidate))

    def finished(self, entries: Entries) -> Finished | None:
        """What `compare` has stored; None while something is missing."""
        before, retrain = (run_store.read(self._reference(k)) for k in ("before", "retrain"))
        settings = [run_store.read(self._result(each)) for each in self._candidates(entries)]
        if before is None or retrain is None or any(each is None for each in settings):
            return None
        return Finished(
            settings=Settings(**json.loads(self._settings.read_text())),
            reference=Reference(before, retrain, relearn=False),
            candidates=[each for each in settings if each],
        )

    def _candidates(self, entries: Entries) -> list[Candidate]:
        return [
            candidate.model_copy(update={"label": _short_label(candidate, entry)})
            for entry in entries
            for candidate in expand(
                [CandidateSpec.model_validate(entry)], self.encoder.spec.framework
            )
        ]

    @property
    def _settings(self) -> Path:
        return self.folder / "settings.json"

    @property
    def _pretrained(self) -> Path:
        return self.folder / "pretrained.safetensors"

    @property
    def _oracle(self) -> OracleStore:
        return OracleStore(self.folder / "retrained")

    @property
    def _retrain_params(self) -> dict[str, Any]:
        return dict(self.encoder.pretraining)

    def _reference(self, kind: str) -> Path:
        return self.folder / "runs" / f"{kind}.json"

    def _result(self, candidate: Candidate) -> Path:
        text = json.dumps([candidate.method, candidate.params], sort_keys=True)
        return self.folder / "runs" / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.json"


def _short_label(candidate: Candidate, entry: Mapping[str, Any]) -> str:
    """The method with what is particular to it, without what all settings of a scale share."""
    told = (set(entry.get("params", {})) - SHARED) | set(entry.get("grid", {}))
    return label_of(candidate.method, {n: candidate.params[n] for n in sorted(told)})


def merged(seeds: Sequence[Finished]) -> Comparison:
    """One comparison over all seeds, each with its own split and encoder.

    The uncertainties pair the n-th unlearn samples of all splits, which are different images: as
    independent samples they make no difference to it.
    """
    references = [each.reference for each in seeds]
    reference = Reference(
        before=_joined([each.before for each in references]),
        retrain=_joined([each.retrain for each in references if each.retrain]),
        relearn=False,
    )
    settings = [_joined(group) for group in zip(*(each.candidates for each in seeds), strict=True)]
    numbers = [run.seed for run in reference.before.runs]
    return tabulate(replace(seeds[0].settings, seeds=numbers), reference, settings)


def _joined(settings: Sequence[Setting]) -> Setting:
    return replace(
        settings[0],
        runs=[run for setting in settings for run in setting.runs],
        failures=[failure for setting in settings for failure in setting.failures],
    )
