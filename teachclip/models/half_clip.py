"""CLIP with linear weights in float16, as the official runs of the CLIP4Clip family train it.

With the published optimizer this is no matter of memory: it decides how far CLIP moves. See `BertAdam`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPModel


class Float32LayerNorm(nn.LayerNorm):
    """A layer norm that computes in float32 and returns the type of its input.

    torch's own takes float16 activations with float32 weights on the CPU only.
    """

    def forward(self, hidden: Tensor) -> Tensor:
        """Normalise `hidden` (..., width)."""
        bias = None if self.bias is None else self.bias.float()
        normed = F.layer_norm(hidden.float(), self.normalized_shape, self.weight.float(), bias, self.eps)
        return normed.to(hidden.dtype)


def use_float16_weights(clip: CLIPModel) -> None:
    """Turn the weights and biases of all linear maps and convolutions of a CLIP to float16, in place.

    These are exactly what the official code converts (OpenAI's `convert_weights`): the attention projections, the
    MLPs, the patch embedding and both joint projections. Norms, embeddings, positions, the class embedding and the
    logit scale stay float32. Activations inside the encoders are float16; norms compute in float32; features leave
    the projections as float32. The parameters stay the same objects, so freezing and parameter groups hold.

    `clip.float()` undoes it: everything here follows the type that the weights have.
    """
    clip.vision_model.embeddings.register_forward_hook(_leave_embeddings)
    clip.text_model.encoder.layers[0].register_forward_pre_hook(_enter_layers)
    for projection in (clip.text_projection, clip.visual_projection):
        projection.register_forward_pre_hook(_take_weights_type)
        projection.register_forward_hook(_leave_in_float32)
    for module in list(clip.modules()):
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.half()
        for name, child in module.named_children():
            if type(child) is nn.LayerNorm:
                setattr(module, name, _float32_norm(child))


def _float32_norm(norm: nn.LayerNorm) -> Float32LayerNorm:
    """Return a norm with the same parameters."""
    with torch.device("meta"):
        result = Float32LayerNorm(norm.normalized_shape, eps=norm.eps, bias=norm.bias is not None)
    result.weight, result.bias = norm.weight, norm.bias
    return result.train(norm.training)


# Hooks are plain functions that read types off their module, so that a copy of the model has its own. Embeddings are
# float32 by their positions; what follows them takes the type of the linear weights.


def _leave_embeddings(embeddings: Any, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    return output.to(embeddings.patch_embedding.weight.dtype)


def _enter_layers(layer: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return (inputs[0].to(layer.mlp.fc1.weight.dtype), *inputs[1:])


def _take_weights_type(linear: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return (inputs[0].to(linear.weight.dtype),)


def _leave_in_float32(linear: Any, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    return output.float()
