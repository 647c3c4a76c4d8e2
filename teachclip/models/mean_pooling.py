"""A zero-shot dual encoder with mean-pooled frames (CLIP4Clip, meanP): the scorer that needs no training."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import PreTrainedModel

from teachclip.models.backbone import frame_features, logits_of, scale_and_bias, text_features
from teachclip.scorer import Tokens


class EncoderFeatures(nn.Module):
    """The raw features of a backbone as tokens, which are stored once if the encoders are frozen."""

    def __init__(self, backbone: PreTrainedModel) -> None:
        super().__init__()
        self.backbone = backbone

    def encode_texts(self, input_ids: Tensor, attention_mask: Tensor) -> Tokens:
        """Return `features` (texts, dim), not normalised."""
        return {"features": text_features(self.backbone, input_ids, attention_mask)}

    def encode_videos(self, pixel_values: Tensor, frame_mask: Tensor) -> Tokens:
        """Return `frame_features` (videos, frames, dim), not normalised, and `frame_mask` (videos, frames)."""
        return {"frame_features": frame_features(self.backbone, pixel_values), "frame_mask": frame_mask}

    def score(self, texts: Tokens, videos: Tokens) -> Tensor:
        """Return the scores of `MeanPooling`."""
        scorer = MeanPooling(self.backbone)
        return scorer.score(
            scorer.texts_from_features(texts["features"]),
            scorer.videos_from_features(videos["frame_features"], videos["frame_mask"]),
        )


class MeanPooling(nn.Module):
    """A video is the mean of its L2-normalised frame embeddings (CLIP4Clip, section 3.3, mean pooling)."""

    def __init__(self, backbone: PreTrainedModel) -> None:
        super().__init__()
        self.backbone = backbone

    def encode_texts(self, input_ids: Tensor, attention_mask: Tensor) -> Tokens:
        """Return `embeds` (texts, dim), L2-normalised."""
        return self.texts_from_features(text_features(self.backbone, input_ids, attention_mask))

    def encode_videos(self, pixel_values: Tensor, frame_mask: Tensor) -> Tokens:
        """Return `embeds` (videos, dim), L2-normalised."""
        return self.videos_from_features(frame_features(self.backbone, pixel_values), frame_mask)

    def texts_from_features(self, text_features: Tensor) -> Tokens:
        """Normalise raw text features (texts, dim)."""
        return {"embeds": normalize(text_features, dim=-1)}

    def videos_from_features(self, frame_features: Tensor, frame_mask: Tensor) -> Tokens:
        """Average normalised frame features (videos, frames, dim) over valid frames and normalise."""
        weights = frame_mask.to(frame_features.dtype)[..., None]
        return {"embeds": normalize((normalize(frame_features, dim=-1) * weights).sum(dim=1), dim=-1)}

    def score(self, texts: Tokens, videos: Tokens) -> Tensor:
        """Return logits (texts, videos): cosines, scaled as the backbone does."""
        return logits_of(self.backbone, texts["embeds"] @ videos["embeds"].T)

    def scale_and_bias(self) -> tuple[float, float]:
        """Return what the backbone makes logits of cosines with."""
        return scale_and_bias(self.backbone)
