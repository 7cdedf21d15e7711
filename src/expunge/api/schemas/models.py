"""Models, their policy and pre-training."""

from datetime import datetime
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field

from expunge.api.schemas.values import EXAMPLE_HEX, Body, DatasetId, Name, Seed, example
from expunge.registry import policies, tables
from expunge.registry.policies import Policy
from expunge.unlearning.catalog import EncoderSpec, PretrainParams

ENCODER_EXAMPLE = {
    "objective": {"framework": "simclr", "temperature": 0.5},
    "architecture": {"name": "resnet18_cifar", "width": 64},
    "image_size": 32,
}


class NewModel(Body):
    """A model to be added, without weights."""

    model_config = ConfigDict(json_schema_extra=example(name="encoder", encoder=ENCODER_EXAMPLE))

    name: Name
    encoder: EncoderSpec
    control_dataset_id: DatasetId | None = Field(
        default=None, description="Images that will never be trained on; audits compare with them."
    )
    policy: Policy = Policy()


class ModelSummary(BaseModel):
    """What the owner of training data sees of a model."""

    id: str = Field(examples=[f"mdl_{EXAMPLE_HEX}"])
    owner_id: str
    name: str
    framework: str
    created_at: datetime

    @classmethod
    def of(cls, row: tables.Model) -> Self:
        """The model without anything of its weights."""
        return cls(
            id=row.id,
            owner_id=row.owner_id,
            name=row.name,
            framework=row.encoder["objective"]["framework"],
            created_at=row.created_at,
        )


class Drift(BaseModel):
    """What removals since the last full training add up to."""

    jobs: int = Field(description="Removals.")
    forgotten_samples: int
    trained_samples: int = Field(description="All that it was ever trained on.")
    forgotten_share: float
    utility_lost: float = Field(description="Contrastive accuracy on retained samples, summed up.")
    alignment_drift: float = Field(
        description="Mean forgetting scores of retained samples, summed up."
    )
    retrain_advised: bool = Field(description="By the model's policy as it is now.")
    reasons: list[str]


class Model(BaseModel):
    """A model as its owner sees it."""

    id: str = Field(examples=[f"mdl_{EXAMPLE_HEX}"])
    owner_id: str
    name: str
    framework: str
    encoder: EncoderSpec
    head_checkpoint_id: str | None = Field(description="The weights in force.")
    control_dataset_id: str | None
    policy: Policy
    drift: Drift | None = Field(description="Of the weights in force; null if there are none.")
    created_at: datetime

    @classmethod
    def of(cls, row: tables.Model, drift: dict[str, Any] | None) -> Self:
        """The whole model; `drift` as `registry.drift.of` says of its head."""
        encoder = EncoderSpec.model_validate(row.encoder)
        return cls(
            id=row.id,
            owner_id=row.owner_id,
            name=row.name,
            framework=encoder.framework,
            encoder=encoder,
            head_checkpoint_id=row.head_checkpoint_id,
            control_dataset_id=row.control_dataset_id,
            policy=policies.of(row.policy),
            drift=None if drift is None else Drift.model_validate(drift),
            created_at=row.created_at,
        )


class PolicyChange(Policy):
    """The parts of a model's policy that change; what is left out stays."""

    model_config = ConfigDict(json_schema_extra=example(batch_window_seconds=60))

    def given(self) -> dict[str, Any]:
        """Only the members that the caller sent."""
        return self.model_dump(exclude_unset=True)


class NewControl(Body):
    """The data set that audits compare with."""

    model_config = ConfigDict(json_schema_extra=example(dataset_id=f"dst_{EXAMPLE_HEX}"))

    dataset_id: DatasetId


class Pretraining(Body):
    """What to train fresh weights on, and how."""

    model_config = ConfigDict(
        json_schema_extra=example(
            dataset_ids=[f"dst_{EXAMPLE_HEX}"], params={"epochs": 100, "batch_size": 256}, seed=0
        )
    )

    dataset_ids: list[DatasetId]
    params: PretrainParams = PretrainParams()
    seed: Seed = 0
