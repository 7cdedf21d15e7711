"""Lengths of time as a person would say them. Computes nothing else."""

MINUTE, HOUR, DAY = 60, 3600, 86_400
SHOWN_AS_SECONDS = 100
"""Up to here in the smaller unit."""
SHOWN_AS_MINUTES = 100
SHOWN_AS_HOURS = 48


def in_words(seconds: float) -> str:
    """`42 s`, `25 min`, `7 h` or `12 days`."""
    if round(seconds) < SHOWN_AS_SECONDS:
        return f"{round(seconds)} s"
    if round(seconds / MINUTE) < SHOWN_AS_MINUTES:
        return f"{round(seconds / MINUTE)} min"
    if round(seconds / HOUR) < SHOWN_AS_HOURS:
        return f"{round(seconds / HOUR)} h"
    return f"{round(seconds / DAY)} days"
