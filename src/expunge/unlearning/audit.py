"""What happened to an owner's samples between two encoders, against control samples.

Black box: uses only outputs of both encoders on the same views. Never trains, and never puts a
control sample's key or own score into the report.
"""

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from expunge.unlearning.audit_report import (
    LEVELS,
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
from expunge.unlearning.frameworks.architectures import lay_out
from expunge.unlearning.hardware import resolve_device
from expunge.unlearning.metrics.alignment import alignment_matrix, forgetting_scores, off_diagonal
from expunge.unlearning.metrics.bootstrap import (
    percentile_interval,
    resampled_means,
    resampled_pair_means,
    resampling_weights,
)

LOOKS = 4
"""Two statistics at two levels: the verdict divides its error rate among them (Bonferroni)."""
MIN_SAMPLES = 8
"""Own and control samples below which no verdict is given: percentile intervals are too narrow."""
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
    and the image alone. Estimators, per level (encoder features; projector outputs):

    - alignment matrix: mean cosine over pairs of different views (`alignment_matrix`);
    - forgetting score (eq. 2): its diagonal before minus after, per sample and on average;
    - negative alignment: its off-diagonal mean and standard deviation;
    - intervals: percentile bootstrap over samples (not pairs), conditional on both encoders;
    - contrast: own minus control, own and control resampled independently.

    The verdict is `change_detected` if any of the four contrasts' intervals, at a confidence
    adjusted for four looks, excludes zero. It says that the encoder moved the own samples in
    another way than the control, not that they are forgotten.

    Raises ValueError for an empty own set, fewer than two views, or differing specifications.
    """
    if len(own) == 0:
        raise ValueError("an audit needs at least one sample")
    if before.spec != after.spec:
        raise ValueError("the two encoders have different specifications")
    rng = np.random.default_rng(mix(seed))
    if control is not None and len(control) == 0:
        control = None
    pairs = {
        name: _Matrices(
            _outputs(before, images, views, seed, device),
            _outputs(after, images, views, seed, device),
        )
        for name, images in (("own", own), ("control", control))
        if images is not None
    }
    weights = {
        name: resampling_weights(pair.samples, bootstrap, rng) for name, pair in pairs.items()
    }
    levels = {level: _level(level, pairs, weights, own.keys, confidence) for level in LEVELS}
    shown = np.sort(rng.permutation(len(own))[:matrix_size])
    return AuditReport(
        levels=levels,
        n_own=len(own),
        n_control=0 if control is None else len(control),
        views=views,
        seed=seed,
        confidence=confidence,
        verdict=_verdict(levels, len(own), 0 if control is None else len(control), confidence),
        matrices={level: pairs["own"].shown(level, shown) for level in LEVELS},
        matrix_keys=[own.keys[i] for i in shown],
    )


class _Matrices:
    """Alignment matrices of one set of samples by both encoders, per level."""

    def __init__(
        self, before: dict[Level, NDArray[np.float64]], after: dict[Level, NDArray[np.float64]]
    ) -> None:
        self.before = {level: alignment_matrix(before[level]) for level in LEVELS}
        self.after = {level: alignment_matrix(after[level]) for level in LEVELS}
        self.samples = len(self.before["encoder"])

    def scores(self, level: Level) -> NDArray[np.float64]:
        return forgetting_scores(self.before[level], self.after[level])

    def change(self, level: Level) -> NDArray[np.float64]:
        return self.after[level] - self.before[level]

    def shown(self, level: Level, index: NDArray[np.int64]) -> dict[str, Matrix]:
        block = np.ix_(index, index)
        before, after = self.before[level][block], self.after[level][block]
        matrices = {"before": before, "after": after, "gap": before - after}
        return {name: matrix.astype(np.float32) for name, matrix in matrices.items()}


@torch.no_grad()
def _outputs(
    learner: Learner, images: ImageSet, views: int, seed: int, device: str
) -> dict[Level, NDArray[np.float64]]:
    """(V, N, D) normalised outputs per level, eval mode, float32 networks."""
    target = resolve_device(device)
    spec = learner.spec
    make = Views(spec.image_size, spec.mean, spec.std, seed=seed)
    was_training, home = learner.training, next(learner.parameters()).device
    learner.to(target).eval()
    lay_out(learner, bn_splits=learner.bn_splits)
    collected: dict[Level, list[NDArray[np.float32]]] = {level: [] for level in LEVELS}
    try:
        for view in range(views):
            parts: dict[Level, list[torch.Tensor]] = {level: [] for level in LEVELS}
            for chunk, ids in _chunks(images, target):
                features = learner.features(make(chunk, ids, view))
                parts["encoder"].append(F.normalize(features, dim=1))
                parts["projector"].append(learner.project(features))
            for level in LEVELS:
                collected[level].append(torch.cat(parts[level]).cpu().numpy())
    finally:
        learner.to(home).train(was_training)
    return {level: np.stack(collected[level]).astype(np.float64) for level in LEVELS}


def _chunks(images: ImageSet, device: torch.device) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for start in range(0, len(images), BATCH_IMAGES):
        rows = slice(start, start + BATCH_IMAGES)
        yield images.images[rows].to(device), images.ids[rows].to(device)


def _level(
    level: Level,
    pairs: dict[str, _Matrices],
    weights: dict[str, NDArray[np.float64]],
    keys: list[str],
    confidence: float,
) -> LevelReport:
    groups = {name: _group(level, pairs[name], weights[name], confidence) for name in pairs}
    scores = pairs["own"].scores(level)
    return LevelReport(
        own=groups["own"],
        per_sample=dict(zip(keys, scores.tolist(), strict=True)),
        control=groups.get("control"),
        contrast=_contrast(level, pairs, weights, confidence),
    )


def _group(level: Level, pair: _Matrices, weights: NDArray[np.float64], confidence: float) -> Group:
    scores = pair.scores(level)
    draws = resampled_means(scores, weights)
    negative = None
    if pair.samples > 1:
        negative = NegativeAlignment(
            *(
                _statistic(
                    off_diagonal(m), resampled_pair_means(m, weights), pair.samples, confidence
                )
                for m in (pair.before[level], pair.after[level], pair.change(level))
            )
        )
    return Group(_statistic(scores, draws, pair.samples, confidence), negative)


def _statistic(
    values: NDArray[np.float64], draws: NDArray[np.float64], n: int, confidence: float
) -> Statistic:
    interval = list(percentile_interval(draws, confidence)) if n > 1 else None
    return Statistic(float(values.mean()), float(values.std()), interval, n)


def _contrast(
    level: Level,
    pairs: dict[str, _Matrices],
    weights: dict[str, NDArray[np.float64]],
    confidence: float,
) -> Contrast | None:
    if "control" not in pairs or min(pair.samples for pair in pairs.values()) < MIN_SAMPLES:
        return None
    scores = {name: pair.scores(level) for name, pair in pairs.items()}
    changes = {name: pair.change(level) for name, pair in pairs.items()}
    score_draws = {n: resampled_means(scores[n], weights[n]) for n in pairs}
    change_draws = {n: resampled_pair_means(changes[n], weights[n]) for n in pairs}
    return Contrast(
        forgetting_score=_difference(
            {n: float(s.mean()) for n, s in scores.items()}, score_draws, confidence
        ),
        negative_alignment_change=_difference(
            {n: float(off_diagonal(c).mean()) for n, c in changes.items()}, change_draws, confidence
        ),
    )


def _difference(
    means: dict[str, float], draws: dict[str, NDArray[np.float64]], confidence: float
) -> Difference:
    drawn = draws["own"] - draws["control"]
    adjusted = 1 - (1 - confidence) / LOOKS
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
    basis += f"{LOOKS} looks)"
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
