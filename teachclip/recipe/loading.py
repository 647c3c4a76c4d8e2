"""Read recipes: YAML, environment variables, overrides, and every problem at once in plain words."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from teachclip.errors import RecipeError
from teachclip.recipe.loss_section import check_losses
from teachclip.recipe.schema import Recipe
from teachclip.registry import closest

AnySection = typing.TypeVar("AnySection", bound=BaseModel)

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")


class _Loader(yaml.SafeLoader):
    """Safe YAML in which `1e-4` is a number, and a key that stands twice is an error."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if key in found:
            raise yaml.constructor.ConstructorError(None, None, f"key {key!r} stands twice", key_node.start_mark)
        found[key] = loader.construct_object(value_node, deep=True)
    return found


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


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
    if isinstance(source, Mapping):
        where, values = str(source.get("name", "recipe")), copy.deepcopy(dict(source))
    else:
        where, values = Path(source).name, _read_mapping(Path(source), "recipe")
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
    return _choose_teachers(recipe, where=where)


def load_section(path: str | Path, model: type[AnySection], what: str) -> AnySection:
    """Read a YAML file of another strict schema than the recipe's; `what` says what it is, such as "file of arms".

    Environment variables stay as they stand. Raises RecipeError with all problems of the file, one per line.
    """
    path = Path(path)
    try:
        return model.model_validate(_read_mapping(path, what))
    except ValidationError as error:
        problems = [_explain(item, model) for item in error.errors()]
        raise RecipeError("\n".join(f"{path.name}: {problem}" for problem in problems)) from None


def _read_mapping(path: Path, what: str) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise RecipeError(f"{path}: cannot read the {what}: {reason}") from error
    values = _parse(text, where=str(path))
    if not isinstance(values, dict):
        raise RecipeError(f"{path}: a {what} is a mapping of sections, got {type(values).__name__}")
    return values


def _choose_teachers(recipe: Recipe, *, where: str) -> Recipe:
    """Leave the teachers that `teaching.only` names, so that one recipe may list more than one student needs."""
    wanted = recipe.teaching.only
    if wanted is None:
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
            if _parse(value, where="") == value:
                return value
    return repr(value) if isinstance(value, float) else json.dumps(value)


def describe_keys(model: type[BaseModel] = Recipe, prefix: str = "") -> Iterator[str]:
    """Yield one line per recipe key: name, default, meaning. For `--help`."""
    for name, field in model.model_fields.items():
        nested = _nested_model(field.annotation)
        repeated = typing.get_origin(field.annotation) is list
        key = f"{prefix}{name}" + (".0" if repeated and nested else "")
        if nested is not None:
            yield from describe_keys(nested, f"{key}.")
            continue
        default = "required" if field.is_required() else f"default {field.get_default(call_default_factory=True)}"
        yield f"  {key}  ({default})" + (f"  {field.description}" if field.description else "")


def _parse(text: str, *, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        raise RecipeError(f"{where}{line}: not valid YAML: {getattr(error, 'problem', None) or error}") from error


def _apply(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise RecipeError(f"override {override!r}: write it as section.key=value")
    value = _parse(text, where=f"override {override!r}")
    parts = key.split(".")
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
            raise RecipeError(f"override {override!r}: {where} is a value, not a section")
    if isinstance(node, list):
        node[_position(node, parts[-1], override)] = value
    else:
        node[parts[-1]] = value


def _position(items: list[Any], part: str, override: str) -> int:
    if not part.isdecimal() or int(part) >= len(items):
        allowed = f"0 to {len(items) - 1}" if items else "nothing: the list is empty"
        raise RecipeError(
            f"override {override!r}: {part!r} is not an item of a list of {len(items)}; allowed: {allowed}"
        )
    return int(part)


def _expand(value: Any, where: str, problems: list[str]) -> Any:
    """Replace environment variables in all strings; name those that are not set."""
    if isinstance(value, dict):
        return {key: _expand(item, f"{where}.{key}".lstrip("."), problems) for key, item in value.items()}
    if isinstance(value, list):
        return [_expand(item, f"{where}.{index}", problems) for index, item in enumerate(value)]
    if not isinstance(value, str):
        return value

    def replace(match: re.Match[str]) -> str:
        found = os.environ.get(match[1]) or match[2]
        if found is None:
            problems.append(f"{where}: environment variable {match[1]} is not set; set it or give {where}=...")
            return match[0]
        return found

    return _VARIABLE.sub(replace, value)


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
        return f"{key}: {message}, got {item['input']!r}"
    return f"{key}: {message}"


def _known_names(location: Sequence[str | int], root: type[BaseModel]) -> list[str]:
    model: type[BaseModel] | None = root
    for part in location:
        if isinstance(part, int):
            continue
        field = model.model_fields.get(part) if model is not None else None
        model = _nested_model(field.annotation) if field is not None else None
    return list(model.model_fields) if model is not None else []


def _nested_model(annotation: Any) -> type[BaseModel] | None:
    """Return the section that an annotation holds: `Section`, `Section | None` or `list[Section]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if typing.get_origin(annotation) in (list, typing.Union, types.UnionType):
        for part in typing.get_args(annotation):
            found = _nested_model(part)
            if found is not None:
                return found
    return None


def find_recipe(name: str) -> Path:
    """Return a recipe of the project, preferably by its short path. Raises RecipeError if it is nowhere."""
    package = Path(__file__).resolve().parents[1]
    places = [Path("recipes") / name, package.parent / "recipes" / name, package / "recipes" / name]
    for place in places:
        if place.exists():
            return place
    raise RecipeError(f"{name} is in none of: {', '.join(str(place.parent) for place in places)}")
