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
    experimental: bool = Field(
        description="Offered without figures yet that say whether it forgets."
    )
    parameters: dict[str, Any] = Field(description="JSON schema: defaults, bounds, meaning.")
    defaults: dict[str, dict[str, Any]] = Field(description="Of every parameter, per framework.")

    @classmethod
    def of(cls, method: catalog.Method) -> Self:
        """The method as the catalog describes it."""
        return cls(
            id=method.id,
            title=method.title,
            summary=method.summary,
            source=method.source,
            frameworks=sorted(method.frameworks),
            experimental=method.experimental,
            parameters=method.params.model_json_schema(),
            defaults={name: method.defaults_for(name) for name in sorted(method.frameworks)},
        )


class Methods(BaseModel):
    """All methods."""

    items: list[Method]
