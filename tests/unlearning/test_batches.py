import pytest
import torch

from expunge.unlearning.data.batches import BatchStream, plan_batches

CPU = torch.device("cpu")


@pytest.mark.parametrize("retain", [1, 7, 100, 1000])
@pytest.mark.parametrize("unlearn", [1, 5, 64, 1000])
@pytest.mark.parametrize("batch", [2, 8, 128])
@pytest.mark.parametrize("multiple", [1, 8])
def test_every_step_has_retained_and_unlearn_samples(
    retain: int, unlearn: int, batch: int, multiple: int
) -> None:
    plan = plan_batches(retain, unlearn, batch, multiple=multiple)
    assert plan.steps >= 1
    assert 1 <= plan.retain <= retain
    assert 1 <= plan.unlearn <= unlearn
    assert plan.retain + plan.unlearn <= batch


def test_batches_mix_the_sets_in_their_proportion() -> None:
    plan = plan_batches(900, 100, 100)
    assert (plan.retain, plan.unlearn, plan.steps) == (90, 10, 10)


def test_a_set_smaller_than_a_batch_is_used_whole() -> None:
    plan = plan_batches(5, 0, 512)
    assert (plan.retain, plan.unlearn, plan.steps) == (5, 0, 1)


@pytest.mark.parametrize("unlearn", [1, 5, 64, 1000])
@pytest.mark.parametrize("batch", [2, 8, 128])
@pytest.mark.parametrize("multiple", [1, 8])
def test_without_retained_samples_batches_are_full_or_the_whole_unlearn_set(
    unlearn: int, batch: int, multiple: int
) -> None:
    plan = plan_batches(0, unlearn, batch, multiple=multiple)
    assert (plan.retain, plan.unlearn) == (0, min(unlearn, batch))
    assert plan.steps == unlearn // plan.unlearn >= 1


def test_unlearn_samples_left_over_begin_the_next_epoch() -> None:
    stream = BatchStream(plan_batches(0, 7, 4), 0, 7, seed=0)
    steps = [step for _ in range(7) for step in stream.epoch(CPU)]
    assert all(len(step.retain) == 0 and len(step.unlearn) == 4 for step in steps)
    shown = torch.cat([step.unlearn for step in steps])
    assert torch.bincount(shown, minlength=7).tolist() == [4] * 7


def test_split_batch_norm_gets_whole_groups_of_unlearn_samples() -> None:
    assert plan_batches(4500, 500, 512, multiple=8).unlearn % 8 == 0


def test_an_epoch_shows_each_retained_sample_once() -> None:
    stream = BatchStream(plan_batches(20, 4, 6), 20, 4, seed=0)
    shown = torch.cat([step.retain for step in stream.epoch(CPU)])
    assert shown.sort().values.tolist() == list(range(20))


def test_the_unlearn_set_is_cycled_through_evenly() -> None:
    stream = BatchStream(plan_batches(64, 7, 8), 64, 7, seed=0)
    shown = torch.cat([step.unlearn for _ in range(9) for step in stream.epoch(CPU)])
    counts = torch.bincount(shown, minlength=7)
    assert counts.max() - counts.min() <= 1


def test_partners_are_always_other_samples_and_reach_all_of_them() -> None:
    stream = BatchStream(plan_batches(2000, 5, 8), 2000, 5, seed=0, swap_positives=True)
    pairs = {
        (int(u), int(p))
        for step in stream.epoch(CPU)
        for u, p in zip(step.unlearn, step.partner, strict=True)
    }
    assert pairs == {(u, p) for u in range(5) for p in range(5) if u != p}


@pytest.mark.parametrize("retain", [0, 20])
def test_without_swapping_an_unlearn_sample_is_its_own_positive(retain: int) -> None:
    stream = BatchStream(plan_batches(retain, 5, 8), retain, 5, seed=0)
    for step in stream.epoch(CPU):
        assert torch.equal(step.partner, step.unlearn)


def test_streams_depend_on_the_seed_alone() -> None:
    plan = plan_batches(30, 6, 12)

    def drawn(seed: int) -> list[int]:
        stream = BatchStream(plan, 30, 6, seed=seed, swap_positives=True)
        return [int(i) for step in stream.epoch(CPU) for i in (*step.retain, *step.partner)]

    assert drawn(1) == drawn(1) != drawn(2)
