"""Values as people type them, on the command line and in files."""

from datetime import date
from pathlib import Path

import pytest
import yaml

from teachclip.errors import RecipeError
from teachclip.recipe.loading import dump_recipe, load_recipe, value_text
from teachclip.recipe.yaml_values import parse_yaml

MINIMAL = """
name: minimal
output: runs/out
stores: runs/stores
data: {format: csv, videos: videos, annotations: captions.csv}
student: {backbone: clip}
train: {steps: 1}
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "minimal.yaml"
    path.write_text(MINIMAL, encoding="utf-8")
    return path


def at(recipe, key):
    for part in key.split("."):
        recipe = getattr(recipe, part)
    return recipe


@pytest.mark.parametrize(
    ("key", "text", "expected"),
    [
        ("train.mixed_precision", "no", "no"),
        ("output", "~/x", Path.home() / "x"),
        ("output", "exp #1", Path("exp #1")),
        ("output", "2026-11-27", Path("2026-11-27")),
        ("output", "012", Path("012")),
        ("output", "a: b", Path("a: b")),
        ("name", "yes", "yes"),
        ("name", "1.0", "1.0"),
        ("name", "1e3", "1e3"),
        ("name", "null", "null"),
        ("name", "[x]", "[x]"),
        ("name", "'quoted'", "quoted"),
        ("data.train", "null", None),
        ("data.train", "0x1F", Path("0x1F")),
        ("student.backbone", "~/clip", str(Path.home() / "clip")),
        ("student.adapters", "frame,text", ["frame", "text"]),
        ("student.adapters", "[frame, text]", ["frame", "text"]),
        ("student.adapters", "[]", []),
        ("student.temperature_scaling", "0.5,2", [0.5, 2.0]),
        ("train.trackers", "tensorboard", ["tensorboard"]),
        ("optimizer.lr", "1e-4", 1e-4),
        ("optimizer.lr", "3E-4", 3e-4),
        ("seed", "010", 10),
        ("student.mask_padding", "false", False),
    ],
)
def test_overrides_mean_what_they_say(recipe, key, text, expected):
    found = at(load_recipe(recipe, [f"{key}={text}"]), key)
    assert found == expected and type(found) in (type(expected), type(Path()))


@pytest.mark.parametrize(
    ("key", "text", "expected"),
    [
        ("name", "2026-11-27", "2026-11-27"),
        ("name", "off", "off"),
        ("name", "012", "012"),
        ("name", "1:30", "1:30"),
        ("output", "~/x", Path.home() / "x"),
    ],
)
def test_files_mean_what_they_say(tmp_path, key, text, expected):
    values = [line if not line.startswith(f"{key}:") else f"{key}: {text}" for line in MINIMAL.splitlines()]
    (tmp_path / "r.yaml").write_text("\n".join(values), encoding="utf-8")
    assert at(load_recipe(tmp_path / "r.yaml"), key) == expected


def test_mixed_precision_no_and_dates_in_a_file(tmp_path):
    text = MINIMAL.replace("train: {steps: 1}", "train: {steps: 1, mixed_precision: no}")
    (tmp_path / "r.yaml").write_text(text, encoding="utf-8")
    assert load_recipe(tmp_path / "r.yaml").train.mixed_precision == "no"


def test_a_boolean_key_does_not_take_yes(recipe):
    with pytest.raises(RecipeError, match=r"student\.mask_padding: must be a valid boolean"):
        load_recipe(recipe, ["student.mask_padding=yes"])


@pytest.mark.parametrize(
    "value", ["a", "no", "1", "1.0", "null", "", "a #b", "[x]", "'q'", 1, 1.5, True, None, [1, 2], {"a": 1}]
)
def test_value_text_is_read_back(value):
    assert parse_yaml(value_text(value), where="") == value


def test_a_dumped_recipe_with_hostile_texts_is_read_back(recipe):
    made = load_recipe(recipe, ["name=yes", "output=2026-11-27", "data.train=null", "student.backbone=012"])
    again = recipe.with_name("again.yaml")
    again.write_text(dump_recipe(made), encoding="utf-8")
    assert load_recipe(again) == made


BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "\n".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join(['*' + chr(97 + n)] * 10)}]" for n in range(12)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "aliases expand to more than 100,000 values"),
        ("a: &a [*a]", "an alias refers to what contains it"),
        ("a: " + "[" * 2000 + "]" * 2000, "nested too deeply"),
        ("seed: " + "9" * 5000, "a value cannot be read"),
        ("seed: !!int many", "a value cannot be read"),
        ("seed: !!python/object/apply:os.system [id]", "could not determine a constructor"),
        ("seed: 1\nseed: 2", "duplicate key 'seed'"),
        ("a: [1", "not valid YAML"),
    ],
)
def test_hostile_files_are_refused_in_one_line(tmp_path, text, message):
    path = tmp_path / "hostile.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError) as error:
        load_recipe(path)
    assert message in str(error.value) and len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (f"seed={10**30}", "seed: must be less than 4294967296"),
        ("frames.count=1000000000000000", "frames.count: must be less than or equal to 1000000000"),
        ("output=a\0b", "output: contains a NUL character"),
        ("seed=" + "9" * 5000, "a value cannot be read"),
    ],
)
def test_hostile_overrides_are_refused(recipe, override, message):
    with pytest.raises(RecipeError) as error:
        load_recipe(recipe, [override])
    assert message in str(error.value)


def test_a_recipe_is_found_by_its_bare_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_recipe("shapes_xpool").name == "shapes_xpool"
    with pytest.raises(RecipeError, match=r"no_such\.yaml is in none of"):
        load_recipe("no_such")


def test_dates_of_yaml_are_not_made():
    assert parse_yaml("2026-11-27", where="") != date(2026, 11, 27)
    assert yaml.safe_load("2026-11-27") == date(2026, 11, 27)


def test_what_a_caller_changes_is_not_in_the_next_reading_of_the_same_text():
    text = "a: {b: [1, 2]}"
    parse_yaml(text, where="file")["a"]["b"].append(3)
    assert parse_yaml(text, where="file") == {"a": {"b": [1, 2]}}
