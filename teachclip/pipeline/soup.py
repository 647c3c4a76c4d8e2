"""A soup: one student whose weights are the mean of several students' (Wortsman et al., ICML 2022)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from teachclip.console import log
from teachclip.data.annotations.records import Split
from teachclip.errors import CheckpointError
from teachclip.models.configuration import FIELDS
from teachclip.models.mean_pooling import MeanPooling
from teachclip.models.student import StudentModel, load_student
from teachclip.pipeline.conditions import as_trained
from teachclip.pipeline.encoders import read_as_saved
from teachclip.pipeline.export import write_student_folder
from teachclip.pipeline.uncaptioned import evaluate_any, teacher_choices
from teachclip.pipeline.workspace import Workspace, build_workspace
from teachclip.recipe.loading import RecipeSource, load_recipe
from teachclip.reports.tables import results_table
from teachclip.store.fingerprint import fingerprint_of
from teachclip.training.distributed import build_accelerator, processes_of

State = dict[str, Tensor]


def soup(
    recipe: RecipeSource, students: Sequence[str | Path], out: str | Path, overrides: Sequence[str] = ()
) -> dict[str, Any]:
    """Average students greedily, as the selection split says, and write the result as a student's folder.

    The best student comes first; each other one, best first, joins the mean if the text-to-video recall at 1 is not
    lower with it (Wortsman et al., ICML 2022, section 2: greedy soup). It makes sense of students that started from
    the same weights: runs of one `seed` with other rates, or with another `batch_seed`. `recipe`, `overrides`: as of
    `distill`, of the data to select and measure on. Returns the results; `soup` names each student's folder, its
    recall and whether it is in the mean. Raises CheckpointError for fewer than two students, for students of
    different shapes, or for students that read texts or videos differently.
    """
    recipe, out = load_recipe(recipe, overrides), Path(os.path.expanduser(out))
    if len(students) < 2:
        raise CheckpointError(f"a soup is of several students, got {len(students)}")
    trust = recipe.student.trust_remote_code
    loaded = [load_student(os.path.expanduser(path), trust_remote_code=trust) for path in students]
    check_alike(loaded, [str(path) for path in students])
    accelerator = build_accelerator()
    work = build_workspace(recipe, processes_of(accelerator), accelerator.device)
    student = loaded[0].to(work.device).eval()
    read_as_saved(student)
    states = [each.state_dict() for each in loaded]
    states[0] = {name: tensor.cpu().clone() for name, tensor in states[0].items()}  # the means are loaded over it
    selection = work.selection_split()

    def recall(members: Sequence[int]) -> float:
        student.load_state_dict(mean_of([states[member] for member in members]))
        value = float(_evaluate(work, student, selection)["t2v"]["recall_at_1"])
        return work.processes.gather(value)[0]  # one decision, whatever rounding does

    alone = [recall([number]) for number in range(len(states))]
    order = sorted(range(len(states)), key=lambda number: -alone[number])
    members, best = order[:1], alone[order[0]]
    for number in order[1:]:
        if (value := recall([*members, number])) >= best:
            members, best = [*members, number], value
    student.load_state_dict(mean_of([states[member] for member in members]))
    for number, path in enumerate(students):
        log(
            f"{path}: R@1 {alone[number]:.1f} on {selection.name}, {'in' if number in members else 'not in'} the mean"
        )
    tried = [
        {"folder": str(path), "recall_at_1": alone[number], "in_mean": number in members}
        for number, path in enumerate(students)
    ]
    results = work.stamp(model="student", soup={"students": tried, "recall_at_1": best})
    splits = {"validation": work.catalog.validation, "test": work.catalog.test}
    measured = {name: split for name, split in splits.items() if split is not None}
    for name, split in measured.items():
        results[name] = _evaluate(work, student, split, final=True)
    if measured:
        last, split = list(measured.items())[-1]
        results["zero_shot"] = {last: _evaluate(work, MeanPooling(work.backbone).to(work.device), split)}
    if work.processes.is_main:
        write_student_folder(student.cpu(), out, results=results, recipe=as_trained(recipe, Path(students[0]).parent))
        print(results_table([results]), flush=True)
        log(f"student: {out}, the mean of {len(members)} of {len(students)}")
    return results


def check_alike(students: Sequence[StudentModel], names: Sequence[str]) -> None:
    """Raise CheckpointError, naming the difference, unless all have the settings and the processor of the first."""
    for settings in (_settings, _reading):
        first, *others = (settings(student, name) for student, name in zip(students, names, strict=True))
        for other, name in zip(others, names[1:], strict=True):
            for key in (key for key in first if first[key] != other[key]):
                raise CheckpointError(
                    f"{name}: {key} is {other[key]}, that of {names[0]} is {first[key]}: only students of the same "
                    "settings can be averaged"
                )


def _settings(student: StudentModel, name: str) -> dict[str, Any]:
    config = student.config.to_dict()
    return {key: config.get(key) for key in FIELDS}  # what is as usual may not be saved


def _reading(student: StudentModel, name: str) -> dict[str, Any]:
    """Return how a student reads texts and videos. Raises CheckpointError if it has no processor that says so."""
    how = student.processor
    if how is None:
        raise CheckpointError(f"{name}: has no processor (tokenizer and decoding settings), which a soup takes over")
    words = fingerprint_of(how.tokenizer.get_vocab())[:8]
    return {"tokenizer": words, "frame_sampling": how.frame_sampling, **how.preprocessing.describe()}


def mean_of(states: Sequence[State]) -> State:
    """Return the mean of the weights of several students; what is no float is the first's."""
    return {
        name: torch.stack([state[name] for state in states]).mean(dim=0) if tensor.is_floating_point() else tensor
        for name, tensor in states[0].items()
    }


def _evaluate(work: Workspace, student: Any, split: Split, **options: Any) -> dict[str, Any]:
    choices = [] if split.is_paired else teacher_choices(work, split)
    return evaluate_any(work, student, work.inputs_for(student, split), split, choices, **options)
