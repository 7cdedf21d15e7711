"""A model's policy towards removal requests: approval, batches, promotion, and when to train anew. Rules only."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from expunge.registry.labels import Labels

MAX_BATCH_WINDOW_SECONDS = 86_400
MAX_BATCH_SAMPLES = 10**9
MAX_TIME_LIMIT_SECONDS = 30 * 86_400
MAX_KEEP_DAYS = 3650


class Policy(BaseModel):
    """How a model treats removal requests."""

    model_config = ConfigDict(extra="forbid")

    approval: Literal["automatic", "manual"] = Field(
        default="automatic",
        description="Whether a request is taken up by itself, or waits for the model's owner.",
    )
    batch_window_seconds: float = Field(
        default=0,
        ge=0,
        le=MAX_BATCH_WINDOW_SECONDS,
        description="A job waits this long for further requests with the same method and parameters; "
        "those that come before it starts join it.",
    )
    max_batch_samples: int | None = Field(
        default=None,
        ge=1,
        le=MAX_BATCH_SAMPLES,
        description="A job that would forget more samples than this takes no further request, and "
        "does not wait for the window's end.",
    )
    promotion: Literal["automatic", "manual"] = Field(
        default="automatic",
        description="Whether a result becomes the model's head by itself.",
    )
    min_forgetting: float | None = Field(
        default=None,
        ge=-2,
        le=2,
        description="A result whose mean forgetting score over the unlearn samples (encoder level) is "
        "lower is not promoted by itself.",
    )
    max_utility_loss: float | None = Field(
        default=None,
        ge=-1,
        le=1,
        description="A result that lost more contrastive accuracy on retained samples is not promoted "
        "by itself.",
    )
    time_limit_seconds: float | None = Field(
        default=None,
        gt=0,
        le=MAX_TIME_LIMIT_SECONDS,
        description="Of a training job, all its attempts together; the operator's limit counts too.",
    )
    keep_days: int = Field(
        default=30,
        ge=0,
        le=MAX_KEEP_DAYS,
        description="How long audits find a checkpoint that holds what was forgotten on request, from "
        "when a head without it came into force; then it is destroyed. 0: at once.",
    )
    max_forgotten_share: float = Field(
        default=0.3,
        gt=0,
        le=1,
        description="A retrain is advised once this share of the training samples was forgotten.",
    )
    max_utility_lost: float = Field(
        default=0.05,
        gt=0,
        le=1,
        description="... once removals together have cost this much contrastive accuracy.",
    )
    max_alignment_drift: float = Field(
        default=0.1,
        gt=0,
        le=2,
        description="... once the alignment of retained samples has fallen by this much.",
    )
    worker_labels: Labels = Field(
        default=(),
        description="Training, removals and comparisons are done by workers that have all of these "
        "labels: `cuda`, `cpu`, or what the operator calls them.",
        examples=[["cuda"]],
    )


def of(stored: dict[str, Any]) -> Policy:
    """A row's policy: what an older version did not write has its default, what only a newer one knows is left out."""
    return Policy.model_validate(
        {name: stored[name] for name in Policy.model_fields & stored.keys()}
    )


def to_row(policy: Policy) -> dict[str, Any]:
    """The policy as a row keeps it; without labels also versions can read it that know none."""
    members = policy.model_dump(mode="json")
    if not policy.worker_labels:
        del members["worker_labels"]
    return members


def forgetting(metrics: dict[str, Any], group: Literal["unlearn", "retain"]) -> float | None:
    """Mean forgetting score of a group of samples at encoder level, from a job's metrics."""
    levels = metrics.get("evaluation") or {}
    found = (levels.get("encoder") or {}).get(group)
    return None if found is None else float(found["forgetting_score"]["mean"])


def utility_loss(metrics: dict[str, Any]) -> float | None:
    """Contrastive accuracy on retained samples before minus after, from a job's metrics."""
    utility = metrics.get("utility") or {}
    before, after = utility.get("before"), utility.get("after")
    return None if before is None or after is None else float(before) - float(after)


def objections(policy: Policy, metrics: dict[str, Any]) -> list[str]:
    """Why a result must not be promoted by itself, in words; empty if it may."""
    found = []
    if policy.min_forgetting is not None:
        score = forgetting(metrics, "unlearn")
        if score is None or not score >= policy.min_forgetting:
            found.append(
                f"the forgetting score is {_shown(score)}, below {policy.min_forgetting:g}"
            )
    if policy.max_utility_loss is not None:
        loss = utility_loss(metrics)
        if loss is None or not loss <= policy.max_utility_loss:
            found.append(
                f"the contrastive accuracy fell by {_shown(loss)}, more than "
                f"{policy.max_utility_loss:g}"
            )
    return found


def _shown(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3f}"
