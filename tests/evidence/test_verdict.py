"""What verdicts say: never more than the test supports, and figures that do not contradict them."""

import pytest

from expunge.evidence.audit import report
from expunge.evidence.audit.verdict import found, verdict
from expunge.evidence.wording import percentage, probability


def outcome(p: float, *, n: int = 8, alike: int = 300, p_used: float | None = None) -> report.Test:
    return report.Test(
        hypothesis="H0",
        alpha=0.01,
        p=p,
        p_used=p if p_used is None else p_used,
        alpha_used=0.05,
        n=n,
        n_reference=512,
        n_alike=alike,
        draws=alike if n == 1 else 4_999,
        reference="matched",
        looks=[],
    )


def power(share: float, needed: int | None = None) -> report.Power:
    return report.Power(effect={"encoder": 0.05}, power=share, target=0.9, samples_needed=needed)


def test_what_is_found_is_told_as_a_difference_from_kept_images_and_no_more() -> None:
    told = verdict(0.1, 8, 512, outcome(0.0002), power(1.0))
    assert told.code == "forgotten"
    assert told.sentence == (
        "The model changed for your 8 images more than for 512 images that the model kept, in the "
        "ways that forgetting changes it. Had yours been treated like those, so large a "
        "difference would arise by chance with probability 0.0002 (0.01 or less counts as found)."
    )


def test_what_shows_in_the_projector_alone_is_no_removal() -> None:
    told = verdict(0.1, 8, 512, outcome(0.0002, p_used=0.0502), power(1.0))
    assert told.code == "not_enough_evidence"
    assert "the projector only serves training" in told.sentence
    assert "by chance with probability 0.0502 (0.05 or less would count)" in told.sentence
    assert verdict(0.1, 8, 512, outcome(0.0002, p_used=0.05), power(1.0)).code == "forgotten"
    assert found(0.01, 0.05)
    assert not found(0.0102, 0.05)
    assert not found(0.01, 0.0502)


def test_how_many_would_suffice_is_told_with_what_they_are_compared_with() -> None:
    """A quarter as many own images as retained ones take part."""
    told = verdict(0.1, 8, 512, outcome(0.4), power(0.5, 16))
    assert told.sentence.endswith("; about 16 images would suffice for 90%.")
    told = verdict(0.1, 8, 512, outcome(0.4), power(0.5, 250))
    assert told.sentence.endswith(
        "; about 250 images would suffice for 90%, among 1,000 that the model kept."
    )


def test_no_estimate_is_told_as_certain() -> None:
    told = verdict(0.1, 8, 512, outcome(0.4), power(1.0))
    assert told.code == "not_for_you"
    assert "shown with over 99% probability" in told.sentence
    assert [percentage(share) for share in (0.0, 0.02, 0.985, 1.0)] == [
        "under 1%",
        "about 2%",
        "about 98%",
        "over 99%",
    ]


def test_a_p_value_just_above_the_bar_is_not_told_as_the_bar() -> None:
    told = verdict(0.1, 8, 512, outcome(0.0102), power(0.5, 20))
    assert told.code == "not_enough_evidence"
    assert "probability 0.0102 (0.01 or less would count as found)" in told.sentence
    assert [probability(p) for p in (0.0002, 0.0102, 0.0414, 0.162, 1.0)] == [
        "0.0002",
        "0.0102",
        "0.0414",
        "0.16",
        "1",
    ]


@pytest.mark.parametrize(("alike", "hopeless"), [(98, True), (99, False)])
def test_one_image_is_told_where_so_few_others_can_never_show_it(
    alike: int, hopeless: bool
) -> None:
    told = verdict(0.1, 1, 512, outcome(1 / (alike + 1), n=1, alike=alike), power(0.0))
    assert (told.code == "not_enough_evidence") is hopeless
    assert ("several audited together can" in told.sentence) is hopeless


def test_images_of_whose_kind_too_few_were_kept_are_told_so() -> None:
    told = verdict(0.1, 24, 512, None, None)
    assert told.code == "not_enough_evidence"
    assert "of their kind it kept fewer than 8 images of others" in told.sentence
    assert verdict(0.1, 24, 63, None, None).code == "no_reference"


def test_it_is_told_how_many_images_were_compared() -> None:
    told = verdict(0.1, 30, 512, outcome(0.0002, n=22), None)
    assert told.sentence.startswith(
        "The model changed for your 30 images (22 of them compared) more than"
    )


def test_one_image_is_spoken_of_as_one() -> None:
    told = verdict(0.1, 1, 512, outcome(0.4, n=1), power(0.95))
    assert "Retraining without it would have shown with about 95% probability" in told.sentence
    assert told.sentence.endswith("it does not look as if yours was forgotten.")
