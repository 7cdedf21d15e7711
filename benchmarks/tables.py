"""The papers' white-box tables on real data, several seeds, next to the printed numbers.

    python benchmarks/tables.py --scale mini --data DIR --captions DIR --work DIR --name NAME
    python benchmarks/tables.py --scale paper --frameworks moco --data DIR --work DIR --name NAME

Every seed has its own split and its own pre-trained encoder; Retrain is trained with the same
settings on the retain set alone. All that is finished is kept under --work, and a call that was
stopped, or ran into --minutes, is gone on with by the same command (exit status 3: not finished).
`--ablation` runs Alignment Calibration without its parts and over beta instead of the table.
`--pack DIR` leaves what is finished in files of less than 16 MB, for a machine whose disk does not
last; `--unpack DIR` brings it back first.
"""

import argparse
import datetime
import os
import sys
import time
from pathlib import Path

import torch

import record
from tables_of_papers import carrying, data, page
from tables_of_papers.scales import SCALES, Encoder, Scale
from tables_of_papers.stages import Deadline, Finished, OutOfTime, Seed, merged, split

NOT_FINISHED = 3


def main() -> int:
    """Run the stages that are left, then write the pages of what is complete."""
    args = _arguments()
    scale = SCALES[args.scale]
    torch.set_num_threads(args.threads)
    started = time.monotonic()
    if args.unpack:
        carrying.unpack(args.unpack, args.work)
    deadline = Deadline(started + 60 * args.minutes, _say)
    complete = True
    for framework in args.frameworks:
        encoder = scale.encoders[framework]
        found = []
        for seed in args.seeds:
            try:
                finished = _run(args, scale, framework, seed, deadline)
            except OutOfTime:
                _say("out of time; run the same command again to go on")
                complete = False
                break
            if finished is not None:
                found.append(finished)
        if args.stage in ("all", "methods") and len(found) == len(args.seeds):
            print("\n", _write(args, scale, framework, encoder, found), file=sys.stderr)
    if args.pack:
        carrying.pack(args.work, args.pack)
    return 0 if complete else NOT_FINISHED


def _run(
    args: argparse.Namespace, scale: Scale, framework: str, seed: int, deadline: Deadline
) -> Finished | None:
    encoder = scale.encoders[framework]
    paired = _is_paired(encoder)
    folder = args.captions if paired else args.data
    images = data.load(encoder.spec, folder, "train", shards=None if paired else args.shards)
    parts = split(scale, images, data.load(encoder.spec, folder, "test"), seed, paired=paired)
    work = args.work / scale.name / f"{framework}-{seed}"
    run = Seed(work, encoder=encoder, parts=parts, seed=seed, device=args.device, deadline=deadline)
    if args.stage in ("all", "pretrain"):
        run.pretrain()
    if args.stage in ("all", "retrain"):
        run.retrain()
    entries = encoder.ablation if args.ablation else encoder.entries
    if args.stage in ("all", "methods"):
        run.compare(entries)
        return run.finished(entries)
    return None


def _write(
    args: argparse.Namespace, scale: Scale, framework: str, encoder: Encoder, found: list[Finished]
) -> Path:
    comparison = merged(found)
    kind = "ablation" if args.ablation else "table"
    attacks = [
        run.evaluation.pairs.attack if run.evaluation.pairs else run.evaluation.emia
        for each in found
        for run in each.reference.before.runs
    ]
    sizes = comparison.settings.sizes
    facts = {
        "title": f"{framework}: {kind} at scale {scale.name}",
        **record.conditions(
            torch.device(comparison.settings.device),
            os.getloadavg()[0],
            hidden=[str(p) for p in _folders(args) if p],
        ),
        "threads": args.threads,
        "seeds": comparison.settings.seeds,
        "sizes": sizes,
        "encoder": encoder.spec.model_dump_json(),
        "pretraining": dict(encoder.pretraining),
        "attack_before_percent_right": [round(each.accuracy.value, 1) for each in attacks],
        "attack_before_auc": [round(each.auc.value, 3) for each in attacks],
    }
    return page.write(
        args.results, f"{args.name}-{framework}-{kind}", comparison, scale.paper, facts
    )


def _folders(args: argparse.Namespace) -> list[Path | None]:
    return [args.data, args.captions, args.work, args.results, args.pack, args.unpack]


def _say(text: str) -> None:
    now = datetime.datetime.now(datetime.UTC)
    end, start = ("", "\r") if sys.stderr.isatty() else ("\n", "")
    print(f"{start}{now:%H:%M:%S}  {text:<90}", end=end, file=sys.stderr, flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--scale", choices=sorted(SCALES), required=True)
    parser.add_argument("--frameworks", type=lambda text: text.split(","), default=None)
    parser.add_argument(
        "--seeds", type=lambda text: [int(each) for each in text.split(",")], default=[0, 1, 2]
    )
    parser.add_argument("--data", type=Path, help="CIFAR-10 shards")
    parser.add_argument("--captions", type=Path, help="image-caption shards, for CLIP")
    parser.add_argument("--shards", type=int, default=None, help="training shards to read; all")
    parser.add_argument("--work", type=Path, required=True, help="where finished stages are kept")
    parser.add_argument("--stage", choices=("all", "pretrain", "retrain", "methods"), default="all")
    parser.add_argument("--ablation", action="store_true")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="limit of this call")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--results", type=Path, default=record.RESULTS / "tables")
    parser.add_argument("--pack", type=Path, default=None)
    parser.add_argument("--unpack", type=Path, default=None)
    parser.add_argument("--name", required=True, help="of the result files")
    args = parser.parse_args()
    encoders = SCALES[args.scale].encoders
    folders = {n: args.captions if _is_paired(e) else args.data for n, e in encoders.items()}
    args.frameworks = args.frameworks or [
        name
        for name, folder in folders.items()
        if folder and (encoders[name].ablation or not args.ablation)
    ]
    if not args.frameworks:
        parser.error("--data or --captions is needed")
    for framework in args.frameworks:
        if framework not in encoders:
            parser.error(f"scale {args.scale} has {', '.join(encoders)}, not {framework}")
        if not folders[framework]:
            needed = "--captions" if _is_paired(encoders[framework]) else "--data"
            parser.error(f"{framework} needs {needed}")
        if args.ablation and not encoders[framework].ablation:
            parser.error(f"scale {args.scale} has no ablation of {framework}")
    return args


def _is_paired(encoder: Encoder) -> bool:
    return encoder.spec.pairing == "caption"


if __name__ == "__main__":
    sys.exit(main())
