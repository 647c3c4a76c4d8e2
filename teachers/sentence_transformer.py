"""Any model of Sentence Transformers as a teacher that encodes texts and videos, or texts and pictures.

It prepares texts and frames itself (`teachclip.models.raw_inputs`). A model of pictures sees single frames: the video
is their mean, as in CLIP4Clip (Luo et al. 2021, section 3.3), or scores as its best frame does. No paper defines its
frame relevance: it is the softmax of the cosines of text and frames, as `teachers.dual_encoder` has it.
"""

from __future__ import annotations

import builtins
import os
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from teachclip.errors import CheckpointError, DataError
from teachclip.models.checkpoints import first_line
from teachclip.models.frame_attention import frame_text_relevance, usable_mask
from teachclip.models.preprocessing import Preprocessing
from teachclip.models.raw_inputs import frames_of_pixels, texts_of
from teachclip.scorer import Tokens
from teachers.sentence_models import (
    KEEP_FRAMES,
    Modality,
    Pooling,
    Type,
    as_pictures,
    as_texts,
    as_videos,
    chosen_modality,
    frame_preprocessing,
    load_model,
    prompt_of,
    settings_hash,
    to_float32,
)

CLIP_SCALE = 100.0
"""The largest factor between cosines and logits of CLIP, where it ends in training."""


class SentenceEncoder(nn.Module):
    """A model of Sentence Transformers.

    It runs on the device of the whole run, Accelerate's: Sentence Transformers chooses none.

    modality: what a video is to it, `video` or `image`, one of what it takes.
    pooling: of a model of pictures. `mean`: the mean of the frames' vectors, normalised before if it compares by
        cosines; `max`: the video scores as its best frame does.
    frame_relevance: a model of pictures always has it. With True a model of videos that takes pictures too encodes
        every frame once more, as a picture.
    scale: factor between what the model compares by (cosines or dot products) and logits.
    query_prompt, document_prompt: the name of a prompt of the model, or a text; None: the model's own for queries and
        documents.
    frame_rate: frames a second that a model of videos is told; None: nothing.
    batch_size: texts, videos or pictures of a forward pass, within those that are asked for at once.
    truncate_dim: first numbers of an embedding that count; None: as the model says.
    """

    def __init__(
        self,
        model: Any,
        preprocessing: Preprocessing,
        *,
        modality: Modality,
        pooling: Pooling = "mean",
        frame_relevance: bool = False,
        scale: float = CLIP_SCALE,
        query_prompt: str | None = None,
        document_prompt: str | None = None,
        frame_rate: float | None = None,
        batch_size: int = 32,
        truncate_dim: int | None = None,
    ) -> None:
        super().__init__()
        self.model, self.preprocessing = model, preprocessing
        self.modality, self.pooling, self.scale = modality, pooling, float(scale)
        self.has_frame_relevance = modality == "image" or frame_relevance
        self.query_prompt, self.document_prompt = query_prompt, document_prompt
        self.frame_rate, self.batch_size, self.truncate_dim = frame_rate, batch_size, truncate_dim
        self.by_cosine = model.similarity_fn_name == "cosine"
        self.settings = settings_hash(model)

    @classmethod
    def from_source(
        cls,
        checkpoint: str | os.PathLike[str],
        *,
        modality: Modality | None = None,
        pooling: Pooling = "mean",
        frame_relevance: bool = False,
        scale: float | None = None,
        query_prompt: str | None = None,
        document_prompt: str | None = None,
        size: int | None = None,
        resize: Literal["crop", "stretch"] | None = None,
        frame_rate: float | None = None,
        dtype: Type = "float32",
        batch_size: int = 32,
        truncate_dim: int | None = None,
        trust_remote_code: bool = False,
    ) -> SentenceEncoder:
        """Load a model from a hub id or a folder.

        See the class. `modality`: None: videos if the model takes them, and else pictures. `scale`: None: the model's
        own logit scale if it has one, and else CLIP's largest. `size`, `resize`: frames in pixels, and whether their
        middle is cropped or they are stretched; None: as the model's processor scales them. `dtype`: type of the
        weights. `trust_remote_code`: run the Python code that the model brings; otherwise it is refused. Raises
        RecipeError if the library is not installed, CheckpointError for a model that cannot be loaded or does not
        take texts and videos or pictures, and for an option out of range.
        """
        source = str(checkpoint)
        for name, value in (("scale", scale), ("size", size), ("frame_rate", frame_rate), ("batch_size", batch_size)):
            if value is not None and not value > 0:
                raise CheckpointError(f"{source}: {name} is {value}, allowed: above 0")
        model = load_model(
            "SentenceTransformer", source, dtype=dtype, trust_remote_code=trust_remote_code, truncate_dim=truncate_dim
        )
        if model.similarity_fn_name not in ("cosine", "dot"):
            raise CheckpointError(f"{source}: compares by {model.similarity_fn_name}; allowed: cosine, dot")
        found = chosen_modality(model, modality, source=source)
        if frame_relevance and not model.supports("image"):
            raise CheckpointError(f"{source}: frame_relevance needs a model that takes pictures, this one does not")
        return cls(
            model,
            frame_preprocessing(model, size, resize),
            modality=found,
            pooling=pooling,
            frame_relevance=frame_relevance,
            scale=scale or _own_scale(model),
            query_prompt=query_prompt,
            document_prompt=document_prompt,
            frame_rate=frame_rate,
            batch_size=batch_size,
            truncate_dim=truncate_dim,
        )

    def float(self) -> SentenceEncoder:
        """Return the teacher as it is: its weights keep the type that `dtype` chose."""
        return self

    # The scorer interface

    def encode_texts(self, input_ids: Tensor, attention_mask: Tensor) -> Tokens:
        """Encode texts as bytes (texts, bytes). Returns {"sentence": (texts, dim)}."""
        texts = as_texts(texts_of(input_ids, attention_mask))
        prompt = prompt_of(self.model, self.query_prompt)
        return {"sentence": self._vectors(self.model.encode_query, texts, **prompt)}

    def encode_videos(self, pixel_values: Tensor, frame_mask: Tensor) -> Tokens:
        """Encode videos (videos, frames, 3, size, size) in 0..1; see `encode_stored_frames`."""
        return self.encode_stored_frames(frames_of_pixels(pixel_values), frame_mask)

    def encode_stored_frames(self, frames: Tensor, frame_mask: Tensor) -> Tokens:
        """Encode videos, uint8 (videos, frames, 3, size, size).

        Returns {"video": (videos, dim)} of a model of videos, {"frames": (videos, frames, dim), "mask": (videos,
        frames)} of a model of pictures, or both. Vectors are L2-normalised if the model compares by cosines.
        """
        frames, mask = frames.cpu(), usable_mask(frame_mask)
        tokens = {}
        prompt = prompt_of(self.model, self.document_prompt)
        if self.modality == "video":
            videos = [own[valid] for own, valid in zip(frames, mask.cpu(), strict=True)]
            inputs = as_videos(videos, self.frame_rate)
            tokens["video"] = self._vectors(self.model.encode_document, inputs, **prompt, **KEEP_FRAMES)
        if self.has_frame_relevance:
            pictures = as_pictures(frames[mask.cpu()])
            vectors = self._vectors(self.model.encode_document, pictures, **prompt)
            every = vectors.new_zeros(*mask.shape, vectors.shape[-1])
            every[mask.to(vectors.device)] = vectors
            tokens |= {"frames": every, "mask": mask.to(vectors.device)}
        return tokens

    def _vectors(self, encode: Any, inputs: list[Any], **options: Any) -> Tensor:
        """Return the vectors of inputs (inputs, dim), float32, L2-normalised if the model compares by cosines."""
        options |= {"batch_size": self.batch_size, "truncate_dim": self.truncate_dim, "convert_to_tensor": True}
        try:
            vectors = to_float32(encode(inputs, show_progress_bar=False, **options))
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            what = " or ".join(inputs[0]) if isinstance(inputs[0], dict) else "picture"
            raise DataError(f"sentence_transformer: the model cannot encode a {what}: {first_line(error)}") from error
        return F.normalize(vectors, dim=-1) if self.by_cosine else vectors

    def score(self, texts: Tokens, videos: Tokens) -> Tensor:
        """Return `scale` times what the model compares texts and videos by (texts, videos), float32."""
        with torch.autocast(texts["sentence"].device.type, enabled=False):
            sentences = texts["sentence"].float()
            if self.modality == "video":
                return self.scale * sentences @ videos["video"].float().T
            frames, mask = videos["frames"].float(), videos["mask"]
            if self.pooling == "max":
                by_frame = torch.einsum("td,vfd->tvf", sentences, frames)
                return self.scale * by_frame.masked_fill(~mask, float("-inf")).amax(dim=-1)
            pooled = (frames * mask.unsqueeze(-1)).sum(dim=1)
            pooled = F.normalize(pooled, dim=-1) if self.by_cosine else pooled / mask.sum(dim=1, keepdim=True)
            return self.scale * sentences @ pooled.T

    def scale_and_bias(self) -> tuple[builtins.float, builtins.float]:
        """Return `scale`, and no bias."""
        return self.scale, 0.0

    def frame_relevance(self, texts: Tokens, videos: Tokens) -> Tensor:
        """Return the softmax over the frames of video i of their cosines with text i (pairs, frames), float32."""
        if not self.has_frame_relevance:
            raise DataError("sentence_transformer: a video is one vector here; option frame_relevance adds frames")
        return frame_text_relevance(texts["sentence"], videos["frames"], videos["mask"])


def _own_scale(model: Any) -> float:
    """Return the factor between cosines and logits that a dual encoder has learnt, or CLIP's largest."""
    scales = [value for name, value in model.named_parameters() if name.split(".")[-1] == "logit_scale"]
    return float(scales[0].detach().float().exp()) if len(scales) == 1 else CLIP_SCALE
