import json
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binom
from tests.evidence.simulated import names, reference, simulated, unit

from expunge.evidence.audit import MIN_REFERENCE, AuditReport, Outputs, Reference, audit
from expunge.evidence.audit.outputs import MAX_PAIR_SAMPLES, pair_samples

KEPT = reference(200, np.random.default_rng(1000))
UNSEEN = reference(200, np.random.default_rng(1001), forgotten=0.4)


def audited(n: int, forgotten: float = 0.0, seed: int = 0, **options: object) -> AuditReport:
    own = {"encoder": simulated(n, np.random.default_rng(seed), forgotten=forgotten)}
    given = {"retained": KEPT, "control": UNSEEN} | options
    return audit(own, names(n), **given)  # type: ignore[arg-type]


def test_scores_and_matrices_are_those_of_known_angles() -> None:
    """Two samples at right angles; before, views agree; after, they are 60 degrees apart."""
    turn = np.pi / 3
    before = np.array([[[1.0, 0.0], [0.0, 1.0]]] * 2)
    after = np.array(
        [[[1.0, 0.0], [0.0, 1.0]], [[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]]]
    )
    report = audit({"encoder": Outputs.of(unit(before), unit(after))}, ["a", "b"])
    level = report.levels["encoder"]
    assert level.per_sample == pytest.approx({"a": 0.5, "b": 0.5})
    assert level.own.forgetting_score.mean == pytest.approx(0.5)
    assert level.own.negative_alignment is not None
    assert level.own.negative_alignment.before.mean == pytest.approx(0)
    assert level.own.negative_alignment.after.mean == pytest.approx(0, abs=1e-7)
    np.testing.assert_allclose(report.matrices["encoder"]["before"], np.eye(2), atol=1e-6)
    np.testing.assert_allclose(np.diagonal(report.matrices["encoder"]["gap"]), 0.5, atol=1e-6)


@pytest.mark.parametrize("n", [1, 2, 8, 200])
def test_a_report_of_any_size_is_ready_for_json_and_repeats_to_the_bit(n: int) -> None:
    first, again = audited(n, 0.3), audited(n, 0.3)
    document = first.to_dict()
    assert document == again.to_dict()
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert document["n_own"] == n
    assert document["test"]["n_reference"] == 200
    for which, matrix in first.matrices["encoder"].items():
        assert np.array_equal(matrix, again.matrices["encoder"][which])
    assert audited(n, 0.3, seed=1).to_dict() != document


def test_one_sample_has_a_score_and_a_test_but_no_pairs() -> None:
    report = audited(1)
    level = report.to_dict()["levels"]["encoder"]
    assert level["negative_alignment"] is None
    assert level["forgetting_score"]["interval"] is None
    assert level["contrast"] is None
    assert report.test is not None
    score = report.test.looks[0].value
    assert score == pytest.approx(level["forgetting_score"]["mean"], abs=1e-6)
    assert report.matrices["encoder"]["gap"].shape == (1, 1)


def test_equal_encoders_are_called_unchanged() -> None:
    own = simulated(8, np.random.default_rng(0))
    still = Outputs(own.before, own.before, own.chosen)
    kept = Reference(
        {"encoder": replace(KEPT.levels["encoder"], after=KEPT.levels["encoder"].before)}
    )
    report = audit({"encoder": still}, names(8), kept)
    assert report.verdict.code == "unchanged"
    assert report.test is not None
    assert report.test.p == 1


def test_captions_that_alone_changed_are_a_change() -> None:
    rng = np.random.default_rng(0)
    same, texts = unit(rng.normal(size=(3, 8, 16))), unit(rng.normal(size=(2, 8, 16)))
    still, moved = (
        Outputs.of(same, same, captions=captions)
        for captions in ((texts[0], texts[0]), (texts[0], texts[1]))
    )
    assert still.largest_change() == 0
    assert moved.largest_change() == np.abs(texts[0] - texts[1]).max()


def test_a_projector_that_alone_was_made_to_forget_is_no_removal() -> None:
    """It is thrown away after training; the encoder is what is used."""
    before, kept = simulated(24, np.random.default_rng(7)), simulated(200, np.random.default_rng(1))
    projector = simulated(24, np.random.default_rng(2), forgotten=0.8)
    projected = simulated(200, np.random.default_rng(3))

    def told(own: Outputs, others: Outputs) -> AuditReport:
        reference = Reference({"encoder": others, "projector": projected})
        return audit({"encoder": own, "projector": projector}, names(24), reference)

    as_it_was = [Outputs(each.before, each.before, each.chosen) for each in (before, kept)]
    assert told(*as_it_was).verdict.code == "unchanged"
    noisy = told(before, kept)
    assert noisy.test is not None
    assert noisy.test.p <= noisy.test.alpha
    assert noisy.test.p_used > noisy.test.alpha_used
    assert noisy.verdict.code == "not_enough_evidence"
    honest = told(simulated(24, np.random.default_rng(7), forgotten=0.8), kept)
    assert honest.verdict.code == "forgotten"


def test_forgotten_samples_are_found_and_the_sentence_says_against_what() -> None:
    report = audited(8, forgotten=0.6)
    assert report.verdict.code == "forgotten"
    assert report.test is not None
    assert report.test.p <= report.test.alpha == 0.01
    assert "200 images that the model kept" in report.verdict.sentence
    assert max(report.test.looks, key=lambda look: look.z).statistic == "forgetting_score"


def test_a_change_that_spares_nobody_is_not_for_the_owner() -> None:
    report = audited(64)
    assert report.verdict.code == "not_for_you"
    assert report.power is not None
    assert report.power.power >= 0.9


def test_where_an_honest_removal_would_hardly_show_the_verdict_says_how_many_would_suffice() -> (
    None
):
    unseen = reference(200, np.random.default_rng(1001), forgotten=0.1)
    report = audited(4, control=unseen)
    assert report.verdict.code == "not_enough_evidence"
    assert report.power is not None
    assert report.power.power < 0.9
    assert report.power.samples_needed is not None
    assert f"about {report.power.samples_needed} images would suffice" in report.verdict.sentence


def test_without_control_the_power_is_unknown() -> None:
    report = audited(8, control=None)
    assert (report.power, report.membership) == (None, None)
    assert report.verdict.code == "not_enough_evidence"
    assert "not known" in report.verdict.sentence


def test_fewer_than_64_retained_samples_are_no_reference() -> None:
    few = reference(MIN_REFERENCE - 1, np.random.default_rng(5))
    report = audited(8, forgotten=0.6, retained=few)
    assert report.verdict.code == "no_reference"
    assert (report.test, report.power, report.null_quantiles, report.n_retained) == (
        None,
        None,
        None,
        0,
    )
    assert report.levels["encoder"].retained is None
    assert report.levels["encoder"].own.forgetting_score.interval is not None


def test_untouched_samples_are_called_forgotten_no_more_often_than_alpha() -> None:
    trials = 150
    found = sum(
        audited(8, seed=seed, control=None).verdict.code == "forgotten" for seed in range(trials)
    )
    assert found <= binom.ppf(0.999, trials, 0.01)


def test_more_views_make_the_forgetting_score_vary_less() -> None:
    spreads = [
        np.std(
            [
                simulated(8, np.random.default_rng(seed), views=views, forgotten=0.3).scores.mean()
                for seed in range(60)
            ]
        )
        for views in (2, 4, 16)
    ]
    assert spreads[0] > 1.2 * spreads[1] > 1.3 * spreads[2]


def test_nothing_of_single_samples_of_others_is_in_the_report() -> None:
    numbers = set(_numbers(audited(8, 0.3).to_dict()))
    single = [*KEPT.levels["encoder"].scores, *UNSEEN.levels["encoder"].scores]
    assert numbers.isdisjoint(round(float(value), 9) for value in single)
    numbers = set(_numbers(audited(1, 0.3).to_dict()))
    assert numbers.isdisjoint(round(float(value), 9) for value in single)


def test_matrices_show_a_seeded_draw_of_own_samples() -> None:
    report = audited(12, matrix_size=5)
    assert len(report.matrix_keys) == len(set(report.matrix_keys)) == 5
    assert report.matrices["encoder"]["before"].shape == (5, 5)
    assert report.matrices["encoder"]["before"].dtype == np.float32
    scores = report.levels["encoder"].per_sample
    diagonal = np.diagonal(report.matrices["encoder"]["gap"])
    np.testing.assert_allclose([scores[k] for k in report.matrix_keys], diagonal, atol=1e-6)


def test_a_large_set_is_represented_by_a_draw_where_pairs_count() -> None:
    n = 5000
    tracemalloc.start()
    report = audited(n)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    level = report.levels["encoder"]
    assert level.own.negative_alignment is not None
    assert len(level.per_sample) == level.own.forgetting_score.n == n
    assert level.own.negative_alignment.change.n == MAX_PAIR_SAMPLES
    assert report.test is not None
    assert 0.8 * len(KEPT) / 4 < report.test.n <= len(KEPT) / 4
    compared = f"your {n:,} images ({report.test.n:,} of them compared)"
    assert compared in report.verdict.sentence
    assert peak < 400e6
    assert len(set(pair_samples(n, 0))) == MAX_PAIR_SAMPLES
    assert pair_samples(9, 0).tolist() == list(range(9))


def test_captioned_images_are_audited_against_their_captions() -> None:
    rng = np.random.default_rng(0)

    def pairs(n: int, lost: float) -> Outputs:
        texts = rng.normal(size=(n, 16))
        views = texts + 0.5 * rng.normal(size=(4, n, 16))
        after = (1 - lost) * texts + 0.5 * rng.normal(size=(4, n, 16))
        captions = unit(texts)
        return Outputs.of(unit(views), unit(after), captions=(captions, captions))

    own, kept = (
        pairs(8, 0.5),
        Reference({"encoder": KEPT.levels["encoder"], "image_text": pairs(200, 0)}),
    )
    report = audit({"encoder": simulated(8, rng), "image_text": own}, names(8), kept)
    cosine = np.einsum("vnd,nd->nv", own.before.views, own.before.captions).mean(1)
    np.testing.assert_allclose(
        np.diagonal(report.matrices["image_text"]["before"]), cosine, atol=1e-6
    )
    assert report.verdict.code == "forgotten"
    assert report.test is not None
    assert min(report.test.looks, key=lambda look: look.p).level == "image_text"


def test_sets_that_do_not_fit_together_are_refused() -> None:
    rng = np.random.default_rng(0)
    own = {"encoder": simulated(8, rng)}
    with pytest.raises(ValueError, match="7 keys for"):
        audit(own, names(7))
    with pytest.raises(ValueError, match="different levels"):
        audit(own, names(8), Reference({"projector": simulated(64, rng)}))
    with pytest.raises(ValueError, match="numbers of views"):
        audit(own, names(8), Reference({"encoder": simulated(64, rng, views=3)}))
    with pytest.raises(ValueError, match="two equal"):
        Outputs.of(np.zeros((2, 3, 4), np.float32), np.zeros((2, 2, 4), np.float32))


def _numbers(value: object) -> list[float]:
    match value:
        case dict():
            return [number for each in value.values() for number in _numbers(each)]
        case list():
            return [number for each in value for number in _numbers(each)]
        case float():
            return [round(value, 9)]
    return []
