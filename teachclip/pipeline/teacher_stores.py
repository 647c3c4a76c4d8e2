"""The relevance of a recipe's teachers for its training pairs: computed once, kept in stores, checked."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from teachclip.console import log
from teachclip.data.annotations.files import file_facts
from teachclip.data.annotations.records import Video
from teachclip.pipeline.teacher_files import build_teacher
from teachclip.processes import Processes
from teachclip.recipe.schema import Teacher as TeacherSection
from teachclip.scorer import Teacher, reads_relevance
from teachclip.scoring.relevance import recompute, relevance_rows, verify_relevance
from teachclip.scoring.token_store import store_relevance, store_scorer_tokens
from teachclip.store.array_store import ArrayStore
from teachclip.store.fingerprint import fingerprint_of

if TYPE_CHECKING:
    from teachclip.pipeline.workspace import Workspace

SAMPLE = 8
"""Captions whose relevance is computed again to verify a store."""

Compute = Callable[[np.ndarray], Mapping[str, np.ndarray]]


def teacher_fingerprint(work: Workspace, section: TeacherSection) -> str:
    """Return the hash of everything that a teacher's relevance for the training split depends on."""
    return fingerprint_of(_provenance(work, section, build_teacher(section, work.device)))


def teacher_relevance(work: Workspace, section: TeacherSection) -> ArrayStore:
    """Return the relevance of a teacher for the training split; compute or read it if it is not stored yet."""
    teacher = build_teacher(section, work.device)
    split = work.catalog.train
    options: dict[str, Any] = {
        "captions": len(split.captions),
        "videos": len(split.videos) * work.views,
        "provenance": _provenance(work, section, teacher),
        "precision": work.recipe.teaching.precision,
        "label": f"{section.label} relevance",
    }
    path = work.recipe.stores / work.training_name(f"relevance-{section.folder}")
    if reads_relevance(teacher):  # its file is read by one process: it may be large
        compute = _given(work, section, teacher)
        return work.processes.main_first(lambda: store_relevance(path, compute, processes=Processes(), **options))
    texts, videos = _tokens(work, section, teacher)
    rows = partial(relevance_rows, teacher, texts, videos, split.caption_videos, views=work.views, device=work.device)
    return store_relevance(path, rows, processes=work.processes, **options)


def verify_teacher(work: Workspace, section: TeacherSection, store: ArrayStore) -> list[str]:
    """Check a teacher's stores: every checksum, and a sample of rows computed or read again from the start."""
    teacher = build_teacher(section, work.device)
    given = reads_relevance(teacher)
    problems = []
    if not given:
        problems = [problem for tokens in _tokens(work, section, teacher) for problem in tokens.verify()]
    problems += store.verify()
    if problems:
        return problems
    split = work.catalog.train
    rows = np.unique(np.linspace(0, store.rows - 1, min(SAMPLE, store.rows)).astype(np.int64))
    if given:
        columns = np.arange(len(split.videos))
        again = _given(work, section, teacher)(rows)
    else:
        own = np.unique(split.caption_videos[rows])
        columns = np.concatenate([view * len(split.videos) + own for view in range(work.views)])
        inputs = work.inputs_for(teacher, split, work.views)
        again = recompute(teacher, inputs, split.caption_videos, rows, columns, views=work.views, device=work.device)
    return verify_relevance(store, again, rows, columns, label=section.label)


def _provenance(work: Workspace, section: TeacherSection, teacher: Any) -> dict[str, Any]:
    options = {"name": section.name, **section.options}
    if not reads_relevance(teacher):
        return work.provenance(work.catalog.train, teacher, options, views=work.views)
    # The content of its files counts, not where they lie.
    files = teacher.files()
    facts = file_facts(
        [Video(name, path) for name, path in files.items()],
        work.recipe.stores / "score-file-hashes.json",
        progress=work.processes.is_main,
    )
    return {
        "model": {
            "class": type(teacher).__name__,
            "options": {key: value for key, value in options.items() if key not in files},
            "files": {name: {"bytes": fact["bytes"], "sha256": fact["sha256"]} for name, fact in facts.items()},
        },
        "split": work.catalog.train.provenance(),
        "frames": work.recipe.frames.count,
    }


def _given(work: Workspace, section: TeacherSection, teacher: Any) -> Compute:
    """Return a function that reads relevance from the teacher's files, which are opened at its first call."""

    @functools.cache
    def opened() -> Any:
        known = [split for split in work.catalog.splits if split is not work.catalog.train]
        found = teacher.relevance_of(
            work.catalog.train, frames=work.recipe.frames.count, others=known, scratch=work.recipe.stores
        )
        for line in found.remarks:
            log(f"{section.label}: {line}")
        return found

    return lambda rows: opened().rows(rows)  # type: ignore[no-any-return]


def _tokens(work: Workspace, section: TeacherSection, teacher: Teacher) -> tuple[ArrayStore, ArrayStore]:
    return store_scorer_tokens(
        work.recipe.stores / work.training_name(f"tokens-{section.folder}"),
        teacher,
        work.inputs_for(teacher, work.catalog.train, work.views),
        provenance=_provenance(work, section, teacher),
        batch_size=work.recipe.teaching.batch_size,
        device=work.device,
        processes=work.processes,
        label=f"{section.label} tokens",
    )
