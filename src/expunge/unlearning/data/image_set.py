"""Image sets held whole in memory as one uint8 tensor. Never makes views and never normalises."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from expunge.formats.shards import Sample, decode_image, iter_samples
from expunge.unlearning.catalog import CLIP, EncoderSpec
from expunge.unlearning.data.captions import Captions, tokenise

DECODE_THREADS = 4
IMAGE_DIMS, RGB = 4, 3
SAMPLE_ID_HEX_DIGITS = 16
"""Of a SHA-256: 8 bytes, so that an id fits a tensor of int64."""


@dataclass(frozen=True)
class ImageSet:
    """N images with what names them.

    images: (N, 3, S, S) uint8; ids: (N,) int64, see `sample_id`; keys: N names;
    labels: (N,) int64, or None when any sample has none; captions: of all N samples, or None.
    """

    images: Tensor
    ids: Tensor
    keys: list[str]
    labels: Tensor | None = None
    captions: Captions | None = None

    def __post_init__(self) -> None:
        shape = self.images.shape
        if self.images.dtype != torch.uint8 or self.images.ndim != IMAGE_DIMS or shape[1] != RGB:
            raise ValueError(f"images must be (N, 3, S, S) uint8, not {tuple(shape)}")
        counts = {len(self.images), len(self.ids), len(self.keys)}
        if self.labels is not None:
            counts.add(len(self.labels))
        if self.captions is not None:
            counts.add(len(self.captions))
        if len(counts) > 1:
            raise ValueError("images, ids, keys, labels and captions differ in length")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def image_size(self) -> int:
        """Height and width in pixels."""
        return int(self.images.shape[-1])

    def to(self, device: torch.device | str) -> "ImageSet":
        """The same set with its tensors on `device`."""
        labels = None if self.labels is None else self.labels.to(device)
        captions = None if self.captions is None else self.captions.to(device)
        return ImageSet(self.images.to(device), self.ids.to(device), self.keys, labels, captions)

    def subset(self, indices: Sequence[int] | Tensor) -> "ImageSet":
        """The samples at `indices`, in that order."""
        index = torch.as_tensor(indices, dtype=torch.int64, device=self.images.device)
        labels = None if self.labels is None else self.labels[index]
        captions = None if self.captions is None else self.captions.subset(index)
        keys = [self.keys[i] for i in index.tolist()]
        return ImageSet(self.images[index], self.ids[index], keys, labels, captions)

    @staticmethod
    def concat(sets: Sequence["ImageSet"]) -> "ImageSet":
        """All samples of `sets`, in order; labels and captions only if every set has them."""
        labels = [s.labels for s in sets if s.labels is not None]
        captions = [s.captions for s in sets if s.captions is not None]
        return ImageSet(
            images=torch.cat([s.images for s in sets]),
            ids=torch.cat([s.ids for s in sets]),
            keys=[key for s in sets for key in s.keys],
            labels=torch.cat(labels) if len(labels) == len(sets) else None,
            captions=Captions.concat(captions) if len(captions) == len(sets) else None,
        )


def sample_id(sha256_hex: str) -> int:
    """Signed 64-bit id from the first 8 bytes of an encoded image's SHA-256.

    Identifies a sample in MoCo's queue; the same bytes have the same id in every data set.
    """
    digest = bytes.fromhex(sha256_hex[:SAMPLE_ID_HEX_DIGITS])
    return int.from_bytes(digest, "big", signed=True)


def load_shards(
    paths: Sequence[Path],
    image_size: int,
    *,
    context_length: int | None = None,
    threads: int = DECODE_THREADS,
) -> ImageSet:
    """Decode every sample of WebDataset shards once, in shard order, to `image_size` pixels.

    Images of another size are resized on their shorter side and centre-cropped. `context_length`:
    tokens of a caption, where captions are wanted; they are left out if any sample has none.
    Raises ShardError for a broken shard, ValueError when there is no sample.
    """
    samples = list(chain.from_iterable(iter_samples(path) for path in paths))
    if not samples:
        raise ValueError("the shards hold no samples")
    labels = [sample.label for sample in samples if sample.label is not None]
    texts = [sample.caption for sample in samples if sample.caption and sample.caption.strip()]
    captioned = context_length is not None and len(texts) == len(samples)
    return ImageSet(
        images=decode_images(samples, image_size, threads=threads),
        ids=torch.tensor([sample_id(sample.sha256) for sample in samples], dtype=torch.int64),
        keys=[sample.key for sample in samples],
        labels=torch.tensor(labels, dtype=torch.int64) if len(labels) == len(samples) else None,
        captions=tokenise(texts, context_length) if captioned and context_length else None,
    )


def decode_images(
    samples: Sequence[Sample], image_size: int, *, threads: int = DECODE_THREADS
) -> Tensor:
    """(N, 3, S, S) uint8 pixels of N >= 1 samples, resized and cropped as by `load_shards`.

    Raises ShardError for an image that cannot be decoded.
    """

    def decode(sample: Sample) -> np.ndarray:
        return _square(decode_image(sample.image, sample.suffix), image_size)

    with ThreadPoolExecutor(threads) as pool:
        pixels = np.stack(list(pool.map(decode, samples)))
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()


def load_for(spec: EncoderSpec, paths: Sequence[Path]) -> ImageSet:
    """`load_shards` with the image size, and the captions, that encoders of `spec` take."""
    objective = spec.objective
    context = objective.context_length if isinstance(objective, CLIP) else None
    return load_shards(paths, spec.image_size, context_length=context)


def _square(image: Image.Image, size: int) -> np.ndarray:
    if image.size != (size, size):
        shorter = min(image.size)
        width, height = (max(size, round(side * size / shorter)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
        left, top = (width - size) // 2, (height - size) // 2
        image = image.crop((left, top, left + size, top + size))
    return np.asarray(image, dtype=np.uint8)
