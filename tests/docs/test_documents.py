"""Every link, command, recipe key and example of the documents holds."""

import argparse
import importlib
import re
import shlex
import sys
from pathlib import Path

import pytest

from teachclip.cli import arguments
from teachclip.cli.main import COMMANDS
from teachclip.recipe.loading import describe_keys, find_recipe, load_recipe

ROOT = Path(__file__).parents[2]


def is_page(path: Path) -> bool:
    return not any(part in ("runs", "build") or part.startswith(".") for part in path.relative_to(ROOT).parts)


PAGES = sorted(filter(is_page, ROOT.rglob("*.md")))
PAGES = [path for path in PAGES if not path.is_relative_to(ROOT / "teachclip" / "recipes")]  # a link to recipes/
NAMES = [str(path.relative_to(ROOT)) for path in PAGES]
MADE_BY_THE_DEMO = ("runs/",)
EXAMPLES = ("my_videos", "my-student", "ids", "scores.csv", "RECIPE", "NAME", "FILE", "LABEL", "best_model.bin")


def blocks(path, *languages):
    """Yield the fenced blocks of a page in these languages ("" is none)."""
    for language, text in re.findall(r"^```(\w*)\n(.*?)^```", path.read_text(encoding="utf-8"), re.M | re.S):
        if language in languages:
            yield text


def anchor(heading):
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 200


def test_sections_of_results_that_code_and_recipes_name_exist():
    """They are written as `RESULTS.md, "Heading"`, over lines and comment marks."""
    headings = set(re.findall(r"^#+ (.+)$", (ROOT / "recipes" / "RESULTS.md").read_text(encoding="utf-8"), re.M))
    named = {}
    for pattern in ("teachclip/**/*.py", "teachers/*.py", "tools/*.py", "recipes/**/*.yaml"):
        for path in ROOT.glob(pattern):
            text = re.sub(r"\s*\n[ #]*", " ", path.read_text(encoding="utf-8"))
            named |= dict.fromkeys(re.findall(r'RESULTS\.md`?, "([^"]+)"', text), path.name)
    assert len(named) >= 5
    assert not {name: path for name, path in named.items() if name not in headings}


@pytest.mark.parametrize("path", PAGES, ids=NAMES)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)]+)\)", path.read_text(encoding="utf-8")):
        if target.startswith(("http", "mailto")):
            continue
        file, _, part = target.partition("#")
        found = (path.parent / file) if file else path
        assert found.exists(), f"{path.name}: {target}"
        if part:
            headings = re.findall(r"^#+ (.*)", found.read_text(encoding="utf-8"), re.M)
            assert part in map(anchor, headings), f"{path.name}: {target}"


def commands(path):
    """Yield the commands of teachclip that a page quotes: name, arguments."""
    text = path.read_text(encoding="utf-8")
    lines = [line for block in blocks(path, "") for line in block.splitlines()]
    lines += re.findall(r"`((?:accelerate launch|python tools/|teachclip )[^`]*)`", text.replace("\n", " "))
    for line in lines:
        for quoted in re.findall(r"'(accelerate launch[^']*)'", line) or [line]:
            words = shlex.split(quoted, comments=True)
            for place, word in enumerate(words):
                if match := re.fullmatch(r"tools/(\w+)\.py", word):
                    yield match[1].replace("_", "-"), words[place + 1 :]
                elif word == "teachclip" and place + 1 < len(words) and (place == 0 or words[place - 1] == "-m"):
                    yield words[place + 1], words[place + 2 :]


class Parsed(Exception):
    """Raised in place of running a command whose arguments were understood."""


@pytest.mark.parametrize("path", PAGES, ids=NAMES)
def test_quoted_commands_are_understood(path, monkeypatch):
    def parse(method):
        def parsed(self, argv=None, namespace=None):
            method(self, argv, namespace)
            raise Parsed

        return parsed

    for name in ("parse_args", "parse_intermixed_args"):
        monkeypatch.setattr(arguments.CommandParser, name, parse(getattr(argparse.ArgumentParser, name)))
    monkeypatch.setenv("MSRVTT_ROOT", "somewhere")
    monkeypatch.setenv("XPOOL_CHECKPOINT", "somewhere")
    for name, words in commands(path):
        if "..." in words or "..." in name or name.startswith("-") or name in ("COMMAND",):
            continue
        assert name in COMMANDS, f"{path.name}: {name}"
        if not words or "[KEY=VALUE" in words:  # the name alone, in a sentence
            continue
        module = importlib.import_module(f"teachclip.cli.{name.replace('-', '_')}")
        with pytest.raises(Parsed):
            module.main.__wrapped__(words)
        for word in words:
            if word.startswith("recipes/") and word.endswith(".yaml"):
                assert (ROOT / word).is_file(), f"{path.name}: {word}"
        overrides = [word for word in words if re.fullmatch(r"[a-z_0-9.]+=.*", word)]
        named = [word for word in words if word.endswith(".yaml") and (ROOT / word).is_file()]
        if named:
            load_recipe(ROOT / named[0], overrides)


@pytest.mark.parametrize("path", PAGES, ids=NAMES)
def test_named_recipe_keys_exist(path):
    if path.name == "CHANGELOG.md":  # it also lists the keys that are gone
        return
    keys = {re.sub(r"\.0\b", "", line.split()[0]) for line in describe_keys()}
    sections = {key.split(".")[0] for key in keys if "." in key} - {"text"}
    for text in re.findall(r"`([^`\n]+)`", path.read_text(encoding="utf-8")):
        for word in text.split():
            match = re.fullmatch(r"([a-z_]+(?:\.[a-z_0-9]+)+)[=:]?.*", word)
            if match is None or match[1].split(".")[0] not in sections or "/" in word or "(" in word:
                continue
            key = re.sub(r"\.\d+\b", "", match[1])
            if key.endswith((".yaml", ".md", ".py")) or (key.startswith("teachers.") and ":" in word):
                continue
            assert key in keys or any(known.startswith(f"{key}.") for known in keys), f"{path.name}: {word}"


def test_examples_of_python_compile_and_import():
    for path in PAGES:
        for block in blocks(path, "python"):
            compile(block, str(path), "exec")
            for module, names in re.findall(r"^from (teachclip[\w.]*) import (.*)$", block, re.M):
                for name in names.split(","):
                    assert hasattr(importlib.import_module(module), name.strip()), f"{path.name}: {name}"


def test_a_loss_is_added_by_the_words_of_the_page(project, tmp_path, monkeypatch):
    from teachclip import distill
    from teachclip.errors import RecipeError

    (code,) = (block for block in blocks(ROOT / "teachclip" / "README.md", "python") if "def " in block)
    (tmp_path / "my_losses.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    kinds = ["losses.video_text.kind=my_losses:cosine_distance", "losses.frame_text.kind=my_losses:squared_distance"]
    plain = distill(project(), ["train.steps=2", f"output={tmp_path / 'plain'}"])
    results = distill(project(), [*kinds, "train.steps=2", f"output={tmp_path / 'own'}"])
    assert results["test"]["videos"] == plain["test"]["videos"]
    logs = [(tmp_path / name / "log.jsonl").read_text() for name in ("plain", "own")]
    assert logs[0] != logs[1]
    with pytest.raises(RecipeError, match=r"my_losses:cosine_distanc.*cannot be imported"):
        distill(project(), ["losses.video_text.kind=my_losses:cosine_distanc", f"output={tmp_path / 'none'}"])
    with pytest.raises(RecipeError, match=r"losses\.video_text\.kind: allowed: pearson.*did you mean pearson"):
        distill(project(), ["losses.video_text.kind=pearsn"])
    sys.modules.pop("my_losses", None)


def test_recipes_of_the_page_exist():
    names = re.findall(r"`(\w+\.yaml)`", (ROOT / "recipes" / "README.md").read_text(encoding="utf-8"))
    assert set(names) == {path.name for path in (ROOT / "recipes").glob("*.yaml")}
    for name in names:
        assert find_recipe(name).is_file()


def test_a_data_set_is_added_by_the_words_of_the_page(project, tmp_path, monkeypatch, capsys):
    from teachclip import prepare
    from teachclip.errors import DataError

    (code,) = (block for block in blocks(ROOT / "teachclip" / "data" / "README.md", "python") if "def read" in block)
    (tmp_path / "my_kitchen.py").write_text(code, encoding="utf-8")
    monkeypatch.chdir(tmp_path)  # no other place is named: a module of the current folder is found
    monkeypatch.setattr(sys, "path", list(sys.path))
    rows = [f"clip{n},a red circle,{'test' if n > 10 else 'train'}" for n in range(14)]
    table = tmp_path / "kitchen.csv"
    table.write_text("\n".join(["clip,sentence,part", *rows]), encoding="utf-8")
    recipe = project(data={"format": "my_kitchen:read", "annotations": str(table)})
    prepare(recipe)
    printed = capsys.readouterr().out
    assert "train: 8 of 8 videos and 8 captions can be used" in printed and "test: 3 of 3 videos" in printed
    table.write_text(table.read_text().replace("clip3,a red circle,train", "clip3,a red circle,tain"))
    with pytest.raises(DataError, match=r"kitchen.csv: line 5: part is 'tain'; allowed: train, val, test"):
        prepare(recipe)
    sys.modules.pop("my_kitchen", None)


def test_the_names_of_columns_are_documented():
    from teachclip.data.formats.own_tables import COLUMNS

    text = (ROOT / "teachclip" / "data" / "README.md").read_text(encoding="utf-8")
    for column, names in COLUMNS.items():
        assert f"| `{column}` | {', '.join(names)} |\n" in text
