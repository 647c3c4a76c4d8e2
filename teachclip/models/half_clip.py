"""CLIP with linear weights in float16, as the official runs of the CLIP4Clip family train it.

With the published optimizer this is not only a matter of memory: it determines how far CLIP moves. See `BertAdam`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPModel


class Float32LayerNorm(nn.LayerNorm):
    """A layer norm that computes in float32 and returns the dtype of its input.

    The one of torch accepts float16 activations with float32 weights on the CPU only.
    """

    def forward(self, hidden: Tensor) -> Tensor:
        """Normalise `hidden` (..., width)."""
        bias = None if self.bias is None else self.bias.float()
        normed = F.layer_norm(hidden.float(), self.normalized_shape, self.weight.float(), bias, self.eps)
        return normed.to(hidden.dtype)


def use_float16_weights(clip: CLIPModel) -> None:
    """Convert the weights and biases of all linear layers and convolutions of a CLIP to float16, in place.

    These are exactly what the official code converts (OpenAI's `convert_weights`): the attention projections, the
    MLPs, the patch embedding and both joint projections. Norms, embeddings, positions, the class embedding and the
    logit scale stay float32. Activations inside the encoders are float16; norms compute in float32; features leave
    the projections as float32. The parameters stay the same objects, so freezing and parameter groups remain valid.

    `clip.float()` reverts it: everything here follows the dtype of the weights.
    """
    clip.vision_model.embeddings.register_forward_hook(_cast_from_embeddings)
    clip.text_model.encoder.layers[0].register_forward_pre_hook(_cast_to_layer)
    for projection in (clip.text_projection, clip.visual_projection):
        projection.register_forward_pre_hook(_cast_to_weights)
        projection.register_forward_hook(_cast_to_float32)
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


# Hooks are plain functions that read the dtype of their module, so that they also work in a copy of the model.
# Embeddings are float32 because of their positions; what follows has the dtype of the linear weights.


def _cast_from_embeddings(embeddings: Any, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    return output.to(embeddings.patch_embedding.weight.dtype)


def _cast_to_layer(layer: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return (inputs[0].to(layer.mlp.fc1.weight.dtype), *inputs[1:])


def _cast_to_weights(linear: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return (inputs[0].to(linear.weight.dtype),)


def _cast_to_float32(linear: Any, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    return output.float()
