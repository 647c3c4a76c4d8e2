"""Video-text models of transformers as teachers: models that look at a whole video at once.

Supported is what runs in the installed transformers: VideoPrism (Zhao et al., "VideoPrism: A Foundational Visual
Encoder for Video Understanding", ICML 2024). Its video feature is one vector, which says nothing of single frames:
such a teacher gives video-text relevance only. transformers' own `XCLIPModel` is Microsoft's video classifier and not
the retrieval teacher `xclip`.
"""

from __future__ import annotations

import os
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
import transformers
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, VideoPrismClipModel, VideoPrismConfig

from teachclip.errors import CheckpointError, DataError
from teachclip.models.checkpoints import check_finite, first_line
from teachclip.models.clip import check_loading_info, check_token_ids, quiet_loading
from teachclip.models.frame_attention import complete_mask, usable_mask
from teachclip.models.preprocessing import (
    Preprocessing,
    image_settings,
    load_tokenizer,
    padding_token,
    read_image_settings,
)
from teachclip.scorer import Tokens


class VideoEncoder(nn.Module):
    """A VideoPrism with a text encoder.

    It reads `frames` frames, of which it has no mask: a video's valid frames are spread evenly over them, some
    repeated in a short video and some skipped in a long one.

    frames: None means as many as it was trained with (16 in base, 8 in large); for others its temporal positions are
    interpolated. temperature: the divisor of the cosines; the model stores none, and 0.01 is the smallest that CLIP
    may reach. preprocessing: how its texts and pictures are prepared; None: unknown. mask_padding: False takes padded
    frames for pictures.
    """

    has_frame_relevance = False

    def __init__(
        self,
        model: VideoPrismClipModel,
        *,
        preprocessing: Preprocessing | None = None,
        frames: int | None = None,
        temperature: float = 0.01,
        mask_padding: bool = True,
    ) -> None:
        super().__init__()
        if frames is not None and (isinstance(frames, bool) or not isinstance(frames, int) or frames < 1):
            raise CheckpointError(f"video_encoder: frames is {frames}, allowed: 1 or more, or nothing")
        if isinstance(temperature, bool) or not temperature > 0:
            raise CheckpointError(f"video_encoder: temperature is {temperature}, expected more than 0")
        self.model = model
        self.preprocessing = preprocessing
        self.frames = frames or model.config.vision_config.num_frames
        self.temperature = temperature
        self.mask_padding = mask_padding

    @classmethod
    def from_source(
        cls,
        checkpoint: str | os.PathLike[str],
        *,
        frames: int | None = None,
        temperature: float = 0.01,
        mask_padding: bool = True,
        trust_remote_code: bool = False,
    ) -> VideoEncoder:
        """Load a model with its tokenizer and image settings from a hub id or a folder.

        `trust_remote_code`: run the Python code that its tokenizer brings, if any; otherwise it is refused. Raises
        CheckpointError if it is another model, incomplete, or has no tokenizer.
        """
        model = load_videoprism(checkpoint)
        return cls(
            model,
            preprocessing=_preprocessing(checkpoint, model.config, trust_remote_code),
            frames=frames,
            temperature=temperature,
            mask_padding=mask_padding,
        )

    # What its inputs must look like, where the student's are others

    @property
    def tokenizer(self) -> Any:
        """Its transformers tokenizer, or None."""
        return self.preprocessing.tokenizer if self.preprocessing else None

    @property
    def image_size(self) -> int:
        """Height and width of its frames in pixels."""
        return _image_size(self.model.config)

    @property
    def image_mean(self) -> tuple[float, ...]:
        """What is taken from pixels in 0..1, per channel; VideoPrism takes them as they are."""
        return self.preprocessing.mean if self.preprocessing else (0.0, 0.0, 0.0)

    @property
    def image_std(self) -> tuple[float, ...]:
        """What pixels are divided by then, per channel."""
        return self.preprocessing.std if self.preprocessing else (1.0, 1.0, 1.0)

    @property
    def max_tokens(self) -> int:
        """Longest text in tokens."""
        return (
            self.preprocessing.max_tokens
            if self.preprocessing
            else self.model.config.text_config.max_position_embeddings
        )

    # The scorer interface

    def encode_texts(self, input_ids: Tensor, attention_mask: Tensor) -> Tokens:
        """Encode texts (texts, tokens), padded on the right. Returns {"sentence": (texts, dim)}, L2-normalised.

        Raises DataError for another shape, too many tokens, or ids outside the vocabulary (looked for on the CPU).
        """
        config = self.model.config.text_config
        longest = config.max_position_embeddings
        if input_ids.ndim != 2 or input_ids.shape[1] > longest or attention_mask.shape != input_ids.shape:
            shapes = f"{tuple(input_ids.shape)}, attention_mask {tuple(attention_mask.shape)}"
            raise DataError(f"input_ids has shape {shapes}, expected both (texts, at most {longest})")
        if input_ids.device.type == "cpu":
            check_token_ids(input_ids, vocabulary=config.vocab_size)
        features = self.model.get_text_features(input_ids=input_ids, attention_mask=attention_mask.long())
        return {"sentence": F.normalize(features.pooler_output.float(), dim=-1)}

    def encode_videos(self, pixel_values: Tensor, frame_mask: Tensor) -> Tokens:
        """Encode videos (videos, frames, 3, size, size). Returns {"video": (videos, dim)}, L2-normalised.

        Raises DataError if the shape is another.
        """
        config = self.model.config.vision_config
        wanted = (config.num_channels, self.image_size, self.image_size)
        if pixel_values.ndim != 5 or tuple(pixel_values.shape[2:]) != wanted or not pixel_values.shape[1]:
            expected = f"(videos, frames, {', '.join(map(str, wanted))})"
            raise DataError(f"pixel_values has shape {tuple(pixel_values.shape)}, this model takes {expected}")
        mask = complete_mask(frame_mask if self.mask_padding else None, pixel_values)
        chosen = spread_frames(mask, self.frames)
        pixels = pixel_values[torch.arange(len(mask), device=mask.device).unsqueeze(1), chosen]
        features = self.model.get_video_features(
            pixel_values_videos=pixels, interpolate_pos_encoding=self.frames != config.num_frames
        )
        return {"video": F.normalize(features.pooler_output.float().flatten(1), dim=-1)}

    def score(self, texts: Tokens, videos: Tokens) -> Tensor:
        """Return cos(t, v) / temperature (texts, videos), float32."""
        with torch.autocast(texts["sentence"].device.type, enabled=False):
            return texts["sentence"].float() @ videos["video"].float().T / self.temperature

    def scale_and_bias(self) -> tuple[float, float]:
        """Return 1 / temperature, and no bias."""
        return 1 / self.temperature, 0.0

    def frame_relevance(self, texts: Tokens, videos: Tokens) -> NoReturn:
        """Raise DataError: a video is one vector here."""
        raise DataError("video_encoder: VideoPrism gives one vector a video; it has no frame relevance")


def spread_frames(frame_mask: Tensor, count: int) -> Tensor:
    """Return the indices of `count` frames a video, evenly over its valid ones (videos, count).

    Of n valid frames the j-th chosen is number floor((j + 1/2) n / count): n is cut into `count` equal intervals and
    their middles are taken. `frame_mask`: (videos, frames) bool; a video without a valid frame counts as all valid.
    """
    mask = usable_mask(frame_mask)
    valid_first = (~mask).to(torch.int8).argsort(dim=1, stable=True)
    steps = 2 * torch.arange(count, device=mask.device) + 1
    return valid_first.gather(1, steps * mask.sum(dim=1, keepdim=True) // (2 * count))


def load_videoprism(source: str | os.PathLike[str]) -> VideoPrismClipModel:
    """Load a VideoPrism with a text encoder in float32 and evaluation mode, from a hub id or a folder.

    Raises CheckpointError if it is another model or cannot be loaded whole.
    """
    try:
        config = AutoConfig.from_pretrained(str(source), trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{source}: no video encoder can be loaded from it: {first_line(error)}") from error
    if not isinstance(config, VideoPrismConfig):
        raise CheckpointError(f"{source}: {_why_not(config.model_type)}")
    try:
        with quiet_loading():
            # Other attention kernels drop the cap on the scores that the model was trained with.
            model, info = VideoPrismClipModel.from_pretrained(
                str(source),
                dtype=torch.float32,
                attn_implementation="eager",
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{source}: cannot be loaded as a VideoPrism: {first_line(error)}") from error
    check_loading_info(info, source=str(source))
    check_finite(model.state_dict(), source=str(source))
    return model.eval()


def _why_not(model_type: str) -> str:
    """Say why a model of transformers cannot teach here."""
    supported = "expected a VideoPrism with a text encoder (such as google/videoprism-lvt-base-f16r288)"
    if model_type == "pe_video":
        return (
            f"PE-Video cannot be used: PeVideoModel of transformers {transformers.__version__} lacks "
            f"get_text_features and get_video_features, which stand inside its __init__ by mistake; {supported}"
        )
    if model_type == "xclip":
        return f"this is Microsoft's X-CLIP, a video classifier; the retrieval teacher is `xclip`; {supported}"
    if model_type.startswith("videoprism"):
        return f"this VideoPrism has no text encoder; {supported}"
    return f"a {model_type} is not supported; {supported}; `dual_encoder` takes models of single pictures"


def _image_size(config: VideoPrismConfig, *, source: str = "VideoPrism") -> int:
    size = config.vision_config.image_size
    sides = (size, size) if isinstance(size, int) else tuple(size)
    if sides[0] != sides[1]:
        raise CheckpointError(f"{source}: image size {sides} is not supported; expected a square")
    return int(sides[0])


def _preprocessing(
    source: str | os.PathLike[str], config: VideoPrismConfig, trust_remote_code: bool
) -> Preprocessing:
    """Read the tokenizer and image settings beside a VideoPrism.

    As its own processor in transformers does whatever the files say: frames are stretched to the model's size and
    their values stay in 0..1. Padding is never read, so that texts need no full length.
    """
    size = _image_size(config, source=str(source))
    saved = read_image_settings(source, part="video_processor")
    forced = {"size": {"height": size, "width": size}, "do_center_crop": False, "do_normalize": False}
    tokenizer = load_tokenizer(source, trust_remote_code=trust_remote_code)
    return Preprocessing(
        tokenizer,
        min(config.text_config.max_position_embeddings, int(tokenizer.model_max_length)),
        pad_id=padding_token(tokenizer, source=str(source)),
        **image_settings({**saved, **forced}, size, source=str(source)),
    )
