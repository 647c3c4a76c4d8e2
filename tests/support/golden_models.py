"""Weights and inputs of the golden models as tensors."""

from __future__ import annotations

from typing import Any

import torch
from golden import golden_inputs, golden_weight
from torch import Tensor


def golden_state(info: dict[str, Any]) -> dict[str, Tensor]:
    """The official state dict that a golden was recorded with."""
    return rule_state(info["manifest"], info["weight_seed"])


def rule_state(shapes: dict[str, Any], seed: int) -> dict[str, Tensor]:
    """Weights by the goldens' rule for names and shapes."""
    return {key: torch.as_tensor(golden_weight(key, tuple(shape), seed)) for key, shape in shapes.items()}


def golden_batch(info: dict[str, Any], kind: str) -> dict[str, Tensor]:
    """The recorded inputs, `full` or `pad`."""
    config = info["config"]
    arrays = golden_inputs(
        info["input_seed"],
        batch=config["B"],
        frames=config["F"],
        size=config["R"],
        tokens=config["W"],
        n_valid=info["n_valid"] if kind == "pad" else None,
    )
    return {key: torch.from_numpy(array) for key, array in arrays.items()}


def openai_clip_shapes(
    *, width: int, layers: int, patch: int, grid: int, text_width: int, text_layers: int, vocabulary: int = 49408
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of an OpenAI CLIP whose joint space is as wide as its text encoder."""

    def blocks(prefix: str, count: int, wide: int) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {}
        for number in range(count):
            stem = f"{prefix}transformer.resblocks.{number}."
            shapes |= {
                f"{stem}attn.in_proj_weight": (3 * wide, wide),
                f"{stem}attn.in_proj_bias": (3 * wide,),
                f"{stem}attn.out_proj.weight": (wide, wide),
                f"{stem}attn.out_proj.bias": (wide,),
                f"{stem}mlp.c_fc.weight": (4 * wide, wide),
                f"{stem}mlp.c_fc.bias": (4 * wide,),
                f"{stem}mlp.c_proj.weight": (wide, 4 * wide),
                f"{stem}mlp.c_proj.bias": (wide,),
            }
            shapes |= {f"{stem}{norm}.{kind}": (wide,) for norm in ("ln_1", "ln_2") for kind in ("weight", "bias")}
        return shapes

    shapes = {
        "positional_embedding": (77, text_width),
        "text_projection": (text_width, text_width),
        "logit_scale": (),
        "visual.class_embedding": (width,),
        "visual.positional_embedding": (grid * grid + 1, width),
        "visual.proj": (width, text_width),
        "visual.conv1.weight": (width, 3, patch, patch),
        "token_embedding.weight": (vocabulary, text_width),
        "ln_final.weight": (text_width,),
        "ln_final.bias": (text_width,),
    }
    shapes |= {f"visual.{norm}.{kind}": (width,) for norm in ("ln_pre", "ln_post") for kind in ("weight", "bias")}
    return shapes | blocks("visual.", layers, width) | blocks("", text_layers, text_width)


def student_shapes(clip: dict[str, tuple[int, ...]], *, layers: int = 4) -> dict[str, tuple[int, ...]]:
    """Names and shapes of an official student on a CLIP."""
    width = clip["text_projection"][1]
    shapes = {f"clip.{key}": shape for key, shape in clip.items()}
    for key, shape in clip.items():
        if key.startswith("transformer.resblocks.0."):
            for number in range(layers):
                shapes[key.replace("transformer.resblocks.0.", f"transformerClip.resblocks.{number}.")] = shape
    return shapes | {
        "frame_position_embeddings.weight": clip["positional_embedding"],
        "frameLinear.weight": (width, width),
        "frameLinear.bias": (width,),
        "frameLinear2.weight": (1, width),
        "frameLinear2.bias": (1,),
    }
