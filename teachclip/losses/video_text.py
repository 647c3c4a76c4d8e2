"""How close every caption is to every video, from a teacher.

A kind is a function of `student` and `teacher`, both (rows, n) float32 logits over the temperature, the teacher's
without gradient. It returns distances per row (rows,) or per element (rows, n), whose mean is the loss. It is called
for the rows of both directions, texts and videos. Another kind is one line in `teachclip.registry.VIDEO_TEXT_LOSSES`,
or `kind: module:name` in a recipe.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from teachclip.losses.checks import check_distances, check_matrix, check_shape, check_temperature, pick
from teachclip.losses.correlation import correlation_distance
from teachclip.registry import VIDEO_TEXT_LOSSES


def video_text_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    kind: str = "pearson",
    temperature: float = 1.0,
    teacher_temperature: float = 1.0,
    direction: str = "both",
    pair_weights: Tensor | None = None,
) -> Tensor:
    """Distance of the student's video-text relevance from a teacher's (TeachCLIP, section 3.2.1).

    With `x = student_logits / temperature`, `y = teacher_logits / temperature`, and rows of both directions (texts,
    then videos by transposing):

    - `pearson` (published default): mean over rows of `1 - corr(softmax(x_row), softmax(y_row))`, both directions
      added, so in [0, 4]. Blind to scale and shift of the probabilities: it asks for the teacher's preferences, not
      for its confidence (DIST, Huang et al. 2022). A row that is constant in student or teacher has no correlation;
      it counts as 1 and gives no gradient. So one pair in a batch gives exactly 2.
    - `cross_entropy`: mean over ALL elements of `-softmax(y) log softmax(x)`, both directions added. As published; it
      is the usual soft cross-entropy divided by the row length, hence its published weight of 10.
    - `kl`: mean over rows of `sum softmax(y) (log softmax(y) - log softmax(x))`, both directions added. Not
      published. In a square batch its gradient is that of `cross_entropy` times the batch size, and its minimum is 0.
      No factor `temperature**2` is applied, as in the siblings.
    - `smooth_l1`: Huber distance with threshold 1, mean over all elements of `x - y`. Compares logits, not
      distributions, so it also asks for the teacher's scale; both directions are the same and count once.

    Not published: a `teacher_temperature` divides the teacher's logits once more, so that above 1 a softer relevance
    is imitated than the teacher's own; a `direction` of `texts` compares the rows of texts alone, what each finds
    among the videos, `videos` those of videos. `both` is the published sum.

    With `pair_weights` (pairs,), where text i and video i are pair i, row i of both directions counts that many times
    in the means, whose divisor stays the same: weights that add up to 1 over several teachers share a pair out.

    `student_logits`, `teacher_logits`: (texts, videos), on the logit scale. Raises ValueError on an unknown kind or
    direction, unequal shapes, or a temperature that is not positive.
    """
    distance = pick("video-text", kind, VIDEO_TEXT_LOSSES)
    check_temperature(temperature)
    check_temperature(teacher_temperature)
    if direction not in DIRECTIONS:
        raise ValueError(f"direction is {direction!r}; allowed: {', '.join(DIRECTIONS)}")
    check_matrix("student_logits", student_logits)
    check_shape("teacher_logits", teacher_logits, "student_logits", student_logits)
    square = student_logits.shape[0] == student_logits.shape[1]
    if pair_weights is not None and not (square and pair_weights.shape == student_logits.shape[:1]):
        shapes = f"{tuple(pair_weights.shape)} for logits {tuple(student_logits.shape)}"
        raise ValueError(f"pair_weights needs one weight per pair of square logits, got {shapes}")
    student = student_logits.float() / temperature
    teacher = teacher_logits.detach().float() / (temperature * teacher_temperature)
    if direction == "videos" and kind not in SYMMETRIC:
        student, teacher = student.T, teacher.T
    values = distance(student, teacher)
    check_distances("video-text", kind, values, student)
    loss = _mean(values, pair_weights)
    if direction != "both" or kind in SYMMETRIC:
        return loss
    return loss + _mean(distance(student.T, teacher.T), pair_weights)


def frame_set_loss(student_logits: Tensor, target_logits: Tensor) -> Tensor:
    """Distance of what each text finds among sets of frames from what a scorer that keeps every frame finds.

    Mean over texts of `KL(softmax(target_row), softmax(student_row))`, over the sets. Not published: it is the
    relevance distillation of section 3.2.1 on synthetic videos, from texts to sets alone.
    `student_logits`, `target_logits`: (texts, sets). Raises ValueError on unequal shapes.
    """
    check_matrix("student_logits", student_logits)
    check_shape("target_logits", target_logits, "student_logits", student_logits)
    return kl_divergence(student_logits.float(), target_logits.detach().float()).mean()


def _mean(values: Tensor, weights: Tensor | None) -> Tensor:
    """Return the mean of all values (rows, ...), each row times its weight (rows,)."""
    return (values if weights is None else values * weights.view(-1, *[1] * (values.ndim - 1))).mean()


def pearson_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Return `1 - corr(softmax(student), softmax(teacher))` of every row."""
    return correlation_distance(student.softmax(-1), teacher.softmax(-1))


def soft_cross_entropy(student: Tensor, teacher: Tensor) -> Tensor:
    """Return `-softmax(teacher) log softmax(student)` of every element."""
    return -(teacher.softmax(-1) * F.log_softmax(student, -1))


def kl_divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """Return `KL(softmax(teacher), softmax(student))` of every row."""
    logs = F.log_softmax(student, -1), F.log_softmax(teacher, -1)
    return F.kl_div(*logs, reduction="none", log_target=True).sum(-1)


def smooth_l1_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the Huber distance, threshold 1, of every element."""
    return F.smooth_l1_loss(student, teacher, reduction="none")


DIRECTIONS = ("both", "texts", "videos")
"""Whose rows are compared."""

SYMMETRIC = ("smooth_l1",)
"""Kinds whose two directions are the same; they count once."""
