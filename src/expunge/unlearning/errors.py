"""Why a training run stopped; each message is written for the owner of the job."""

from collections.abc import Iterator
from contextlib import contextmanager

_TOO_FEW_VALUES = "Expected more than 1 value per channel"
"""How torch's batch norm begins to say that it cannot compute a variance."""


class TrainingError(RuntimeError):
    """The run cannot go on; the message says why."""


class EmptySetError(TrainingError):
    """A set the run needs has no samples."""

    def __init__(self, name: str) -> None:
        super().__init__(f"the {name} set is empty")


class NoNegativesError(TrainingError):
    """The loss of a batch is constant, because a single sample has nothing to be told from."""

    def __init__(self, method: str) -> None:
        super().__init__(
            f"{method} would change nothing: without other samples the loss of a single unlearn "
            "sample is zero whatever the encoder; unlearn more samples, or by another method"
        )


class CaptionError(TrainingError):
    """CLIP is trained on captions, and the samples have none."""

    def __init__(self) -> None:
        super().__init__("the encoder learns from captions, but not every sample has one")


class CaptionLengthError(TrainingError):
    """Captions were cut to another length than the text tower takes."""

    def __init__(self, found: int, expected: int) -> None:
        super().__init__(f"captions of {found} tokens, but the encoder takes {expected}")


class LabelError(TrainingError):
    """A supervised encoder is trained on labels that its classifier has."""

    def __init__(self, found: int | None, classes: int) -> None:
        what = "not every sample has one" if found is None else f"one is {found}"
        super().__init__(f"the encoder learns labels 0 to {classes - 1}, but {what}")


class ImageSizeError(TrainingError):
    """The images do not have the size the encoder was specified for."""

    def __init__(self, found: int, expected: int) -> None:
        super().__init__(f"images of {found} pixels, but the encoder takes {expected}")


class BatchStatisticsError(TrainingError):
    """Batch norm has a single value per channel, and so no variance."""

    def __init__(self, samples: int) -> None:
        super().__init__(
            f"batch norm cannot work on a step of {samples} image{'s' * (samples > 1)}: the encoder "
            "shrinks them to one pixel, which leaves it one value per channel; use larger images, "
            "more samples a step, fewer batch norm splits, or another method"
        )


class SnapshotMismatch(TrainingError):
    """A snapshot cannot be gone on from."""

    def __init__(self, why: str) -> None:
        super().__init__(f"the snapshot does not fit this run: {why}")


class NonFiniteLossError(TrainingError):
    """The loss became NaN or infinite."""

    def __init__(self, epoch: int, losses: dict[str, float]) -> None:
        terms = ", ".join(f"{name} = {value:g}" for name, value in losses.items())
        super().__init__(
            f"the loss is not finite in epoch {epoch} ({terms}); a smaller learning rate or "
            "smaller weights of the method's terms may help"
        )
        self.epoch = epoch


class NonFiniteWeightsError(TrainingError):
    """The last steps ruined the weights, too late for a loss to show it."""

    def __init__(self, names: list[str]) -> None:
        super().__init__(
            f"the losses were finite, but {len(names)} of the tensors they led to are not "
            f"({names[0]} first); a smaller learning rate or weight decay may help"
        )


@contextmanager
def explained(samples: int) -> Iterator[None]:
    """Raises BatchStatisticsError for torch's own ValueError over a step of so many `samples`."""
    try:
        yield
    except ValueError as error:
        if _TOO_FEW_VALUES in str(error):
            raise BatchStatisticsError(samples) from error
        raise
