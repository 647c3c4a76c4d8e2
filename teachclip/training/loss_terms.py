"""The terms of the total loss and their weights over a run."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from teachclip.scoring.inputs import Batch


@dataclass(frozen=True)
class Term:
    """One term of the total loss."""

    weight: float
    kind: str = ""
    temperature: float = 1.0
    end_weight: float | None = None

    def weight_at(self, batch: Batch) -> float | Tensor:
        """Return the weight in a step; `progress` of the batch, 0-d, goes from 0 in the first to 1 in the last."""
        if self.end_weight is None:
            return self.weight
        return self.weight + (self.end_weight - self.weight) * batch["progress"]


@dataclass(frozen=True)
class DistillationTerms:
    """The total of TeachCLIP (CVPR 2024, section 3.3): 0.2 contrastive + 1 video-text + 2 frame-text.

    Not published: frame-set distillation, `frame_sets`, for a task that has a `FrameSetScorer`.
    """

    contrastive: Term = Term(0.2)
    video_text: Term = Term(1.0, "pearson")
    frame_text: Term = Term(2.0, "cross_entropy")
    frame_sets: Term = Term(0.0)
