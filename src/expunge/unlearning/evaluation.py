"""The white-box table of one encoder: EMIA, RA, TA, UA, CMIA, and what reviewers ask for beside.

For a model owner, who has retained, unlearn and test samples. Never compares with Retrain, and
never trains or changes the encoder.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from expunge.unlearning import catalog
from expunge.unlearning.catalog import EncoderSpec
from expunge.unlearning.data.image_set import ImageSet
from expunge.unlearning.data.randomness import mix
from expunge.unlearning.frameworks import CLIP, Learner, Supervised
from expunge.unlearning.hardware import resolve_device
from expunge.unlearning.metrics.features import (
    augmented_features,
    measuring,
    plain_features,
    view_alignment,
)
from expunge.unlearning.metrics.measure import PERCENT, Measure, mean_of, percentage
from expunge.unlearning.metrics.membership import Attack, confidence_attack, encoder_attack
from expunge.unlearning.metrics.neighbours import (
    MAX_PAIR_SAMPLES,
    alignment_losses,
    neighbour_predictions,
    uniformity,
)
from expunge.unlearning.metrics.pairs import PairMetrics, measure_pairs
from expunge.unlearning.metrics.probe import LinearProbe, train_probe

Array = NDArray[np.float64]
Indices = NDArray[np.int64]
SetName = Literal["retain", "forget", "test"]
SETS: tuple[SetName, ...] = ("retain", "forget", "test")
Counted = Literal["retain", "forget", "test", "fitted_test"]
"""Samples a number is counted over: a set, or the test samples that the attacks are fitted on."""
Protocol = Literal["corrected", "released"]
ProbeOf = Callable[[Tensor, int], LinearProbe]
"""(|R|,) labels of the retained samples and the number of classes to a classifier of features."""

_COSINES: dict[str, SetName] = {"retain": "retain", "unlearn": "forget", "test": "test"}
_ACCURACIES: dict[str, SetName] = {"ra": "retain", "ta": "test", "ua": "forget"}
VIEWS = 10
MIN_VIEWS = 2
_MEMBERS, _PAIRS, _PROBE = range(3)
"""What a seed is mixed with, so that draws for different ends do not depend on each other."""


@dataclass(frozen=True)
class Scores:
    """Per sample, in the order of `keys`; the EMIA and CMIA scores."""

    keys: list[str]
    alignment: Array
    """(N,) mean cosine between views. Before minus after of two evaluations with one seed is each
    sample's forgetting score (eq. 2)."""
    confidence: Array | None
    """(N,) the probe's probability of the true class; None without labels."""


@dataclass(frozen=True)
class Outcome:
    """What each sample adds to a number that is a mean over samples."""

    counted: Counted
    values: NDArray[np.bool_] | Array
    """(n,) in the set's order."""
    unit: float
    """The number is the mean of the values times this; 100 for percentages."""


@dataclass(frozen=True)
class Classification:
    """What can be read of the classes, in percent; only of labelled sets."""

    ra: Measure
    """Linear probe on all retained samples, on which it was trained."""
    ta: Measure
    ua: Measure
    knn_test: Measure
    """20 nearest retained samples, weighted by similarity."""
    knn_forget: Measure
    cmia: Attack
    right: dict[SetName, NDArray[np.bool_]] = field(repr=False, compare=False)
    """(n,) of each whole set: whether the probe names the sample's class."""


@dataclass(frozen=True)
class Evaluation:
    """Result of `evaluate`; per-sample scores are kept out of `to_dict`."""

    protocol: Protocol
    seed: int
    views: int
    probe_augmented: bool
    sizes: dict[SetName, int]
    emia: Attack
    classification: Classification | None
    """None where a set has no labels."""
    alignment: dict[SetName, Measure]
    """Wang & Isola's l_align over training-style views: lower is more alike."""
    uniformity: dict[SetName, Measure | None]
    """Wang & Isola's l_uniform over plain images; None for a single sample."""
    pairs: PairMetrics | None
    """Of CLIP only."""
    scores: dict[SetName, Scores] = field(repr=False)
    """Of all unlearn samples, and of the retained and test samples that the attacks are fitted on."""

    def table(self) -> dict[str, Measure]:
        """The columns that gaps are averaged over: EMIA, RA, TA, UA, CMIA; EMIA without labels.

        For CLIP, as in the paper, 100 times the image-caption cosine on R and on U.
        """
        if self.pairs is not None:
            cosine = self.pairs.cosine
            return {"cosine_retain": cosine["retain"], "cosine_unlearn": cosine["forget"]}
        columns = {"emia": self.emia.efficacy}
        labelled = self.classification
        if labelled is not None:
            columns |= {"ra": labelled.ra, "ta": labelled.ta, "ua": labelled.ua}
            columns["cmia"] = labelled.cmia.efficacy
        return columns

    def outcomes(self) -> dict[str, Outcome]:
        """Per sample, by column id, what `table` and the distances that need no Retrain are means of."""
        if self.pairs is not None:
            return {
                f"cosine_{column}": Outcome(name, self.pairs.own_cosines[name], PERCENT)
                for column, name in _COSINES.items()
            }
        found = {
            "emia": Outcome("forget", self.emia.spared, PERCENT),
            "emia_specificity": Outcome("fitted_test", self.emia.rejected, PERCENT),
        }
        labelled = self.classification
        if labelled is not None:
            for column, name in _ACCURACIES.items():
                found[column] = Outcome(name, labelled.right[name], PERCENT)
            found["cmia"] = Outcome("forget", labelled.cmia.spared, PERCENT)
            found["cmia_specificity"] = Outcome("fitted_test", labelled.cmia.rejected, PERCENT)
        return found

    def to_dict(self) -> dict[str, Any]:
        """Everything but what is kept per sample, ready for JSON."""
        report = asdict(self)
        del report["scores"]
        labelled = report["classification"]
        attacks = [report["emia"]]
        if labelled is not None:
            del labelled["right"]
            attacks.append(labelled["cmia"])
        if report["pairs"] is not None:
            del report["pairs"]["own_cosines"]
            attacks.append(report["pairs"]["attack"])
        for attack in attacks:
            del attack["spared"], attack["rejected"]
        return report


def evaluate(
    learner: Learner,
    retain: ImageSet,
    forget: ImageSet,
    test: ImageSet,
    *,
    seed: int = 0,
    device: str = "auto",
    protocol: Protocol = "corrected",
    views: int = VIEWS,
    augment_probe: bool | None = None,
) -> Evaluation:
    """Measure an encoder as the Alignment Calibration paper does, and more (`science.md`, Metrics).

    Attacks are fitted on as many retained as test samples, min(|R|, |test|) of each. `corrected`
    draws them with the seed, searches EMIA's threshold over all scores and fits CMIA on rounded
    confidences; `released` takes the first ones, the released code's grid and exact confidences,
    which for 10,000 of each takes seconds. The probe is trained on all retained samples, by
    default on plain features (computed once) under `corrected` and with crop and flip, a forward
    pass over R in each of its 100 epochs, under `released`; `augment_probe` says otherwise. A
    supervised encoder's own classifier takes the probe's place. CLIP is measured on its pairs too.

    The same seed gives the same views, draws and probe start for every encoder. Raises ValueError
    for an empty set, images of another size than the encoder's, fewer than two views, CLIP without
    captions or with those of another length, labels that a supervised encoder's classifier does not
    have, or an encoder whose outputs are not finite.
    """
    sets: dict[SetName, ImageSet] = {"retain": retain, "forget": forget, "test": test}
    _check(learner, sets, views)
    target = resolve_device(device)
    augmented = protocol == "released" if augment_probe is None else augment_probe
    fitted = _fitted(sets, protocol, np.random.default_rng(mix(seed, _MEMBERS)))
    chosen = {name: images.subset(fitted[name].tolist()) for name, images in sets.items()}
    with measuring(learner, target):
        same = {
            name: view_alignment(learner, images, target, views=views, seed=seed)
            for name, images in chosen.items()
        }
        emia = encoder_attack(
            same["retain"],
            same["test"],
            same["forget"],
            seed=seed,
            search="sorted" if protocol == "corrected" else "grid500",
        )
        features = {name: plain_features(learner, images, target) for name, images in sets.items()}
        pairs = None
        if isinstance(learner, CLIP):
            pairs = measure_pairs(learner, sets, fitted, target, seed=seed)
        if isinstance(learner, Supervised):
            layer = learner.classifier
            probe_of: ProbeOf = lambda *_: LinearProbe(layer.weight, layer.bias)  # noqa: E731
        else:
            probe_features: Callable[[int], Tensor] = lambda _: features["retain"]  # noqa: E731
            if augmented:
                probe_features = partial(
                    augmented_features, learner, retain, target, seed=mix(seed, _PROBE)
                )
            probe_of = partial(train_probe, probe_features, seed=mix(seed, _PROBE))
        labelled = _classify(sets, features, fitted, probe_of, protocol=protocol, seed=seed)
    classification, confidence = labelled or (None, {})
    return Evaluation(
        protocol=protocol,
        seed=seed,
        views=views,
        probe_augmented=augmented and not isinstance(learner, Supervised),
        sizes={name: len(images) for name, images in sets.items()},
        emia=emia,
        classification=classification,
        alignment={name: mean_of(alignment_losses(same[name]), seed=seed) for name in SETS},
        uniformity=_uniformities(features, seed),
        pairs=pairs,
        scores={name: Scores(chosen[name].keys, same[name], confidence.get(name)) for name in SETS},
    )


def _check(learner: Learner, sets: dict[SetName, ImageSet], views: int) -> None:
    for name, images in sets.items():
        if len(images) == 0:
            raise ValueError(f"the {name} set is empty")
        if images.image_size != learner.spec.image_size:
            raise ValueError(
                f"{name} images of {images.image_size} pixels, but the encoder takes "
                f"{learner.spec.image_size}"
            )
        _check_pairing(learner.spec, name, images)
    if views < MIN_VIEWS:
        raise ValueError("alignment needs at least two views")


def _check_pairing(spec: EncoderSpec, name: SetName, images: ImageSet) -> None:
    match spec.objective:
        case catalog.CLIP(context_length=tokens) if images.captions is not None:
            found = images.captions.tokens.shape[1]
            if found != tokens:
                raise ValueError(
                    f"{name} captions of {found} tokens, but the encoder takes {tokens}"
                )
        case catalog.Supervised(classes=classes) if images.labels is not None:
            for extreme in images.labels.aminmax():
                if not 0 <= int(extreme) < classes:
                    raise ValueError(
                        f"a {name} sample has label {int(extreme)}, but the encoder's classifier "
                        f"has labels 0 to {classes - 1}"
                    )
        case _:
            return


def _fitted(
    sets: dict[SetName, ImageSet], protocol: Protocol, rng: np.random.Generator
) -> dict[SetName, Indices]:
    """Samples the attacks work on: as many retained as test samples, and all unlearn samples."""
    fitted = min(len(sets["retain"]), len(sets["test"]))

    def choose(samples: int) -> Indices:
        if protocol == "released":
            return np.arange(fitted)
        return np.sort(rng.permutation(samples)[:fitted])

    return {
        "retain": choose(len(sets["retain"])),
        "forget": np.arange(len(sets["forget"])),
        "test": choose(len(sets["test"])),
    }


def _classify(
    sets: dict[SetName, ImageSet],
    features: dict[SetName, Tensor],
    fitted: dict[SetName, Indices],
    probe_of: ProbeOf,
    *,
    protocol: Protocol,
    seed: int,
) -> tuple[Classification, dict[SetName, Array]] | None:
    device = features["retain"].device
    given = {name: images.labels for name, images in sets.items()}
    labels = {name: given_.to(device) for name, given_ in given.items() if given_ is not None}
    if len(labels) < len(SETS):
        return None
    classes = 1 + max(int(each.max()) for each in labels.values())
    probe = probe_of(labels["retain"], classes)
    confidence = _confidence(probe, features, labels, fitted)
    normalised = {name: F.normalize(each, dim=1) for name, each in features.items()}
    predicted = {name: probe.predictions(features[name]) for name in SETS}
    by_neighbours = {
        name: neighbour_predictions(
            normalised[name], normalised["retain"], labels["retain"], classes
        )
        for name in ("test", "forget")
    }

    def accuracy(predictions: Tensor, name: SetName) -> Measure:
        right = int((predictions == labels[name]).sum())
        return percentage(right, len(predictions), seed=seed)

    return Classification(
        ra=accuracy(predicted["retain"], "retain"),
        ta=accuracy(predicted["test"], "test"),
        ua=accuracy(predicted["forget"], "forget"),
        knn_test=accuracy(by_neighbours["test"], "test"),
        knn_forget=accuracy(by_neighbours["forget"], "forget"),
        cmia=confidence_attack(
            confidence["retain"],
            confidence["test"],
            confidence["forget"],
            seed=seed,
            exact=protocol == "released",
        ),
        right={name: (predicted[name] == labels[name]).cpu().numpy() for name in SETS},
    ), confidence


def _confidence(
    probe: LinearProbe,
    features: dict[SetName, Tensor],
    labels: dict[SetName, Tensor],
    fitted: dict[SetName, Indices],
) -> dict[SetName, Array]:
    return {
        name: probe.confidence(features[name], labels[name]).double().cpu().numpy()[fitted[name]]
        for name in SETS
    }


def _uniformities(features: dict[SetName, Tensor], seed: int) -> dict[SetName, Measure | None]:
    rng = np.random.default_rng(mix(seed, _PAIRS))
    measures: dict[SetName, Measure | None] = {}
    for name in SETS:
        samples = len(features[name])
        drawn = torch.from_numpy(np.sort(rng.permutation(samples)[:MAX_PAIR_SAMPLES]))
        chosen = F.normalize(features[name][drawn.to(features[name].device)], dim=1)
        value = uniformity(chosen) if samples > 1 else None
        measures[name] = None if value is None else Measure(value, len(chosen), seed)
    return measures
