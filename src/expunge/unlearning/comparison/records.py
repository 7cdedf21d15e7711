"""What a comparison says, as frozen records. Computes nothing."""

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from expunge.unlearning.candidates import Objective
from expunge.unlearning.evaluation import Protocol, SetName
from expunge.unlearning.metrics.two_sample import TwoSampleTest

Array = NDArray[np.float64]
Kind = Literal["before", "retrain", "candidate"]
BEFORE, RETRAIN = "Before", "Retrain"
"""Labels of the two rows that no candidate has."""


@dataclass(frozen=True)
class Cell:
    """A number of one row: its mean over seeds, and how far it can be trusted."""

    mean: float
    std: float | None
    """Over seeds (ddof = 1); None for a single seed."""
    interval: list[float] | None
    """At 95 % over samples: the mean of the seeds' intervals. Seeds share their samples, so more
    seeds do not narrow it; their own spread is `std`."""
    n: int | None
    """Samples behind each seed's number; None for times."""
    seeds: list[int]


@dataclass(frozen=True)
class Gap:
    """A distance to Retrain, or to what a forgotten sample should look like; 0 is best."""

    value: float
    uncertainty: float | None
    """Half the 95 % interval of the difference behind it, over samples and seeds together, from
    paired samples (`estimates`); None where one sample gives no idea of it."""


@dataclass(frozen=True)
class SeedTests:
    """U's EMIA scores under one seed, this row against Retrain.

    Both rows score the same samples, which the tests take for independent ones: a small p-value
    is stronger evidence than it says.
    """

    seed: int
    kolmogorov_smirnov: TwoSampleTest
    mann_whitney: TwoSampleTest


@dataclass(frozen=True)
class Relearning:
    """Epochs of training on U alone until its loss is back where it was; see `relearning`."""

    epochs: list[int | None]
    """By seed; None where `cap` epochs were not enough, 0 where it was never higher."""
    cap: int
    seeds: list[int]


@dataclass(frozen=True)
class Row:
    """One setting over all seeds. What needs Retrain, labels or a success is None without."""

    kind: Kind
    label: str
    method: str | None
    """None for the checkpoint as it was given."""
    params: dict[str, Any] | None
    columns: dict[str, Cell]
    """By id: emia, ra, ta, ua, cmia in percent; for CLIP cosine_retain and cosine_unlearn, times
    100. Empty if no seed succeeded."""
    forgetting_score: Cell | None
    """Mean alignment of U before minus after (eq. 2 of the Alignment Calibration paper)."""
    minutes: Cell | None
    """RTE: wall clock of the unlearning itself."""
    gaps: dict[str, Gap]
    """|mean over seeds - Retrain's mean over the same seeds| by column."""
    avg_gap: Gap | None
    forgetting_score_gap: Gap | None
    proxy_gap: Gap | None
    """Needs no Retrain; see `gaps.proxy_gap_terms`."""
    tow: float | None
    """Tug of War (Zhao et al. 2024, arXiv 2406.01257): the product of 1 - |accuracy - Retrain's|
    over U, R and test, in [0, 1]; 1 is best."""
    over_unlearned: list[str]
    """Columns that lie beyond Retrain's on the side of forgetting by more than the uncertainty."""
    tests: list[SeedTests]
    relearning: Relearning | None
    best_epochs: list[int] | None
    """By seed, 1-based; None unless the best epoch was asked for."""
    reused: bool
    """Whether any seed's weights came from the oracle store instead of a run."""
    failure: str | None
    """Why a seed's run ended, for the first that did; such a row is never recommended."""


@dataclass(frozen=True)
class RankAgreement:
    """How alike proxy_gap and avg_gap order the candidates: 1 the same, -1 reversed."""

    kendall_tau: float
    spearman_rho: float
    n: int
    """Candidates without a failure, at least 3."""


@dataclass(frozen=True)
class Recommendation:
    """The setting to use, and why."""

    label: str
    method: str
    params: dict[str, Any]
    criterion: Objective
    value: float
    runner_up: str | None
    within_uncertainty: bool
    """Whether the runner-up could as well be the better one."""
    why: str


@dataclass(frozen=True)
class Settings:
    """What was compared, and on what."""

    framework: str
    protocol: Protocol
    seeds: list[int]
    sizes: dict[SetName, int]
    retrain: dict[str, Any] | None
    """Every parameter of Retrain; None for a comparison without."""
    relearn: bool
    keep_best: bool
    """Whether every candidate's row is that of its best epoch by proxy gap."""
    device: str
    precision: str
    torch: str
    search: dict[str, Any] | None = None
    """Method, ranges, trials, objective and sampler's seed, where the settings were searched."""


@dataclass(frozen=True)
class SampleScores:
    """Every unlearn sample under one row and seed; arrays are (U,) in the order of `keys`."""

    label: str
    seed: int
    keys: list[str]
    alignment: Array
    """EMIA's score."""
    forgetting_score: Array
    judged: dict[str, NDArray[np.bool_]]
    """emia and cmia: whether judged non-member; ua: whether the probe names the class."""
    confidence: Array | None
    """CMIA's score."""


@dataclass(frozen=True)
class Comparison:
    """The table of a model owner; `rendering` and `chart` write it down."""

    settings: Settings
    rows: list[Row]
    """The checkpoint as given, Retrain if asked for, then the candidates in their order."""
    rank_agreement: RankAgreement | None
    recommended: Recommendation | None
    """None if every candidate failed."""
    notes: list[str]
    """What a reader must know before trusting the table, in whole sentences."""
    samples: list[SampleScores] = field(repr=False)
