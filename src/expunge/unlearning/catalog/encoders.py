"""Encoder specifications: framework, network, image size, normalisation. Never names weights."""

import json
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from expunge.unlearning.catalog.strict import Strict

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
FULL_WIDTH = 64
"""Channels of the first residual stage in the published ResNets."""

SMALL_CLIP = "expunge-small"
"""Our own configuration: about 12.7 million weights, most of them in the token embedding."""
SMALL_PATCH = 8
"""Pixels a side of its image patches."""
RESIDUAL_STRIDE = 32
"""Pixels that CLIP's residual towers make one of."""

Framework = Literal["simclr", "moco", "byol", "clip", "supervised"]
Temperature = Annotated[float, Field(gt=0, le=10, description="Divides every cosine similarity.")]
ProjectorDim = Annotated[int, Field(ge=2, le=4096, description="Dimensions of a projection.")]


class SimCLR(Strict):
    """NT-Xent over the 2B views of a batch; two-layer projector with batch norm."""

    framework: Literal["simclr"] = "simclr"
    temperature: Temperature = 0.5
    projector_hidden: int = Field(
        default=512, ge=2, le=8192, description="Hidden units of the projector."
    )
    projector_dim: ProjectorDim = 128


class MoCo(Strict):
    """InfoNCE against a queue of keys from a momentum encoder; linear projector."""

    framework: Literal["moco"] = "moco"
    temperature: Temperature = 0.1
    projector_dim: ProjectorDim = 128
    queue_size: int = Field(default=4096, ge=1, le=1_048_576, description="Keys kept as negatives.")
    key_momentum: float = Field(
        default=0.99, ge=0, lt=1, description="Share of the key encoder kept at each step."
    )
    bn_splits: int = Field(
        default=1,
        ge=1,
        le=64,
        description="Groups a batch is split into for batch norm; the paper's code uses 8.",
    )


class BYOL(Strict):
    """Regression of a momentum encoder's projection of another view; no negatives at all."""

    framework: Literal["byol"] = "byol"
    hidden: int = Field(
        default=512, ge=2, le=8192, description="Hidden units of projector and predictor."
    )
    projector_dim: ProjectorDim = 128
    target_momentum: float = Field(
        default=0.996,
        ge=0,
        lt=1,
        description="Share of the target encoder kept at a run's first step; it rises to 1 along a "
        "cosine, as in the BYOL paper.",
    )


class CLIP(Strict):
    """Symmetric InfoNCE over image-caption pairs with a learned temperature."""

    framework: Literal["clip"] = "clip"
    context_length: int = Field(
        default=77, ge=4, le=256, description="Tokens of a caption; longer ones are cut."
    )


class Supervised(Strict):
    """Cross-entropy over classes, as a point of reference; the classifier is part of it."""

    framework: Literal["supervised"] = "supervised"
    classes: int = Field(default=10, ge=2, le=100_000, description="Labels are 0 to classes - 1.")


class Architecture(Strict):
    """A residual network. Only `resnet18_cifar` has a free width."""

    name: Literal["resnet18_cifar", "resnet18", "resnet34", "resnet50"] = "resnet18_cifar"
    width: int = Field(
        default=FULL_WIDTH, ge=4, le=256, description="Channels of the first residual stage."
    )

    @model_validator(mode="after")
    def _fixed_width(self) -> Self:
        if self.name != "resnet18_cifar" and self.width != FULL_WIDTH:
            raise ValueError(f"{self.name} has width {FULL_WIDTH}; only resnet18_cifar may differ")
        return self


class OpenClip(Strict):
    """The two towers of CLIP, by the name of an open_clip configuration."""

    name: Literal["open_clip"] = "open_clip"
    model: str = Field(
        default=SMALL_CLIP,
        pattern=r"^[A-Za-z0-9._-]{1,80}$",
        description=f"A configuration of open_clip, such as ViT-B-32, or {SMALL_CLIP}: four layers "
        "of 192 units over patches of 8 pixels, three for text. Weights are never downloaded.",
    )

    @model_validator(mode="after")
    def _known(self) -> Self:
        known = clip_configurations()
        if known and self.model not in known:
            raise ValueError(
                f"unknown open_clip configuration {self.model!r}, or one whose text tower or "
                f"tokenizer would have to be downloaded; known: {', '.join(sorted(known))}"
            )
        return self


def patch_pixels(model: str) -> int:
    """Pixels a side that CLIP's image tower makes one token of; 1 where any image size will do.

    `model` is one of `clip_configurations`; towers that are timm's are left to timm.
    """
    if model == SMALL_CLIP:
        return SMALL_PATCH
    folder = _configuration_folder()
    path = None if folder is None else folder / f"{model}.json"
    if path is None or not path.exists():
        return 1
    tower: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["vision_cfg"]
    if isinstance(tower.get("layers"), list):
        return RESIDUAL_STRIDE
    return int(tower.get("patch_size", 1))


def _configuration_folder() -> Path | None:
    package = find_spec("open_clip")
    if package is None or not package.submodule_search_locations:
        return None
    return Path(package.submodule_search_locations[0]) / "model_configs"


@cache
def clip_configurations() -> frozenset[str]:
    """Names that `OpenClip.model` may have; empty where open_clip is not installed.

    Reads open_clip's JSON files without importing it, which would import torch.
    """
    folder = _configuration_folder()
    if folder is None:
        return frozenset()
    names = (path.stem for path in folder.glob("*.json") if _stands_alone(path))
    return frozenset({SMALL_CLIP, *names})


def _stands_alone(configuration: Path) -> bool:
    """Whether the plain tokenizer and open_clip's own text tower make it, and no decoder."""
    content: dict[str, Any] = json.loads(configuration.read_text(encoding="utf-8"))
    text = content.get("text_cfg", {})
    foreign = ("hf_model_name", "hf_tokenizer_name", "tokenizer_mode")
    return "multimodal_cfg" not in content and not any(text.get(key) for key in foreign)


Channels = Annotated[tuple[float, float, float], Field(strict=False)]


class EncoderSpec(Strict):
    """Everything needed to build a learner but its weights."""

    objective: Annotated[SimCLR | MoCo | BYOL | CLIP | Supervised, Field(discriminator="framework")]
    architecture: Annotated[Architecture | OpenClip, Field(discriminator="name")] = Architecture()
    image_size: int = Field(default=32, ge=16, le=512, description="Height and width in pixels.")
    mean: Channels = Field(default=IMAGENET_MEAN, description="Subtracted per channel, of [0, 1].")
    std: Channels = Field(default=IMAGENET_STD, description="Divided by per channel, of [0, 1].")

    @model_validator(mode="after")
    def _positive_std(self) -> Self:
        if min(self.std) <= 0:
            raise ValueError("std must be positive in every channel")
        return self

    @model_validator(mode="before")
    @classmethod
    def _architecture_by_default(cls, data: Any) -> Any:
        """Without a name, CLIP gets open_clip's towers and every other framework a ResNet-18."""
        if not isinstance(data, dict):
            return data
        objective, architecture = data.get("objective"), data.get("architecture", {})
        if not isinstance(architecture, dict) or "name" in architecture:
            return data
        framework = objective.get("framework") if isinstance(objective, dict) else None
        paired = framework == "clip" or isinstance(objective, CLIP)
        name = "open_clip" if paired else "resnet18_cifar"
        return {**data, "architecture": {"name": name, **architecture}}

    @model_validator(mode="after")
    def _towers_only_for_clip(self) -> Self:
        if isinstance(self.objective, CLIP) != isinstance(self.architecture, OpenClip):
            raise ValueError(
                f"framework {self.framework!r} does not go with architecture "
                f"{self.architecture.name!r}: open_clip is for clip, and nothing else is"
            )
        return self

    @model_validator(mode="after")
    def _whole_patches(self) -> Self:
        if isinstance(self.architecture, OpenClip):
            patch = patch_pixels(self.architecture.model)
            if self.image_size % patch:
                raise ValueError(
                    f"{self.architecture.model} takes images in patches of {patch} pixels: "
                    f"image_size {self.image_size} is not a multiple of that"
                )
        return self

    @property
    def framework(self) -> Framework:
        """Id of the framework."""
        return self.objective.framework

    @property
    def pairing(self) -> Literal["view", "caption", "label"]:
        """What an image's objective pairs it with: another view, a caption or its label."""
        match self.objective:
            case CLIP():
                return "caption"
            case Supervised():
                return "label"
            case _:
                return "view"

    @property
    def augmentation(self) -> Literal["contrastive", "flip", "crop_and_flip"]:
        """How images are varied in training."""
        match self.objective:
            case CLIP():
                return "flip"
            case Supervised():
                return "crop_and_flip"
            case _:
                return "contrastive"
