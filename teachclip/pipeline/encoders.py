"""Which weights of the encoders of a student or teacher train, in which precision, and how fast."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import nn
from transformers import CLIPModel, PreTrainedModel

from teachclip.errors import RecipeError
from teachclip.models.backbone import SCALE_PARAMETERS
from teachclip.models.half_clip import use_float16_weights
from teachclip.models.student import StudentModel
from teachclip.pipeline.lora import insert_lora
from teachclip.recipe.schema import Recipe, Teacher, Train
from teachclip.scorer import teacher_traits
from teachclip.training.optim import encoder_prefix, freeze_clip_inputs

log = logging.getLogger(__name__)


def check_clip(clip: nn.Module, backbone: nn.Module, section: Teacher) -> None:
    """Raise RecipeError unless a teacher's encoders and the student's are both a CLIP's: they read the same data."""
    for what, found in (("teachers.training.clip", clip), ("student.backbone", backbone)):
        if not isinstance(found, CLIPModel):
            raise RecipeError(
                f"teacher {section.label!r} is trained on a CLIP and its tokens; {what} is a "
                f"{type(found).__name__}: train it by a recipe whose student stands on that CLIP"
            )


def encoders_of(model: nn.Module) -> nn.Module | None:
    """Return the dual encoder inside a model: a student's backbone, a teacher's CLIP."""
    return model.backbone if isinstance(model, StudentModel) else teacher_traits(model).clip


def read_as_saved(student: Any) -> None:
    """Have a loaded student read tokens and pixels as its processor says; without one it reads as the recipe says."""
    if student.processor is not None:
        student.preprocessing = student.processor.preprocessing


def prepare_encoders(student: StudentModel, recipe: Recipe) -> None:
    """Have a student's encoders train as `train` of a recipe says: which weights, and in which precision."""
    train = recipe.train
    if train.encoders == "lora":
        insert_lora(student, rank=train.lora_rank, seed=recipe.seed)
    else:
        freeze(student, encoders=train.encoders)
    set_clip_weights(student, train.clip_weights)


def freeze(model: nn.Module, *, encoders: str) -> None:
    """Freeze what does not train: both encoders, or as published only their inputs. The logit scale always trains."""
    if encoders == "finetuned":
        names = freeze_clip_inputs(model)
        if not isinstance(encoders_of(model), CLIPModel):
            log.info("frozen, as the published runs freeze CLIP's inputs: %s", ", ".join(names))
        return
    prefix = encoder_prefix(model)
    for name, parameter in model.named_parameters():
        if name.startswith(prefix) and name.removeprefix(prefix) not in SCALE_PARAMETERS:
            parameter.requires_grad_(False)


def set_clip_weights(model: nn.Module, clip_weights: str) -> None:
    """Give the CLIP of a student or teacher the weights of `train.clip_weights`: `float32` or `float16`.

    Raises RecipeError if float16 is asked for and the encoders are not a CLIP's.
    """
    if clip_weights == "float32":
        return
    encoders = encoders_of(model)
    if not isinstance(encoders, CLIPModel):
        raise RecipeError(
            f"train.clip_weights=float16 is for CLIP's encoders, these are of a {type(encoders).__name__}"
        )
    if not torch.cuda.is_available():
        log.warning("train.clip_weights=float16: a CPU computes in float16 about ten times as slowly as in float32")
    use_float16_weights(encoders)


def speed_up(model: nn.Module, train: Train, *, backend: str = "inductor") -> None:
    """Compile the encoders of a student or teacher, or have them compute activations again, as `train` says.

    Weights keep their names. `backend`: of torch.compile.
    """
    encoders = encoders_of(model)
    if train.activation_checkpointing and isinstance(encoders, PreTrainedModel):
        encoders.activation_checkpointing_enable({"use_reentrant": False})
    if train.compile and encoders is not None:
        for name in ("text_model", "vision_model"):
            getattr(encoders, name).compile(backend=backend)
