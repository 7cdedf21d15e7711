"""Captions as CLIP tokens, several per sample. Never downloads a tokenizer."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Captions:
    """The captions of N samples, M in all.

    tokens: (M, L) int64; first: (N,) int64 row of a sample's first caption; count: (N,) int64, at
    least 1.
    """

    tokens: Tensor
    first: Tensor
    count: Tensor

    def __len__(self) -> int:
        return len(self.first)

    def to(self, device: torch.device | str) -> "Captions":
        """The same captions with their tensors on `device`."""
        return Captions(self.tokens.to(device), self.first.to(device), self.count.to(device))

    def subset(self, index: Tensor) -> "Captions":
        """The captions of the samples at (n,) int64 `index`; the token table stays whole."""
        return Captions(self.tokens, self.first[index], self.count[index])

    def draw(self, index: Tensor, uniform: Tensor) -> Tensor:
        """(n, L) one caption of each sample at (n,) `index`, chosen by (n,) uniforms in [0, 1)."""
        chosen = (uniform * self.count[index]).long()
        return self.tokens[self.first[index] + chosen]

    def rows(self) -> tuple[Tensor, Tensor]:
        """(K,) rows of all captions of these samples, in order, and (K,) the sample each is of."""
        owner = torch.repeat_interleave(torch.arange(len(self)), self.count.cpu())
        ends = self.count.cpu().cumsum(0)
        rank = torch.arange(len(owner)) - (ends - self.count.cpu())[owner]
        return self.first.cpu()[owner] + rank, owner

    @staticmethod
    def concat(parts: Sequence["Captions"]) -> "Captions":
        """All samples of `parts`, in order."""
        starts = torch.tensor([0, *(len(part.tokens) for part in parts)]).cumsum(0)
        return Captions(
            tokens=torch.cat([part.tokens for part in parts]),
            first=torch.cat(
                [part.first + int(start) for part, start in zip(parts, starts, strict=False)]
            ),
            count=torch.cat([part.count for part in parts]),
        )


def tokenise(texts: Sequence[str], context_length: int) -> Captions:
    """Captions of N samples from their texts, one caption a line; blank lines are no captions.

    Tokens are those of CLIP's byte-pair tokenizer, cut after `context_length`. Raises ValueError for
    a text without any caption.
    """
    # Imported here: it takes seconds, and only CLIP needs it.
    import open_clip  # noqa: PLC0415

    lines = [[line for line in text.splitlines() if line.strip()] for text in texts]
    if not all(lines):
        raise ValueError(
            f"sample {next(i for i, each in enumerate(lines) if not each)} has no caption"
        )
    count = torch.tensor([len(each) for each in lines])
    flat = [line for each in lines for line in each]
    tokens = open_clip.tokenize(flat, context_length=context_length)
    return Captions(tokens.to(torch.int64), count.cumsum(0) - count, count)
