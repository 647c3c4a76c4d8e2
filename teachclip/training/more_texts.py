"""Training texts beyond the batch, against whose relevance to the batch's videos the student is taught too.

A text costs far less than a video, and the teacher's relevance of all texts to all videos is stored, so that a step
may compare its videos with many more texts than its own. Not published: it is the video-text relevance of TeachCLIP
(section 3.2.1) over more rows, which larger batches would give at the price of their videos.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from teachclip.models.student import StudentModel
from teachclip.scoring.inputs import Batch, Inputs, encode_text_batch
from teachclip.training.distributed import gather_rows, gather_with_gradient
from teachclip.training.frame_sets import check_divisible, part_of

MORE = "more."
"""What the names of these texts' inputs, and of their relevance, begin with in a batch."""

ReadRelevance = Callable[[np.ndarray, np.ndarray], Tensor]
"""Reads a teacher's video-text relevance of rows of texts and videos: (texts, videos)."""


@dataclass(frozen=True)
class MoreTexts:
    """The further texts of every step: a function of the seed and the step alone, whatever the number of processes.

    inputs: the student's, of the training split. count: texts per step, of all processes together.
    """

    inputs: Inputs
    count: int
    seed: int

    def batch(
        self,
        step: int,
        rows: np.ndarray,
        columns: np.ndarray,
        relevances: Sequence[ReadRelevance],
        index: int = 0,
        processes: int = 1,
    ) -> Batch:
        """Return the inputs of one process's further texts, and `video_text.k` (texts, pairs) of each teacher.

        `rows`, `columns`: the texts of the global batch, none of which is drawn again, and the videos of its pairs.
        Raises LaunchError if the texts cannot be shared out evenly.
        """
        check_divisible("video_text", {"more_texts": self.count}, processes)
        rng = np.random.default_rng([abs(self.seed), int(self.seed < 0), step, 4])
        texts = self.inputs.text_count
        drawn = rng.choice(texts, min(texts, self.count + len(rows)), replace=False)
        drawn = drawn[~np.isin(drawn, rows)][: self.count]  # without those that are the batch's
        own = drawn[index * len(drawn) // processes : (index + 1) * len(drawn) // processes]
        batch = {f"{MORE}{name}": tensor for name, tensor in self.inputs.texts(own).items()}
        return batch | {f"{MORE}video_text.{k}": read(own, columns) for k, read in enumerate(relevances)}


def more_logits(student: StudentModel, batch: Batch, videos: Tensor) -> tuple[Sequence[Tensor], list[Tensor]] | None:
    """Return the student's logits of the further texts, and the stored teachers' relevance: all (texts, pairs).

    Both of all processes; the logits, float32, of the embeddings and each of their prefixes. `videos`: of the pairs
    of the global batch. None if the batch holds no further texts.
    """
    inputs = part_of(batch, MORE)
    if not inputs:
        return None
    names = [name for name in inputs if name.startswith("video_text.")]
    embeds = encode_text_batch(student, {name: inputs[name] for name in inputs if name not in names})["embeds"]
    relevance = gather_rows({name: inputs[name] for name in names})
    texts = gather_with_gradient(embeds.float())
    with torch.autocast(texts.device.type, enabled=False):
        logits = student.prefix_logits({"embeds": texts}, {"embeds": videos})
    return logits, [relevance[name].float() for name in names]
