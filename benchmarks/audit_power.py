"""How often the audit's test is right: honest removals, and things that only look like one.

Real CIFAR-10 images at a scale where the encoder learns them by heart. Per framework and seed: train,
make each situation (`audit_situations`), and audit random owners of 1 to 64 images as the service
does, at the level that the verdict uses. In dishonest situations an owner's images are drawn from all that
nobody was asked to forget, the rest being the reference; `kinds` draws owners of one class only.
All encoders are kept under --work; the same command goes on where it was stopped.

    python benchmarks/audit_power.py --data DIR --work DIR --framework moco --seeds 0,1 --name NAME
"""

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.stats import binomtest

from audit_situations.making import FOR_OTHERS, HONEST, OTHERS, WORDS, Data, Maker, load
from audit_situations.making import SPECS as FRAMEWORKS
from expunge.evidence.audit.looks import Pool
from expunge.evidence.audit.outputs import Floats, Level, Outputs
from expunge.evidence.audit.permutation import Outcome, permute, plain_draws
from expunge.evidence.audit.strata import RETAINED_A_SAMPLE, matched_draws, strata, tested
from expunge.evidence.audit.verdict import ALPHA, found
from expunge.unlearning.audit import DEFAULT_VIEWS, outputs
from expunge.unlearning.data.image_set import ImageSet
from expunge.unlearning.frameworks import Learner
from expunge.unlearning.hardware import resolve_device
from expunge.unlearning.metrics.features import measuring, plain_features
from expunge.unlearning.metrics.neighbours import neighbour_predictions
from record import RESULTS, conditions

SIZES = (1, 2, 4, 8, 16, 64)
KIND_SIZE = 8
MANY = 400
"""Owners: so many tell tenths of a per cent."""
CLASSES = 10
VIEW_COUNTS = (2, 4, 6, 10, 20, 40)
VIEW_SEEDS = 8
"""Repeats with other views, for the spread that views alone cause."""
Index = NDArray[np.int64]


@dataclass(frozen=True)
class Measured:
    """Outputs of all trained images under the encoders before and after a situation."""

    levels: Mapping[Level, Outputs]
    matrices: Mapping[Level, tuple[Floats, Floats]]
    candidates: Index
    """Whose images an owner may have."""
    reference: Index | None
    """What they are held against; none: all candidates that are not the owner's."""

    def found(self, own: Index, draws: str, rng: np.random.Generator) -> bool:
        """Whether the service's test would say that these were forgotten."""
        others = self.reference
        if others is None:
            others = np.setdiff1d(self.candidates, own)
        own = own[tested(len(own), len(others) // RETAINED_A_SAMPLE, rng)]
        rows = np.concatenate([own, others])
        block = np.ix_(rows, rows)
        pools = {
            level: Pool.of_matrices(before[block], after[block])
            for level, (before, after) in self.matrices.items()
        }
        if draws == "plain":
            return _shown(permute(pools, plain_draws(len(own), len(others), rng)))
        mine, theirs = (_part(self.levels["encoder"], each) for each in (own, others))
        kinds = strata(mine.before.centres, theirs.before.centres, rng)
        drawn = matched_draws(kinds, len(own), rng)
        return drawn.shape[1] > 0 and _shown(permute(pools, drawn))


def _shown(outcome: Outcome) -> bool:
    return found(outcome.p, outcome.p_used)


def _part(whole: Outputs, rows: Index) -> Outputs:
    return Outputs.of(whole.before.views[:, rows], whole.after.views[:, rows])


def measure(before: Learner, after: Learner, data: Data, situation: str) -> Measured:
    """Runs both encoders on everything that was trained on."""
    levels = outputs(before, after, data.everything)
    matrices = {level: each.matrices for level, each in levels.items()}
    own, kept = len(data.forgotten), len(data.everything)
    if situation in HONEST:
        return Measured(levels, matrices, np.arange(own), np.arange(own, kept))
    spared = np.r_[np.arange(own), np.arange(own + OTHERS, kept)]
    candidates = spared if situation in FOR_OTHERS else np.arange(kept)
    return Measured(levels, matrices, candidates, None)


def powers(measured: Measured, seed: int, count: int, sizes: Sequence[int]) -> list[dict[str, Any]]:
    """How many of so many random owners of each size the test finds, as the service draws."""
    rng = np.random.default_rng(seed)
    rows = []
    for size in sizes:
        owners = [rng.choice(measured.candidates, size, replace=False) for _ in range(count)]
        found = sum(measured.found(own, "matched", rng) for own in owners)
        rows.append({"size": size, "found": found, "owners": count})
    return rows


def kinds(measured: Measured, labels: Index, seed: int, count: int) -> list[dict[str, Any]]:
    """The same for owners whose images are all of one class, for both ways of drawing."""
    rng = np.random.default_rng([seed, 1])
    rows = []
    for draws in ("plain", "matched"):
        found = owners = 0
        for label in np.unique(labels):
            members = measured.candidates[labels[measured.candidates] == label]
            if len(members) < KIND_SIZE:
                continue
            for _ in range(count // CLASSES):
                own = rng.choice(members, KIND_SIZE, replace=False)
                found += measured.found(own, draws, rng)
                owners += 1
        rows.append({"size": KIND_SIZE, "draws": draws, "found": found, "owners": owners})
    return rows


def view_spread(before: Learner, after: Learner, images: ImageSet) -> list[dict[str, Any]]:
    """Standard deviation of one image's forgetting score over other views, by their number."""
    rows = []
    for views in VIEW_COUNTS:
        made = [outputs(before, after, images, views=views, seed=s) for s in range(VIEW_SEEDS)]
        rows.append(
            {"views": views}
            | {
                level: float(np.std([each[level].scores for each in made], axis=0, ddof=1).mean())
                for level in made[0]
            }
        )
    return rows


def run(framework: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Everything of one seed."""
    data, owners = load(FRAMEWORKS[framework], args.data, seed), args.owners
    kept_in = args.work / f"{framework}-{seed}"
    maker = Maker(framework, seed, data, kept_in)
    before = maker.make("before")
    labels = data.everything.labels
    result: dict[str, Any] = {"situations": {}}
    for situation in args.situations:
        sizes = "-".join(map(str, args.sizes))
        kept = kept_in / f"{situation}-{owners}-of-{sizes}.json"
        if not kept.exists():
            after = maker.make(situation)
            measured = measure(before, after, data, situation)
            found = {
                "powers": powers(measured, seed, owners, args.sizes),
                "kinds": kinds(measured, labels.numpy(), seed, owners),
                "accuracy": accuracy(after, data),
            }
            kept.write_text(json.dumps(found))
        result["situations"][situation] = json.loads(kept.read_text())
        print(seed, situation, flush=True)
    result["views"] = view_spread(before, maker.make("calibrated"), data.forgotten)
    return result


def accuracy(learner: Learner, data: Data) -> float:
    """Share of control images whose class their 20 nearest retained images vote for."""
    device = resolve_device("cpu")
    with measuring(learner, device):
        bank, queries = (
            F.normalize(plain_features(learner, each, device), dim=1)
            for each in (data.retained, data.control)
        )
    predicted = neighbour_predictions(queries, bank, data.retained.labels, classes=CLASSES)
    return float((predicted == data.control.labels).float().mean())


def pooled(seeds: Sequence[Mapping[str, Any]], situation: str, what: str) -> list[dict[str, Any]]:
    """Counts of all seeds together, with exact binomial intervals at 95 %."""
    rows = []
    for each in zip(*(seed["situations"][situation][what] for seed in seeds), strict=True):
        found, owners = (sum(row[name] for row in each) for name in ("found", "owners"))
        interval = binomtest(found, owners).proportion_ci(0.95)
        rows.append(
            {
                "size": each[0]["size"],
                "share": found / owners,
                "interval": [interval.low, interval.high],
                "owners": owners,
            }
        )
    return rows


def plot(table: Mapping[str, list[dict[str, Any]]], path: Path) -> None:
    """Share found by number of images: honest situations left, others right."""
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    axes = figure.subplots(1, 2)
    for axis, title, honest in zip(
        axes, ("They were forgotten", "They were not"), (True, False), strict=True
    ):
        for situation, rows in table.items():
            if (situation in HONEST) != honest:
                continue
            share = np.array([row["share"] for row in rows])
            ends = np.array([row["interval"] for row in rows]).T
            axis.errorbar(
                [row["size"] for row in rows],
                100 * share,
                100 * np.abs(ends - share),
                label=WORDS[situation],
                marker="o",
                markersize=3,
                capsize=2,
            )
        axis.set_xscale("log", base=2)
        sizes = sorted({row["size"] for rows in table.values() for row in rows})
        axis.set_xticks(sizes, [str(size) for size in sizes])
        axis.set_title(f"{title}: audits that say “forgotten”")
        axis.set_xlabel("images of the owner")
        axis.set_ylabel("% of audits")
        axis.axhline(100 * ALPHA, color="grey", linewidth=0.8, linestyle=":")
        axis.legend(fontsize=7)
    axes[0].set_ylim(0, 103)
    axes[1].set_ylim(bottom=0)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def _cell(row: Mapping[str, Any]) -> str:
    digits = 1 if row["owners"] >= MANY else 0
    low, high = (f"{100 * end:.{digits}f}" for end in row["interval"])
    return f"{100 * row['share']:.1f} [{low}, {high}]"


def _table(table: Mapping[str, list[dict[str, Any]]]) -> str:
    return "\n".join(
        f"| {WORDS[situation]} | {' | '.join(map(_cell, rows))} |"
        for situation, rows in table.items()
    )


def page(result: Mapping[str, Any], name: str) -> str:
    """The result to read."""
    seeds = result["seeds"]
    situations = list(seeds[0]["situations"])
    honest = len(set(HONEST) & set(situations))
    owners, kind = (
        {situation: pooled(seeds, situation, what) for situation in situations}
        for what in ("powers", "kinds")
    )
    columns = [str(row["size"]) for row in owners[situations[0]]]
    picture = ""
    if len(columns) > 1:
        plot(owners, RESULTS / f"{name}.png")
        told = "Share of audits that say forgotten, by number of images"
        picture = f"\n![{told}](./{name}.png)\n"
    accuracies = "\n".join(
        f"| {WORDS[situation]} | "
        + ", ".join(f"{100 * seed['situations'][situation]['accuracy']:.1f}" for seed in seeds)
        + " |"
        for situation in situations
    )
    spreads = "\n".join(
        f"| {row['views']} | {row['encoder']:.4f} | {row['projector']:.4f} |"
        for row in seeds[0]["views"]
    )
    return f"""# What the audit's verdict is worth: {result["framework"]}

{result["hardware"]}; torch {result["torch"]}; commit `{result["commit"]}`; {result["date"]};
seeds of encoders: {", ".join(str(seed["seed"]) for seed in seeds)}; {result["owners"]} random owners of
each size and encoder, {DEFAULT_VIEWS} views, error rate {100 * ALPHA:g} %.

Share of audits, in %, that say "forgotten", with exact 95 % intervals over owners (owners of one encoder
share its images, so intervals over encoders are wider). In the first {honest} rows it is right to say so, in the
others it is not.
{picture}
Columns: images of the owner.

| situation | {" | ".join(columns)} |
|---|{"---|" * len(columns)}
{_table(owners)}

Owners of {KIND_SIZE} images of one class, held against draws from all samples (`plain`), and from those of the same
kind (`matched`, what the service uses):

| situation | plain | matched |
|---|---|---|
{_table(kind)}

What it costs: accuracy of the 20 nearest retained images on the control images, in %, per encoder.

| situation | accuracy |
|---|---|
{accuracies}

Spread of one image's forgetting score over random views: standard deviation over {VIEW_SEEDS} draws, mean over the
forgotten images (`calibrated`, first encoder).

| views | encoder | projector |
|---|---|---|
{spreads}

    {result["command"]}
"""


def main() -> None:
    """Make, measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="folder of CIFAR-10 shards")
    parser.add_argument("--work", type=Path, required=True, help="where encoders are kept")
    parser.add_argument("--framework", choices=FRAMEWORKS, default="moco")
    parser.add_argument("--seeds", default="0", help="numbers, with commas between")
    parser.add_argument("--owners", type=int, default=200, help="of each size and situation")
    parser.add_argument(
        "--sizes",
        type=lambda given: [int(each) for each in given.split(",")],
        default=list(SIZES),
        help="images of an owner",
    )
    parser.add_argument(
        "--situations",
        type=lambda given: [each for each in WORDS if each in given.split(",")],
        default=list(WORDS),
        help="some of " + ", ".join(WORDS),
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--name", required=True, help="of the result's files")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    load_before = os.getloadavg()[0]
    seeds = [
        {"seed": seed} | run(args.framework, seed, args) for seed in map(int, args.seeds.split(","))
    ]
    hidden = [str(args.data), str(args.work)]
    result = conditions(resolve_device("auto"), load_before, hidden=hidden)
    result |= {"framework": args.framework, "owners": args.owners, "seeds": seeds}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{args.name}.json").write_text(json.dumps(result, indent=2) + "\n")
    (RESULTS / f"{args.name}.md").write_text(page(result, args.name))


if __name__ == "__main__":
    main()
