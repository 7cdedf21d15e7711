import torch

from expunge.unlearning.hardware import seeded

CPU = torch.device("cpu")


def test_inside_numbers_are_those_of_the_seed_and_outside_they_go_on() -> None:
    torch.default_generator.manual_seed(1)
    expected = [torch.rand(2), torch.rand(2)]
    torch.default_generator.manual_seed(1)
    before = torch.rand(2)
    with seeded(7, CPU):
        inside = torch.rand(2)
    with seeded(7, CPU):
        again = torch.rand(2)
    assert torch.equal(inside, again)
    assert [each.tolist() for each in (before, torch.rand(2))] == [
        each.tolist() for each in expected
    ]


def test_a_process_that_never_uses_cuda_keeps_nothing_of_it() -> None:
    """Torch keeps calls for a CUDA that may come; a worker that runs for weeks would keep all of them."""
    kept = len(torch.cuda._queued_calls)
    for seed in range(3):
        with seeded(seed, CPU):
            pass
    assert len(torch.cuda._queued_calls) == kept
