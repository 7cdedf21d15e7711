"""Comparisons of unlearning methods on one checkpoint for one removal request."""

from expunge.unlearning.comparison.chart import write_chart
from expunge.unlearning.comparison.comparing import compare
from expunge.unlearning.comparison.oracle import OracleStore
from expunge.unlearning.comparison.records import Comparison
from expunge.unlearning.comparison.rendering import (
    scores_csv,
    to_csv,
    to_dict,
    to_markdown,
)
from expunge.unlearning.comparison.running import ComparisonProgress, OnComparisonProgress
from expunge.unlearning.comparison.search import search

__all__ = [
    "Comparison",
    "ComparisonProgress",
    "OnComparisonProgress",
    "OracleStore",
    "compare",
    "scores_csv",
    "search",
    "to_csv",
    "to_dict",
    "to_markdown",
    "write_chart",
]
