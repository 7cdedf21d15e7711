"""Alerts about later heads."""

from datetime import datetime
from typing import Literal, Self

from pydantic import BaseModel, Field

from expunge.api.schemas.values import EXAMPLE_HEX
from expunge.registry import tables
from expunge.registry.tables import AlertKind


class LevelRise(BaseModel):
    """The test at one level. All in cosine, own samples minus control images."""

    rise: float = Field(description="Mean change of self-alignment since the forgetting head.")
    interval: list[float] = Field(description="Of `rise`, 95 %.", min_length=2, max_length=2)
    effect_size: float = Field(description="`rise` in standard deviations of the changes.")
    p_rise: float
    excess: float = Field(description="Mean self-alignment under the later head.")
    p_excess: float
    p: float = Field(description="The larger of both.")


class Alert(BaseModel):
    """A later head seems to know the forgotten samples of a request again. Tells nothing of a single sample."""

    id: str = Field(examples=[f"alr_{EXAMPLE_HEX}"])
    request_id: str
    model_id: str
    checkpoint_id: str = Field(description="The head that it is about.")
    kind: AlertKind
    sentence: str
    p: float = Field(description="Over all levels (Bonferroni).")
    alpha: float = Field(
        description="An alert is raised from this p-value on: by chance, that is how often."
    )
    level: Literal["encoder", "projector", "image_text"] = Field(description="Where it shows most.")
    levels: dict[str, LevelRise]
    n_own: int
    n_control: int
    created_at: datetime
    acknowledged_at: datetime | None = Field(
        description="When the model's owner took notice of it."
    )

    @classmethod
    def of(cls, row: tables.Alert) -> Self:
        """The same for the request's owner and the model's."""
        known = row.detail
        return cls(
            id=row.id,
            request_id=row.request_id,
            model_id=row.model_id,
            checkpoint_id=row.checkpoint_id,
            kind=AlertKind(row.kind),
            sentence=known["sentence"],
            p=known["p"],
            alpha=known["alpha"],
            level=known["level"],
            levels={name: LevelRise(**level) for name, level in known["levels"].items()},
            n_own=known["n_own"],
            n_control=known["n_control"],
            created_at=row.created_at,
            acknowledged_at=row.acknowledged_at,
        )
