"""Scale the pooling temperature of a trained student by the factor that the selection split prefers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from teachclip.models.student import StudentModel
from teachclip.pipeline.best_setting import best_setting
from teachclip.processes import Processes


def scale_temperature(
    student: StudentModel, factors: Sequence[float], evaluate: Callable[[], Mapping[str, Any]], processes: Processes
) -> dict[str, Any]:
    """Try factors on the attention scores and leave the student with the best one (post-hoc temperature scaling).

    A factor f multiplies the scores before the softmax or sigmoid, so it divides the pooling temperature. 1, the
    student as trained, is always tried, and kept unless another is better by the text-to-video recall at 1 of
    `evaluate()`. Frame attention that learns with one temperature need not pool best with it; this costs one
    evaluation per factor and no training. Returns the chosen `factor` and `tried`, recall at 1 by factor.
    """
    temperature = student.config.pooling_temperature
    best, tried = best_setting(
        factors, lambda factor: set_pooling_temperature(student, temperature / factor), evaluate, processes
    )
    return {"factor": best, "tried": tried}


def set_pooling_temperature(student: StudentModel, temperature: float) -> None:
    """Set the pooling temperature of a student, in the model and in what is saved with it."""
    student.config.pooling_temperature = temperature
    student.aggregation.temperature = temperature
