"""Any CrossEncoder of Sentence Transformers as a teacher: a reranker that reads a text and a video together.

What it says of a pair is computed for that pair alone, so that texts times videos are too many: it scores a shortlist
(`teachclip.scorer.Shortlist`) of each text. It prepares texts and frames itself (`teachclip.models.raw_inputs`). A
reranker of pictures scores every frame of a video: the video's score is their mean or the best of them, and their
softmax is its frame relevance. No paper defines either.
"""

from __future__ import annotations

import os
from typing import Any, Literal

import torch
from torch import Tensor, nn

from teachclip.errors import CheckpointError, DataError
from teachclip.models.checkpoints import first_line
from teachclip.models.frame_attention import masked_softmax, usable_mask
from teachclip.models.preprocessing import Preprocessing
from teachclip.models.raw_inputs import frames_of_pixels, texts_of
from teachclip.scorer import Shortlist, Tokens, select_tokens
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


class CrossEncoder(nn.Module):
    """A CrossEncoder with one score for a pair; scores are its logits, before any sigmoid, times `scale`.

    It runs on the device of the whole run, Accelerate's: Sentence Transformers chooses none.

    shortlist: which pairs it scores as a teacher.
    modality: what a video is to it, `video` or `image`, one of what it takes.
    pooling: of a reranker of pictures: a video's score is the `mean` of its frames' or the highest, `max`.
    prompt: the name of a prompt of the model, or a text; None: the model's own.
    frame_rate: frames a second that a model of videos is told; None: nothing.
    batch_size: pairs of a forward pass, within those that are asked for at once.
    """

    def __init__(
        self,
        model: Any,
        preprocessing: Preprocessing,
        *,
        shortlist: Shortlist,
        modality: Modality,
        pooling: Pooling = "mean",
        scale: float = 1.0,
        prompt: str | None = None,
        frame_rate: float | None = None,
        batch_size: int = 32,
    ) -> None:
        super().__init__()
        self.model, self.preprocessing, self.shortlist = model, preprocessing, shortlist
        self.modality, self.pooling, self.scale = modality, pooling, float(scale)
        self.has_frame_relevance = modality == "image"
        self.prompt, self.frame_rate, self.batch_size = prompt, frame_rate, batch_size
        self.settings = settings_hash(model)

    @classmethod
    def from_source(
        cls,
        checkpoint: str | os.PathLike[str],
        *,
        first: str = "zero_shot",
        top: int = 50,
        margin: float = 0.0,
        modality: Modality | None = None,
        pooling: Pooling = "mean",
        scale: float = 1.0,
        prompt: str | None = None,
        size: int | None = None,
        resize: Literal["crop", "stretch"] | None = None,
        frame_rate: float | None = None,
        dtype: Type = "float32",
        batch_size: int = 32,
        trust_remote_code: bool = False,
    ) -> CrossEncoder:
        """Load a CrossEncoder from a hub id or a folder.

        `first`, `top`, `margin`: see `teachclip.scorer.Shortlist`. `modality`: None: videos if the model takes them,
        and else pictures. `size`, `resize`: frames in pixels, and whether their middle is cropped or they are
        stretched; None: as the model's processor scales them. `dtype`: type of the weights. `trust_remote_code`: run
        the Python code that the model brings; otherwise it is refused. Raises RecipeError if the library is not
        installed or for a shortlist out of range, CheckpointError for a model that cannot be loaded, has several
        labels, or does not take texts and videos or pictures, and for another option out of range.
        """
        source = str(checkpoint)
        shortlist = Shortlist(first, top, float(margin))
        for name, value in (("scale", scale), ("size", size), ("frame_rate", frame_rate), ("batch_size", batch_size)):
            if value is not None and not value > 0:
                raise CheckpointError(f"{source}: {name} is {value}, allowed: above 0")
        model = load_model("CrossEncoder", source, dtype=dtype, trust_remote_code=trust_remote_code)
        if model.num_labels != 1:
            raise CheckpointError(f"{source}: gives {model.num_labels} numbers for a pair, a reranker gives 1")
        return cls(
            model,
            frame_preprocessing(model, size, resize),
            shortlist=shortlist,
            modality=chosen_modality(model, modality, source=source),
            pooling=pooling,
            scale=scale,
            prompt=prompt,
            frame_rate=frame_rate,
            batch_size=batch_size,
        )

    def float(self) -> CrossEncoder:
        """Return the teacher as it is: its weights keep the type that `dtype` chose."""
        return self

    # The scorer interface

    def encode_texts(self, input_ids: Tensor, attention_mask: Tensor) -> Tokens:
        """Return texts as bytes {"bytes": (texts, bytes), "byte_mask": (texts, bytes)}: nothing is computed yet."""
        return {"bytes": input_ids, "byte_mask": attention_mask}

    def encode_videos(self, pixel_values: Tensor, frame_mask: Tensor) -> Tokens:
        """Return videos (videos, frames, 3, size, size) in 0..1 as `encode_stored_frames` does."""
        return self.encode_stored_frames(frames_of_pixels(pixel_values), frame_mask)

    def encode_stored_frames(self, frames: Tensor, frame_mask: Tensor) -> Tokens:
        """Return videos, uint8 (videos, frames, 3, size, size), as they are, with their "mask" (videos, frames)."""
        return {"frames": frames, "mask": usable_mask(frame_mask)}

    def score(self, texts: Tokens, videos: Tokens) -> Tensor:
        """Return the logits of all pairs (texts, videos), float32, one forward pass for each pair."""
        count, width = len(texts["bytes"]), len(videos["frames"])
        rows = torch.arange(count).repeat_interleave(width)
        columns = torch.arange(width).repeat(count)
        return self.score_pairs(select_tokens(texts, rows), select_tokens(videos, columns)).unflatten(
            0, (count, width)
        )

    def score_pairs(self, texts: Tokens, videos: Tokens) -> Tensor:
        """Return the logits of aligned pairs (pairs,), float32."""
        if self.modality == "image":
            scores, mask = self._frame_scores(texts, videos)
            if self.pooling == "max":
                return scores.masked_fill(~mask, -torch.inf).amax(dim=1)
            return scores.masked_fill(~mask, 0).sum(dim=1) / mask.sum(dim=1)
        own = [frames[mask] for frames, mask in zip(videos["frames"].cpu(), videos["mask"].cpu(), strict=True)]
        shown = as_videos(own, self.frame_rate)
        return self._predict(list(zip(self._texts(texts), shown, strict=True)))

    def frame_relevance(self, texts: Tokens, videos: Tokens) -> Tensor:
        """Return the softmax of the logits of the frames of video i with text i (pairs, frames), float32."""
        if not self.has_frame_relevance:
            raise DataError("cross_encoder: it scores whole videos; option modality=image scores their frames")
        return masked_softmax(*self._frame_scores(texts, videos))

    def _frame_scores(self, texts: Tokens, videos: Tokens) -> tuple[Tensor, Tensor]:
        """Return the logits of every frame of aligned pairs, and their mask, both (pairs, frames)."""
        mask = videos["mask"].cpu()
        words = self._texts(texts)
        shown = as_pictures(videos["frames"].cpu()[mask])
        pairs = [(words[row], picture) for row, picture in zip(mask.nonzero()[:, 0].tolist(), shown, strict=True)]
        found = self._predict(pairs)
        scores = found.new_zeros(mask.shape)
        scores[mask.to(found.device)] = found
        return scores, mask.to(found.device)

    def _texts(self, texts: Tokens) -> list[dict[str, str]]:
        return as_texts(texts_of(texts["bytes"], texts["byte_mask"]))

    def _predict(self, pairs: list[tuple[Any, Any]]) -> Tensor:
        options = KEEP_FRAMES if self.modality == "video" else {}
        try:
            scores = self.model.predict(
                pairs,
                batch_size=self.batch_size,
                show_progress_bar=False,
                activation_fn=nn.Identity(),
                convert_to_tensor=True,
                **prompt_of(self.model, self.prompt),
                **options,
            )
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            raise DataError(
                f"cross_encoder: the model cannot score a text with a {self.modality}: {first_line(error)}"
            ) from error
        return self.scale * to_float32(scores)
