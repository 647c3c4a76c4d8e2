"""`student.text_backbone`: a student with another text encoder, taught once in the course of a run."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from processes import launch
from runs import assert_same_losses, logged_losses
from sentence_models import save_video_reranker
from sentence_transformers import SentenceTransformer
from text_models import PAIRS, save_text_model, write_pairs
from torch.nn.functional import cosine_similarity, normalize
from torch.testing import assert_close
from transformers import AutoConfig, DistilBertModel, ViTConfig

from teachclip import distill, evaluate, export_onnx, load_student, precompute, train_teacher
from teachclip.cli import distill as distill_command
from teachclip.errors import CheckpointError, DataError, RecipeError, StoreError
from teachclip.onnx.query import TextEncoder
from teachclip.pipeline import text_backbone
from teachclip.pipeline.build import build_catalog
from teachclip.pipeline.dry_run import dry_run
from teachclip.pipeline.text_backbone import FOLDER, student_source, training_rows
from teachclip.pipeline.text_tower import RECORD, TextTeaching, teach_text_tower
from teachclip.processes import Processes
from teachclip.recipe.loading import load_recipe
from teachclip.studies.without_test import without_test

GERMAN, ENGLISH = ["ein rot kreis", "ein blau quadrat am meer"], ["a red circle", "a blue square over a sea"]


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """A BERT, a DistilBERT, and a file of parallel texts."""
    root = tmp_path_factory.mktemp("texts")
    save_text_model(root / "bert")
    save_text_model(root / "distil", DistilBertModel)
    write_pairs(root / "parallel.tsv")
    return root


@pytest.fixture
def on(texts, project):
    """Write the recipe of a student with the text encoder `kind`."""

    def write(kind="bert", *, teaching=(), backbone=None, **sections):
        settings = {
            "texts": str(texts / "parallel.tsv"),
            "steps": 150,
            "batch_size": 16,
            "lr": 3e-3,
            **dict(teaching),
        }
        student = {"text_backbone": str(backbone or texts / kind), "text_teaching": settings}
        return project(student={**student, **sections.pop("student", {})}, **sections)

    return write


def encoders_of(project):
    return sorted((project.folder / "stores" / FOLDER).glob("*/"))


@pytest.mark.parametrize(("kind", "encoders", "pooling"), [("bert", "finetuned", None), ("distil", "frozen", "mean")])
def test_a_student_gets_a_text_encoder_and_knows_its_languages(on, project, capsys, caplog, kind, encoders, pooling):
    recipe = on(kind, teaching={"pooling": pooling}, train={"encoders": encoders})
    results = distill(recipe)
    assert results["test"]["videos"] == 3
    said = capsys.readouterr().err
    # the four captions of the test split, and their translations, are not taught
    assert "excluded 4 of 16 rows" in caplog.text and "learns from 12 texts" in said
    again = evaluate(recipe)  # in the stores already: the same vectors
    assert again["test"]["t2v"] == results["test"]["t2v"]
    assert "learns from" not in capsys.readouterr().err
    folder = project.folder / "elsewhere"  # self-contained
    shutil.move(project.folder / "run" / "student", folder)
    shutil.rmtree(project.folder / "stores")
    student = load_student(folder)
    german, english = (student.encode_text(found, progress=False) for found in (GERMAN, ENGLISH))
    assert cosine_similarity(german, english).min() > 0.8
    found = torch.from_numpy(SentenceTransformer(str(folder)).encode(GERMAN))
    assert_close(normalize(found, dim=-1), german, rtol=0, atol=1e-5)
    export_onnx(student, project.folder / "onnx")
    onnx = TextEncoder(project.folder / "onnx", threads=1).encode(GERMAN)
    assert_close(torch.from_numpy(onnx), german, rtol=0, atol=1e-4)
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert f"text encoder `{kind}`" in card and str(project.folder) not in card


def test_it_is_what_the_command_makes_and_a_run_goes_on_with_it(on, project, texts):
    teaching = {"steps": 20, "seed": 3}
    recipe = on(teaching=teaching)
    distill(recipe, ["train.steps=2"])
    (folder,) = encoders_of(project)
    rows = project.folder / "rows.tsv"
    kept = [row for row in PAIRS if "over" in row[0]]
    rows.write_text("\n".join("\t".join(row) for row in [("en", "de"), *kept]), encoding="utf-8")
    settings = TextTeaching(steps=20, batch_size=16, lr=3e-3, seed=3)
    teach_text_tower(str(project.root / "clip"), str(texts / "bert"), rows, project.folder / "tower", settings)
    ours, its = (
        load_student(path).encode_text(GERMAN, progress=False) for path in (folder, project.folder / "tower")
    )
    assert_close(ours, its, rtol=0, atol=0)
    stamp = (folder / RECORD).stat().st_mtime_ns
    distill(recipe, ["train.steps=2"])  # finished: nothing to teach
    assert (folder / RECORD).stat().st_mtime_ns == stamp and encoders_of(project) == [folder]
    with pytest.raises(CheckpointError, match=r"student.text_teaching.steps = 20 there, 21 now"):
        distill(on(teaching={**teaching, "steps": 21}), ["train.steps=2"])


def test_teachers_read_the_backbone_as_without_it(on, project):
    """The stores of the recipe without the key hold the teacher's tokens and relevance: none is computed again."""
    recipe = on()
    before = {path: path.stat().st_mtime_ns for path in (project.folder / "stores").glob("*-xpool/**/*.npy")}
    assert before
    precompute(recipe)
    after = {path: path.stat().st_mtime_ns for path in (project.folder / "stores").glob("*-xpool/**/*.npy")}
    assert after == before


def test_shortlists_are_found_by_the_backbone_as_without_it(on, project, tmp_path):
    save_video_reranker(tmp_path / "reranker")
    options = {"trust_remote_code": True, "size": 32, "top": 3}
    teacher = {"name": "cross_encoder", "checkpoint": str(tmp_path / "reranker"), "options": options}
    places = []
    for write in (project, on):
        stores = tmp_path / f"stores{len(places)}"
        precompute(write(teachers=[teacher], stores=str(stores)))
        places.append([path.name for path in stores.glob("tokens-first-*")])
    assert places[0] == places[1] and len(places[0]) == 1  # named by all that it depends on


def test_two_processes_teach_it_once(on, project):
    losses = []
    for count in (1, 2):
        places = {name: str(project.folder / f"{name}{count}") for name in ("stores", "output")}
        recipe = on("distil", teaching={"steps": 20, "pooling": "mean"}, train={"encoders": "finetuned"}, **places)
        done = launch(count, "distill", recipe)
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("learns from 12 texts") == 1
        losses.append(logged_losses(project.folder / f"output{count}"))
    assert_same_losses(*losses, steps=4)


def test_a_dry_run_writes_nothing_and_a_teacher_is_trained_on_the_backbone(on, project, capsys):
    training = {"train": {"encoders": "finetuned", "steps": 1, "batch_size": 4}, "optimizer": {"name": "adamw"}}
    checkpoint = project.folder / "own.pth"
    recipe = on(teachers=[{"name": "xpool", "checkpoint": str(checkpoint), "training": training}])
    shutil.rmtree(project.folder / "stores")
    dry_run(recipe)
    assert "would be taught on 12 texts; here it is not" in capsys.readouterr().err
    assert not (project.folder / "stores").exists()
    train_teacher(recipe)
    assert checkpoint.exists() and not encoders_of(project)


def test_what_cannot_be_taught_is_said_in_a_line(on, project, texts, tmp_path, capsys):
    recipe = on(teaching={"texts": None})
    assert distill_command.main([str(recipe)]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert "0 different texts are too few to teach student.text_backbone; expected at least 10: give a file" in line
    with pytest.raises(DataError, match="too few"):
        dry_run(recipe)
    with pytest.raises(CheckpointError, match="a DistilBertModel has no pooled output of its own; choose a pooling"):
        distill(on("distil"))
    with pytest.raises(RecipeError, match=r"student: text_teaching needs text_backbone"):
        load_recipe(project(student={"text_teaching": {"steps": 3}}))
    ViTConfig().save_pretrained(tmp_path / "vit")
    with pytest.raises(CheckpointError, match="type 'vit' is no text encoder"):
        distill(on(backbone=tmp_path / "vit"))
    with pytest.raises(CheckpointError, match="cannot be loaded as a text encoder"):
        distill(on(backbone=tmp_path / "nowhere"))


def test_the_texts_are_the_same_where_test_is_not_read(on):
    recipe = on()
    with_test = load_recipe(recipe, ["data.validation.videos=1"])
    tuned = load_recipe(recipe, ["data.validation.videos=1", f"data.format={without_test('csv')}"])
    catalogs = [build_catalog(loaded) for loaded in (with_test, tuned)]
    assert [catalog.test is None for catalog in catalogs] == [False, True]
    assert training_rows(with_test, catalogs[0]) == training_rows(tuned, catalogs[1])


def test_an_exported_student_is_measured_with_its_own_text_encoder(on, project, capsys):
    recipe = on("distil", teaching={"steps": 20, "pooling": "mean"})
    measured = distill(recipe, ["train.steps=2"])["test"]["t2v"]
    shutil.rmtree(project.folder / "stores" / FOLDER)
    capsys.readouterr()
    assert evaluate(recipe)["test"]["t2v"] == measured
    assert evaluate(recipe, model="xpool")["test"]["videos"] == 3
    assert "learns from" not in capsys.readouterr().err and not encoders_of(project)


def other_image_mean(clip, text):
    settings = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.3] * 3, "size": 32, "crop_size": 32}
    (clip / "preprocessor_config.json").write_text(json.dumps(settings), encoding="utf-8")


def other_activation(clip, text):
    config = json.loads((clip / "config.json").read_text())
    config["text_config"]["hidden_act"] = "relu"
    (clip / "config.json").write_text(json.dumps(config), encoding="utf-8")


def other_word_of_no_text(clip, text):
    """Of the same number as before, and in none of the texts."""
    rules = json.loads((text / "tokenizer.json").read_text(encoding="utf-8"))
    words = rules["model"]["vocab"]
    words["zzz"] = words.pop("[MASK]") if "[MASK]" in words else len(words)
    (text / "tokenizer.json").write_text(json.dumps(rules), encoding="utf-8")


def other_german(clip, text):
    """Read one German word as another one."""
    rules = json.loads((text / "tokenizer.json").read_text(encoding="utf-8"))
    words = rules["model"]["vocab"]
    words["kreis"], words["meer"] = words["meer"], words["kreis"]
    (text / "tokenizer.json").write_text(json.dumps(rules), encoding="utf-8")


def other_pooling(clip, text):
    (text / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": "max"}))


@pytest.mark.parametrize(
    "change", [other_image_mean, other_activation, other_word_of_no_text, other_german, other_pooling]
)
def test_an_encoder_is_taught_anew_where_what_it_depends_on_has_changed(on, project, texts, tmp_path, change):
    clip, text = tmp_path / "clip", tmp_path / "text"
    shutil.copytree(project.root / "clip", clip)
    shutil.copytree(texts / "bert", text)
    (text / "modules.json").write_text(json.dumps([{"path": "1_Pooling", "type": "models.Pooling"}]))
    (text / "1_Pooling").mkdir()
    (text / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": "mean"}))
    recipe = load_recipe(on(backbone=text, teaching={"steps": 1}, student={"backbone": str(clip)}))

    def source():
        return student_source(recipe, build_catalog(recipe), Processes(), torch.device("cpu"))

    before = source()
    assert source() == before
    change(clip, text)
    assert source() != before


def test_texts_are_taught_as_long_as_the_student_reads_them(on):
    recipe = load_recipe(on(), ["text.max_tokens=9"])
    assert text_backbone._tower(recipe, torch.device("cpu")).encode.longest == 9


def test_a_damaged_record_is_found(on, project):
    recipe = on(teaching={"steps": 2})
    precompute(recipe)
    (folder,) = encoders_of(project)
    assert AutoConfig.from_pretrained(folder).text_config.model_type == "bert"
    (folder / RECORD).write_text("{", encoding="utf-8")
    with pytest.raises(StoreError, match=r"text_tower.json cannot be read: .*; delete the folder"):
        precompute(recipe)
    (folder / RECORD).write_text("{}", encoding="utf-8")
    with pytest.raises(StoreError, match="is not what its name says; delete the folder"):
        precompute(recipe)
