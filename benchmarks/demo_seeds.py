"""What the demo's audit says over several seeds, and what it says where nothing should be found.

The demo's setting and images through the library alone, no service. Per seed: train, let Alignment
Calibration forget both owners, audit each against retained and control images. Beside it two checks from the same
encoder: `other` (only the other owner is forgotten; should not be detected) and `fine_tune` (the
retained images are trained on for as long; that is a weak way of forgetting). Accuracy is
that of the 20 nearest training images, on the control images.

    python benchmarks/demo_seeds.py [--seeds 4] --name NAME
"""

import argparse
import json
import os
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from expunge.embedded import demonstration
from expunge.embedded.demonstration.setting import SAMPLE
from expunge.evidence.audit import AuditReport
from expunge.unlearning.audit import audit
from expunge.unlearning.catalog import EncoderSpec, PretrainParams, parse_params
from expunge.unlearning.data.image_set import ImageSet, load_shards
from expunge.unlearning.data.views import normalise
from expunge.unlearning.frameworks import Learner
from expunge.unlearning.hardware import resolve_device
from expunge.unlearning.training import pretrain, unlearn
from record import RESULTS, conditions

FOLDER = Path(demonstration.__file__).parents[1] / "sample"
NEIGHBOURS = 20


def features(learner: Learner, images: ImageSet) -> Tensor:
    """(N, F) L2-normalised features of the images as they are."""
    x = normalise(images.images, learner.spec.mean, learner.spec.std)
    with torch.no_grad():
        return F.normalize(learner.features(x), dim=1)


def accuracy(learner: Learner, bank: ImageSet, queries: ImageSet) -> float:
    """Share of queries whose class most of their nearest bank images have."""
    similar = features(learner, queries) @ features(learner, bank).T
    votes = bank.labels[similar.topk(NEIGHBOURS).indices]
    return float((votes.mode(dim=1).values == queries.labels).float().mean())


def row(seed: int, case: str, owner: str, report: AuditReport, scores: tuple[float, float]) -> dict:
    """One line of the result."""
    level = report.levels["projector"]
    contrast = level.contrast
    return {
        "seed": seed,
        "case": case,
        "owner": owner,
        "verdict": report.verdict.code,
        "p": report.test.p,
        "projector_fs_own": level.own.forgetting_score.mean,
        "projector_fs_control": level.control.forgetting_score.mean,
        "difference": contrast.forgetting_score.difference,
        "interval": contrast.forgetting_score.interval,
        "accuracy_before": scores[0],
        "accuracy_after": scores[1],
    }


def run(seed: int) -> list[dict]:
    """Everything of one seed."""
    a, b, retained, control = (
        load_shards([FOLDER / f"{part}.tar"], 32)
        for part in ("owner_a", "owner_b", "retained", "control")
    )
    everything = ImageSet.concat([retained, a, b])
    base = pretrain(
        EncoderSpec.model_validate(SAMPLE.encoder),
        everything,
        PretrainParams.model_validate(SAMPLE.pretraining),
        seed=seed,
    ).learner
    calibration = parse_params(SAMPLE.method, "simclr", SAMPLE.unlearning)
    same_effort = {k: v for k, v in SAMPLE.unlearning.items() if k != "beta"}
    cases = {
        "both": (SAMPLE.method, calibration, retained, ImageSet.concat([a, b])),
        "other": (SAMPLE.method, calibration, ImageSet.concat([retained, a]), b),
        "fine_tune": (
            "fine_tune",
            parse_params("fine_tune", "simclr", same_effort),
            retained,
            ImageSet.concat([a, b]),
        ),
    }
    rows = []
    for case, (method, params, keep, forget) in cases.items():
        after = unlearn(base, keep, forget, method, params, seed=seed).learner
        scores = (accuracy(base, everything, control), accuracy(after, everything, control))
        for owner, own in (("A", a), ("B", b)):
            if case == "other" and owner == "B":
                continue
            # What they are held against is never theirs, as in the service.
            report = audit(
                base, after, own, retained=retained, control=control, views=SAMPLE.views, seed=seed
            )
            rows.append(row(seed, case, owner, report, scores))
            print(json.dumps(rows[-1]), flush=True)
    return rows


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--name", required=True, help="of the hardware, for the result's file name")
    args = parser.parse_args()
    load = os.getloadavg()[0]
    rows = [each for seed in range(args.seeds) for each in run(seed)]
    result = conditions(resolve_device("auto"), load) | {"rows": rows}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"demo-seeds-{args.name}.json").write_text(json.dumps(result, indent=2) + "\n")
    lines = [
        f"| {r['case']} | {r['seed']} | {r['owner']} | {r['verdict'].replace('_', ' ')} "
        f"| {r['p']:.4f} | {r['projector_fs_own']:+.3f} | {r['projector_fs_control']:+.3f} "
        f"| {r['difference']:+.3f} [{r['interval'][0]:+.3f}, "
        f"{r['interval'][1]:+.3f}] "
        f"| {100 * r['accuracy_before']:.1f} → {100 * r['accuracy_after']:.1f} |"
        for r in sorted(rows, key=lambda r: r["case"])
    ]
    page = f"""# The demo's audit over {args.seeds} seeds

{result["hardware"]}; torch {result["torch"]}; commit `{result["commit"]}`; {result["date"]}.

`both`: the demo itself. `other`: only the other owner was forgotten. `fine_tune`: nobody was, but
training went on with the retained images. p: of the test among retained images that the verdict goes by.
Forgetting scores of projector outputs; the difference
with its interval at 95 %; accuracy in % by {NEIGHBOURS} nearest neighbours.

| case | seed | owner | verdict | p | own | control | own − control | accuracy |
|---|---|---|---|---|---|---|---|---|
{chr(10).join(lines)}

    {result["command"]}
"""
    (RESULTS / f"demo-seeds-{args.name}.md").write_text(page)


if __name__ == "__main__":
    main()
