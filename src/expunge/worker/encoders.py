"""Pairs of encoders, before and after, and what they say about samples; kept warm from one job to the next.

The one place of the interactive worker that runs encoders. Never writes to the database.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from sqlalchemy import intersect, select
from torch import Tensor

from expunge.evidence.audit import MIN_REFERENCE, Level, Outputs, Reference, Side
from expunge.registry import subsets
from expunge.registry.jobs import Failure
from expunge.registry.lifecycles import CheckpointState, DatasetState
from expunge.registry.objects import ObjectMissing
from expunge.registry.subsets import Chosen, Indexes, Subset
from expunge.registry.tables import Checkpoint, CheckpointDataset, Dataset, Model
from expunge.unlearning import checkpoints
from expunge.unlearning.audit import Memory, stream_outputs
from expunge.unlearning.catalog import CLIP
from expunge.unlearning.data.views import Views
from expunge.unlearning.frameworks import Learner
from expunge.unlearning.frameworks.folding import fold_batch_norm
from expunge.unlearning.hardware import resolve_device
from expunge.worker.context import Context
from expunge.worker.leases import Held
from expunge.worker.remembering import Remembered
from expunge.worker.samples import Images, captioned
from expunge.worker.staging import Stage
from expunge.worker.warmth import Warm
from expunge.worker.watching import JobFailed

WARM_LEARNERS = 4
WARM_REFERENCE_BYTES = 512 * 2**20
"""Of outputs on samples of others: some 55 MB a pair of ResNet-18, seed and ten views."""
MIN_CONTROL = 8
"""Fewer control images would be told apart in what is said of them together."""
MAX_REFERENCE = 512
"""More samples of others hardly sharpen a comparison, which the owner's few samples dominate."""

MAX_REMEMBERED = 1024
"""What was said about the samples of larger questions is not kept: it would drive out what others asked."""

CORES_A_THREAD = 4
"""Threads of one layer that share cores with other processes wait for each other: beside training of the
same priority 8 samples in ten views took 3 to 4 seconds on two threads of two cores, and 0.3 to 0.5 on one.
The two encoders of a comparison go side by side all the same."""
NO_SAMPLES = Failure("refused", "none of the samples that were asked for is there")


def leave_cores_to_training() -> None:
    """Run this process's encoders on few threads, unless the operator chose a number."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // CORES_A_THREAD))


@dataclass(frozen=True, slots=True)
class Pair:
    """Two checkpoints of one model, and how their outputs are looked at."""

    before: Checkpoint
    after: Checkpoint
    views: int
    seed: int

    @property
    def key(self) -> tuple[str, str, int, int]:
        """What outputs depend on beside the samples."""
        return self.before.digest, self.after.digest, self.views, self.seed


class Encoders:
    """Of one worker process."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self.indexes = Indexes(context.store)
        self.images = Images(context.store)
        self._learners: Warm[str, Learner] = Warm("learners", WARM_LEARNERS)
        self._references: Warm[tuple[object, ...], Reference] = Warm(
            "references", WARM_REFERENCE_BYTES, _weight
        )
        self._remembered = Remembered()

    def learner(self, checkpoint: Checkpoint, held: Held) -> Learner:
        """The checkpoint's encoder, made to answer fast: it cannot be trained or stored.

        Raises:
            JobFailed: its weights were destroyed.
            ObjectMissing, ObjectDamaged, and what `Held.patiently` raises.
        """
        if checkpoint.state != CheckpointState.READY:
            raise JobFailed(Failure("refused", f"the weights of {checkpoint.id} were destroyed"))

        def load() -> Learner:
            with self._context.scratch(checkpoint.id) as folder:
                stage = Stage(self._context.store, held, folder)
                device = resolve_device(self._context.settings.device)
                learner = checkpoints.load(stage.checkpoint(checkpoint), device).eval()
                fold_batch_norm(learner.encoder)
                return learner

        return self._learners.get_or_load(checkpoint.digest, load)

    def choose(self, subset: Subset, datasets: Sequence[Dataset], held: Held) -> list[Chosen]:
        """The samples of a subset; at least one.

        Raises:
            JobFailed: its data sets were deleted, or it has no sample.
            ObjectMissing, ObjectDamaged, and what `Held.patiently` raises.
        """
        if gone := [each.id for each in datasets if each.state != DatasetState.SEALED]:
            reason = f"the samples of {', '.join(sorted(gone))} were deleted"
            raise JobFailed(Failure("refused", reason))
        chosen = held.patiently(lambda: subsets.choose(subset, datasets, self.indexes))
        if not chosen:
            raise JobFailed(NO_SAMPLES)
        return chosen

    def outputs(self, pair: Pair, chosen: Sequence[Chosen], held: Held) -> dict[Level, Outputs]:
        """What both encoders say about at least one of an owner's samples.

        Raises:
            JobFailed: weights were destroyed.
            ObjectMissing, ObjectDamaged, and what `Held.patiently` raises.
        """
        memory = None
        if len(chosen) <= MAX_REMEMBERED:
            captions = captioned(chosen, self.learner(pair.before, held).spec)
            memory = self._remembered.about(chosen, pair.key, captions=captions)
        return self._outputs(pair, chosen, held, memory)

    def _outputs(
        self, pair: Pair, chosen: Sequence[Chosen], held: Held, memory: Memory | None
    ) -> dict[Level, Outputs]:
        before, after = self.learner(pair.before, held), self.learner(pair.after, held)
        spec = before.spec
        views = Views(spec.image_size, spec.mean, spec.std, seed=pair.seed)

        def make(images: Tensor, ids: Tensor, numbers: Sequence[int]) -> Tensor:
            held.check()
            return views.several(images, ids, numbers)

        return stream_outputs(
            before,
            after,
            self.images.read(held, chosen, spec),
            len(chosen),
            views=pair.views,
            seed=pair.seed,
            device=self._context.settings.device,
            make=make,
            memory=memory,
        )

    def retained(self, pair: Pair, owner_id: str, held: Held) -> Reference | None:
        """A fixed draw of samples that both encoders hold, none of them this owner's; None if there are too few.

        Raises:
            As `outputs`.
        """

        # A later head may have been trained on more: to those samples the encoder before is blind.
        before, after = (
            select(CheckpointDataset.dataset_id).where(
                CheckpointDataset.checkpoint_id == side.id, ~CheckpointDataset.forgotten
            )
            for side in (pair.before, pair.after)
        )
        kept = intersect(before, after)

        def without() -> tuple[str, ...]:
            with self._context.readings() as session:
                own = select(Dataset.id).where(Dataset.id.in_(kept), Dataset.owner_id == owner_id)
                return tuple(session.scalars(own.order_by(Dataset.id)))

        def datasets() -> Sequence[Dataset]:
            with self._context.readings() as session:
                return session.scalars(
                    select(Dataset).where(
                        Dataset.id.in_(kept),
                        Dataset.owner_id != owner_id,
                        Dataset.state == DatasetState.SEALED,
                    )
                ).all()

        # Owners of whom nothing is kept, most of a batch, share one draw.
        key = ("retained", held.patiently(without), *pair.key)
        warm = self._references.get(key)
        if warm is None:
            seed = pair.after.digest
            warm = self._reference(pair, datasets, seed, held, MIN_REFERENCE)
            if warm is not None:
                self._references.keep(key, warm)
        return warm

    def control(self, pair: Pair, held: Held) -> Reference | None:
        """A fixed draw of the model's control images, which it never saw; None if it names too few.

        Raises:
            As `outputs`.
        """

        def dataset() -> Sequence[Dataset]:
            with self._context.readings() as session:
                return session.scalars(
                    select(Dataset)
                    .join(Model, Model.control_dataset_id == Dataset.id)
                    .where(Model.id == pair.before.model_id, Dataset.state == DatasetState.SEALED)
                ).all()

        found = held.patiently(dataset)
        if not found:
            return None
        key = ("control", found[0].id, *pair.key)
        warm = self._references.get(key)
        if warm is None:
            warm = self._reference(pair, dataset, str(found[0].digest), held, MIN_CONTROL)
            if warm is not None:
                self._references.keep(key, warm)
        return warm

    def _reference(
        self, pair: Pair, find: Callable[[], Sequence[Dataset]], seed: str, held: Held, least: int
    ) -> Reference | None:
        datasets = held.patiently(find)
        # Own samples have captions, as all that CLIP is trained on; control images may not.
        pairs = isinstance(self.learner(pair.before, held).spec.objective, CLIP)
        try:
            chosen = held.patiently(
                lambda: subsets.drawn(
                    datasets, self.indexes, MAX_REFERENCE, seed, with_captions=pairs
                )
            )
            if len(chosen) < least:
                return None
            # Kept as a whole, with what is computed of it: not once more by the sample.
            return Reference(self._outputs(pair, chosen, held, None))
        except ObjectMissing:
            if {each.id for each in held.patiently(find)} == {each.id for each in datasets}:
                raise
        # An owner deleted samples while they were read: as if that had been before, others are drawn.
        return self._reference(pair, find, seed, held, least)


def _weight(reference: Reference) -> int:
    """Bytes of the outputs and of the matrices that come to be kept with them."""
    return sum(
        _side_bytes(side)
        for level in reference.levels.values()
        for side in (level.before, level.after)
    )


def _side_bytes(side: Side) -> int:
    samples = side.views.shape[1]
    captions = 0 if side.captions is None else side.captions.nbytes
    matrix = samples * samples * side.views.itemsize
    return int(side.views.nbytes + side.cosines.nbytes + captions + matrix)
