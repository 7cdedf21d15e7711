"""Parameters of methods as callers give them: completed with defaults, or refused with place and bounds."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from expunge.registry.errors import Invalid, InvalidParameters, UnknownMethod
from expunge.unlearning import catalog

BOUNDS = ("type", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "enum")
"""What of a parameter's JSON schema a refusal repeats."""


def complete(
    method: str, framework: str, params: Mapping[str, Any], *, member: str = "/params"
) -> dict[str, Any]:
    """A method's parameters, completed with defaults; `member` points at them in the caller's body.

    Raises:
        UnknownMethod: with the allowed ids.
        Invalid: the method is not defined for the framework.
        InvalidParameters: with pointer, message and bounds of each wrong parameter.
    """
    try:
        return catalog.parse_params(method, framework, params).model_dump(mode="json")
    except catalog.UnknownMethod as error:
        raise UnknownMethod(str(error), allowed=sorted(catalog.METHODS)) from error
    except catalog.MethodNotForFramework as error:
        raise Invalid(str(error), framework=framework) from error
    except ValidationError as error:
        raise InvalidParameters(
            "; ".join(_describe(each) for each in error.errors()),
            errors=[
                {
                    "pointer": "/".join([member, *map(str, each["loc"])]),
                    "message": each["msg"],
                    "allowed": allowed(method, framework, *each["loc"][:1]),
                }
                for each in error.errors()
            ],
        ) from error


def allowed(
    method: str, framework: str, name: int | str | None = None
) -> dict[str, Any] | list[str]:
    """Bounds and default of a known method's parameter, or all names if it has none of that name."""
    entry = catalog.METHODS[method]
    properties = entry.params.model_json_schema()["properties"]
    if not isinstance(name, str) or name not in properties:
        return sorted(properties)
    bounds = {key: value for key, value in properties[name].items() if key in BOUNDS}
    return bounds | {"default": entry.defaults_for(framework)[name]}


def _describe(error: Any) -> str:
    return f"{'.'.join(map(str, error['loc'])) or 'params'}: {error['msg']}"
