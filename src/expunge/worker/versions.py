"""Workers of two versions side by side: one that does not know what a job asks for leaves it to a newer one."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from expunge.unlearning.catalog import (
    EncoderSpec,
    MethodNotForFramework,
    UnknownMethod,
    parse_params,
    pretrain_params,
)


class FromNewerVersion(Exception):
    """The job's encoder, method or parameters are unknown to this version, whose api would have refused them."""


def require_known(
    encoder: Mapping[str, Any], method: str | None, params: Mapping[str, Any]
) -> None:
    """Raise FromNewerVersion unless this version knows all that a run of a method asks for (None: pre-training)."""
    try:
        framework = EncoderSpec.model_validate(encoder).framework
        if method is None:
            pretrain_params(framework, params)
        else:
            parse_params(method, framework, params)
    except (ValidationError, UnknownMethod, MethodNotForFramework) as error:
        raise FromNewerVersion(str(error)) from error
