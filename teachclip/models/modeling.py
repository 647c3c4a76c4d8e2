"""The compact student, one transformers model: a dual encoder's towers, a temporal transformer, frame aggregation.

Texts and videos become one vector each, so that a search is one dot product per video (TeachCLIP, CVPR 2024).
"""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import MODEL_MAPPING, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from teachclip.errors import CheckpointError, DataError
from teachclip.models import backbone as towers
from teachclip.models.aggregation import Aggregation, FrameAggregation, MeanAggregation, complete_mask
from teachclip.models.clip import check_loading_info, first_line, quiet_loading
from teachclip.models.configuration import StudentConfig
from teachclip.models.encoding import EncodingMixin
from teachclip.models.outputs import StudentOutput
from teachclip.models.processing import StudentProcessor, load_processor
from teachclip.models.temporal import ResidualLinear, TemporalTransformer
from teachclip.models.warm_start import start_from_backbone, temporal_settings
from teachclip.scorer import Tokens


class StudentModel(EncodingMixin, PreTrainedModel):
    """A video-text student; see `StudentConfig` for its options and `StudentModel.from_backbone` to start one.

    h = Transformer(f + P) + f over the frames f of a video with learned positions P, then `FrameAggregation`.
    """

    config_class = StudentConfig
    main_input_name = "pixel_values"
    input_modalities = ("video", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["TemporalBlock"]  # noqa: RUF012

    def __init__(self, config: StudentConfig) -> None:
        super().__init__(config)
        self.backbone = MODEL_MAPPING[type(config.backbone_config)]._from_config(config.backbone_config)
        if config.temporal_layers:
            self.frame_position_embeddings = nn.Embedding(config.max_frames, config.width)
            self.temporal = TemporalTransformer(
                config.width,
                layers=config.temporal_layers,
                heads=config.temporal_heads,
                activation=config.temporal_activation,
            )
        self.aggregation: FrameAggregation | MeanAggregation = (
            FrameAggregation(config.width, temperature=config.pooling_temperature)
            if config.pooling == "attention"
            else MeanAggregation()
        )
        self.processor: Any = None
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """N(0, 0.02) with zero biases, or with the deviation that a `ResidualLinear` names."""
        super()._init_weights(module)
        if isinstance(module, ResidualLinear):
            torch.nn.init.normal_(module.weight, std=module.start_std)

    def train(self, mode: bool = True) -> StudentModel:
        """Switch to training or evaluation; batch norms (ALIGN has them) keep their statistics.

        Otherwise what a picture becomes would depend on the other videos that a process holds.
        """
        super().train(mode)
        for module in self.backbone.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    @property
    def mask_padding(self) -> bool:
        """Whether padded frames are kept from taking weight."""
        return bool(self.config.mask_padding)

    # The scorer interface

    def texts_from_features(self, text_features: Tensor) -> Tokens:
        """Encode texts from raw text features (texts, dim) to {"embeds": (texts, dim)}, L2-normalised."""
        return {"embeds": F.normalize(text_features.float(), dim=-1)}

    def videos_from_features(self, frame_features: Tensor, frame_mask: Tensor) -> Tokens:
        """Encode videos from raw frame features (videos, frames, dim) to {"embeds": (videos, dim)}."""
        return {"embeds": F.normalize(self.aggregate(frame_features, frame_mask)[1].pooled, dim=-1)}

    def encode_texts(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tokens:
        """Encode texts (texts, tokens) to {"embeds": (texts, dim)}, L2-normalised."""
        return self.texts_from_features(towers.text_features(self.backbone, input_ids, attention_mask))

    def encode_videos(self, pixel_values: Tensor, frame_mask: Tensor | None = None) -> Tokens:
        """Encode videos (videos, frames, 3, height, width) to {"embeds": (videos, dim)}, L2-normalised."""
        return self.videos_from_features(
            towers.frame_features(self.backbone, pixel_values), complete_mask(frame_mask, pixel_values)
        )

    def score(self, texts: Tokens, videos: Tokens) -> Tensor:
        """Return the scaled cosines (texts, videos), in float32 also under autocast."""
        with torch.autocast(texts["embeds"].device.type, enabled=False):
            cosines = texts["embeds"].float() @ videos["embeds"].float().T
            return towers.logits_of(self.backbone, cosines)

    def aggregate(self, frame_features: Tensor, frame_mask: Tensor | None = None) -> tuple[Tensor, Aggregation]:
        """Return the frames after the temporal transformer (videos, frames, dim) and their aggregation.

        `frame_features`: raw features. Raises DataError for more frames than the model has positions.
        """
        hidden = frame_features
        mask = complete_mask(frame_mask, frame_features)
        if self.config.temporal_layers:
            frames = frame_features.shape[1]
            if frames > self.config.max_frames:
                raise DataError(f"videos have {frames} frames, this student takes at most {self.config.max_frames}")
            positions = self.frame_position_embeddings.weight[:frames]
            hidden = self.temporal(frame_features + positions, mask) + frame_features
        is_masked = self.mask_padding or self.config.pooling == "mean"  # the official mean is masked, its AFA is not
        return hidden, self.aggregation(hidden, mask if is_masked else None)

    # The transformers interface

    def get_text_features(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        """Return the text tower's output; `pooler_output` (texts, dim) is the projected feature, not normalised."""
        return towers.text_output(self.backbone, input_ids, attention_mask, **kwargs)

    def get_video_features(
        self, pixel_values: Tensor, frame_mask: Tensor | None = None
    ) -> BaseModelOutputWithPooling:
        """Return the frames' features (videos, frames, dim) and, as `pooler_output`, the video's (videos, dim).

        `pixel_values`: (videos, frames, 3, height, width); `frame_mask`: (videos, frames). Not normalised.
        """
        hidden, aggregation = self.aggregate(towers.frame_features(self.backbone, pixel_values), frame_mask)
        return BaseModelOutputWithPooling(last_hidden_state=hidden, pooler_output=aggregation.pooled)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        frame_mask: Tensor | None = None,
        text_features: Tensor | None = None,
        frame_features: Tensor | None = None,
    ) -> StudentOutput:
        """Encode texts and videos and score all pairs: one call for both towers, as distributed training needs.

        Texts come as `input_ids` (texts, tokens) or raw `text_features` (texts, dim); videos as `pixel_values`
        (videos, frames, 3, height, width) or raw `frame_features` (videos, frames, dim), with `frame_mask`
        (videos, frames), all valid if None. Raises DataError for both or neither of everything.
        """
        if (input_ids is not None and text_features is not None) or (
            pixel_values is not None and frame_features is not None
        ):
            raise DataError("give input_ids or text_features, and pixel_values or frame_features, not both of a pair")
        result = StudentOutput()
        texts = videos = None
        if input_ids is not None:
            texts = self.encode_texts(input_ids, attention_mask)
        elif text_features is not None:
            texts = self.texts_from_features(text_features)
        if pixel_values is not None:
            frame_features = towers.frame_features(self.backbone, pixel_values)
        if frame_features is not None:
            _, aggregation = self.aggregate(frame_features, frame_mask)
            videos = {"embeds": F.normalize(aggregation.pooled, dim=-1)}
            result.frame_scores, result.frame_weights = aggregation.scores, aggregation.weights
            result.video_embeds = videos["embeds"]
        if texts is not None:
            result.text_embeds = texts["embeds"]
            if videos is not None:
                result.logits_per_text = self.score(texts, videos)
                result.logits_per_video = result.logits_per_text.T
        elif videos is None:
            raise DataError("nothing to encode: give texts, videos or both")
        return result

    # Making, loading, saving

    @classmethod
    def from_backbone(
        cls,
        backbone: PreTrainedModel,
        *,
        temporal_layers: int = 4,
        frames: int | None = None,
        pooling: str = "attention",
        pooling_temperature: float = 0.1,
        mask_padding: bool = True,
    ) -> StudentModel:
        """Start a student from a dual encoder as published for CLIP; see `start_from_backbone` for what is copied.

        `frames`: the most frames that a video will have; see `temporal_settings`. Random parts are drawn from torch's
        global generator.
        """
        config = StudentConfig(
            backbone.config.to_dict(),
            temporal_layers,
            **temporal_settings(backbone.config, frames=frames or 0),
            pooling=pooling,
            pooling_temperature=pooling_temperature,
            mask_padding=mask_padding,
        )
        model = cls(config)
        start_from_backbone(model, backbone)
        return model.eval()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load a saved student and, if one was saved beside it, its processor.

        As in transformers, but weights that are missing, unexpected or of another shape raise CheckpointError.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        source = "student" if pretrained_model_name_or_path is None else str(pretrained_model_name_or_path)
        try:
            with quiet_loading():
                model, info = super().from_pretrained(
                    pretrained_model_name_or_path,
                    *args,
                    **{**kwargs, "output_loading_info": True, "ignore_mismatched_sizes": True},
                )
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise CheckpointError(f"{source}: cannot be loaded as a student: {first_line(error)}") from error
        check_loading_info(info, source=source)
        if pretrained_model_name_or_path is not None:
            model.processor = load_processor(pretrained_model_name_or_path)
        return (model, info) if wants_info else model

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Save configuration, weights (safetensors) and the processor, if there is one, into a folder."""
        super().save_pretrained(save_directory, **kwargs)
        if isinstance(self.processor, StudentProcessor) and kwargs.get("is_main_process", True):
            self.processor.save_pretrained(save_directory)
