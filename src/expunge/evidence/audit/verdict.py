"""The verdict: what the numbers support, as a stable code and as one plain sentence.

Never says more than the test does: a small p-value says that the model treats these samples unlike
others that it kept, in the way that forgetting does.
"""

from expunge.evidence.audit.report import Power, Test, Verdict

ALPHA = 0.01
"""Error rate of `forgotten` where these samples were treated like all others."""
MIN_REFERENCE = 64
"""Retained samples of others below which there is no test: k-anonymity, and too coarse besides."""
MIN_ALIKE = 8
"""Retained samples of the own samples' kinds below which their lack is what the verdict names."""
TARGET_POWER = 0.9
UNCHANGED_WITHIN = 1e-5
"""Largest difference of any output that rounding explains: outputs are of unit length."""
HYPOTHESIS = "The model was not made to forget these samples in particular."


def verdict(largest_change: float, n: int, test: Test | None, power: Power | None) -> Verdict:
    """From the largest change of any own output, the test, and its power against a retrain."""
    images = _images(n)
    if largest_change <= UNCHANGED_WITHIN:
        return Verdict(
            "unchanged",
            f"Nothing changed: the model says the same about {images} before and after.",
        )
    if test is None:
        return Verdict(
            "no_reference",
            f"No verdict: the model changed for {images}, but fewer than {MIN_REFERENCE} images of "
            "others that it kept are there to compare them with.",
        )
    images = _images(n, test.n)
    compared = f"{test.n_reference} images that the model kept"
    if test.p <= test.alpha:
        return Verdict(
            "forgotten",
            f"The model changed for {images} in a way that it did not for {compared}: were yours "
            f"treated like those, this would happen with probability {_p(test.p)} "
            f"(p ≤ {test.alpha:g} counts as found).",
        )
    alike = (
        f"The model changed, and for {images} no more unusually than for {compared} "
        f"(p = {_p(test.p)}, above {test.alpha:g})."
    )
    if power is not None and power.power >= power.target:
        return Verdict(
            "not_for_you",
            f"{alike} Retraining without them would have shown with about {power.power:.0%} "
            "probability: it does not look as if yours were forgotten.",
        )
    return Verdict("not_enough_evidence", f"Not enough evidence. {alike} {_shortfall(test, power)}")


def too_late(n: int) -> Verdict:
    """Where the encoder before had forgotten the samples already, or never held them."""
    return Verdict(
        "no_reference",
        f"No verdict: the model before had already forgotten {_images(n)}, or was not trained on "
        "them. What changed since does not say how they were forgotten.",
    )


def _images(n: int, tested: int | None = None) -> str:
    """Of so many all, or those drawn to stand for them."""
    if tested is not None and tested < n:
        return f"{tested:,} of your {n:,} images, drawn at random,"
    return f"your {n:,} images" if n > 1 else "your image"


def _shortfall(test: Test, power: Power | None) -> str:
    if test.n_alike < MIN_ALIKE:
        return f"Only {test.n_alike} of these images are of the same kind as yours."
    if power is None:
        return (
            "How likely an honest removal would show is not known: the model names no control "
            "images that it never saw."
        )
    rate = (
        "By its forgetting score, retraining without them would show with only about "
        f"{power.power:.0%} probability"
    )
    if power.samples_needed is None:
        return f"{rate}, and no number of images can be named that would suffice."
    return f"{rate}; about {power.samples_needed:,} images would suffice for {power.target:.0%}."


def _p(p: float) -> str:
    return f"{p:.2g}" if p >= 0.001 else f"{p:.1g}"  # noqa: PLR2004
