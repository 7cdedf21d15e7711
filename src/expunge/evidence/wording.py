"""Probabilities and shares in figures that people read. Never rounds one to certainty."""

LEAST_SHARE, LARGEST_SHARE = 0.01, 0.99
TRACE_ALPHA = 0.01
"""Up to here the p-value of membership is told as a trace that is left."""


def probability(p: float) -> str:
    """A p-value: one digit below a thousandth, three up to a tenth, so that 0.0102 is not told as the
    0.01 that would have counted, two above."""
    if p < 0.001:  # noqa: PLR2004
        return f"{p:.1g}"
    return f"{p:.3g}" if p < 0.1 else f"{p:.2g}"  # noqa: PLR2004


def percentage(share: float) -> str:
    """An estimated share in per cent; one of a few thousand draws is never told as all or none."""
    if share > LARGEST_SHARE:
        return f"over {LARGEST_SHARE:.0%}"
    if share < LEAST_SHARE:
        return f"under {LEAST_SHARE:.0%}"
    return f"about {share:.0%}"
