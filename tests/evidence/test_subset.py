"""Draws that anybody can repeat."""

import hashlib
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from expunge.evidence.subset import draw, subset_digest


@dataclass(frozen=True)
class Image:
    key: str
    sha256: str


def images(count: int) -> list[Image]:
    return [
        Image(f"sample-{n:04d}", hashlib.sha256(str(n).encode()).hexdigest()) for n in range(count)
    ]


@given(st.integers(0, 60), st.integers(1, 70), st.text(max_size=8))
def test_a_draw_is_the_slow_obvious_one(size: int, count: int, seed: str) -> None:
    def rank(image: Image) -> str:
        return hashlib.sha256(f"{seed}:{image.sha256}:{image.key}".encode()).hexdigest()

    all_images = images(size)
    expected = set(sorted(all_images, key=rank)[:count])
    assert draw(all_images, count, seed) == [each for each in all_images if each in expected]


def test_another_seed_draws_others_and_every_sample_has_its_chance() -> None:
    all_images = images(40)
    draws = [frozenset(draw(all_images, 8, str(seed))) for seed in range(200)]
    assert len(set(draws)) > 190
    times = [sum(image in each for each in draws) for image in all_images]
    # 200 draws of 8 of 40: 40 times each, standard deviation 5.7.
    assert min(times) > 40 - 5 * 5.7
    assert max(times) < 40 + 5 * 5.7


def test_a_draw_does_not_depend_on_the_order_of_the_samples() -> None:
    all_images = images(30)
    assert set(draw(all_images, 5, "7")) == set(draw(all_images[::-1], 5, "7"))


def test_the_digest_of_a_subset_names_its_images_and_not_their_order() -> None:
    digests = [image.sha256 for image in images(5)]
    assert subset_digest(digests) == subset_digest(digests[::-1])
    assert subset_digest(digests) != subset_digest(digests[:4])
    lines = "".join(f"{each}\n" for each in sorted(digests)).encode()
    assert subset_digest(digests) == f"sha256:{hashlib.sha256(lines).hexdigest()}"
