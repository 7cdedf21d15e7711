"""MoCo: InfoNCE against a queue of momentum keys (He et al. 2020, arXiv 1911.05722).

The queue knows which sample each key came from, so that samples can be purged. Empty slots are
never negatives.
"""

import copy
from itertools import chain

import torch
from torch import Tensor, nn

from expunge.unlearning.catalog import EncoderSpec
from expunge.unlearning.catalog import MoCo as Objective
from expunge.unlearning.frameworks.architectures import build_encoder
from expunge.unlearning.frameworks.base import Contrast, Learner

EMPTY = -1
"""Sample id of an empty slot of the queue."""
RANDOM = -2
"""Sample id of a slot that holds a random direction; used as a negative."""


def info_nce_terms(
    query: Tensor, key: Tensor, queue: Tensor, filled: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Alignment and log-partition, each (1, B), of (B, D) normalised queries and keys.

    The partition of a query runs over its key and the `filled` (K,) bool rows of the (K, D) queue.
    """
    alignment = (query * key).sum(dim=1, keepdim=True) / temperature
    negatives = (query @ queue.T) / temperature
    negatives = negatives.masked_fill(~filled, float("-inf"))
    log_partition = torch.cat([alignment, negatives], dim=1).logsumexp(dim=1)
    return alignment.T, log_partition.unsqueeze(0)


class MoCo(Learner):
    """Query encoder and projector, their momentum twins, and the queue."""

    queue: Tensor
    queue_ids: Tensor
    queue_pointer: Tensor

    def __init__(self, spec: EncoderSpec, objective: Objective) -> None:
        super().__init__()
        self.spec = spec
        self.objective = objective
        self.encoder, features = build_encoder(spec.architecture, bn_splits=self.bn_splits)
        self.projector = nn.Linear(features, self.objective.projector_dim)
        self.key_encoder = copy.deepcopy(self.encoder).requires_grad_(False)
        self.key_projector = copy.deepcopy(self.projector).requires_grad_(False)
        size = self.objective.queue_size
        self.register_buffer("queue", torch.zeros(size, self.objective.projector_dim))
        self.register_buffer("queue_ids", torch.full((size,), EMPTY, dtype=torch.int64))
        self.register_buffer("queue_pointer", torch.zeros((), dtype=torch.int64))

    @property
    def bn_splits(self) -> int:
        """Groups that batch norm splits a batch into."""
        return self.objective.bn_splits

    def contrast(
        self, first: Tensor, second: Tensor, second_ids: Tensor, third: Tensor | None = None
    ) -> Contrast:
        """InfoNCE terms of queries (first views); keys get no gradient and enter the queue after.

        Third views go through the key encoder in the same pass and never enter the queue.
        """
        query = self.projections(first)
        with torch.no_grad():
            keys = self._keys(second if third is None else torch.cat([second, third]))
        with torch.autocast(query.device.type, enabled=False):
            key, key3 = keys.tensor_split([len(second)])
            # The graph holds the queue until backward, and the enqueue below writes to it.
            alignment, log_partition = info_nce_terms(
                query, key, self.queue.clone(), self.queue_ids != EMPTY, self.objective.temperature
            )
            cosine = None if third is None else (query[len(query) - len(key3) :] * key3).sum(1)
        self._enqueue(key, second_ids)
        return Contrast(alignment, log_partition, cosine)

    @torch.no_grad()
    def advance(self, progress: float) -> None:
        """Move the key encoder towards the query encoder (before the forward pass, as released)."""
        del progress
        pairs = chain(
            zip(self.key_encoder.parameters(), self.encoder.parameters(), strict=True),
            zip(self.key_projector.parameters(), self.projector.parameters(), strict=True),
        )
        for key, query in pairs:
            key.lerp_(query, 1 - self.objective.key_momentum)

    @torch.no_grad()
    def purge(self, ids: Tensor) -> int:
        """Empty the queue's slots of the samples with these (n,) int64 ids; return how many."""
        hit = torch.isin(self.queue_ids, ids.to(self.queue_ids.device)) & (self.queue_ids != EMPTY)
        self.queue[hit] = 0
        self.queue_ids[hit] = EMPTY
        return int(hit.sum())

    @property
    def queue_is_empty(self) -> bool:
        """Whether there is no negative at all, so that the first step's loss is constant."""
        return bool((self.queue_ids == EMPTY).all())

    @torch.no_grad()
    def scramble_queue(self) -> None:
        """Fill the queue with random directions of no sample, from torch's global generator.

        As the code of arXiv 2406.03603 starts every run, its queue not being stored.
        """
        self.queue.copy_(nn.functional.normalize(torch.randn_like(self.queue), dim=1))
        self.queue_ids.fill_(RANDOM)
        self.queue_pointer.zero_()

    @torch.no_grad()
    def fill_queue(self, views: Tensor, ids: Tensor) -> None:
        """Enqueue keys of (N, 3, S, S) views of the samples with (N,) int64 ids, oldest first.

        Running statistics stay as they are: the key encoder runs in eval mode.
        """
        keys = (self.key_encoder, self.key_projector)
        modes = [module.training for module in keys]
        for module in keys:
            module.eval()
        self._enqueue(self._project_keys(views), ids)
        for module, mode in zip(keys, modes, strict=True):
            module.train(mode)

    def empty_queue(self) -> None:
        """Forget all keys."""
        self.queue.zero_()
        self.queue_ids.fill_(EMPTY)
        self.queue_pointer.zero_()

    def _keys(self, views: Tensor) -> Tensor:
        if self.bn_splits == 1:
            return self._project_keys(views)
        # Shuffled so that a query's batch-norm group tells nothing about its key's (He et al.).
        order = torch.randperm(len(views), device=views.device)
        shuffled = self._project_keys(views[order])
        return torch.empty_like(shuffled).index_copy_(0, order, shuffled)

    def _project_keys(self, views: Tensor) -> Tensor:
        z = self.key_projector(self.key_encoder(views).float()).float()
        return nn.functional.normalize(z, dim=1)

    def _enqueue(self, keys: Tensor, ids: Tensor) -> None:
        size = len(self.queue)
        keys, ids = keys[-size:], ids[-size:]
        slots = (self.queue_pointer + torch.arange(len(keys), device=keys.device)) % size
        self.queue.index_copy_(0, slots, keys)
        self.queue_ids.index_copy_(0, slots, ids)
        self.queue_pointer.add_(len(keys)).remainder_(size)
