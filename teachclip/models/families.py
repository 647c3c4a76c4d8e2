"""The supported families of dual encoders in transformers, and what differs between them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from transformers import PreTrainedConfig

from teachclip.errors import CheckpointError
from teachclip.models.pooled_text import PooledTextConfig


@dataclass(frozen=True)
class Family:
    """Properties of a family of dual encoders that are not in its configuration.

    name: its usual name.
    text: how the text encoder treats padding. `causal`: it reads one token and nothing after it, so padding and mask
        have no effect. `masked`: attention is bidirectional and needs the mask. `full`: trained on captions padded to
        the full length, without a mask.
    offset: rows of the text position embedding that no token uses.
    """

    name: str
    text: Literal["causal", "masked", "full"]
    offset: int = 0


FAMILIES = {
    "clip": Family("CLIP", "causal"),
    "metaclip_2": Family("MetaCLIP 2", "causal"),
    "siglip": Family("SigLIP", "full"),
    "siglip2": Family("SigLIP 2", "full"),
    "align": Family("ALIGN", "masked"),
    "altclip": Family("AltCLIP", "masked", offset=2),  # RoBERTa counts positions from the padding token's id on
    "chinese_clip": Family("Chinese-CLIP", "masked"),
    "vision-text-dual-encoder": Family("CLIP with another text encoder", "masked"),
}
"""The families by the `model_type` of their configuration."""


COUNTS_FROM_PADDING = ("roberta", "xlm-roberta", "camembert", "xlm-roberta-xl", "mpnet")
"""Text encoders whose first position is that behind the padding token's id."""


def family_of(config: PreTrainedConfig, *, source: str = "configuration") -> Family:
    """Return the family of a dual encoder's configuration. Raises CheckpointError, with a list, for any other."""
    family = FAMILIES.get(config.model_type)
    if family is None:
        known = ", ".join(f"{known.name} ({key})" for key, known in FAMILIES.items())
        raise CheckpointError(f"{source}: model type {config.model_type!r} is not supported; known: {known}")
    return family


def joint_width(config: PreTrainedConfig) -> int:
    """Return the width of the joint space of texts and images."""
    if family_of(config).text != "full":
        return int(_of(config, "projection_dim"))
    text, vision = (
        int(_of(config.text_config, "projection_size") or 0),  # SigLIP has no projection of images
        int(_of(config.vision_config, "hidden_size")),
    )
    if text not in (0, vision):
        raise CheckpointError(
            f"configuration: texts are {text} wide and images {vision}, so they have no joint space"
        )
    return vision


def image_size(config: PreTrainedConfig) -> int:
    """Return the height and width of the images, in pixels, that the weights were trained with."""
    vision = config.vision_config
    if config.model_type == "siglip2":  # NaFlex: any rectangle of at most so many patches; here the square
        return math.isqrt(int(_of(vision, "num_patches"))) * int(_of(vision, "patch_size"))
    return int(_of(vision, "image_size"))


def takes_any_size(config: PreTrainedConfig) -> bool:
    """Return whether images of another size than `image_size` fit: ALIGN's encoder is a convolutional network."""
    return config.model_type == "align"


def text_positions(config: PreTrainedConfig) -> int:
    """Return the largest number of tokens of a text."""
    text, offset = config.text_config, family_of(config).offset
    inner = text.encoder if isinstance(text, PooledTextConfig) else text
    if config.model_type == "vision-text-dual-encoder" and inner.model_type in COUNTS_FROM_PADDING:
        offset = int(_of(inner, "pad_token_id")) + 1
    return int(_of(text, "max_position_embeddings")) - offset


def vocabulary_size(config: PreTrainedConfig) -> int:
    """Return the number of rows of the token embedding."""
    return int(_of(config.text_config, "vocab_size"))


def full_length(config: PreTrainedConfig) -> int | None:
    """Return the length that every text is padded to, or None if texts are padded to the longest of a batch."""
    return text_positions(config) if family_of(config).text == "full" else None


def _of(config: Any, name: str) -> Any:
    """Return a value of a configuration; type checkers do not know its attributes."""
    return getattr(config, name)
