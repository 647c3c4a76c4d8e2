"""What unpaired videos and captions may not hold: what is validated or tested on."""

import pytest

from teachclip.cli import distill
from teachclip.cli import study as study_command
from teachclip.errors import RecipeError
from teachclip.pipeline.build import build_catalog
from teachclip.pipeline.unpaired import check_unseen
from teachclip.recipe.loading import load_recipe

SETS = {"weight": 1.0, "count": 4, "texts": 4}


@pytest.fixture
def unpaired(project):
    """Return a recipe that draws sets from `captions`, lines of a file, or from `videos`, copies of named ones."""

    def write(captions=None, videos=None):
        given = {}
        if captions is not None:
            given["captions"] = str(project.folder / "more.txt")
            (project.folder / "more.txt").write_text("\n".join(captions), encoding="utf-8")
        if videos is not None:
            given["videos"] = str(project.folder / "more")
            (project.folder / "more").mkdir()
            for name in videos:
                content = (project.root / "videos" / f"{name}.mp4").read_bytes()
                (project.folder / "more" / f"copy-{name}.mp4").write_bytes(content)
        return project(losses={"frame_sets": {**SETS, **given}})

    return write


def test_captions_that_are_held_out_are_left_out(unpaired, capsys):
    recipe = unpaired(["A  Red circle", "a green sea", "a blue square"])
    assert distill.main([str(recipe)]) == 0, capsys.readouterr().err
    message = capsys.readouterr().err
    assert "excluded 2 of 3 unpaired captions: they are in validation or test" in message
    assert "unpaired: 0 videos, 1 captions" in message


def test_captions_that_are_all_held_out_are_an_error(unpaired, capsys):
    assert distill.main([str(unpaired(["a red circle"]))]) == 2
    assert "holds no other captions than those to validate or test on" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"captions": ["a green sea", "A BLUE circle"]}, "holds 1 test captions: 'A BLUE circle'"),
        ({"videos": ["clip0", "clip12"]}, "copy-clip12.mp4 is a test video"),
    ],
)
def test_a_study_does_not_choose_with_what_it_tests_on(unpaired, given, told, tmp_path, capsys):
    recipe = unpaired(**given)
    path = tmp_path / "study.yaml"
    path.write_text(
        f"title: t\nrecipe: {recipe}\ntest_seeds: [5]\nsettings: [[]]\n"
        "variants: [{name: a}, {name: b, set: [train.steps=2]}]\n"
    )
    assert study_command.main([str(path), "--out", str(tmp_path / "out"), "--dry-run"]) == 2
    assert told in capsys.readouterr().err


def test_what_is_not_tested_on_may_be_drawn_from(unpaired):
    recipe = load_recipe(unpaired(["a green sea"], ["clip0", "clip1"]))
    catalog = build_catalog(recipe)
    check_unseen(recipe, catalog.test)
    with pytest.raises(RecipeError, match="is a test video"):
        check_unseen(recipe, catalog.train)


def test_the_main_lists_of_texts_and_videos_are_looked_at_too(project):
    texts = project.folder / "more.txt"
    texts.write_text("a green sea\nA BLUE circle\n", encoding="utf-8")
    recipe = load_recipe(project(data={"texts": str(texts), "uncaptioned": str(project.root / "videos")}))
    test = build_catalog(recipe).test
    with pytest.raises(RecipeError, match=r"data.texts: .* holds 1 test captions: 'A BLUE circle'"):
        check_unseen(recipe, test)
    texts.write_text("a green sea\n", encoding="utf-8")
    with pytest.raises(RecipeError, match=r"data.uncaptioned: .*clip1[123].mp4 is a test video"):
        check_unseen(recipe, test)
