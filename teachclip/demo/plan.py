"""The plan of the demo: which students are compared, and the stages in the order in which they run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from teachclip.demo.stage_record import Stage, StageRecord
from teachclip.recipe.loading import find_recipe, load_recipe
from teachclip.recipe.schema import Recipe
from teachclip.store.fingerprint import fingerprint_of

RECIPE = "shapes_xpool.yaml"

# The students that are compared, as overrides of the recipe. All train on the same features, steps and batch size.
# The rates are the recipe's, which validation chose for both the undistilled and the distilled student; 0.33 is the
# temperature of the frame term that it chose for the two options
# (`teachclip study shapes_gain`, pooling temperature as trained).
VARIANTS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "undistilled": ("student, undistilled", ("teachers=[]", "losses.contrastive.weight=1")),
    "distilled": ("student, distilled as published", ()),
    "distilled_options": (
        "student, distilled with options",
        ("losses.frame_text.targets=video", "losses.frame_text.temperature=0.33"),
    ),
}
COMPARISONS = (
    ("distilled", "undistilled"),
    ("distilled_options", "undistilled"),
    ("distilled_options", "distilled"),
)


@dataclass(frozen=True)
class Demo:
    """The stages of the demo and where they leave what they make."""

    folder: Path
    recipe: Recipe
    seeds: Sequence[int]
    threads: int
    shown: Mapping[str, str]
    """Environment variables to show before the plain commands, where they are not the defaults."""
    stages: Mapping[str, Stage]
    record: StageRecord

    @classmethod
    def build(cls, runs: Path, seeds: Sequence[int], threads: int, shown: Mapping[str, str]) -> Demo:
        """Plan the demo in the folder `runs`. Nothing is written yet."""
        folder, path = runs / "demo", find_recipe(RECIPE)
        recipe = load_recipe(path)
        stages = plan_stages(path, recipe, runs, seeds)
        record = StageRecord(folder / "stages.json", stages)
        return cls(folder, recipe, seeds, threads, shown, {stage.name: stage for stage in stages}, record)


def plan_stages(path: Path, recipe: Recipe, runs: Path, seeds: Sequence[int]) -> list[Stage]:
    """Return all stages in the order in which they run."""
    shapes, demo, file = runs / "shapes", runs / "demo", str(path)
    teacher = recipe.teachers[0]
    content = {"recipe": fingerprint_of(recipe.model_dump(mode="json"))}
    made = tuple(shapes / name for name in ("annotations.json", "train.csv", "test.csv", "videos", "clip"))
    stages = [
        Stage("shapes", ("make-data", "shapes", "--out", str(shapes)), made, owns=(shapes,)),
        Stage(
            "teacher",
            ("train-teacher", file),
            (Path(teacher.checkpoint),),
            owns=(Path(teacher.checkpoint).parent,),
            needs=("shapes",),
            content=content,
        ),
        Stage("precompute", ("precompute", file), (recipe.stores,), (recipe.stores,), ("teacher",), content),
    ]
    for seed in seeds:
        for variant, (_, overrides) in VARIANTS.items():
            output = demo / f"{variant}-{seed}"
            stages.append(
                Stage(
                    f"{variant}-{seed}",
                    ("distill", file, f"seed={seed}", *overrides, f"output={output}"),
                    (output / "results.json", output / "student"),
                    owns=(output,),
                    needs=("precompute",),
                    content=content,
                )
            )
    student = f"distilled-{seeds[0]}"
    for name, model, needs in (
        ("zero_shot", "zero_shot", ("shapes",)),
        ("teacher_result", teacher.label, ("teacher",)),
        ("student_result", str(demo / student / "student"), (student,)),
    ):
        out = demo / f"{name}.json"
        stages.append(
            Stage(name, ("evaluate", file, "--model", model, "--out", str(out)), (out,), (out,), needs, content)
        )
    frames = tuple(demo / name for name in ("frames.json", "frames.npy"))
    students = tuple(f"{variant}-{seeds[0]}" for variant in VARIANTS)
    stages.append(Stage("frames", ("demo",), frames, frames, ("teacher", *students)))
    return stages
