"""Read recipes: YAML, environment variables, overrides, and every problem at once in plain words."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from teachclip.errors import RecipeError
from teachclip.recipe.conditions import CONDITIONS, check_conditions, undone
from teachclip.recipe.loss_section import check_losses
from teachclip.recipe.schema import Recipe
from teachclip.recipe.yaml_values import NULLS, item_annotation, nested_model, parse_yaml, takes_null, takes_text
from teachclip.registry import closest

AnySection = typing.TypeVar("AnySection", bound=BaseModel)

DEEPEST = 32
"""The most parts of the key of an override; no recipe key has so many."""

SHOWN = 200
"""How many characters of a wrong value a message shows."""

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")


RecipeSource = str | Path | Mapping[str, Any] | Recipe
"""What functions that take a recipe accept: a path, the content of a recipe file, or a `Recipe`."""


def load_recipe(source: RecipeSource, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe from a file or a mapping and apply `a.b=c` overrides. A `Recipe` without overrides is returned.

    Raises RecipeError with all problems of the recipe, one per line when there are several.
    """
    if isinstance(source, Recipe):
        if not overrides:
            return source
        source = source.model_dump(mode="json")
    try:
        return _load(source, overrides)
    except RecursionError as error:
        raise RecipeError("the recipe is nested too deeply") from error


def _load(source: str | Path | Mapping[str, Any], overrides: Sequence[str]) -> Recipe:
    if isinstance(source, Mapping):
        where, values = str(source.get("name", "recipe")), copy.deepcopy(dict(source))
    else:
        path = recipe_path(source)
        where, values = path.name, _read_mapping(path, Recipe, "recipe")
    for key, condition in undone(values, overrides):
        raise RecipeError(
            f"{where}: {key} is also a matter of {condition}, which may change it again; write {condition}=[] beside "
            "it, or what is to hold there"
        )
    for override in overrides:
        _apply(values, override)
    problems: list[str] = []
    values = _expand(values, "", problems)
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        problems += [_explain(item, Recipe) for item in error.errors()]
    if problems:
        raise RecipeError("\n".join(f"{where}: {problem}" for problem in problems))
    recipe = _choose_teachers(recipe, where=where)
    if problems := list(check_conditions(recipe)):
        raise RecipeError("\n".join(f"{where}: {problem}" for problem in problems))
    asked = [name for name in CONDITIONS if getattr(recipe, name)]
    for count in range(len(asked)):
        for held in combinations(asked, count + 1):
            with_conditions(recipe, held)  # for its checks alone
    return recipe


def with_conditions(recipe: Recipe, held: Sequence[str]) -> Recipe:
    """Return the recipe with the overrides of the conditions that hold, and without any condition.

    Raises RecipeError if the two together are no recipe.
    """
    changes = [change for name in CONDITIONS if name in held for change in getattr(recipe, name)]
    plain = recipe.model_copy(update={name: [] for name in CONDITIONS})
    try:
        return load_recipe(plain, changes)
    except RecipeError as error:
        raise RecipeError("\n".join(f"{' and '.join(held)}: {line}" for line in str(error).splitlines())) from None


def load_section(path: str | Path, model: type[AnySection], what: str) -> AnySection:
    """Read a YAML file of another strict schema than the recipe's; `what` says what it is, such as "study file".

    Environment variables stay as they stand. Raises RecipeError with all problems of the file, one per line.
    """
    path = Path(path)
    try:
        return model.model_validate(_read_mapping(path, model, what))
    except ValidationError as error:
        problems = [_explain(item, model) for item in error.errors()]
        raise RecipeError("\n".join(f"{path.name}: {problem}" for problem in problems)) from None


def recipe_path(source: str | Path) -> Path:
    """Return the file of a recipe; a bare name such as `shapes_xpool` is one of the project's recipes."""
    path = Path(source)
    is_bare = not path.suffix and path.name == str(source)
    return find_recipe(f"{path.name}.yaml") if is_bare and not os.path.exists(path) else path


def _read_mapping(path: Path, model: type[BaseModel], what: str) -> dict[str, Any]:
    try:
        text = Path(os.path.expanduser(path)).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError, ValueError) as error:  # ValueError: a NUL character in the path
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise RecipeError(f"{path}: cannot read the {what}: {reason}") from error
    values = parse_yaml(text, model, where=str(path))
    if not isinstance(values, dict):
        raise RecipeError(f"{path}: a {what} is a mapping of sections, got {type(values).__name__}")
    return values


def _choose_teachers(recipe: Recipe, *, where: str) -> Recipe:
    """Leave the teachers that `teaching.only` names, so that one recipe may list more than one student needs."""
    wanted = recipe.teaching.only
    if wanted is None or not recipe.teachers:  # an override teachers=[] is one for a student that nobody teaches
        return recipe
    listed = {teacher.label: teacher for teacher in recipe.teachers}
    for label in wanted:
        if label not in listed:
            known = ", ".join(listed) or "none"
            hint = closest(label, listed)
            raise RecipeError(f"{where}: teaching.only: no teacher {label!r}; listed: {known}{hint}")
    chosen = recipe.model_copy(update={"teachers": [listed[label] for label in dict.fromkeys(wanted)]})
    if problems := list(check_losses(chosen)):
        raise RecipeError(f"{where}: teaching.only: {'; '.join(problems)}")
    return chosen


def dump_recipe(recipe: Recipe) -> str:
    """Return the resolved recipe as YAML that `load_recipe` reads back to the same recipe."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def value_text(value: Any) -> str:
    """Return a value as text that an override `key=text` reads back as the same value."""
    if isinstance(value, str):
        with contextlib.suppress(RecipeError):
            if parse_yaml(value, where="") == value:
                return value
    return repr(value) if isinstance(value, float) else json.dumps(value)


def describe_keys(model: type[BaseModel] = Recipe, prefix: str = "") -> Iterator[str]:
    """Yield one line per recipe key: name, default, meaning. For `--help`."""
    for name, field in model.model_fields.items():
        nested = nested_model(field.annotation)
        repeated = typing.get_origin(field.annotation) is list
        key = f"{prefix}{name}" + (".0" if repeated and nested else "")
        if nested is not None:
            yield from describe_keys(nested, f"{key}.")
            continue
        default = "required" if field.is_required() else f"default {field.get_default(call_default_factory=True)}"
        yield f"  {key}  ({default})" + (f"  {field.description}" if field.description else "")


def _apply(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise RecipeError(f"override {override!r}: write it as section.key=value")
    parts = key.split(".")
    if len(parts) > DEEPEST:
        raise RecipeError(f"override {_shown(override)}: a key has at most {DEEPEST} parts")
    value = _override_value(text, _annotation(parts), where=f"override {_shown(override)}")
    node: Any = values
    for depth, part in enumerate(parts[:-1]):
        where = ".".join(parts[: depth + 1])
        if isinstance(node, list):
            node = node[_position(node, part, override)]
        elif isinstance(node, dict):
            if node.get(part) is None:
                node[part] = {}
            node = node[part]
        if not isinstance(node, (dict, list)):
            raise RecipeError(f"override {_shown(override)}: {where} is a value, not a section")
    if isinstance(node, list):
        node[_position(node, parts[-1], override)] = value
    else:
        node[parts[-1]] = value


def _annotation(parts: Sequence[str]) -> Any:
    """Return the type of a recipe key, Any if there is no such key or it is an option of a teacher."""
    annotation: Any = Recipe
    for part in parts:
        model = nested_model(annotation)
        if part.isdecimal():
            annotation = item_annotation(annotation)
        elif model is not None and part in model.model_fields:
            annotation = model.model_fields[part].annotation
        else:
            return Any
    return annotation


def _override_value(text: str, annotation: Any, *, where: str) -> Any:
    """Return the value of the text behind `key=`.

    A key that takes text gets it as it stands, unless it is quoted, or null where that is allowed. A list of plain
    values may be written without brackets: `a,b`. Everything else is YAML.
    """
    is_quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "\"'"
    if takes_text(annotation) and not is_quoted:
        return None if text in NULLS and takes_null(annotation) else text
    item = item_annotation(annotation)
    is_list = item is not Any and nested_model(item) is None
    if is_list and not text.lstrip().startswith("[") and text not in NULLS:
        return [_override_value(part.strip(), item, where=where) for part in text.split(",")]
    return parse_yaml(text, annotation, where=where)


def _position(items: list[Any], part: str, override: str) -> int:
    if not part.isdecimal() or len(part) > 9 or int(part) >= len(items):
        allowed = f"0 to {len(items) - 1}" if items else "nothing: the list is empty"
        raise RecipeError(
            f"override {_shown(override)}: {_shown(part)} is not an item of a list of {len(items)}; "
            f"allowed: {allowed}"
        )
    return int(part)


def _expand(value: Any, where: str, problems: list[str]) -> Any:
    """Replace environment variables and a leading `~/` in all strings; name the variables that are not set."""
    if isinstance(value, dict):
        return {key: _expand(item, f"{where}.{key}".lstrip("."), problems) for key, item in value.items()}
    if isinstance(value, list):
        return [_expand(item, f"{where}.{index}", problems) for index, item in enumerate(value)]
    if not isinstance(value, str):
        return value

    if "\0" in value:
        problems.append(f"{where}: contains a NUL character")

    def replace(match: re.Match[str]) -> str:
        value = os.environ.get(match[1]) or match[2]
        if value is None:
            problems.append(f"{where}: environment variable {match[1]} is not set; set it or give {where}=...")
            return match[0]
        return value

    text = _VARIABLE.sub(replace, value)
    return os.path.expanduser(text) if re.match(r"~[\w.-]*/", text) else text


def _explain(item: Any, root: type[BaseModel]) -> str:
    """Turn one pydantic error into `key: what was got; what is allowed`."""
    location, kind, message = item["loc"], item["type"], item["msg"]
    key = ".".join(str(part) for part in location)
    if kind == "extra_forbidden":
        names = _known_names(location[:-1], root)
        prefix = ".".join(str(part) for part in location[:-1])
        hint = closest(str(location[-1]), names)
        if prefix and hint:
            hint = hint.replace("did you mean ", f"did you mean {prefix}.")
        return f"{key} is unknown{hint or '; known here: ' + ', '.join(names)}"
    if kind == "missing":
        return f"{key} is missing"
    message = message.removeprefix("Value error, ").replace("Input should be", "must be")
    if not location:
        return message
    if isinstance(item.get("input"), (str, int, float, bool, type(None))):
        return f"{key}: {message}, got {_shown(item['input'])}"
    return f"{key}: {message}"


def _shown(value: Any) -> str:
    """Return a value as a message shows it, on one short line."""
    if isinstance(value, int) and value.bit_length() > 256:
        return "a number of more than 77 digits"
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


def _known_names(location: Sequence[str | int], root: type[BaseModel]) -> list[str]:
    model: type[BaseModel] | None = root
    for part in location:
        if isinstance(part, int):
            continue
        field = model.model_fields.get(part) if model is not None else None
        model = nested_model(field.annotation) if field is not None else None
    return list(model.model_fields) if model is not None else []


def find_recipe(name: str) -> Path:
    """Return a recipe of the project, preferably by its short path. Raises RecipeError if it is nowhere."""
    package = Path(__file__).resolve().parents[1]
    places = [Path("recipes") / name, package.parent / "recipes" / name, package / "recipes" / name]
    for place in places:
        if os.path.exists(place):  # False for a name that no file can have
            return place
    raise RecipeError(f"{name[:SHOWN]} is in none of: {', '.join(str(place.parent) for place in places)}")
