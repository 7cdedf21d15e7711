"""The verdict: what the numbers support, as a stable code and as one plain sentence.

Never says more than the test does: a small p-value says that the model treats these samples unlike
others that it kept, in the way that forgetting does.
"""

from expunge.evidence.audit.report import Power, Test, Verdict
from expunge.evidence.audit.strata import MIN_ALIKE, RETAINED_A_SAMPLE
from expunge.evidence.wording import percentage, probability

ALPHA = 0.01
"""Error rate of `forgotten` where these samples were treated like all others."""
ALPHA_USED = 0.05
"""At most so large p may be without the projector. In trials (MoCo, 384 images, 60 owners) Alignment Calibration of
the projector alone, with noise on the encoder, was taken for a removal of 8 and 16 images in 12 and 43 % without that.
What it is now, and what it costs: `benchmarks/audit_power.py`."""
MIN_REFERENCE = 64
"""Retained samples of others below which there is no test: k-anonymity, and too coarse besides."""
TARGET_POWER = 0.9
UNCHANGED_WITHIN = 1e-5
"""Largest difference of any output that rounding explains: outputs are of unit length."""
HYPOTHESIS = "The model was not made to forget these samples in particular."


def verdict(
    largest_change: float, n: int, retained: int, test: Test | None, power: Power | None
) -> Verdict:
    """From the largest change of an own output that is used, the test among retained samples, and its
    power against a retrain."""
    images = _images(n)
    if largest_change <= UNCHANGED_WITHIN:
        return Verdict(
            "unchanged",
            f"Nothing changed: the outputs that are used say the same about {images} before and after.",
        )
    if test is None and retained < MIN_REFERENCE:
        return Verdict(
            "no_reference",
            f"No verdict: the model changed for {images}, but fewer than {MIN_REFERENCE} images of "
            "others that it kept are there to compare them with.",
        )
    if test is None:
        return Verdict(
            "not_enough_evidence",
            f"Not enough evidence. The model changed for {images}, but of their kind it kept fewer "
            f"than {MIN_ALIKE} images of others to compare with.",
        )
    return _of_test(n, test, power)


def _of_test(n: int, test: Test, power: Power | None) -> Verdict:
    images = _images(n, test.n)
    compared = f"{test.n_reference} images that the model kept"
    if test.p <= test.alpha and test.p_used > test.alpha_used:
        return Verdict(
            "not_enough_evidence",
            f"Not enough evidence. What the projector says about {images} changed more than for "
            f"{compared}; but the projector only serves training, and in the outputs that are used so "
            f"large a difference arises by chance with probability {probability(test.p_used)} "
            f"({test.alpha_used:g} or less would count).",
        )
    if found(test.p, test.p_used):
        return Verdict(
            "forgotten",
            f"The model changed for {images} more than for {compared}, in the ways that forgetting "
            "changes it. Had yours been treated like those, so large a difference would arise by chance "
            f"with probability {probability(test.p)} ({test.alpha:g} or less counts as found).",
        )
    alike = (
        f"The model changed, but for {images} not clearly more than for {compared}: so large a "
        f"difference arises by chance with probability {probability(test.p)} ({test.alpha:g} or "
        "less would count as found)."
    )
    if power is not None and power.power >= power.target:
        return Verdict(
            "not_for_you",
            f"{alike} Retraining without {'it' if n == 1 else 'them'} would have shown with "
            f"{percentage(power.power)} probability: it does not look as if "
            f"{'yours was' if n == 1 else 'yours were'} forgotten.",
        )
    return Verdict(
        "not_enough_evidence", f"Not enough evidence. {alike} {_shortfall(n, test, power)}"
    )


def found(p: float, p_used: float) -> bool:
    """Whether a test with these p-values says that samples were forgotten."""
    return p <= ALPHA and p_used <= ALPHA_USED


def too_late(n: int) -> Verdict:
    """Where the encoder before had forgotten the samples already, or never held them."""
    return Verdict(
        "no_reference",
        f"No verdict: the model before had already forgotten {_images(n)}, or was not trained on "
        "them. What changed since does not say how they were forgotten.",
    )


def _images(n: int, tested: int | None = None) -> str:
    """So many, and of how many of them it is said."""
    compared = "" if tested is None or tested == n else f" ({tested:,} of them compared)"
    return f"your {n:,} images{compared}" if n > 1 else "your image"


def _shortfall(n: int, test: Test, power: Power | None) -> str:
    if test.n == 1 and test.alpha * (test.draws + 1) < 1:
        more = (
            "several audited together can"
            if n == 1
            else f"of the others' kinds it kept fewer than {MIN_ALIKE} images to compare with"
        )
        return f"One image alone cannot stand out by that much among so few of its kind; {more}."
    if power is None:
        return (
            "How likely an honest removal would show is not known: the model names no control "
            "images that it never saw."
        )
    rate = (
        f"Retraining without {'it' if test.n == 1 else 'them'} would show with only "
        f"{percentage(power.power)} probability"
    )
    if power.samples_needed is None:
        return f"{rate}, and no number of images can be named that would suffice."
    kept = RETAINED_A_SAMPLE * power.samples_needed
    among = f", among {kept:,} that the model kept" if kept > test.n_reference else ""
    return f"{rate}; about {power.samples_needed:,} images would suffice for {power.target:.0%}{among}."
