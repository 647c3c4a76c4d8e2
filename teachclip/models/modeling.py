"""The student, a transformers model: a dual encoder, a temporal transformer and frame attention.

Texts and videos become one vector each, so that a search needs one dot product per video (TeachCLIP, CVPR 2024).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import MODEL_MAPPING, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import ModelOutput

from teachclip.data.texts import check_texts
from teachclip.errors import DataError
from teachclip.models import backbone as encoders
from teachclip.models.adapters import ResidualAdapters
from teachclip.models.configuration import StudentConfig
from teachclip.models.frame_attention import AttentionOutput, FrameAttention, UniformAttention, complete_mask
from teachclip.models.processing import StudentProcessor
from teachclip.models.student_files import StudentFiles
from teachclip.models.temporal import StdLinear, TemporalTransformer
from teachclip.models.videos import EncodedVideos, OnError, encode_in_batches, list_videos, read_videos
from teachclip.models.warm_start import start_temporal, temporal_settings
from teachclip.scorer import Tokens, encoding_in


@dataclass
class StudentOutput(ModelOutput):
    """The output of a student's forward pass; outputs without input are None."""

    logits_per_text: Tensor | None = None
    """Cosines (texts, videos), of several vectors the best, times exp(logit_scale), plus SigLIP's bias; float32."""
    logits_per_video: Tensor | None = None
    """The transpose (videos, texts)."""
    frame_scores: Tensor | None = None
    """The raw attention score of every frame (videos, frames); meaningless for padded frames."""
    frame_weights: Tensor | None = None
    """The attention weights at temperature 1 over valid frames (videos, frames); rows sum to 1.

    Scores and weights of a student with several vectors per video are (videos, vectors, frames).
    """
    video_embeds: Tensor | None = None
    """L2-normalised (videos, dim), of several vectors per video (videos, vectors, dim)."""
    text_embeds: Tensor | None = None
    """L2-normalised (texts, dim)."""


class StudentModel(StudentFiles):
    """A video-text student; see `StudentConfig` for its options and `StudentModel.from_backbone` to start one.

    h = Transformer(f + P) + f for the frames f of a video with learned positions P, then `FrameAttention`. Residual
    adapters, if there are any, correct h before pooling, the pooled video, and the text.
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
        # `aggregation` and `heads` are names in saved weights: another name would make saved students unreadable.
        self.aggregation: FrameAttention | UniformAttention = (
            FrameAttention(
                config.width,
                temperature=config.pooling_temperature,
                kind=config.attention,
                rescale=config.attention_rescale,
                vectors=config.vectors,
            )
            if config.pooling == "attention"
            else UniformAttention()
        )
        self.heads = ResidualAdapters(config.adapters, config.width, config.adapter_width)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """N(0, 0.02) with zero biases, or with the deviation that a `StdLinear` names."""
        super()._init_weights(module)
        if isinstance(module, StdLinear):
            torch.nn.init.normal_(module.weight, std=module.start_std)

    def train(self, mode: bool = True) -> StudentModel:
        """Switch to training or evaluation; batch norms (ALIGN has them) keep their statistics.

        Otherwise the feature of a frame would depend on the other videos of the batch on the same process.
        """
        super().train(mode)
        for module in self.backbone.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    @property
    def mask_padding(self) -> bool:
        """Whether padded frames get weight zero."""
        return bool(self.config.mask_padding)

    @property
    def text_adapter(self) -> nn.Module | None:
        """The residual adapter of texts, which a search applies once per query, or None."""
        return self.heads["text"] if "text" in self.config.adapters else None

    # The scorer interface

    def texts_from_features(self, text_features: Tensor) -> Tokens:
        """Encode texts from raw text features (texts, dim) to {"embeds": (texts, dim)}, L2-normalised."""
        return {"embeds": F.normalize(self.adapt("text", text_features).float(), dim=-1)}

    def videos_from_features(self, frame_features: Tensor, frame_mask: Tensor) -> Tokens:
        """Encode videos from raw frame features (videos, frames, dim) to {"embeds": (videos, dim)}.

        Where the student has several vectors per video they are (videos, vectors, dim).
        """
        return {"embeds": F.normalize(self.aggregate(frame_features, frame_mask)[1].pooled, dim=-1)}

    def frame_sets_from_features(self, frame_features: Tensor, pooling_weights: Tensor) -> Tokens:
        """Encode sets of frames, raw features (sets, frames, dim), to {"embeds": (sets, dim)}.

        A set is encoded like a video of these frames, but pooled with `pooling_weights` (sets, frames), 0 on padded
        frames, instead of the frame attention, which frame sets do not train.
        """
        hidden = self.adapt("frame", self._temporal(frame_features, pooling_weights > 0))
        pooled = (pooling_weights.unsqueeze(-1) * F.normalize(hidden.float(), dim=-1)).sum(dim=1)
        return {"embeds": F.normalize(self.adapt("pooled", pooled), dim=-1)}

    def encode_texts(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tokens:
        """Encode texts (texts, tokens) to {"embeds": (texts, dim)}, L2-normalised."""
        return self.texts_from_features(encoders.text_features(self.backbone, input_ids, attention_mask))

    def encode_videos(self, pixel_values: Tensor, frame_mask: Tensor | None = None) -> Tokens:
        """Encode videos (videos, frames, 3, height, width) to {"embeds": (videos, dim)}, L2-normalised."""
        return self.videos_from_features(
            encoders.frame_features(self.backbone, pixel_values), complete_mask(frame_mask, pixel_values)
        )

    def score(self, texts: Tokens, videos: Tokens) -> Tensor:
        """Return the logits (texts, videos): scaled cosines, in float32 also under autocast.

        Of several vectors of a video the nearest one counts.
        """
        with torch.autocast(texts["embeds"].device.type, enabled=False):
            cosines = best_cosines(texts["embeds"].float(), videos["embeds"].float())
            return encoders.logits_of(self.backbone, cosines)

    def prefix_logits(self, texts: Tokens, videos: Tokens) -> list[Tensor]:
        """Return the logits (texts, videos) of the embeddings, and of each shorter prefix of the configuration.

        A prefix is the first numbers of an embedding, L2-normalised again; see `matryoshka` of `StudentConfig`.
        """
        widths = [width for width in self.config.matryoshka if width < self.config.width]
        pairs = [
            [{"embeds": F.normalize(side["embeds"].float()[..., :width], dim=-1)} for side in (texts, videos)]
            for width in widths
        ]
        return [self.score(texts, videos), *(self.score(*pair) for pair in pairs)]

    def aggregate(self, frame_features: Tensor, frame_mask: Tensor | None = None) -> tuple[Tensor, AttentionOutput]:
        """Return frames after the temporal transformer (videos, frames, dim) and the output of the frame attention.

        `frame_features`: raw features (videos, frames, dim). Raises DataError for more frames than positions.
        """
        hidden = self._temporal(frame_features, complete_mask(frame_mask, frame_features))
        return hidden, self.pool(hidden, frame_features, frame_mask)

    def pool(self, hidden: Tensor, frame_features: Tensor, frame_mask: Tensor | None = None) -> AttentionOutput:
        """Return the output of the frame attention: frames after the temporal transformer, `hidden`, made a video.

        `hidden`, `frame_features`: (videos, frames, dim), see `aggregate`; `frame_mask`: (videos, frames) bool, all
        True if None.
        """
        mask = complete_mask(frame_mask, frame_features)
        is_masked = (
            self.mask_padding or self.config.pooling == "mean"
        )  # the official mean pooling is masked, the official AFA is not
        attention_frames = frame_features if self.config.attention_input == "before" else hidden
        output = self.aggregation(self.adapt("frame", hidden), mask if is_masked else None, attention_frames)
        return output._replace(pooled=self.adapt("pooled", output.pooled))

    def _temporal(self, frame_features: Tensor, mask: Tensor) -> Tensor:
        """Apply the temporal transformer, if there is one, to raw features (videos, frames, dim)."""
        if not self.config.temporal_layers:
            return frame_features
        frames = frame_features.shape[1]
        if frames > self.config.max_frames:
            raise DataError(f"videos have {frames} frames, this student accepts at most {self.config.max_frames}")
        positions = self.frame_position_embeddings.weight[:frames]
        return self.temporal(frame_features + positions, mask) + frame_features  # type: ignore[no-any-return]

    def adapt(self, place: str, features: Tensor) -> Tensor:
        """Apply the residual adapter of a place, one of `ADAPTER_PLACES`, to features (..., dim), if there is one."""
        return self.heads.adapt(place, features)

    # The transformers interface

    def get_text_features(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        """Return the text encoder's output; `pooler_output` (texts, dim) is the projected feature, unnormalised.

        As with CLIP, features have the dtype of the model, and with `return_dict=False` they are a tuple.
        """
        return_dict = kwargs.pop("return_dict", None)
        output = encoders.text_output(self.backbone, input_ids, attention_mask, **kwargs, return_dict=True)
        output.pooler_output = self.adapt("text", output.pooler_output).to(self.dtype)
        return self._as_asked(output, return_dict)

    def get_video_features(
        self, pixel_values: Tensor, frame_mask: Tensor | None = None, *, return_dict: bool | None = None
    ) -> BaseModelOutputWithPooling:
        """Return frame features (videos, frames, dim) and, as `pooler_output`, video features (videos, dim).

        `pixel_values`: (videos, frames, 3, height, width); `frame_mask`: (videos, frames). Neither is normalised;
        dtype and `return_dict` as of `get_text_features`. Raises DataError where there are several vectors per video,
        which clients of this method do not know.
        """
        self.require_one_vector("get_video_features")
        hidden, aggregation = self.aggregate(encoders.frame_features(self.backbone, pixel_values), frame_mask)
        pooled = aggregation.pooled.to(self.dtype)
        output = BaseModelOutputWithPooling(last_hidden_state=hidden.to(self.dtype), pooler_output=pooled)
        return self._as_asked(output, return_dict)

    def require_one_vector(self, what: str) -> None:
        """Raise DataError where the student has several vectors per video; `what`: who needs one."""
        if (count := self.config.vectors) > 1:
            raise DataError(f"{what} is for students of one vector per video, this one has {count}; use encode_video")

    def _as_asked(self, output: Any, return_dict: bool | None) -> Any:
        """Return an output, or its tuple where `return_dict` or, with None, the configuration says so."""
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        frame_mask: Tensor | None = None,
        text_features: Tensor | None = None,
        frame_features: Tensor | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> StudentOutput:
        """Encode texts and videos and score all pairs, in one call for both encoders, as distributed training needs.

        Texts come as `input_ids` (texts, tokens) or raw `text_features` (texts, dim); videos as `pixel_values`
        (videos, frames, 3, height, width) or raw `frame_features` (videos, frames, dim), with `frame_mask`
        (videos, frames), all True if None. With `return_dict=False` the outputs that there are come as a tuple.
        Other arguments may be given as None or False, as peft does with those of other models. Raises DataError for
        other values, both forms of an input and no input.
        """
        if used := [name for name, value in kwargs.items() if value is not None and value is not False]:
            raise DataError(f"a student has no argument {used[0]!r}")
        if (input_ids is not None and text_features is not None) or (
            pixel_values is not None and frame_features is not None
        ):
            raise DataError("give either input_ids or text_features, and either pixel_values or frame_features")
        result = StudentOutput()
        texts = videos = None
        if input_ids is not None:
            texts = self.encode_texts(input_ids, attention_mask)
        elif text_features is not None:
            texts = self.texts_from_features(text_features)
        if pixel_values is not None:
            frame_features = encoders.frame_features(self.backbone, pixel_values)
        if frame_features is not None:
            _, aggregation = self.aggregate(frame_features, frame_mask)
            videos = {"embeds": F.normalize(aggregation.pooled, dim=-1)}
            result.frame_scores, result.frame_weights = aggregation.attention_scores, aggregation.attention_weights
            result.video_embeds = videos["embeds"]
        if texts is not None:
            result.text_embeds = texts["embeds"]
            if videos is not None:
                result.logits_per_text = self.score(texts, videos)
                result.logits_per_video = result.logits_per_text.T
        elif videos is None:
            raise DataError("nothing to encode: give texts, videos or both")
        # a tuple has the order in which the outputs were set
        ordered = StudentOutput(**{field.name: getattr(result, field.name) for field in fields(StudentOutput)})
        return self._as_asked(ordered, return_dict)

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
        **options: Any,
    ) -> StudentModel:
        """Start a student from a dual encoder, as published for CLIP.

        Both encoders are copied; `start_temporal` says what the temporal transformer starts from. `frames`: the most
        frames that a video will have; see `temporal_settings`. `options`: more of `StudentConfig`, which refuses
        unknown ones. Random parts are drawn from torch's global generator.
        """
        config = StudentConfig(
            backbone.config.to_dict(),
            temporal_layers,
            **temporal_settings(backbone.config, frames=frames or 0),
            pooling=pooling,
            pooling_temperature=pooling_temperature,
            mask_padding=mask_padding,
            **options,
        )
        model = cls(config)
        model._start_from(backbone)
        return model.eval()

    @torch.no_grad()
    def _start_from(self, backbone: PreTrainedModel) -> None:
        """Copy a dual encoder as the official code does with CLIP (golden 10; CLIP4Clip, section 3.3).

        Both encoders are the backbone's; `start_temporal` says what the temporal parts start from. The frame
        attention always starts at random.
        """
        state = backbone.state_dict()
        self.backbone.load_state_dict({k: t.float() if t.is_floating_point() else t for k, t in state.items()})
        if self.config.temporal_layers:
            start_temporal(backbone, self.frame_position_embeddings, self.temporal)

    # Strings and video files

    @torch.no_grad()
    def encode_text(self, texts: str | Sequence[str], *, batch_size: int = 64, progress: bool = True) -> Tensor:
        """Encode texts. Returns embeddings (texts, dim) on the CPU, L2-normalised, float32, in the given order.

        Raises DataError if the student has no processor, or for a text that is empty or has unknown words.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        check_texts(texts)
        processor = self._checked_processor("text", batch_size)
        embeddings = []
        with evaluating(self), tqdm(total=len(texts), unit="text", desc="texts", disable=not progress) as bar:
            for start in range(0, len(texts), batch_size):
                batch = texts[start : start + batch_size]
                embeddings.append(self._encode_inputs(processor(text=batch)).text_embeds.cpu())
                bar.update(len(batch))
        return torch.cat(embeddings) if embeddings else torch.empty(0, self.config.width)

    @overload
    def encode_video(self, videos: Any, *, on_error: Literal["raise"] = "raise", **options: Any) -> Tensor: ...

    @overload
    def encode_video(
        self, videos: Any, *, on_error: Literal["skip", "use_decodable"], **options: Any
    ) -> EncodedVideos: ...

    @torch.no_grad()  # type: ignore[misc]
    def encode_video(
        self,
        videos: Any,
        *,
        on_error: OnError = "raise",
        batch_size: int = 8,
        progress: bool = True,
        workers: int = 0,
        time_limit: float = 60.0,
        memory_limit: float = 4.0,
        precision: str = "float32",
    ) -> Tensor | EncodedVideos:
        """Encode videos: paths, parts of files as (path, start, end) in seconds, or arrays of frames; or one of them.

        Files are decoded by `workers` processes (0: one per core) while the model works, each in at most `time_limit`
        seconds and `memory_limit` GB per process. Returns embeddings (videos, dim), or (videos, vectors, dim) of a
        student with several (see `best_cosines`), on the CPU, L2-normalised, float32, in the order of the videos, and
        raises VideoError for the first video that cannot be read. With `on_error` "skip" or "use_decodable" such a
        video costs no other one: the result is an `EncodedVideos`, which names it; "use_decodable" uses what can be
        decoded of it. `precision`: of the encoders, `float32`, or `bfloat16`, which is faster where the processor or
        GPU has it and changes embeddings a little. Raises DataError if the student has no processor.
        """
        processor = self._checked_processor("video", batch_size)
        items = list_videos(videos)
        limits = {"workers": workers, "time_limit": time_limit, "memory_limit": memory_limit}
        outcomes = read_videos(items, processor.sampling, processor.transform, on_error=on_error, **limits)  # type: ignore[arg-type]
        with evaluating(self):
            result = encode_in_batches(
                outcomes,
                len(items),
                lambda frames: self._encode_inputs(processor.batch(frames), precision).video_embeds.float().cpu(),
                on_error=on_error,
                batch_size=batch_size,
                progress=progress,
            )
        parts = result.embeddings
        result = result._replace(embeddings=torch.cat(parts) if parts else self._no_videos())
        return result.embeddings if on_error == "raise" else result

    def _no_videos(self) -> Tensor:
        shape = (self.config.width,) if self.config.vectors == 1 else (self.config.vectors, self.config.width)
        return torch.empty(0, *shape)

    def _checked_processor(self, kind: str, batch_size: int) -> StudentProcessor:
        if self.processor is None:
            raise DataError(f"encode_{kind} needs a processor, which this student does not have; set its .processor")
        if batch_size < 1:
            raise DataError(f"batch_size is {batch_size}, expected at least 1")
        return self.processor

    def _encode_inputs(self, inputs: Mapping[str, Tensor], precision: str = "float32") -> Any:
        with encoding_in(precision, self.device):
            return self(**{name: values.to(self.device) for name, values in inputs.items()})


def best_cosines(texts: Tensor, videos: Tensor) -> Tensor:
    """Return the cosines (texts, videos) of L2-normalised texts (texts, dim) and videos.

    `videos`: (videos, dim), or (videos, vectors, dim), of which the nearest vector counts.
    """
    if videos.ndim == 2:
        return texts @ videos.T
    return (texts @ videos.flatten(0, 1).T).unflatten(1, videos.shape[:2]).amax(dim=-1)


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Put a model in evaluation mode, and at the end back in its former mode."""
    assert isinstance(model, nn.Module)
    if not any(module.training for module in model.modules()):  # to switch them all takes a tenth of a query
        yield
        return
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
