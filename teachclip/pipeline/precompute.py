"""Decode the videos of a recipe and store the relevance of its teachers."""

from __future__ import annotations

from collections.abc import Sequence

from teachclip.console import log
from teachclip.data.annotations.records import Catalog
from teachclip.errors import StoreError
from teachclip.pipeline.conditions import possible_recipes
from teachclip.pipeline.relevance import (
    check_relevance,
    stored_tokens,
    teacher_relevance,
    teaches_by_tokens,
    verify_teacher,
    verify_tokens,
)
from teachclip.pipeline.teachers import check_teachers, open_teachers
from teachclip.pipeline.uncaptioned import teacher_choices, uncaptioned_relevance
from teachclip.pipeline.workspace import build_workspace
from teachclip.recipe.loading import RecipeSource, load_recipe
from teachclip.recipe.loss_section import FROZEN_BACKBONE
from teachclip.training.distributed import build_accelerator, processes_of


def precompute(recipe: RecipeSource, overrides: Sequence[str] = (), *, verify: bool = False) -> None:
    """Decode all videos, store features that frozen encoders give, and store each teacher's relevance.

    `recipe`, `overrides`: as of `distill`. What is stored already is not computed again. `verify`: check all
    checksums and compute a sample again. Raises StoreError with one line per problem that this finds.
    """
    recipe = load_recipe(recipe, overrides)
    accelerator = build_accelerator()
    teachers = open_teachers(recipe, accelerator.device)
    check_teachers(recipe, teachers)

    def check(catalog: Catalog) -> None:
        for each in possible_recipes(recipe):
            check_relevance(each, teachers.values(), catalog.train)

    work = build_workspace(
        recipe,
        processes_of(accelerator),
        accelerator.device,
        teachers=teachers,
        check=check,
    )
    views = {"train": work.views}  # the other splits are seen in view 0 alone
    by_frozen = any(
        each.losses.uses_frame_sets and each.losses.frame_sets.scorer == FROZEN_BACKBONE
        for each in possible_recipes(recipe)
    )
    frozen = recipe.train.encoders == "frozen"
    read = work.catalog.splits if frozen else [work.catalog.train] if by_frozen else []
    features = [work.feature_inputs(split, work.backbone, views.get(split.name, 1)) for split in read]
    problems: list[str] = []
    if verify:  # what relevance is computed from comes first: a sample that differs then blames the right store
        problems += work.frames.verify()
        for inputs in features:
            problems += [*inputs.text_store.verify(), *inputs.video_store.verify()]
    for handle in teachers.values():
        if teaches_by_tokens(recipe, handle, work.catalog.train):
            texts, videos = stored_tokens(work, handle, work.catalog.train)
            log(f"{handle.label}: {texts.path.parent} (tokens of {texts.rows} captions and {videos.rows} videos)")
            problems += verify_tokens(work, handle) if verify else []
            continue
        store = teacher_relevance(work, handle)
        if not work.catalog.train.is_paired:
            uncaptioned_relevance(work, handle)
        log(f"{handle.label}: {store.path} ({store.rows} captions)")
        if verify:
            problems += verify_teacher(work, handle, store, sample=not problems)
    if not work.selection_split().is_paired:
        teacher_choices(work, work.selection_split())
    for handle in teachers.values():
        handle.release()
    if verify:
        if problems:
            raise StoreError("\n".join(problems))
        by_tokens = all(teaches_by_tokens(recipe, handle, work.catalog.train) for handle in teachers.values())
        sample = "" if by_tokens else " and a recomputed sample of relevance agrees"
        log(f"verified: every checksum is right{sample}")
