"""What the demo measures in its own process: evaluations, and the frame weights of one test video."""

from __future__ import annotations

import json

import numpy as np
import torch

from teachclip.demo.plan import VARIANTS, Demo
from teachclip.demo.stage_record import Stage
from teachclip.models.frame_attention import attention_weights
from teachclip.models.student import load_student
from teachclip.pipeline.evaluate import evaluate
from teachclip.pipeline.teachers import TeacherHandle
from teachclip.pipeline.workspace import build_workspace
from teachclip.processes import Processes
from teachclip.recipe.schema import Recipe
from teachclip.scoring.inputs import pixel_values
from teachclip.store.files import rename_all, write_atomic, write_npy

VIDEO_RULE = "the first test video in order of id, with its first caption"


def evaluate_here(recipe: Recipe, stage: Stage, threads: int) -> None:
    """Do what `teachclip evaluate` does for an evaluation stage, without starting a process."""
    torch.set_num_threads(threads)
    model = stage.command[stage.command.index("--model") + 1]
    write_atomic(stage.outputs[0], json.dumps(evaluate(recipe, model=model), indent=1).encode())


def weigh_frames(demo: Demo) -> None:
    """Store the frames of one test video and the weight that each model gives them: `frames.npy`, `frames.json`."""
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
        for variant in VARIANTS:
            student = load_student(demo.folder / f"{variant}-{demo.seeds[0]}" / "student")
            scores = student(pixel_values=pixels, frame_mask=mask).frame_scores
            # the weights that pool the frames, not those that the loss compares (temperature 1)
            config = student.config
            pooled = attention_weights(scores, mask, temperature=config.pooling_temperature, kind=config.attention)
            weights[variant] = pooled[0].tolist()
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
