"""Low-rank adaptation of a student's encoders: LoRA (Hu et al., ICLR 2022), by peft."""

from __future__ import annotations

import logging
import re

import torch

from teachclip.errors import RecipeError
from teachclip.models.backbone import SCALE_PARAMETERS
from teachclip.models.student import StudentModel

logger = logging.getLogger(__name__)

TARGETS = r".*\.(q_proj|v_proj|query|value|q_lin|v_lin|q|v)"
"""The matrices that get a correction: queries and values of attention, as in the paper (section 4.2, table 5).

By their names in CLIP and SigLIP, BERT, DistilBERT, and MPNet.
"""
HALVES = ("text_model", "vision_model")


def insert_lora(student: StudentModel, *, rank: int, seed: int) -> None:
    """Put B A beside the query and value matrices W of a student's encoders, and train these and the logit scale.

    W + B A stands for W, with A (rank, in) random by `seed` and B (out, rank) zero: the student starts where it was.
    An encoder without such matrices, as ALIGN's of images, stays frozen, which is logged. Raises RecipeError if peft
    is not installed or no encoder has any.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise RecipeError("train.encoders=lora needs peft: pip install 'teachclip[lora]'") from error
    torch.manual_seed(seed)
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=TARGETS, lora_dropout=0.0)
    kind = student.backbone.config.model_type
    names = [name for name, _ in student.backbone.named_modules() if re.fullmatch(TARGETS, name)]
    if not names:
        raise RecipeError(f"train.encoders=lora: found no attention matrices in a {kind} backbone")
    for half in HALVES:
        if not any(name.startswith(f"{half}.") for name in names):
            logger.warning("train.encoders=lora: no attention matrices in the %s of %s: it stays frozen", half, kind)
    inject_adapter_in_model(config, student.backbone)
    for name, parameter in student.backbone.named_parameters():
        parameter.requires_grad_("lora_" in name or name in SCALE_PARAMETERS)


@torch.no_grad()
def merge_lora(student: StudentModel) -> None:
    """Replace every W beside which `insert_lora` put a correction by W + B A, so that nothing of peft is left."""
    from peft.tuners.lora import LoraLayer

    for name, layer in list(student.backbone.named_modules()):
        if isinstance(layer, LoraLayer):
            layer.merge()
            parent, _, attribute = name.rpartition(".")
            setattr(student.backbone.get_submodule(parent), attribute, layer.get_base_layer())
    if hasattr(student.backbone, "peft_config"):
        del student.backbone.peft_config
