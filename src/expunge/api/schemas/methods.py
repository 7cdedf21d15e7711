"""Unlearning methods."""

from typing import Any, Self

from pydantic import BaseModel, Field

from expunge.unlearning import catalog


class Method(BaseModel):
    """One way to unlearn."""

    id: str
    title: str
    summary: str
    source: str
    frameworks: list[str]
    parameters: dict[str, Any] = Field(description="JSON schema: defaults, bounds, meaning.")
    defaults: dict[str, dict[str, Any]] = Field(
        description="Per framework, where they differ from those of the schema."
    )

    @classmethod
    def of(cls, method: catalog.Method) -> Self:
        """The method as the catalog describes it."""
        return cls(
            id=method.id,
            title=method.title,
            summary=method.summary,
            source=method.source,
            frameworks=sorted(method.frameworks),
            parameters=method.params.model_json_schema(),
            defaults={name: dict(values) for name, values in method.defaults.items()},
        )


class Methods(BaseModel):
    """All methods."""

    items: list[Method]
