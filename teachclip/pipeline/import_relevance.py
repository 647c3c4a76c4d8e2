"""Take relevance that was computed elsewhere into a store, or write the ids that it must name."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from teachclip.cli.arguments import command, recipe_arguments, say
from teachclip.errors import RecipeError
from teachclip.recipe.loading import load_recipe
from teachclip.recipe.schema import Recipe
from teachclip.recipe.schema import Teacher as TeacherSection
from teachclip.registry import closest
from teachclip.store.files import write_atomic

if TYPE_CHECKING:
    from teachclip.data.annotations.catalog import Split


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Write a teacher's relevance store from a file of scores, or the ids of the training pairs."""
    parser = recipe_arguments(
        "Let any embedder or reranker teach: write the relevance store of a teacher named 'scores' from a file, and\n"
        "check every id in it.\n\n"
        "  import_relevance RECIPE --write-ids FOLDER      captions.csv (caption_id,video_id,text) and videos.csv\n"
        "                                                  (video_id,path,start,end) of the training pairs\n"
        "  import_relevance RECIPE --teacher LABEL [FILE]  .csv or .parquet of caption_id,video_id,score, or a .npy\n"
        "                                                  (captions x videos); default: the teacher's checkpoint\n\n"
        "The readers that come with teachclip call a caption VIDEO:NUMBER, counted from 0 for each video in the\n"
        "order of the annotations. What a file of scores may hold is in the docstrings of teachers/scores.py and\n"
        "teachers/score_files.py."
    )
    parser.add_argument("--teacher", metavar="LABEL", help="which teacher of the recipe; default: the only 'scores'")
    parser.add_argument("--write-ids", type=Path, metavar="FOLDER", help="write the ids instead")
    args = parser.parse_intermixed_args(argv)
    files = [text for text in args.overrides if "=" not in text]
    recipe = load_recipe(args.recipe, [text for text in args.overrides if "=" in text])
    if args.write_ids is not None:
        if files or args.teacher:
            raise RecipeError("--write-ids takes no FILE and no --teacher")
        write_ids(recipe, args.write_ids)
        return
    if len(files) > 1:
        raise RecipeError(f"give one FILE, got {', '.join(files)}")
    import_relevance(recipe, _choose(recipe, args.teacher), files[0] if files else None)


def _choose(recipe: Recipe, label: str | None) -> TeacherSection:
    """Return the teacher with this label, or the only one that reads scores."""
    from teachclip.pipeline.teacher_files import teacher_class
    from teachclip.scorer import reads_relevance

    readers = {section.label: section for section in recipe.teachers if reads_relevance(teacher_class(section))}
    if label is None and len(readers) == 1:
        return next(iter(readers.values()))
    if label not in readers:
        known = ", ".join(readers) or "none; add {name: scores, checkpoint: FILE} to the teachers"
        got = f"--teacher {label!r}" if label else "--teacher is missing"
        raise RecipeError(f"{got}: teachers of the recipe that read scores: {known}{closest(label or '', readers)}")
    return readers[label]


def import_relevance(recipe: Recipe, section: TeacherSection, file: str | None = None) -> None:
    """Write the store of a teacher from `file`, or from its checkpoint."""
    from teachclip.pipeline import teacher_files
    from teachclip.pipeline.workspace import build_workspace
    from teachclip.training.distributed import build_accelerator, processes_of

    chosen = section.model_copy(update={"checkpoint": file}) if file else section
    teacher_files.check_teachers(recipe.model_copy(update={"teachers": [chosen]}))
    accelerator = build_accelerator()
    work = build_workspace(recipe, processes_of(accelerator), accelerator.device)
    store = work.relevance(chosen)
    say(f"{section.label}: {store.path} ({store.rows} captions, {', '.join(store.arrays)})")
    if chosen.checkpoint != section.checkpoint:
        number = recipe.teachers.index(section)
        say(f"to distil with it, give: teachers.{number}.checkpoint={chosen.checkpoint}")


def write_ids(recipe: Recipe, folder: Path) -> None:
    """Write `captions.csv` and `videos.csv` of the training split, in its order, to `folder`."""
    from teachclip.pipeline.workspace import build_workspace
    from teachclip.training.distributed import build_accelerator, processes_of

    accelerator = build_accelerator()
    work = build_workspace(recipe, processes_of(accelerator), accelerator.device)
    if work.processes.is_main:
        for path, rows in _id_tables(work.catalog.train).items():
            text = io.StringIO(newline="")
            csv.writer(text, lineterminator="\n").writerows(rows)
            folder.mkdir(parents=True, exist_ok=True)
            write_atomic(folder / path, text.getvalue().encode())
            say(f"ids: {folder / path}")
    work.processes.wait()


def _id_tables(split: Split) -> dict[str, Iterable[Sequence[str]]]:
    captions = [(caption.id, caption.video_id, caption.text) for caption in split.captions]
    parts = [["" if time is None else repr(time) for time in (video.start, video.end)] for video in split.videos]
    videos = [(video.id, str(video.path), *part) for video, part in zip(split.videos, parts, strict=True)]
    return {
        "captions.csv": [("caption_id", "video_id", "text"), *captions],
        "videos.csv": [("video_id", "path", "start", "end"), *videos],
    }
