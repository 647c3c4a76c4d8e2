"""What a model card says, and that what comes from outside stays text in it, in a terminal and in HTML."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from teachclip.console import log, visible
from teachclip.errors import RecipeError
from teachclip.pipeline.model_card import model_card
from teachclip.recipe.loading import load_recipe
from teachclip.reports.tables import Table, code_text, markdown_table, markdown_text, results_table

HOSTILE = "evil`*_[x](http://y.example)<script>|\x1b[31m\u202egnp.exe\n# title\n---\n"


def metrics(recall: float) -> dict[str, Any]:
    direction = {"recall_at_1": recall, "recall_at_5": 50.0, "recall_at_10": 60.0, "median_rank": 5, "mean_rank": 7}
    return {"t2v": direction, "v2t": direction, "videos": 200, "captions": 1000}


RESULTS = {"model": "student", "selected_on": "validation", "test": metrics(31), "zero_shot": {"test": metrics(9)}}


def test_the_model_card_tells_the_options_and_what_was_sharpened_on_which_split(project):
    student = {
        "attention": "sigmoid",
        "attention_input": "before",
        "attention_rescale": True,
        "adapters": ["text"],
        "temperature_scaling": [4.0],
    }
    frame_text = {"kind": "binary_cross_entropy", "targets": "video"}
    sets = {"weight": 1, "count": 4, "texts": 4}
    changes = {"student": student, "losses": {"frame_text": frame_text, "frame_sets": sets}}
    recipe = load_recipe(project(**changes, teaching={"weighting": "confidence"}))
    results = {"model": "student", "selected_on": "test", "temperature_scaling": {"factor": 4.0}}
    card = model_card(results, recipe)
    told = (
        "; sigmoid frame attention; frame attention before the temporal transformer; rescaled input of frame "
        "attention; pooling temperature divided by 4; residual adapters: text; frame-set distillation; frame targets "
        "of the whole video; teachers by confidence\n"
    )
    assert told in card
    assert "Checkpoint, and pooling temperature if scaled, selected on: test" in card
    few = model_card({**results, "selected_by": "last step"}, recipe)
    assert "Checkpoint: the last step, as test has too few videos to select on; pooling temperature" in few
    assert "pooling temperature divided" not in model_card(
        {**results, "temperature_scaling": {"factor": 1.0}}, recipe
    )
    published = model_card({"model": "student"}, load_recipe(project("published.yaml")))
    assert "frame-feature aggregation\n" in published


def test_the_model_card_tells_how_order_was_taught_and_encoders_were_held_back(project):
    losses = {"contrastive": {"swapped_clauses": [" then "]}, "joined_clips": {"weight": 0.5}}
    train = {"encoders": "finetuned", "frozen_steps": 2}
    path = project(losses=losses, train=train, optimizer={"name": "adamw", "layer_decay": 0.7, "l2_start": 0.1})
    told = (
        "; captions with swapped clauses as negatives; joined clips; encoders frozen for the first 2 steps; rates of "
        "encoder layers times 0.7; encoders held near their start, 0.1\n"
    )
    assert told in model_card({"model": "student"}, load_recipe(path))


@pytest.mark.parametrize("spared", [False, True])
def test_the_model_card_tells_who_taught_the_adapters(project, spared):
    losses = {"contrastive": {"teaches_adapters": not spared}}
    card = model_card({"model": "student"}, load_recipe(project(losses=losses, student={"adapters": ["text"]})))
    assert f"residual adapters: text{', not taught by captions' if spared else ''}\n" in card


def test_the_model_card_tells_how_many_texts_a_video_was_compared_with(project):
    losses = {"video_text": {"more_texts": 6}}
    line = "; relevance of 6 further texts a step\n"
    assert line in model_card({"model": "student"}, load_recipe(project(losses=losses)))
    assert "further texts" not in model_card({"model": "student"}, load_recipe(project(losses=losses, teachers=[])))


def test_nothing_is_claimed_that_nobody_said(project: Any) -> None:
    card = ModelCard(model_card(RESULTS, load_recipe(project())))
    known = card.data.to_dict()
    assert not {"license", "base_model", "language", "datasets"} & known.keys()
    assert "Licence of none is claimed for this model; its backbone: unknown here" in card.text
    assert "Backbone: `clip`;" in card.text and str(project.root) not in card.text


def test_what_the_recipe_claims_and_what_the_backbone_names_is_told(project: Any, tmp_path: Path) -> None:
    claims = {"license": "cc-by-4.0", "language": ["en", "zh-Hans"], "datasets": ["somebody/films"]}
    recipe = load_recipe(project(card=claims, student={"backbone": "openai/clip-vit-base-patch32"}))
    known = ModelCard(model_card(RESULTS, recipe)).data
    assert known.to_dict() | claims | {"base_model": "openai/clip-vit-base-patch32"} == known.to_dict()
    (tmp_path / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\nlicense: mit\n")
    recipe = load_recipe(project("local.yaml", student={"backbone": str(tmp_path)}))
    assert "its backbone: `cc-by-nc-4.0`" in model_card(RESULTS, recipe)


@pytest.mark.parametrize(
    "claims", [{"license": "MIT\n- x"}, {"language": ["English"]}, {"datasets": ["/data/films"]}, {"licence": "mit"}]
)
def test_claims_that_the_hub_does_not_know_are_refused(project: Any, claims: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=r"card\."):
        load_recipe(project(card=claims))


def test_every_result_stands_beside_its_numbers_zero_shot_and_chance(project: Any) -> None:
    card = model_card(RESULTS, load_recipe(project()))
    for line in (
        "| student | test | text to video | 1,000 | 200 | 31.0 | 50.0 | 60.0 | 5.0 | 7.0 |",
        "| zero-shot mean pooling | test | text to video | 1,000 | 200 | 9.0 | 50.0 | 60.0 | 5.0 | 7.0 |",
        "| chance | test | text to video | 1,000 | 200 | 0.5 | 2.5 | 5.0 | 100.5 | 100.5 |",
        "| student | test | video to text | 200 | 1,000 | 31.0 | 50.0 | 60.0 | 5.0 | 7.0 |",
    ):
        assert line in card
    for shown in ("load_student(", "AutoModel.from_pretrained(", "SentenceTransformer(", "trust_remote_code=True"):
        assert shown in card


def test_hostile_names_stay_text_in_a_card(project: Any) -> None:
    recipe = load_recipe(project(teachers=[])).model_copy(update={"name": HOSTILE})
    card = model_card({**RESULTS, "model": HOSTILE, "overlaps": [HOSTILE]}, recipe)
    assert not set("\x1b\u202e") & set(card)
    header, body = card.split("\n---\n", 1)
    name = yaml.safe_load(header.strip("-\n"))["model-index"][0]["name"]
    assert name == visible(HOSTILE).replace("\n", " ").strip()
    assert not re.search(r"(?<!\\)<script|(?<!\\)\]\(|\n# title|http:", body)
    assert body.count(markdown_text(HOSTILE)) == 4
    row = next(line for line in body.splitlines() if line.startswith("| evil"))
    assert row.replace("\\|", "").count("|") == 11


def test_hostile_names_stay_text_in_terminals_and_pages(capsys: pytest.CaptureFixture[str]) -> None:
    log(HOSTILE)
    shown = capsys.readouterr().err + markdown_table(Table("t", ["a", "b"], [[HOSTILE, "1"]]))
    shown += results_table([{"model": HOSTILE, "test": metrics(1)}])
    assert not set("\x1b\u202e") & set(shown) and "\\x1b[31m\\u202egnp" in shown
    assert visible("caf\u00e9 \U0001f3ac\n\tx \u0645\u200f") == "caf\u00e9 \U0001f3ac\n\tx \u0645\u200f"


@pytest.mark.parametrize(("text", "code"), [("a", "`a`"), ("a`b", "`` a`b ``"), ("a\nb", "`a b`")])
def test_code_in_markdown_cannot_be_left(text: str, code: str) -> None:
    assert code_text(text) == code
