"""Frame-set distillation in one step: the student's scores of synthetic videos, and those that it should have."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from teachclip.models.mean_pooling import EncoderFeatures
from teachclip.models.modeling import evaluating
from teachclip.models.student import StudentModel
from teachclip.scorer import Teacher, Tokens
from teachclip.scoring.inputs import Batch, encode_text_batch, encode_video_batch
from teachclip.training.distributed import gather_tokens, gather_with_gradient
from teachclip.training.frame_sets import SCORER, STUDENT


@dataclass(frozen=True)
class FrameSetScorer:
    """Scores sets of frames against texts, by late interaction of the backbone's features or by a teacher.

    `scale`: the factor on the late interaction's cosines. `teacher`: scores in its place, on the logit scale.
    """

    scale: float = 40.0
    teacher: Teacher | None = None

    def logits(self, student: StudentModel, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the student's logits and the target's, both (texts, sets) of all processes, float32.

        What the sets teach is the temporal transformer, the residual adapters and the logit scale: no gradient
        reaches the encoders, and the attention takes no part, for every frame of a set counts alike.
        """
        inputs = _part(batch, STUDENT)
        features = _features(student, inputs)
        texts = student.texts_from_features(features["text"])["embeds"]
        sets = student.frame_sets_from_features(features["frames"], inputs["shares"])["embeds"]
        own = student.score({"embeds": gather_with_gradient(texts)}, {"embeds": gather_with_gradient(sets)})
        return own, self._targets(features, _part(batch, SCORER))

    @torch.no_grad()
    def _targets(self, features: Tokens, inputs: Batch) -> Tensor:
        with torch.autocast(features["text"].device.type, enabled=False):
            if self.teacher is None:
                found = gather_tokens(features)
                return self.scale * late_interaction(found["text"], found["frames"], found["mask"])
            texts = gather_tokens(encode_text_batch(self.teacher, inputs))
            videos = gather_tokens(encode_video_batch(self.teacher, inputs))
            return self.teacher.score(texts, videos).float()


def late_interaction(text_features: Tensor, frame_features: Tensor, frame_mask: Tensor) -> Tensor:
    """Return max_f cos(text, frame f of the set) over valid frames (texts, sets), float32.

    `text_features` (texts, dim), `frame_features` (sets, frames, dim), normalised or not; `frame_mask` (sets,
    frames). One vector per frame is kept, as in ColBERT (Khattab and Zaharia 2020) one per word.
    """
    text, frames = F.normalize(text_features.float(), dim=-1), F.normalize(frame_features.float(), dim=-1)
    cosines = torch.einsum("td,sfd->tsf", text, frames)
    return cosines.masked_fill(~frame_mask, float("-inf")).amax(dim=-1)


def _part(batch: Batch, prefix: str) -> Batch:
    return {name.removeprefix(prefix): tensor for name, tensor in batch.items() if name.startswith(prefix)}


@torch.no_grad()
def _features(student: StudentModel, inputs: Batch) -> Tokens:
    """Return raw features of the backbone: `text` (texts, dim), `frames` (sets, frames, dim), and `mask`."""
    encoders = EncoderFeatures(student.backbone)
    text, frames = inputs.get("text_features"), inputs.get("frame_features")
    with evaluating(student):  # some families have dropout, which would blur the targets
        if text is None:
            text = encode_text_batch(encoders, inputs)["features"]
        if frames is None:
            frames = encode_video_batch(encoders, inputs)["frame_features"]
    return {"text": text.float(), "frames": frames.float(), "mask": inputs["frame_mask"]}
