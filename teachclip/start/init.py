"""`teachclip init FOLDER`: from a folder of videos to a recipe that trains, without a question."""

from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path

import psutil

from teachclip.console import log
from teachclip.data.annotations.uncaptioned import read_texts
from teachclip.data_check.init_recipe import init_recipe, shell_path
from teachclip.errors import RecipeError, TeachclipError
from teachclip.pipeline.conditions import conditions_of
from teachclip.recipe.loading import load_recipe
from teachclip.start import rules
from teachclip.start.folder import require_folder
from teachclip.start.look import (
    Films,
    Machine,
    has_captions,
    look_at_films,
    look_at_machine,
    texts_in,
)
from teachclip.start.probe import Estimate, probe, probe_captioned
from teachclip.start.recipe_text import recipe_text
from teachclip.store.files import make_folder, write_atomic
from teachclip.texts.bank import bank
from teachclip.texts.names import distinct, texts_of_files

LONG = 300.0
"""Seconds of a film from which on 12 frames are too few to show its scenes."""

FEW = 50
"""Below this many videos the messages say how little can be expected."""


def init(
    folder: str | Path,
    *,
    captions: Path | None = None,
    texts: Path | None = None,
    out: Path | None = None,
    backbone: str | None = None,
    teacher: str | None = None,
) -> Path:
    """Write a recipe for a folder of videos to `out` (default: FOLDER/recipe.yaml) and say what it will take.

    A folder with captions, or `captions`, gets the recipe of `init_recipe`. Without captions the rules of
    `teachclip.start.rules` choose; the texts are those of the file `texts`, of texts.txt or queries.txt in the
    folder, or names, tags and a bank of everyday texts, written beside the recipe. Models are fetched from the hub if
    they must be; nothing else leaves this machine. Returns the path of the recipe. Raises DataError for a folder
    without (enough) videos, CheckpointError for models that are out of reach, RecipeError if the recipe exists.
    """
    folder = Path(os.path.expanduser(folder)).resolve()
    require_folder(folder)
    out = Path(os.path.expanduser(out)).resolve() if out else folder / "recipe.yaml"
    if out.exists():
        raise RecipeError(f"{out} exists; remove it or give another --out")
    films = look_at_films(folder)
    machine = look_at_machine(folder)
    local = {name: _local(value) for name, value in {"backbone": backbone, "teacher": teacher}.items()}
    if captions is not None or (texts is None and has_captions(films)):
        return _with_captions(films, machine, captions, out, **local)
    log(f"found:   {len(films.files):,} videos, {_span(3600 * films.hours)}, {_bytes(films.size)}, no captions")
    log(f"machine: {machine.device}, {machine.cores} cores, {machine.memory / 1e9:.0f} GB memory")
    choice = rules.choose(films, machine, **local)
    for name in choice.fetched:
        log(f"fetch:   {name} comes from the hub now, once")
    home = folder / "teachclip" if out.parent == folder else out.parent / "teachclip" / out.stem
    given = texts or texts_in(folder)
    source = Path(os.path.expanduser(given)).resolve() if given else home / "texts.txt"
    lines = read_texts(source) if given else distinct([*texts_of_files(folder, films.files), *bank()])
    log(f"texts:   {len(lines):,}, {source if given else 'names of files and folders, tags, everyday words'}")
    text = recipe_text(films, choice, name=folder.name or "videos", home=home, texts=source)
    log("probe:   a few videos and texts go through every part of the run")
    with contextlib.redirect_stderr(io.StringIO()):  # its stores and bars are not those of the run
        estimate = probe(load_recipe(_as_values(text)), films, lines)
    if not given:
        make_folder(home)
        write_atomic(source, ("\n".join(lines) + "\n").encode())
    make_folder(out.parent)
    write_atomic(out, text.encode())
    _tell(films, machine, choice, estimate, out, given=given is not None)
    return out


def _with_captions(
    films: Films, machine: Machine, captions: Path | None, out: Path, *, backbone: str | None, teacher: str | None
) -> Path:
    """Write the recipe of `init_recipe`, and say what it will take where its models are here or can be fetched."""
    log(f"machine: {machine.device}, {machine.cores} cores, {machine.memory / 1e9:.0f} GB memory")
    backbone, teacher, absent = rules.captioned_models(machine, backbone=backbone, teacher=teacher)
    init_recipe(films.folder, captions=captions, out=out, backbone=backbone, teacher=teacher)
    if teacher == rules.NO_TEACHER:
        log("teacher: none; the student learns from captions alone. A larger dual encoder teaches: --teacher MODEL")
    if absent and machine.offline:
        for line in rules.how_to_fetch(films.folder, machine, absent, backbone, teacher).splitlines():
            log(f"fetch:  {line}")
        return out
    for name in absent:
        log(f"fetch:  {name} comes from the hub now, once")
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            recipe = load_recipe(out)
            estimate = probe_captioned(recipe)
    except TeachclipError as error:  # the recipe is written: `prepare` says of every video what is wrong
        log(f"takes:  unknown: {error}")
        return out
    _tell_estimate(machine, estimate, out)
    if conditions_of(recipe):
        log("         with what its conditions add; where training finds that they do not hold, it takes less")
    return out


def _local(source: str | None) -> str | None:
    """Return the absolute path of a model's folder or file; the id of one on the hub stays as it is."""
    if source is None or not os.path.exists(os.path.expanduser(source)):
        return source
    return str(Path(os.path.expanduser(source)).resolve())


def _as_values(text: str) -> dict[str, object]:
    from teachclip.recipe.schema import Recipe
    from teachclip.recipe.yaml_values import parse_yaml

    values: dict[str, object] = parse_yaml(text, Recipe, where="recipe")
    return values


def _tell(
    films: Films, machine: Machine, choice: rules.Choice, estimate: Estimate, out: Path, *, given: bool
) -> None:
    """Say what was chosen and why, what it takes, and what to do next; `given`: texts were given."""
    log(f"student: from {choice.backbone}; taught by {choice.teacher}")
    for name in choice.rules:
        rule = rules.RULES[name]
        log(f"  {rule.done} (RESULTS.md, {rule.table!r})")
    _tell_estimate(machine, estimate, out)
    if len(films.files) < FEW:
        log(
            f"warning: {len(films.files)} videos are few: the student may be no better than its backbone, and what "
            f"is measured on {choice.held_out} held-out videos says little"
        )
    if warning := long_films(films):
        log(warning)
    log(f"recipe:  {out}")
    log(f"next:    teachclip distill {shell_path(out)}")
    if not given:
        log(f"better:  before it, keep the texts that occur here: teachclip texts suggest {shell_path(out)}")


def _tell_estimate(machine: Machine, estimate: Estimate, out: Path) -> None:
    """Say what training takes."""
    for name in estimate.unreadable:
        log(f"warning: {name} cannot be read; more than 1 in 100 such videos stop the run (data.max_missing)")
    parts = ", ".join(f"{name} {_span(value)}" for name, value in estimate.seconds.items() if value >= 1)
    log(f"takes:   about {_span(60 * estimate.minutes)} on this machine as it is now ({parts})")
    if (load := psutil.getloadavg()[0]) > 1.5 * machine.cores:
        busy = f"load {load:.0f} on {machine.cores} cores"
        log(f"warning: other work keeps this machine busy ({busy}): with less of it training is faster")
    log(f"stores:  about {_bytes(1e9 * estimate.gigabytes)} in {out.parent}; {machine.free / 1e9:.0f} GB are free")
    if estimate.gigabytes * 1e9 > machine.free:
        log("warning: the disk is too small for that; give --out on a larger one")


def long_films(films: Films) -> str:
    """Return a warning for films of which a few frames show little; "" for shorter ones."""
    seconds = 3600 * films.hours / len(films.files)
    if seconds < LONG:
        return ""
    return (
        f"warning: the films last {_span(seconds)} on average and 12 frames are read of each, so that texts about "
        "single scenes fit badly; cut them into scenes before training (teachclip index cuts films by itself)"
    )


def _bytes(count: float) -> str:
    """Return a number of bytes as people say it."""
    return f"{count / 1e6:.0f} MB" if count < 1e9 else f"{count / 1e9:.1f} GB"


def _span(seconds: float) -> str:
    """Return a length of time as people say it."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if seconds < 5400:
        return f"{seconds / 60:.{0 if seconds >= 600 else 1}f} min"
    return f"{seconds / 3600:.1f} h"
