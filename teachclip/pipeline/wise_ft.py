"""Mix a trained student's encoders with those they started from, by the share that the selection split prefers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from teachclip.models.student import StudentModel
from teachclip.pipeline.best_setting import best_setting
from teachclip.processes import Processes


def interpolate_encoders(
    student: StudentModel,
    start: Mapping[str, Tensor],
    shares: Sequence[float],
    evaluate: Callable[[], Mapping[str, Any]],
    processes: Processes,
) -> dict[str, Any]:
    """Try means of the finetuned encoders and `start`, their weights before training, and leave the best one.

    A share a gives the weights a p + (1 - a) p0 (WiSE-FT; Wortsman et al., CVPR 2022, section 3). There the head is
    part of the mean; a student's other parts have no useful start and stay as trained. 1, the encoders as trained, is
    always tried, and kept unless another is better by the text-to-video recall at 1 of `evaluate()`. Returns the
    chosen `share` and `tried`, recall at 1 by share.
    """
    weights = {name: tensor for name, tensor in student.backbone.state_dict().items() if tensor.is_floating_point()}
    finetuned = {name: tensor.clone() for name, tensor in weights.items()}

    @torch.no_grad()
    def mix(share: float) -> None:
        for name, tensor in weights.items():
            before = start[name].to(tensor.device, tensor.dtype)
            tensor.copy_(finetuned[name] if share == 1 else torch.lerp(before, finetuned[name], share))

    best, tried = best_setting(shares, mix, evaluate, processes)
    return {"share": best, "tried": tried}
