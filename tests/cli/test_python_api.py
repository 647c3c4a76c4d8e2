"""The functions that notebooks use, with what a recipe may be: a path, a dict, a `Recipe`."""

import pytest
import yaml

import teachclip
from teachclip.errors import RecipeError


def test_public_names_are_listed_and_importable():
    assert set(teachclip.__all__) <= set(dir(teachclip))
    for name in teachclip.__all__:
        assert getattr(teachclip, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'distil'"):
        _ = teachclip.distil


def test_a_dict_goes_from_distill_to_evaluate_and_export(project):
    recipe = yaml.safe_load(project().read_text())
    before = yaml.safe_dump(recipe)
    results = teachclip.distill(recipe, ["train.steps=2"])
    assert yaml.safe_dump(recipe) == before
    assert results["test"]["videos"] == 3 and results["model"] == "student"
    resolved = teachclip.load_recipe(recipe, ["train.steps=2"])
    assert teachclip.load_recipe(resolved) is resolved
    assert teachclip.evaluate(resolved)["test"]["t2v"] == results["test"]["t2v"]
    folder = teachclip.export_student(resolved, project.folder / "out")
    assert teachclip.load_student(folder).config.width == 32


def test_mistakes_in_a_dict_name_the_recipe_and_the_key(project):
    recipe = {**yaml.safe_load(project().read_text()), "sead": 1}
    with pytest.raises(RecipeError, match="tiny: sead is unknown; did you mean seed"):
        teachclip.load_recipe(recipe)
