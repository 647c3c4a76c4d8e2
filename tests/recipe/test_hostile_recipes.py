"""Recipes made to exhaust or confuse the reader: one short line each, at once."""

from __future__ import annotations

import itertools
import time

import pytest

from teachclip.errors import RecipeError
from teachclip.recipe.loading import load_recipe

GOOD = """name: x
output: o
stores: s
data: {format: csv, videos: v, annotations: a.csv}
student: {backbone: b}
teachers: [{name: xpool, checkpoint: c}]
train: {epochs: 1}
"""
NAMES = "abcdefghij"
LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]\n" for before, name in itertools.pairwise(NAMES)
)
FILES = {
    "billion laughs": LAUGHS,
    "2,000 open lists": "a: " + "[" * 2000,
    "2,000 lists": "a: " + "[" * 2000 + "]" * 2000,
    "2,000 mappings": "{a: " * 2000 + "}" * 2000,
    "2,000 indented mappings": "".join(" " * i + "a:\n" for i in range(2000)),
    "2,000 dashes": "- " * 2000 + "x",
    "a number of 5,000 digits": GOOD.replace("epochs: 1", "epochs: " + "9" * 5000),
    "a hexadecimal number of 6,000 digits": GOOD + "seed: 0x" + "f" * 6000,
    "a large seed": GOOD + "seed: 1" + "0" * 30,
    "a large count": GOOD.replace("epochs: 1", "steps: 1" + "0" * 15),
    "an infinite number": GOOD + "optimizer: {lr: 1e400}",
    "a control character": GOOD + "x: \x01",
    "a NUL in a path": GOOD.replace("videos: v", r'videos: "a\0b"'),
    "an alias to itself": "a: &a [*a]",
    "an unknown alias": "a: *b",
    **{
        f"!!{tag} {value}": GOOD.replace("epochs: 1", f"epochs: !!{tag} {value}")
        for tag in ("int", "float", "bool", "null", "timestamp", "binary", "set", "omap", "python/name:os.system")
        for value in ("x", "''", "-", "[1]", "2026-13-45")
        if (tag, value) != ("null", "''")
    },
}
OVERRIDES = [
    "train.epochs=" + "9" * 5000,
    "train.epochs=" + "[" * 3000,
    f"teachers.{'9' * 5000}.weight=1",
    ".".join("a" * 3000) + "=1",
    "teachers.0.options." + ".".join("a" * 3000) + "=1",
    "seed=!!int x",
    "data.videos=a\0b",
]


def check_refusal(load):
    begin = time.perf_counter()
    with pytest.raises(RecipeError) as error:
        load()
    assert time.perf_counter() - begin < 2
    for line in str(error.value).splitlines():
        assert 0 < len(line) < 700, line[:200]


@pytest.mark.parametrize("name", FILES)
def test_a_hostile_file_is_refused_in_short_lines(tmp_path, name):
    path = tmp_path / "recipe.yaml"
    path.write_text(FILES[name], encoding="utf-8")
    check_refusal(lambda: load_recipe(path))


@pytest.mark.parametrize("override", OVERRIDES, ids=lambda text: text[:24])
def test_a_hostile_override_is_refused_in_short_lines(tmp_path, override):
    path = tmp_path / "recipe.yaml"
    path.write_text(GOOD, encoding="utf-8")
    assert load_recipe(path).seed == 42
    check_refusal(lambda: load_recipe(path, [override]))


@pytest.mark.parametrize("source", ["a\0b", "x" * 300, "~no_such_user_/a.yaml", "/dev/null", "/"])
def test_a_path_that_is_no_recipe_is_refused(source):
    check_refusal(lambda: load_recipe(source))


def test_a_mapping_that_is_nested_deeply_or_holds_a_huge_number_is_refused():
    deep: dict = {}
    inner = deep
    for _ in range(3000):
        inner["a"] = {}
        inner = inner["a"]
    check_refusal(lambda: load_recipe({"name": "x", "card": deep}))
    check_refusal(lambda: load_recipe({"name": "x", "train": {"epochs": 10**5000}}))
