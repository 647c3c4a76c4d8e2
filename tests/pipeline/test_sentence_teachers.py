"""Models of Sentence Transformers in whole runs: encoders, and rerankers that score a shortlist of each text."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from runs import assert_same_losses, logged_losses, relevance_store
from sentence_models import save_llava, save_reranker, save_video_reranker
from tiny_models import tiny_student
from torch.testing import assert_close

from teachclip.cli import diagnose, distill, evaluate, precompute
from teachclip.models.student import load_student
from teachclip.pipeline.build import build_catalog
from teachclip.pipeline.relevance import teacher_relevance
from teachclip.pipeline.teachers import TeacherHandle
from teachclip.pipeline.workspace import build_workspace
from teachclip.processes import Processes
from teachclip.recipe.loading import load_recipe
from teachclip.scoring.pair_store import SparseRelevance
from teachclip.store.array_store import ArrayStore

TRAINING_VIDEOS = 8


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A student, and rerankers of pictures and of videos, as folders."""
    root = tmp_path_factory.mktemp("models")
    tiny_student(heads=1).save_pretrained(root / "student")
    save_reranker(root / "pictures", save_llava(root / "llava"))
    save_video_reranker(root / "videos")
    return root


def run(main, *arguments):
    return main([str(argument) for argument in arguments])


def encoder(models, **options):
    return {"name": "sentence_transformer", "checkpoint": str(models / "student"), "options": options}


def reranker(models, kind="videos", name="cross_encoder", **options):
    options = {"trust_remote_code": True, "size": 32, "scale": 5.0, **options}
    return {"name": name, "label": name.split(":")[-1], "checkpoint": str(models / kind), "options": options}


def errors(capsys):
    return [line for line in capsys.readouterr().err.splitlines() if "error" in line]


def test_an_exported_student_teaches_by_sentence_transformers_as_it_scores_itself(project, models):
    recipe = project(teachers=[encoder(models)], teaching={"precision": "float32"})
    assert run(precompute.main, recipe, "--verify") == 0
    store = relevance_store(project.folder / "stores", "sentence_transformer")
    split = build_catalog(load_recipe(recipe)).train
    student = load_student(models / "student").eval()
    with torch.no_grad():
        texts = {"embeds": student.encode_text([caption.text for caption in split.captions], progress=False)}
        videos = {"embeds": student.encode_video([video.path for video in split.videos], progress=False)}
        wanted = student.score(texts, videos)
    assert_close(torch.tensor(store.read("video_text", slice(None))), wanted, atol=1e-5, rtol=1e-5)


def test_it_teaches_stored_and_online_alike(project, models):
    for source in ("stored", "online"):
        recipe = project(
            f"{source}.yaml",
            teachers=[encoder(models)],
            teaching={"source": source, "precision": "float32"},
            output=str(project.folder / source),
        )
        assert run(distill.main, recipe) == 0
    names = ("loss", "video_text")
    assert_same_losses(*(logged_losses(project.folder / source, names) for source in ("stored", "online")), steps=4)


def test_shortlists_of_all_videos_train_as_all_pairs_do(project, models):
    recipes = {
        "sparse": reranker(models, "pictures", top=TRAINING_VIDEOS),
        "dense": reranker(models, "pictures", "sentence_models:DensePairs"),
    }
    losses = {"frame_text": {"targets": "video"}}
    for name, teacher in recipes.items():
        recipe = project(f"{name}.yaml", teachers=[teacher], losses=losses, output=str(project.folder / name))
        assert run(distill.main, recipe) == 0
    sparse, dense = (logged_losses(project.folder / name) for name in recipes)
    assert_same_losses(sparse, dense, steps=4)


def pairs_store(project):
    (manifest,) = (project.folder / "stores" / "relevance-cross_encoder").glob("*/manifest.json")
    return ArrayStore.open(manifest.parent)


@pytest.mark.parametrize("first", ["xpool", "zero_shot", "student"])
def test_a_first_scorer_finds_the_lists(project, models, first):
    xpool = {"name": "xpool", "checkpoint": str(project.root / "teacher.pth")}
    teacher = reranker(models, first=str(models / "student") if first == "student" else first, top=3, margin=1.0)
    teachers = [xpool, teacher] if first == "xpool" else [teacher]
    recipe = project(teachers=teachers, teaching={"weighting": "confidence"})
    assert run(precompute.main, recipe, "--verify") == 0
    store, split = pairs_store(project), build_catalog(load_recipe(recipe)).train
    columns = store.read("columns", slice(None))
    assert columns.shape == (len(split.captions), 3) and store.read("scores", slice(None)).dtype == np.float16
    if first == "xpool":
        names = store.provenance["videos"]
        dense = relevance_store(project.folder / "stores", "xpool")
        place = [names.index(name) for name in dense.provenance["videos"]]
        relevance = dense.read("video_text", slice(None)).astype(np.float32)
        relevance[np.arange(len(relevance)), split.caption_videos] = np.inf
        best = [sorted(np.array(place)[row]) for row in np.argsort(-relevance, axis=1)[:, :3]]
        assert [sorted(row) for row in columns.tolist()] == best
    if first == "xpool":
        assert run(distill.main, recipe) == 0
        assert np.isfinite(logged_losses(project.folder / "run", ("loss", "video_text"))).all()


def test_longer_lists_score_what_is_new_and_damage_is_found(project, models, capsys):
    assert run(precompute.main, project(teachers=[reranker(models, top=3)])) == 0
    short = pairs_store(project)
    recipe = project(teachers=[reranker(models, top=4, margin=2.0)])
    assert run(precompute.main, recipe, "--verify") == 0
    folders = sorted((project.folder / "stores" / "relevance-cross_encoder").glob("*/manifest.json"))
    assert len(folders) == 2
    longer = next(ArrayStore.open(path.parent) for path in folders if path.parent != short.path)
    kept = [
        dict(zip(*row, strict=True))
        for row in zip(*(longer.read(name, slice(None)).tolist() for name in ("columns", "scores")), strict=True)
    ]
    for row, columns in enumerate(short.read("columns", slice(None)).tolist()):
        assert [kept[row][column] for column in columns] == short.read("scores", [row])[0].tolist()
    file = next(longer.path.glob("scores-*.npy"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 64
    file.write_bytes(content)
    assert run(precompute.main, recipe, "--verify") == 2
    assert "its checksum differs" in capsys.readouterr().err


def test_frames_may_be_decoded_when_they_are_scored(project, models):
    teacher = reranker(models, top=3)
    found = {}
    for store in ("disk", "none"):
        frames = {"store": store}
        recipe = project(f"{store}.yaml", teachers=[teacher], frames=frames, stores=str(project.folder / store))
        work = build_workspace(load_recipe(recipe), Processes(), torch.device("cpu"))
        relevance = teacher_relevance(work, work.teachers["cross_encoder"])
        assert isinstance(relevance, SparseRelevance)
        found[store] = relevance.read("video_text", slice(None))
    assert found["disk"].shape == (2 * TRAINING_VIDEOS, TRAINING_VIDEOS)
    assert np.array_equal(found["disk"], found["none"])


def test_a_cross_encoder_reranks_in_an_evaluation(project, models, capsys):
    recipe = project(teachers=[reranker(models, "pictures", top=3)])
    out = project.folder / "results.json"
    for rerank in ("cross_encoder", models / "pictures"):  # by its label, and without a recipe that has it
        command = [recipe, "--model", "zero_shot", "--rerank", rerank, "--top", "1,3", "--out", out]
        assert run(evaluate.main, *command) == 0, capsys.readouterr().err
        found = json.loads(out.read_text())["test"]["reranked"]
        assert found["by"] == str(rerank) and [row["k"] for row in found["depths"]] == [1, 3]
        assert found["depths"][1]["flops_per_query"] > 2 * found["depths"][0]["flops_per_query"] > 0
        capsys.readouterr()
    for command, part in (
        (["--model", "cross_encoder"], "reads a text and a video together, which is too slow for all pairs"),
        (["--rerank", "nobody"], "allowed: cross_encoder; the folder or hub id of a CrossEncoder"),
        (["--rerank", models / "student"], "cannot be loaded as a CrossEncoder"),
    ):
        assert run(evaluate.main, recipe, "--model", "zero_shot", *command) == 2
        (line,) = errors(capsys)
        assert part in line
    assert run(diagnose.main, recipe, "--student", models / "student", "--out", project.folder / "diagnosis") == 2
    (line,) = errors(capsys)
    assert "'cross_encoder' scores a shortlist of each text, a diagnosis needs all pairs" in line


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        (
            {"first": "nobody"},
            "options.first: 'nobody'; allowed: zero_shot, or the folder of a student",
        ),
        ({"first": "cross_encoder"}, "'cross_encoder' scores a shortlist itself"),
        ({"frames": {"temporal_augmentation": 2}}, "needs frames.temporal_augmentation=1, got 2"),
        ({"losses": {"frame_sets": {"weight": 1.0, "count": 4, "texts": 4, "scorer": "cross_encoder"}}}, "too slow"),
    ],
)
def test_what_does_not_go_together_is_one_line(project, models, changes, part, capsys):
    first = {"first": changes["first"]} if "first" in changes else {}
    sections = {key: value for key, value in changes.items() if key != "first"}
    assert run(distill.main, project(teachers=[reranker(models, **first)], **sections)) == 2
    (line,) = errors(capsys)
    assert part in line


def test_a_reranker_that_does_not_teach_minds_no_temporal_augmentation(project, models):
    recipe = load_recipe(project(teachers=[reranker(models)], frames={"temporal_augmentation": 2}))
    handle = TeacherHandle(recipe.teachers[0], torch.device("cpu"))
    handle.check(recipe)
    assert handle.scores_shortlist


def test_a_dry_run_takes_a_step_with_both(project, models, capsys):
    sets = {"weight": 1.0, "count": 4, "texts": 4, "scorer": "sentence_transformer"}
    recipe = project(teachers=[encoder(models), reranker(models, top=3)], losses={"frame_sets": sets})
    assert run(distill.main, recipe, "--dry-run") == 0, capsys.readouterr().err
    message = capsys.readouterr().err
    assert "dry run passed" in message and "frame_sets" in message
