"""What a recipe asks of the towers of a student or teacher: which of their weights train, and in which precision."""

from __future__ import annotations

import logging
from typing import Any

from torch import nn
from transformers import CLIPModel

from teachclip.errors import RecipeError
from teachclip.models.backbone import SCALE_PARAMETERS
from teachclip.models.half_clip import use_float16_weights
from teachclip.recipe.schema import Teacher
from teachclip.training.optim import freeze_clip_inputs, tower_prefix

log = logging.getLogger(__name__)


def check_clip(clip: nn.Module, backbone: nn.Module, section: Teacher) -> None:
    """Raise RecipeError unless a teacher's towers and the student's are both a CLIP's: they read the same data."""
    for what, found in (("teachers.training.clip", clip), ("student.backbone", backbone)):
        if not isinstance(found, CLIPModel):
            raise RecipeError(
                f"teacher {section.label!r} is trained on a CLIP and its tokens; {what} is a "
                f"{type(found).__name__}: train it by a recipe whose student stands on that CLIP"
            )


def freeze(model: nn.Module, *, towers: str) -> None:
    """Freeze what does not train: both towers, or as published only their inputs. The logit scale always trains."""
    if towers == "tuned":
        names = freeze_clip_inputs(model)
        if not isinstance(getattr(model, "backbone", None) or model.clip, CLIPModel):
            log.info("frozen, as the published runs freeze CLIP's inputs: %s", ", ".join(names))
        return
    prefix = tower_prefix(model)
    for name, parameter in model.named_parameters():
        if name.startswith(prefix) and name.removeprefix(prefix) not in SCALE_PARAMETERS:
            parameter.requires_grad_(False)


def set_clip_weights(model: Any, clip_weights: str) -> None:
    """Give the CLIP of a student or teacher the weights of `train.clip_weights`: `float32` or `float16`.

    Raises RecipeError if float16 is asked for and the towers are not a CLIP's.
    """
    if clip_weights == "float32":
        return
    towers = model.backbone if hasattr(model, "backbone") else model.clip
    if not isinstance(towers, CLIPModel):
        raise RecipeError(f"train.clip_weights=float16 is for CLIP's towers, these are of a {type(towers).__name__}")
    use_float16_weights(towers)
