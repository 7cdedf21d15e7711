"""Labels: what a worker offers beyond its role, and what a model's jobs may ask for. Rules only."""

from typing import Annotated

from annotated_types import Len
from pydantic import AfterValidator, BeforeValidator, StringConstraints

MAX_LABELS = 16

Label = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9._-]{0,38}[a-z0-9])?$")]
"""`gpu`, `a100`, `zone-3`: up to 40 small letters, digits, dots, dashes and underscores."""


def _unique(labels: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(sorted(set(labels)))


def _split(given: object) -> object:
    return (
        [each.strip() for each in given.split(",") if each.strip()]
        if isinstance(given, str)
        else given
    )


Labels = Annotated[tuple[Label, ...], Len(max_length=MAX_LABELS), AfterValidator(_unique)]
"""In alphabetical order, each once."""
ListedLabels = Annotated[Labels, BeforeValidator(_split)]
"""As an environment variable has them: `gpu,a100`."""
