"""CLIP: symmetric InfoNCE over image-caption pairs (Radford et al. 2021, arXiv 2103.00020).

Both towers are open_clip's. Never downloads weights, configurations or tokenizers.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.unlearning import catalog
from expunge.unlearning.catalog import SMALL_CLIP, EncoderSpec
from expunge.unlearning.catalog.encoders import SMALL_PATCH
from expunge.unlearning.frameworks.base import Contrast, Learner

MAX_LOG_SCALE = math.log(100)
"""Of the learned inverse temperature, as in the CLIP paper."""
INITIAL_LOG_SCALE = math.log(1 / 0.07)
SMALL_WIDTH, SMALL_HEADS = 192, 3
SMALL_IMAGE_LAYERS, SMALL_TEXT_LAYERS = 4, 3
VOCABULARY = 49_408
"""Byte pairs of CLIP's tokenizer."""


def pair_terms(image: Tensor, text: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Alignment and log-partition, each (2, B), of (B, D) L2-normalised images and texts.

    Row 0 has images as anchors, their partition runs over all texts of the batch; row 1 has texts
    as anchors, theirs runs over all images. scale: scalar 1/T.
    """
    logits = scale * image @ text.T
    alignment = scale * (image * text).sum(dim=1)
    log_partition = torch.stack([logits.logsumexp(dim=1), logits.logsumexp(dim=0)])
    return alignment.expand(2, -1), log_partition


class CLIP(Learner):
    """Image tower (the encoder), text tower, and the learned inverse temperature."""

    def __init__(self, spec: EncoderSpec, objective: catalog.CLIP) -> None:
        super().__init__()
        self.spec = spec
        self.encoder, self.text_encoder = _towers(spec, objective.context_length)
        self.projector = nn.Identity()
        self.log_scale = nn.Parameter(torch.tensor(INITIAL_LOG_SCALE))

    @property
    def towers(self) -> list[nn.Module]:
        """Images' and captions'."""
        return [self.encoder, self.text_encoder]

    @property
    def contrasts_within_batch(self) -> bool:
        """Negatives are the batch's other captions and images."""
        return True

    def text_features(self, tokens: Tensor) -> Tensor:
        """(B, F) float32 text tower outputs, L2-normalised, of (B, L) int64 tokens."""
        return F.normalize(self.text_encoder(tokens).float(), dim=1)

    def contrast(
        self, first: Tensor, second: Tensor, second_ids: Tensor, third: Tensor | None = None
    ) -> Contrast:
        """InfoNCE terms of both directions.

        A positive pair is an image with its caption, negative pairs are the image with the captions
        of the batch's other samples and the other way round. second and third: (B, L) and (n, L)
        int64 tokens; gradients flow through both towers.
        """
        del second_ids
        image = self.projections(first)
        text = self.text_features(second if third is None else torch.cat([second, third]))
        with torch.autocast(image.device.type, enabled=False):
            paired, own = text.tensor_split([len(second)])
            alignment, log_partition = pair_terms(image, paired, self.log_scale.exp())
            cosine = None if third is None else (image[len(image) - len(own) :] * own).sum(dim=1)
        return Contrast(alignment, log_partition, cosine)

    @torch.no_grad()
    def advance(self, progress: float) -> None:
        """Keep the temperature at 0.01 or above."""
        del progress
        self.log_scale.clamp_(max=MAX_LOG_SCALE)


def _towers(spec: EncoderSpec, context_length: int) -> tuple[nn.Module, nn.Module]:
    # Imported here: it takes seconds, and only CLIP needs it.
    import open_clip  # noqa: PLC0415

    name = getattr(spec.architecture, "model", SMALL_CLIP)
    config: dict[str, Any] = (
        _small() if name == SMALL_CLIP else dict(open_clip.get_model_config(name))
    )
    network = open_clip.CustomTextCLIP(
        embed_dim=config["embed_dim"],
        vision_cfg={**config["vision_cfg"], "image_size": spec.image_size},
        text_cfg={**config["text_cfg"], "context_length": context_length},
        quick_gelu=config.get("quick_gelu", False),
    )
    return network.visual, network.text


def _small() -> dict[str, Any]:
    return {
        "embed_dim": SMALL_WIDTH,
        "vision_cfg": {
            "layers": SMALL_IMAGE_LAYERS,
            "width": SMALL_WIDTH,
            "head_width": SMALL_WIDTH // SMALL_HEADS,
            "patch_size": SMALL_PATCH,
        },
        "text_cfg": {
            "vocab_size": VOCABULARY,
            "width": SMALL_WIDTH,
            "heads": SMALL_HEADS,
            "layers": SMALL_TEXT_LAYERS,
        },
    }
