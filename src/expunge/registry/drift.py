"""What removals since the last full training add up to, and whether a retrain is advised. Measures nothing itself."""

from collections.abc import Collection
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from expunge.registry import policies
from expunge.registry.policies import Policy
from expunge.registry.tables import Checkpoint, Dataset

NONE: dict[str, Any] = {
    "jobs": 0,
    "forgotten_samples": 0,
    "utility_lost": 0.0,
    "alignment_drift": 0.0,
}


def after(
    session: Session,
    base: Checkpoint,
    metrics: dict[str, Any],
    newly_forgotten: Collection[str],
) -> dict[str, Any]:
    """The drift of a result made from `base`; what a job did not measure counts as no change.

    Utility lost sums contrastive accuracy before minus after, each pair measured on one draw of
    retained samples; alignment drift sums their mean forgetting scores (encoder level).
    """
    so_far = base.drift or NONE
    return {
        "jobs": so_far["jobs"] + 1,
        "forgotten_samples": so_far["forgotten_samples"] + _samples(session, newly_forgotten),
        "utility_lost": so_far["utility_lost"] + (policies.utility_loss(metrics) or 0.0),
        "alignment_drift": so_far["alignment_drift"]
        + (policies.forgetting(metrics, "retain") or 0.0),
    }


def of(session: Session, checkpoint: Checkpoint, policy: Policy) -> dict[str, Any]:
    """A checkpoint's drift with the forgotten share, and the reasons for which a retrain is advised."""
    found = checkpoint.drift or NONE
    trained = _samples(session, checkpoint.trained_on)
    share = found["forgotten_samples"] / trained if trained else 0.0
    shown = found | {"trained_samples": trained, "forgotten_share": share}
    limits = {
        "forgotten_share": (policy.max_forgotten_share, "of the training samples were forgotten"),
        "utility_lost": (policy.max_utility_lost, "of contrastive accuracy were lost"),
        "alignment_drift": (
            policy.max_alignment_drift,
            "of alignment of retained samples are gone",
        ),
    }
    reasons = [
        f"{shown[name]:.3g} {what}; the policy's limit is {limit:g}"
        for name, (limit, what) in limits.items()
        if shown[name] >= limit
    ]
    return shown | {"retrain_advised": bool(reasons), "reasons": reasons}


def _samples(session: Session, dataset_ids: Collection[str]) -> int:
    counted = select(func.sum(Dataset.samples)).where(Dataset.id.in_(dataset_ids))
    return int(session.scalar(counted) or 0)
