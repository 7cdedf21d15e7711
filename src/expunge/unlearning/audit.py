"""What happened to an owner's samples between two encoders, against control samples.

Black box: uses only outputs of both encoders on the same views. Never trains, and never puts a
control sample's key or own score into the report.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from expunge.unlearning.audit_report import (
    AuditReport,
    Contrast,
    Difference,
    Group,
    Level,
    LevelReport,
    Matrix,
    NegativeAlignment,
    Statistic,
    Verdict,
)
from expunge.unlearning.data.image_set import ImageSet
from expunge.unlearning.data.randomness import mix
from expunge.unlearning.data.views import Views
from expunge.unlearning.frameworks import Learner
from expunge.unlearning.hardware import resolve_device
from expunge.unlearning.metrics.alignment import alignment_matrix, off_diagonal, self_alignment
from expunge.unlearning.metrics.bootstrap import (
    percentile_interval,
    resampled_means,
    resampled_pair_means,
    resampling_weights,
)
from expunge.unlearning.metrics.features import measuring

Array = NDArray[np.float64]

LOOKS_PER_LEVEL = 2
"""Statistics looked at per level: the verdict divides its error rate among all (Bonferroni)."""
MIN_SAMPLES = 8
"""Own and control samples below which no verdict is given: percentile intervals are too narrow."""
MAX_PAIR_SAMPLES = 2048
"""Larger sets are represented by a seeded draw of so many where pairs count: the matrices of one
level then stay within 100 MB."""
BATCH_IMAGES = 512


def audit(
    before: Learner,
    after: Learner,
    own: ImageSet,
    control: ImageSet | None,
    *,
    views: int = 10,
    seed: int = 0,
    matrix_size: int = 64,
    device: str = "auto",
    bootstrap: int = 2000,
    confidence: float = 0.95,
) -> AuditReport:
    """Compare two encoders of one specification on an owner's samples and on control samples.

    Each image gets `views` training-style views, the same for both encoders, depending on `seed`
    and the image alone. Estimators, per level (encoder features; projector outputs, where the
    framework has a projector):

    - alignment matrix: mean cosine over pairs of different views (`alignment_matrix`);
    - forgetting score (eq. 2): its diagonal before minus after, per sample and on average;
    - negative alignment: its off-diagonal mean and standard deviation;
      in sets of more than 2,048 samples over a seeded draw of so many;
    - intervals: percentile bootstrap over samples (not pairs), conditional on both encoders;
    - contrast: own minus control, own and control resampled independently.

    The verdict is `change_detected` if any of the contrasts' intervals, two per level, at a
    confidence adjusted for so many looks, excludes zero. It says that the encoder moved the own samples in
    another way than the control, not that they are forgotten.

    Raises ValueError for an empty own set, fewer than two views, or differing specifications.
    """
    if len(own) == 0:
        raise ValueError("an audit needs at least one sample")
    if before.spec != after.spec:
        raise ValueError("the two encoders have different specifications")
    rng = np.random.default_rng(mix(seed))
    sets = {"own": own} | ({"control": control} if control else {})
    changes = {
        name: _change(before, after, images, _Protocol(views, seed, device, bootstrap), rng)
        for name, images in sets.items()
    }
    n_control = len(control) if control else 0
    levels = {
        level: _level(level, changes, own.keys, confidence) for level in changes["own"].before
    }
    shown = np.sort(rng.permutation(len(changes["own"].chosen))[:matrix_size])
    return AuditReport(
        levels=levels,
        n_own=len(own),
        n_control=n_control,
        views=views,
        seed=seed,
        confidence=confidence,
        verdict=_verdict(levels, len(own), n_control, confidence),
        matrices={level: _shown(changes["own"], level, shown) for level in levels},
        matrix_keys=[own.keys[i] for i in changes["own"].chosen[shown]],
    )


@dataclass(frozen=True)
class _Protocol:
    """How a set is measured."""

    views: int
    seed: int
    device: str
    bootstrap: int


@dataclass(frozen=True)
class _Alignments:
    """One encoder's outputs on a set, at one level."""

    same: Array
    """(N,) mean cosine between views of a sample."""
    matrix: Array
    """(P, P) alignment matrix of the chosen samples."""


@dataclass(frozen=True)
class _Change:
    """Both encoders' outputs on a set, and how its samples are resampled."""

    before: dict[Level, _Alignments]
    after: dict[Level, _Alignments]
    chosen: NDArray[np.int64]
    """(P,) samples of the matrices."""
    weights: Array
    """(draws, N) resampling weights for means of samples."""
    pair_weights: Array
    """(draws, P) resampling weights for means of pairs."""

    @property
    def samples(self) -> int:
        return int(self.weights.shape[1])

    def scores(self, level: Level) -> Array:
        """(N,) forgetting scores, eq. 2."""
        scores: Array = self.before[level].same - self.after[level].same
        return scores

    def negative(self, level: Level) -> Array:
        """(P, P) change of alignment, after minus before."""
        change: Array = self.after[level].matrix - self.before[level].matrix
        return change


def _change(
    before: Learner,
    after: Learner,
    images: ImageSet,
    protocol: _Protocol,
    rng: np.random.Generator,
) -> _Change:
    chosen = np.sort(rng.permutation(len(images))[:MAX_PAIR_SAMPLES])
    weights = resampling_weights(len(images), protocol.bootstrap, rng)
    all_chosen = len(chosen) == len(images)
    return _Change(
        before=_alignments(before, images, chosen, protocol),
        after=_alignments(after, images, chosen, protocol),
        chosen=chosen,
        weights=weights,
        pair_weights=(
            weights if all_chosen else resampling_weights(len(chosen), protocol.bootstrap, rng)
        ),
    )


def _shown(change: _Change, level: Level, index: NDArray[np.int64]) -> dict[str, Matrix]:
    block = np.ix_(index, index)
    before, after = change.before[level].matrix[block], change.after[level].matrix[block]
    matrices = {"before": before, "after": after, "gap": before - after}
    return {name: matrix.astype(np.float32) for name, matrix in matrices.items()}


def _alignments(
    learner: Learner, images: ImageSet, chosen: NDArray[np.int64], protocol: _Protocol
) -> dict[Level, _Alignments]:
    """Alignments of `images` per level; eval mode, float32 networks."""
    target = resolve_device(protocol.device)
    spec = learner.spec
    make = Views(spec.image_size, spec.mean, spec.std, seed=protocol.seed)
    sums: dict[Level, Array] = {}
    kept: dict[Level, list[Array]] = {}
    with measuring(learner, target):
        for view in range(protocol.views):
            for level, outputs in _outputs(learner, images, make, view, target).items():
                sums[level] = sums[level] + outputs if level in sums else outputs
                kept.setdefault(level, []).append(outputs[chosen])
    return {
        level: _Alignments(
            self_alignment(sums[level], protocol.views), alignment_matrix(np.stack(views))
        )
        for level, views in kept.items()
    }


def _outputs(
    learner: Learner, images: ImageSet, make: Views, view: int, device: torch.device
) -> dict[Level, Array]:
    """(N, D) L2-normalised outputs of one view, per level."""
    parts: dict[Level, list[torch.Tensor]] = {}
    for start in range(0, len(images), BATCH_IMAGES):
        rows = slice(start, start + BATCH_IMAGES)
        chunk, ids = images.images[rows].to(device), images.ids[rows].to(device)
        features = learner.features(make(chunk, ids, view))
        parts.setdefault("encoder", []).append(F.normalize(features, dim=1))
        if learner.has_projector:
            parts.setdefault("projector", []).append(learner.project(features))
    return {
        level: torch.cat(outputs).cpu().numpy().astype(np.float64)
        for level, outputs in parts.items()
    }


def _level(
    level: Level, changes: dict[str, _Change], keys: list[str], confidence: float
) -> LevelReport:
    groups = {name: _group(level, change, confidence) for name, change in changes.items()}
    scores = changes["own"].scores(level)
    return LevelReport(
        own=groups["own"],
        per_sample=dict(zip(keys, scores.tolist(), strict=True)),
        control=groups.get("control"),
        contrast=_contrast(level, changes, confidence),
    )


def _group(level: Level, change: _Change, confidence: float) -> Group:
    scores = change.scores(level)
    draws = resampled_means(scores, change.weights)
    negative = None
    if change.samples > 1:
        matrices = (change.before[level].matrix, change.after[level].matrix, change.negative(level))
        negative = NegativeAlignment(
            *(
                _statistic(
                    off_diagonal(matrix),
                    resampled_pair_means(matrix, change.pair_weights),
                    len(change.chosen),
                    confidence,
                )
                for matrix in matrices
            )
        )
    return Group(_statistic(scores, draws, change.samples, confidence), negative)


def _statistic(values: Array, draws: Array, n: int, confidence: float) -> Statistic:
    interval = list(percentile_interval(draws, confidence)) if n > 1 else None
    return Statistic(float(values.mean()), float(values.std()), interval, n)


def _contrast(level: Level, changes: dict[str, _Change], confidence: float) -> Contrast | None:
    if "control" not in changes or min(c.samples for c in changes.values()) < MIN_SAMPLES:
        return None
    scores = {name: change.scores(level) for name, change in changes.items()}
    negative = {name: change.negative(level) for name, change in changes.items()}
    looks = LOOKS_PER_LEVEL * len(changes["own"].before)
    return Contrast(
        forgetting_score=_difference(
            {n: float(s.mean()) for n, s in scores.items()},
            {n: resampled_means(s, changes[n].weights) for n, s in scores.items()},
            confidence,
            looks,
        ),
        negative_alignment_change=_difference(
            {n: float(off_diagonal(m).mean()) for n, m in negative.items()},
            {n: resampled_pair_means(m, changes[n].pair_weights) for n, m in negative.items()},
            confidence,
            looks,
        ),
    )


def _difference(
    means: dict[str, float], draws: dict[str, Array], confidence: float, looks: int
) -> Difference:
    drawn = draws["own"] - draws["control"]
    adjusted = 1 - (1 - confidence) / looks
    return Difference(
        difference=means["own"] - means["control"],
        interval=list(percentile_interval(drawn, confidence)),
        adjusted_interval=list(percentile_interval(drawn, adjusted)),
    )


def _verdict(
    levels: dict[Level, LevelReport], n_own: int, n_control: int, confidence: float
) -> Verdict:
    if n_control == 0:
        return Verdict(
            "no_control",
            "No verdict: without control samples a change of the owner's samples cannot be told "
            "from a change of the encoder as a whole.",
        )
    if min(n_own, n_control) < MIN_SAMPLES:
        return Verdict(
            "too_few_samples",
            f"No verdict: it needs at least {MIN_SAMPLES} own and {MIN_SAMPLES} control samples, "
            f"and there are {n_own} and {n_control}.",
        )
    found = list(_findings(levels))
    basis = f"({n_own} own against {n_control} control samples, {confidence:.0%} confidence over "
    basis += f"{LOOKS_PER_LEVEL * len(levels)} looks)"
    if not found:
        return Verdict(
            "no_change_detected",
            "No change detected: the encoder treats the owner's samples no differently from the "
            f"control samples than before {basis}.",
        )
    return Verdict(
        "change_detected",
        "The encoder changed on the owner's samples in another way than on the control samples: "
        f"{'; '.join(found)} {basis}.",
    )


def _findings(levels: dict[Level, LevelReport]) -> Iterator[str]:
    for name, level in levels.items():
        if level.contrast is None:
            continue
        looks = {
            "forgetting score": level.contrast.forgetting_score,
            "change of negative alignment": level.contrast.negative_alignment_change,
        }
        for what, look in looks.items():
            if look.excludes_zero:
                low, high = look.adjusted_interval
                yield f"{name} {what} differs by {look.difference:+.4f} [{low:+.4f}, {high:+.4f}]"
