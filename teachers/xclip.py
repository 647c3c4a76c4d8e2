"""X-CLIP: four scores of a pair, from sentence and words against video and frames (Ma et al., ACM MM 2022).

Sentence against video is a plain dot product. The three finer scores are attention over the similarities themselves:
each matrix of similarities is summed up by its own softmax at temperature 0.01, twice for words against frames.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPModel

from teachclip.errors import CheckpointError, DataError
from teachclip.models.checkpoints import another_model, tensor_of
from teachclip.models.clip import clip_of_teacher, frame_features, sentence_and_words
from teachclip.models.frame_attention import complete_mask, frame_text_relevance, usable_mask
from teachclip.scorer import Tokens, select_tokens
from teachers.sequential import SequentialTeacher, fresh_sizes, temporal_sizes, unit

CHUNK_ELEMENTS = 1 << 23
"""Word-frame similarities (texts x words x videos x frames) held at once when scoring: 32 MiB in float32 a tensor."""

TEMPERATURE = 0.01
"""Of every softmax in the scores, as in the official code."""

COMPONENTS = ("video_sentence", "video_word", "sentence_frame", "frame_word")
"""The four scores whose mean is the relevance."""


def attend(similarities: Tensor, matrix: Tensor, *, dim: int) -> Tensor:
    """Sum similarities x over `dim`, weighted by a softmax of themselves mixed by a learned matrix M.

    Returns sum_u x_u (sum_w softmax_w(x / 0.01)_w M[w, u]); `matrix`: (n, n) for n entries of `dim`, the first after
    0 or the last.
    """
    weights = (similarities / TEMPERATURE).softmax(dim=dim)
    if dim == -1:
        return (similarities * (weights @ matrix)).sum(dim=-1)
    mixed = (matrix.T @ weights.flatten(2)).view_as(similarities)
    return (similarities * mixed).sum(dim=1)


class XCLIP(SequentialTeacher):
    """The X-CLIP teacher.

    words, frames: tokens of a text and frames of a video that the score is made for. The padding of shorter ones
    takes part in it, as trained: token id 0, and frames of zeros. `mask_padding` is about frame relevance alone.
    """

    kind = "X-CLIP"

    def __init__(
        self,
        clip: CLIPModel,
        *,
        words: int,
        frames: int,
        positions: int,
        source: str = "X-CLIP",
        **sizes: Any,
    ) -> None:
        """`sizes`: keywords of `SequentialTeacher`."""
        super().__init__(clip, positions=positions, source=source, **sizes)
        context = clip.config.text_config.max_position_embeddings
        if not 1 <= words <= context:
            raise CheckpointError(f"{source}: {words} words, allowed: 1 to {context}, CLIP's text positions")
        if not 1 <= frames <= positions:
            raise CheckpointError(f"{source}: {frames} frames, allowed: 1 to {positions}, the frame positions")
        self.words, self.frames = words, frames
        # Identities, as published: X-CLIP starts from similarities weighted by their plain softmax.
        self.global_mat_weight, self.local_mat_weight = (nn.Parameter(torch.eye(self.width)) for _ in range(2))
        self.word_logit_weight, self.word_mat_weight, self.word_mat_weight2 = (
            nn.Parameter(torch.eye(words)) for _ in range(3)
        )
        self.frame_logit_weight, self.frame_mat_weight, self.frame_mat_weight2 = (
            nn.Parameter(torch.eye(frames)) for _ in range(3)
        )

    @classmethod
    def from_clip(
        cls, clip: CLIPModel, *, frames: int, tokens: int, temporal_layers: int = 4, mask_padding: bool = True
    ) -> XCLIP:
        """Start a teacher from a CLIP as published: identities, and a temporal transformer from CLIP's text encoder.

        `frames`, `tokens`: of every video and text from now on. What CLIP cannot give starts at random, from torch's
        global generator, as a log line says. Raises CheckpointError if CLIP reads fewer tokens.
        """
        model = cls(
            clip,
            words=tokens,
            frames=frames,
            temporal_layers=temporal_layers,
            mask_padding=mask_padding,
            **fresh_sizes(clip, frames=frames),
        )
        model.start_from_clip()
        return model

    @classmethod
    def from_state_dict(
        cls,
        state: Mapping[str, Tensor],
        *,
        mask_padding: bool = True,
        temporal_heads: int | None = None,
        clip_config: Mapping[str, Any] | None = None,
        source: str = "xclip checkpoint",
    ) -> XCLIP:
        """Build a teacher from an official state dict: CLIP under `clip.` with OpenAI's or transformers' names.

        Words and frames are read off `word_logit_weight` and `frame_logit_weight`. `temporal_heads`: width // 64 as
        published if None. `clip_config`: of a CLIP that is not as OpenAI's. Raises CheckpointError, with `source` in
        front, if names or shapes do not fit.
        """
        if not any(key.startswith(("global_mat_", "local_mat_", "word_mat_", "frame_mat_")) for key in state):
            raise another_model(state, "an X-CLIP", source=source)
        words, frames = (
            len(tensor_of(state, f"{name}_logit_weight", source=source, dimensions=2)) for name in ("word", "frame")
        )
        sizes = temporal_sizes(state, source=source)
        clip = clip_of_teacher(state, clip_config, source=source)
        model = cls(
            clip,
            words=words,
            frames=frames,
            temporal_heads=temporal_heads,
            mask_padding=mask_padding,
            source=source,
            **sizes,
        )
        model.load_own(state, source=source)
        return model

    @property
    def max_tokens(self) -> int:
        """The most tokens a text may have."""
        return self.words

    @property
    def max_frames(self) -> int:
        """The most frames a video may have."""
        return self.frames

    # The scorer interface

    def encode_texts(self, input_ids: Tensor, attention_mask: Tensor) -> Tokens:
        """Encode texts (texts, tokens) to {"sentence": (texts, dim), "words": (texts, words, dim)}, L2-normalised.

        Ids where `attention_mask` is 0 become 0 and shorter texts are filled up with 0, as in training: padding takes
        part in the score. Raises DataError for more tokens than the model's words.
        """
        if input_ids.ndim != 2 or input_ids.shape[1] > self.words or input_ids.shape != attention_mask.shape:
            raise DataError(
                f"input_ids has shape {tuple(input_ids.shape)} and attention_mask {tuple(attention_mask.shape)}, "
                f"this X-CLIP takes (texts, at most {self.words})"
            )
        ids = F.pad(input_ids.masked_fill(attention_mask == 0, 0), (0, self.words - input_ids.shape[1]))
        sentence, words = sentence_and_words(self.clip, ids)
        return {"sentence": unit(sentence), "words": unit(words)}

    def encode_videos(self, pixel_values: Tensor, frame_mask: Tensor) -> Tokens:
        """Encode videos (videos, frames, 3, height, width) to the following, L2-normalised.

        {"video": (videos, dim), "frames": (videos, the model's frames, dim), "mask": (videos, frames) bool}: the mean
        of valid frames after the temporal transformer, and the frames before it. Shorter videos are filled up with
        frames of zeros that are masked; `mask` has the frames given. Raises DataError for more frames than the
        model's.
        """
        features = frame_features(self.clip, pixel_values)
        frames = features.shape[1]
        if frames > self.frames:
            raise DataError(f"videos have {frames} frames, this X-CLIP takes at most {self.frames}")
        mask = complete_mask(frame_mask, features)
        if frames < self.frames:  # every frame of zeros has the same features
            blank = frame_features(self.clip, pixel_values.new_zeros(1, 1, *pixel_values.shape[2:]))
            features = torch.cat([features, blank.expand(len(features), self.frames - frames, -1)], dim=1)
        valid = usable_mask(F.pad(mask, (0, self.frames - frames)))
        hidden = self.over_time(features, torch.arange(self.frames, device=features.device), valid)
        weights = valid / valid.sum(dim=1, keepdim=True)
        video = (unit(hidden) * weights.unsqueeze(-1)).sum(dim=1)
        return {"video": unit(video), "frames": unit(features), "mask": mask}

    def score(self, texts: Tokens, videos: Tokens) -> Tensor:
        """Return exp(logit_scale) times the mean of the four scores (texts, videos), float32.

        Pairs are taken in chunks, so that without gradients memory does not grow with texts x videos.
        """
        return self._all_pairs(texts, videos).mean(dim=0)

    def components(self, texts: Tokens, videos: Tokens) -> dict[str, Tensor]:
        """Return each of the four scores by the names in `COMPONENTS` (texts, videos), times exp(logit_scale)."""
        return dict(zip(COMPONENTS, self._all_pairs(texts, videos), strict=True))

    def _all_pairs(self, texts: Tokens, videos: Tokens) -> Tensor:
        text_count, video_count = len(texts["sentence"]), len(videos["video"])
        pairs = max(1, CHUNK_ELEMENTS // (self.words * self.frames))
        columns = max(1, min(pairs, video_count))
        rows = max(1, pairs // columns)
        scale = self.clip.logit_scale.float().exp()
        with torch.autocast(texts["sentence"].device.type, enabled=False):
            blocks = [
                torch.cat(
                    [
                        self._chunk(select_tokens(texts, slice(row, row + rows)), videos, column, columns)
                        for column in range(0, max(1, video_count), columns)
                    ],
                    dim=2,
                )
                for row in range(0, max(1, text_count), rows)
            ]
            return scale * torch.cat(blocks, dim=1)

    def _chunk(self, texts: Tokens, videos: Tokens, start: int, count: int) -> Tensor:
        """Return the four scores of some texts and `count` videos from `start` on: (4, texts, videos).

        Similarities have the dimensions (texts, words, videos, frames), or those of them that there are.
        """
        sentence, words = texts["sentence"].float(), texts["words"].float()
        video, frames = (videos[name][start : start + count].float() for name in ("video", "frames"))
        shape = (len(video), self.frames)
        video_sentence = sentence @ self.global_mat_weight @ video.T
        video_word = attend(words @ video.T, self.word_logit_weight, dim=1)
        flat = frames.flatten(0, 1).T
        sentence_frame = attend((sentence @ flat).unflatten(1, shape), self.frame_logit_weight, dim=-1)
        word_frame = (words @ self.local_mat_weight @ flat).unflatten(2, shape)
        by_frame = attend(word_frame, self.word_mat_weight, dim=1)
        by_word = attend(word_frame, self.frame_mat_weight, dim=-1)
        frame_word = attend(by_frame, self.frame_mat_weight2, dim=-1) + attend(by_word, self.word_mat_weight2, dim=1)
        return torch.stack([video_sentence, video_word, sentence_frame, frame_word / 2])

    def frame_relevance(self, texts: Tokens, videos: Tokens) -> Tensor:
        """Return softmax_f(sentence_i . frame_i,f) over the frames given of video i (pairs, frames), float32.

        The frames are CLIP's, before the temporal transformer; temperature 1. Frames that `encode_videos` filled up
        do not count, so with `mask_padding=False` it is the official number where the model's frames are given.
        """
        mask = videos["mask"]
        frames = videos["frames"][:, : mask.shape[1]]
        return frame_text_relevance(texts["sentence"], frames, mask if self.mask_padding else None)
