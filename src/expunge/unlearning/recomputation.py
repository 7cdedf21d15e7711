"""Less memory for more time: activations are made anew in the backward pass instead of kept.

Never changes what a step computes: contrastive negatives and batch norm's statistics span the whole
batch, as always. Recomputation of blocks as in Chen et al. 2016 (arXiv 1604.06174); towers whose
images do not see each other go through in parts, as GradCache does it (arXiv 2101.06983).
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from expunge.unlearning.frameworks import Learner

PARTS = 8
"""Of a batch in towers without batch norm: of one part at a time all activations are in memory."""

_Norms = nn.modules.batchnorm._BatchNorm  # noqa: SLF001 - torch's only common base
_Dropouts = nn.modules.dropout._DropoutNd  # noqa: SLF001 - as above
Forward = Callable[..., Any]


@contextmanager
def recomputing(learner: Learner) -> Iterator[None]:
    """Inside, steps keep a fraction of the activations of the learner's towers, and take longer.

    A tower whose rows are independent of each other (no batch norm, no dropout) takes a batch in
    PARTS, any other one keeps what goes into each of its blocks. Either way gradients and running
    statistics are those of the plain step, up to the order of additions in the first case.
    """
    changed: list[tuple[nn.Module, type[nn.Module]]] = []
    for tower in learner.towers:
        if _has_independent_rows(tower):
            changed.append(_change(tower, _in_parts))
        else:
            changed += [_change(block, _made_anew) for block in _blocks(tower)]
    try:
        yield
    finally:
        for module, kind in changed:
            module.__class__ = kind


def _has_independent_rows(tower: nn.Module) -> bool:
    return not any(
        isinstance(m, _Norms) or (isinstance(m, _Dropouts) and m.p > 0) for m in tower.modules()
    )


def _blocks(network: nn.Module) -> Iterator[nn.Module]:
    """What stands in the network's outermost sequences: residual blocks, transformer layers."""
    for child in network.children():
        if isinstance(child, nn.Sequential | nn.ModuleList):
            yield from child
        else:
            yield from _blocks(child)


def _change(module: nn.Module, how: Callable[..., Any]) -> tuple[nn.Module, type[nn.Module]]:
    """Have the module's forward pass done by `how`; names of weights stay, copies are changed too."""
    kind = type(module)
    plain = kind.forward

    def forward(self: nn.Module, *inputs: Any, **options: Any) -> Any:
        if not torch.is_grad_enabled():
            return plain(self, *inputs, **options)
        return how(self, plain, *inputs, **options)

    module.__class__ = type(f"Recomputed{kind.__name__}", (kind,), {"forward": forward})
    return module, kind


def _made_anew(block: nn.Module, plain: Forward, *inputs: Any, **options: Any) -> Any:
    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _StatisticsKept(block)

    return checkpoint(plain, block, *inputs, use_reentrant=False, context_fn=contexts, **options)


def _in_parts(tower: nn.Module, plain: Forward, batch: Tensor) -> Tensor:
    parts = batch.chunk(PARTS)
    return torch.cat([checkpoint(plain, tower, each, use_reentrant=False) for each in parts])


class _StatisticsKept(AbstractContextManager[None]):
    """A second forward pass inside counts for nothing in batch norm's running statistics."""

    def __init__(self, block: nn.Module) -> None:
        self._norms = [m for m in block.modules() if isinstance(m, _Norms)]
        self._kept: list[tuple[nn.Module, str, Tensor]] = []

    def __enter__(self) -> None:
        self._kept = [
            (norm, name, buffer)
            for norm in self._norms
            for name, buffer in norm.named_buffers(recurse=False)
        ]
        for norm, name, buffer in self._kept:
            setattr(norm, name, buffer.clone())

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for norm, name, buffer in self._kept:
            setattr(norm, name, buffer)
