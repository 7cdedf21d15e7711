"""What every description in the catalog refuses: unknown fields, wrong types, NaN. Holds no field."""

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """Base of specifications and parameters."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
