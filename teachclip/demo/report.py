"""What the demo computes in its own process: evaluations, frame weights, and the report."""

from __future__ import annotations

import json
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from teachclip import __version__
from teachclip.console import log
from teachclip.demo.stages import Stage
from teachclip.demo.stages_plan import ARMS, COMPARISONS, Demo
from teachclip.recipe.schema import Recipe
from teachclip.store.files import rename_all, write_atomic, write_npy

VIDEO_RULE = "the first test video in order of id, with its first caption"


def evaluate_here(recipe: Recipe, stage: Stage, threads: int) -> None:
    """Do what `teachclip evaluate` does for an evaluation stage, without starting a process."""
    import torch

    from teachclip.pipeline.evaluate import evaluate

    torch.set_num_threads(threads)
    model = stage.command[stage.command.index("--model") + 1]
    write_atomic(stage.outputs[0], json.dumps(evaluate(recipe, model=model), indent=1).encode())


def weigh_frames(demo: Demo) -> None:
    """Store the frames of one test video and what each model makes of them: `frames.npy` and `frames.json`."""
    import torch

    from teachclip.models.frame_attention import attention_weights
    from teachclip.models.student import load_student
    from teachclip.pipeline.teachers import TeacherHandle
    from teachclip.pipeline.workspace import build_workspace
    from teachclip.processes import Processes
    from teachclip.scoring.inputs import pixel_values

    device = torch.device("cpu")
    work = build_workspace(demo.recipe, Processes(), device)
    split = work.split("test")
    video = min(range(len(split.videos)), key=lambda row: split.videos[row].id)
    caption = int(np.flatnonzero(split.caption_videos == video)[0])
    inputs = work.pixel_inputs(split)
    text, batch = inputs.texts(np.array([caption])), inputs.videos(np.array([video]))
    pixels, mask = pixel_values(batch), batch["frame_mask"]
    weights: dict[str, list[float]] = {}
    with torch.no_grad():
        section = demo.recipe.teachers[0]
        teacher = TeacherHandle(section, device).model
        texts, videos = (
            teacher.encode_texts(text["input_ids"], text["attention_mask"]),
            teacher.encode_videos(pixels, mask),
        )
        weights["teacher"] = teacher.frame_relevance(texts, videos)[0].tolist()
        for arm in ARMS:
            student = load_student(demo.folder / f"{arm}-{demo.seeds[0]}" / "student")
            scores = student(pixel_values=pixels, frame_mask=mask).frame_scores
            # the weights that pool the frames, not those that the loss compares (temperature 1)
            config = student.config
            pooled = attention_weights(
                scores, mask, temperature=config.pooling_temperature, attention=config.attention
            )
            weights[arm] = pooled[0].tolist()
    facts = {
        "video": split.videos[video].id,
        "caption": split.captions[caption].text,
        "rule": VIDEO_RULE,
        "seed": demo.seeds[0],
        "weights": weights,
    }
    path_of_facts, path_of_frames = demo.stages["frames"].outputs
    temporary, _ = write_npy(path_of_frames, batch["frames"][0].permute(0, 2, 3, 1).numpy())
    rename_all({temporary: path_of_frames})
    write_atomic(path_of_facts, json.dumps(facts, indent=1).encode())


def write_report(demo: Demo) -> None:
    """Write `report.json|md|html` and the pictures from the results files, and print the tables."""
    from teachclip.reports.report import no_pictures, report_markdown, report_page, terminal_text

    report = gather(demo)
    pictures = _draw(demo, report)
    paths = {name: demo.folder / f"report.{name}" for name in ("json", "md", "html")}
    write_atomic(paths["json"], json.dumps(report, indent=1).encode())
    write_atomic(paths["md"], report_markdown(report, [(path.name, text) for path, text in pictures]).encode())
    write_atomic(paths["html"], report_page(report, pictures).encode())
    print(f"\n{terminal_text(report)}\n", flush=True)
    for what, where in report["files"].items():
        log(f"{what + ':':<20} {where}")
    if not pictures:
        log(no_pictures())


def gather(demo: Demo) -> dict[str, Any]:
    """Read all results files and return the report's data."""
    from teachclip.reports.report import Arm, build_report

    def read(stage: str) -> dict[str, Any]:
        return json.loads(demo.stages[stage].outputs[0].read_text(encoding="utf-8"))  # type: ignore[no-any-return]

    zero_shot, teacher, student = read("zero_shot"), read("teacher_result"), read("student_result")
    arms = [Arm("zero_shot", "zero-shot mean pooling", [zero_shot], zero_shot["test"]["cost"])]
    for arm, (label, _) in ARMS.items():
        # all students are one architecture: their cost is measured once, on a machine that does nothing else
        runs = [read(f"{arm}-{seed}") for seed in demo.seeds]
        arms.append(Arm(arm, label, runs, student["test"]["cost"]))
    name = demo.recipe.teachers[0].label
    arms.append(Arm("teacher", f"teacher ({name})", [teacher], teacher["test"]["cost"]))
    labels = {"world": "world", "teacher": "teacher", "precompute": "precompute"}
    labels |= {f"{arm}-{seed}": f"{ARMS[arm][0]}, seed {seed}" for seed in demo.seeds for arm in ARMS}
    first = demo.seeds[0]
    commands = {label: demo.stages[f"{arm}-{first}"] for arm, (label, _) in ARMS.items()}
    commands = {
        "zero-shot mean pooling": demo.stages["zero_shot"],
        f"teacher ({name})": demo.stages["teacher"],
    } | commands
    return build_report(
        arms,
        comparisons=COMPARISONS,
        seeds=demo.seeds,
        title=f"teachclip demo: {demo.recipe.name}",
        commands={label: stage.shown(demo.shown) for label, stage in commands.items()},
        files=_files(demo),
        machine=_machine(demo.threads),
        seconds={
            label: seconds for name, label in labels.items() if (seconds := demo.record.seconds(demo.stages[name]))
        },
    )


def _files(demo: Demo) -> dict[str, str]:
    first = demo.folder / f"distilled-{demo.seeds[0]}"
    return {
        "report": str(demo.folder / "report.html"),
        "compact student": f"{first / 'student'} (distilled as published, seed {demo.seeds[0]})",
        "all students": str(demo.folder / "*" / "student"),
        "results, logs": f"{demo.folder / '*' / 'results.json'}, {demo.folder / 'logs'}",
        "teacher": demo.recipe.teachers[0].checkpoint,
        "videos": str(demo.recipe.data.videos),
        "stores": str(demo.recipe.stores),
    }


def _machine(threads: int) -> dict[str, Any]:
    """Return what the timings and the last digits depend on."""
    return {
        "cores used": threads,
        "cores of the machine": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in ("torch", "transformers", "accelerate")},
        "teachclip": __version__,
    }


def _draw(demo: Demo, report: dict[str, Any]) -> list[tuple[Path, str]]:
    """Draw the pictures. Returns (file, caption) of each; none without matplotlib."""
    from teachclip.reports.pictures import arm_colours, can_draw, draw_frames, draw_recall

    if not can_draw():
        return []
    recall, strip = demo.folder / "recall.png", demo.folder / "frames.png"
    draw_recall(report, recall)
    facts_path, frames_path = demo.stages["frames"].outputs
    facts = json.loads(facts_path.read_text(encoding="utf-8"))
    labels = {arm["name"]: arm["label"] for arm in report["arms"]}
    order = ("teacher", "distilled_options", "distilled", "undistilled")
    weights = {labels[name]: np.array(facts["weights"][name]) for name in order}
    title = f'{facts["video"]}: "{facts["caption"]}"'
    draw_frames(np.load(frames_path, allow_pickle=False), weights, strip, title=title, colours=arm_colours(report))
    many = (
        f", mean of {len(demo.seeds)} seeds; bars of one standard deviation, a dot per seed"
        if len(demo.seeds) > 1
        else ""
    )
    return [
        (recall, f"Text-to-video recall at 1, 5 and 10{many}."),
        (
            strip,
            f"The frames that the models see of {facts['video']}, and the weight of each: the teacher's "
            "attention for the caption; the students' pooling weights, made without the caption (seed "
            f"{facts['seed']}). Chosen by rule: {facts['rule']}.",
        ),
    ]
