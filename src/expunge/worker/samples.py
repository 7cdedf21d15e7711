"""Chosen samples of sealed data sets, read from the object store. Never reads a shard whole for a few images."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from expunge.formats.shards import Sample, SampleRecord
from expunge.registry.objects import ObjectDamaged, ObjectStore
from expunge.registry.subsets import Chosen
from expunge.unlearning.catalog import CLIP, EncoderSpec
from expunge.unlearning.data.captions import tokenise
from expunge.unlearning.data.image_set import ImageSet, decode_images, sample_id
from expunge.worker.leases import Held
from expunge.worker.warmth import Warm

BATCH_SAMPLES = 512
"""Read and decoded at a time: of 224-pixel images some 75 MB."""
WARM_BYTES = 128 * 2**20
"""Of decoded images that are kept, in case they are asked for again."""
GAP_BYTES = 64 * 2**10
"""Between two images of a shard: less is read along, since a further call costs more."""
PART_BYTES = 8 * 2**20
"""Read in one call at most, unless a single image is larger."""


class Images:
    """Reads samples' images, and keeps those that were read last."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._warm: Warm[tuple[str, str, int], Tensor] = Warm(
            "images", WARM_BYTES, lambda image: image.nbytes
        )

    def read(self, held: Held, chosen: Sequence[Chosen], spec: EncoderSpec) -> Iterator[ImageSet]:
        """The samples as encoders of `spec` take them, named as answers name them, in batches in order.

        With captions if the encoder takes any and all of the samples have one.

        Raises:
            ObjectMissing: a shard is gone.
            ObjectDamaged: an image does not have the digest that the index names.
            LeaseLost, Stopped, and what `Held.patiently` raises.
        """
        objective = spec.objective
        captions = [each.record.caption or "" for each in chosen]
        with_captions = captioned(chosen, spec)
        for start in range(0, len(chosen), BATCH_SAMPLES):
            batch = chosen[start : start + BATCH_SAMPLES]
            texts = captions[start : start + BATCH_SAMPLES]
            yield ImageSet(
                images=torch.stack(self._pixels(held, batch, spec.image_size)),
                ids=torch.tensor([sample_id(each.sha256) for each in batch], dtype=torch.int64),
                keys=[each.name for each in batch],
                captions=tokenise(texts, objective.context_length)
                if isinstance(objective, CLIP) and with_captions
                else None,
            )

    def _pixels(self, held: Held, chosen: Sequence[Chosen], size: int) -> list[Tensor]:
        """Of each sample (3, size, size) uint8."""
        # Each owner's apart: how soon an answer comes must not tell that others have the same image.
        names = [(each.dataset.owner_id, each.sha256, size) for each in chosen]
        found = [self._warm.get(name) for name in names]
        missing = [place for place, image in enumerate(found) if image is None]
        if missing:
            samples = _encoded(self._store, held, [chosen[place] for place in missing])
            for place, image in zip(missing, decode_images(samples, size), strict=True):
                # Its own memory: a view would keep the whole batch.
                found[place] = own = image.clone()
                self._warm.keep(names[place], own)
        return [image for image in found if image is not None]


def captioned(chosen: Sequence[Chosen], spec: EncoderSpec) -> bool:
    """Whether encoders of `spec` take captions and all of these samples have one."""
    return isinstance(spec.objective, CLIP) and all(each.has_caption for each in chosen)


@dataclass
class _Part:
    """Adjacent images of one shard."""

    key: str
    start: int
    end: int
    places: list[int] = field(default_factory=list)


def _encoded(store: ObjectStore, held: Held, chosen: Sequence[Chosen]) -> list[Sample]:
    images: dict[int, bytes] = {}
    for part in _parts(chosen):
        read = partial(store.part, part.key, part.start, part.end - part.start)
        data = held.patiently(read)
        for place in part.places:
            record = chosen[place].record
            first = record.offset - part.start
            images[place] = _checked(data[first : first + record.size], record, part.key)
    return [
        Sample(each.name, each.record.suffix, images[place], each.sha256)
        for place, each in enumerate(chosen)
    ]


def _parts(chosen: Sequence[Chosen]) -> Iterator[_Part]:
    """What is read in one call each."""
    datasets = {each.dataset.id: each.dataset for each in chosen}
    keys = {
        (dataset.id, shard.name): shard.object_key
        for dataset in datasets.values()
        for shard in dataset.shards
    }
    ordered = sorted(
        (keys[each.dataset.id, each.record.shard], each.record.offset, place)
        for place, each in enumerate(chosen)
    )
    part: _Part | None = None
    for key, offset, place in ordered:
        end = offset + chosen[place].record.size
        if (
            part is None
            or key != part.key
            or offset - part.end > GAP_BYTES
            or end - part.start > PART_BYTES
        ):
            if part is not None:
                yield part
            part = _Part(key, offset, end)
        part.end = max(part.end, end)
        part.places.append(place)
    if part is not None:
        yield part


def _checked(image: bytes, record: SampleRecord, key: str) -> bytes:
    if hashlib.sha256(image).hexdigest() != record.sha256:
        raise ObjectDamaged(f"sample {record.key!r} in object {key} is not what was sealed")
    return image
