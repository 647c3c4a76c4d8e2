"""The losses of TeachCLIP (CVPR 2024, section 3.2), and one more, as pure functions of tensors.

| function | teaches | compares |
|---|---|---|
| `contrastive_loss` | which caption belongs to which video | student logits with the pairing itself |
| `video_text_loss` | how close every caption is to every video | student logits with teacher logits |
| `frame_text_loss` | which frames a caption speaks of | student frame weights with a teacher's frame relevance |
| `frame_set_loss` | what a few frames together mean | student logits of sets of frames with those of many vectors |

The published total is 0.2 contrastive + 1 video-text + 2 frame-text, or 1, 10, 1 where the video-text kind is
`cross_entropy`, whose mean over all elements makes it small. With several teachers each term is the mean over them.

Every function converts its inputs to float32 first (autocast would leave a softmax in bfloat16), returns a 0-d
float32 tensor, sends no gradient to the teacher, and needs no synchronisation with the host.
"""

from __future__ import annotations

from teachclip.losses.contrastive import contrastive_loss
from teachclip.losses.correlation import CONSTANT, correlation_distance
from teachclip.losses.frame_text import frame_text_loss
from teachclip.losses.video_text import frame_set_loss, video_text_loss
from teachclip.registry import FRAME_TEXT_LOSSES, VIDEO_TEXT_LOSSES

__all__ = [
    "CONSTANT",
    "FRAME_TEXT_LOSSES",
    "VIDEO_TEXT_LOSSES",
    "contrastive_loss",
    "correlation_distance",
    "frame_set_loss",
    "frame_text_loss",
    "video_text_loss",
]
