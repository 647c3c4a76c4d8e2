"""Any dual encoder of transformers as a teacher: what it says of single frames, averaged over a video.

Mean pooling as in CLIP4Clip (Luo et al. 2021, section 3.3); a larger or newer model than the student's often teaches
well without any training on videos. No paper defines its frame relevance: it is read off the same cosines.
"""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from teachclip.errors import CheckpointError
from teachclip.models.backbone import frame_features, load_backbone, logits_of, scale_and_bias, text_features
from teachclip.models.frame_attention import complete_mask, frame_text_relevance
from teachclip.models.preprocessing import Preprocessing, load_preprocessing
from teachclip.scorer import Tokens

POOLINGS = ("mean", "max")


class DualEncoder(nn.Module):
    """A dual encoder over frames.

    backbone: a model of one of `teachclip.models.families.FAMILIES`.
    preprocessing: how its texts and pictures are prepared, which may differ from the student's; None: unknown.
    mask_padding: padded frames take no part; False takes them for pictures.
    pooling: `mean`, or `max`: a video is as close to a text as its closest frame (late interaction), which needs
        every frame, so a student of the same backbone has something to learn from it.
    """

    def __init__(
        self,
        backbone: Any,
        *,
        preprocessing: Preprocessing | None = None,
        mask_padding: bool = True,
        pooling: str = "mean",
    ) -> None:
        super().__init__()
        if pooling not in POOLINGS:
            raise CheckpointError(f"dual_encoder: pooling is {pooling!r}; allowed: {', '.join(POOLINGS)}")
        self.pooling = pooling
        self.backbone = backbone
        self.preprocessing = preprocessing
        self.mask_padding = mask_padding

    @classmethod
    def from_source(
        cls,
        checkpoint: str | os.PathLike[str],
        *,
        mask_padding: bool = True,
        trust_remote_code: bool = False,
        pooling: str = "mean",
    ) -> DualEncoder:
        """Load a model with its tokenizer and image settings from a hub id or a folder.

        `trust_remote_code`: run the Python code that its tokenizer brings, if any; otherwise it is refused. Raises
        CheckpointError if it is of no supported family, incomplete, or has no tokenizer, or for another `pooling`
        than those of the class.
        """
        backbone = load_backbone(checkpoint)
        how = load_preprocessing(checkpoint, backbone.config, trust_remote_code=trust_remote_code)
        return cls(backbone, preprocessing=how, mask_padding=mask_padding, pooling=pooling)

    # The scorer interface

    def texts_from_features(self, text_features: Tensor) -> Tokens:
        """Return {"sentence": (texts, dim)}, L2-normalised."""
        return {"sentence": F.normalize(text_features.float(), dim=-1)}

    def videos_from_features(self, frame_features: Tensor, frame_mask: Tensor) -> Tokens:
        """Return {"frames": (videos, frames, dim), "mask": (videos, frames) bool}; frames L2-normalised."""
        return {
            "frames": F.normalize(frame_features.float(), dim=-1),
            "mask": complete_mask(frame_mask, frame_features),
        }

    def encode_texts(self, input_ids: Tensor, attention_mask: Tensor) -> Tokens:
        """Encode texts (texts, tokens); see `texts_from_features`."""
        return self.texts_from_features(text_features(self.backbone, input_ids, attention_mask))

    def encode_videos(self, pixel_values: Tensor, frame_mask: Tensor) -> Tokens:
        """Encode videos (videos, frames, 3, height, width); see `videos_from_features`."""
        return self.videos_from_features(frame_features(self.backbone, pixel_values), frame_mask)

    def score(self, texts: Tokens, videos: Tokens) -> Tensor:
        """Return the model's own logits of each text and each video's mean or closest frame (texts, videos), float32.

        exp(scale) cos(t, mean_f N(f)) or exp(scale) max_f cos(t, f), plus SigLIP's bias.
        """
        with torch.autocast(texts["sentence"].device.type, enabled=False):
            if self.pooling == "max":
                cosines = torch.einsum("td,vfd->tvf", texts["sentence"], videos["frames"])
                if self.mask_padding:
                    cosines = cosines.masked_fill(~videos["mask"], float("-inf"))
                return logits_of(self.backbone, cosines.amax(dim=-1))
            weights = (videos["mask"] if self.mask_padding else torch.ones_like(videos["mask"])).float()
            pooled = F.normalize((videos["frames"] * weights.unsqueeze(-1)).sum(dim=1), dim=-1)
            return logits_of(self.backbone, texts["sentence"] @ pooled.T)

    def scale_and_bias(self) -> tuple[float, float]:
        """Return what the model makes logits of cosines with."""
        return scale_and_bias(self.backbone)

    def frame_relevance(self, texts: Tokens, videos: Tokens) -> Tensor:
        """Return the softmax over the frames of video i of their cosines with text i (pairs, frames), float32."""
        mask = videos["mask"] if self.mask_padding else None
        return frame_text_relevance(texts["sentence"], videos["frames"], mask)
