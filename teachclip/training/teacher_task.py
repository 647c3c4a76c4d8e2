"""The training of a teacher: its own loss, as it was published with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from teachclip.losses import contrastive_loss
from teachclip.models.backbone import clamp_scale
from teachclip.scorer import Tokens, training_logits
from teachclip.scoring.inputs import Batch
from teachclip.training.distributed import gather_tokens
from teachclip.training.frame_sets import part_of
from teachclip.training.task import Task, encode_pairs, of_pairs


class TeacherTask(Task):
    """A teacher, trained as published: symmetric cross-entropy of its logits over the global batch.

    So train X-CLIP, TS2-Net and X-Pool. A teacher whose loss is a sum over several logits, as CLIP2Video's, has
    `training_logits(texts, videos)`, which returns them with their weights.
    """

    def __init__(self, teacher: Any) -> None:
        """`teacher`: a module that is a `Teacher` and has its CLIP under `clip`."""
        super().__init__()
        self.teacher = teacher

    def clamp_scale(self) -> None:
        """Clamp the logit scale of the teacher's CLIP."""
        clamp_scale(self.teacher.clip)

    def encode(self, batch: Batch) -> Tokens:
        """Return the teacher's tokens of texts and of videos; their names begin with `texts.` and `videos.`."""
        return encode_pairs(self.teacher, batch)

    def losses(self, batch: Batch, encoded: Tokens) -> dict[str, Tensor]:
        """Return `loss` and `contrastive`, 0-d float32, equal on all processes."""
        texts, videos = (gather_tokens(part_of(encoded, prefix)) for prefix in ("texts.", "videos."))
        with torch.autocast(batch["frame_mask"].device.type, enabled=False):
            texts = {name: _as_float(tensor) for name, tensor in texts.items()}
            videos = {name: of_pairs(_as_float(tensor), len(batch["video_rows"])) for name, tensor in videos.items()}
            same_video = batch["video_rows"][:, None] == batch["video_rows"][None, :]
            losses = [
                weight * contrastive_loss(logits, same_video)
                for weight, logits in training_logits(self.teacher, texts, videos)
            ]
            loss = torch.stack(losses).sum()
        return {"loss": loss, "contrastive": loss.detach()}


def _as_float(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor
