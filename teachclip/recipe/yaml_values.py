"""YAML as recipes use it: plain values of YAML 1.2, text where the schema wants text, every mistake in one line.

`no`, `on`, `2026-11-27`, `012` and `1.0` are what they look like to the reader of a recipe: text where a key takes
text, and never a boolean, a date or an octal number by surprise. `1e-4` is a number; a duplicate key is an error.
"""

from __future__ import annotations

import copy
import functools
import itertools
import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel

from teachclip.errors import RecipeError

MOST_VALUES = 100_000
"""A file that says more, most likely by aliases of aliases, is refused."""

MOST_NESTED = 200
"""The deepest nesting of brackets."""

NULLS = ("", "~", "null", "Null", "NULL")
MAP, SEQ = "tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"


class _Loader(yaml.SafeLoader):
    """Safe YAML with the plain values of the YAML 1.2 core schema."""


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("int", r"^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$", list("-+0123456789")),
    (
        "float",
        r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
        list("-+.0123456789"),
    ),
    ("merge", r"^(?:<<)$", ["<"]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), _first)


def _integer(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node))
    base = {"0o": 8, "0x": 16}.get(text[:2], 10)
    return int(text[2:] if base != 10 else text, base)


def _no_binary(loader: _Loader, node: yaml.Node) -> Any:
    raise yaml.constructor.ConstructorError(None, None, "binary data has no place here", node.start_mark)


_Loader.add_constructor("tag:yaml.org,2002:int", _integer)
_Loader.add_constructor("tag:yaml.org,2002:binary", _no_binary)


def parse_yaml(text: str, annotation: Any = Any, *, where: str) -> Any:
    """Return the value of a YAML text, read as `annotation` (a type of a recipe key, or a whole schema) wants it.

    Raises RecipeError, beginning with `where` and the line, for text that is not valid YAML, has a duplicate key or a
    value that cannot be read, nests too deeply, or expands to more than `MOST_VALUES` values.
    """
    return copy.deepcopy(_parse(text, annotation, where))


@functools.lru_cache(maxsize=1024)  # a study reads one recipe with the settings of each of its trainings
def _parse(text: str, annotation: Any, where: str) -> Any:
    loader: _Loader | None = None
    depths = itertools.accumulate(1 if bracket in "[{" else -1 for bracket in re.findall(r"[\[\]{}]", text))
    if max(depths, default=0) > MOST_NESTED:  # the time to find out grows with the square of the depth
        raise RecipeError(f"{where}: not valid YAML: it is nested too deeply")
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _check_size(node, {}, set())
        return _construct(loader, node, annotation)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        raise RecipeError(f"{where}{line}: not valid YAML: {problem}") from error
    except RecursionError as error:
        raise RecipeError(f"{where}: not valid YAML: it is nested too deeply") from error
    except (ValueError, TypeError, AttributeError, OverflowError, LookupError) as error:
        raise RecipeError(f"{where}: not valid YAML: a value cannot be read ({error})") from error
    finally:
        if loader is not None:
            loader.dispose()


def _check_size(node: yaml.Node, sizes: dict[int, int], above: set[int]) -> int:
    """Return how many values a node expands to. Raises YAMLError if there are too many, or if it contains itself."""
    if id(node) in above:
        raise yaml.constructor.ConstructorError(None, None, "an alias refers to what contains it", node.start_mark)
    if id(node) not in sizes:
        above.add(id(node))
        pairs = node.value if isinstance(node, yaml.MappingNode) else ()
        parts = node.value if isinstance(node, yaml.SequenceNode) else [part for pair in pairs for part in pair]
        sizes[id(node)] = 1 + sum(_check_size(part, sizes, above) for part in parts)
        above.discard(id(node))
        if sizes[id(node)] > MOST_VALUES:
            problem = f"aliases expand to more than {MOST_VALUES:,} values"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
    return sizes[id(node)]


def _construct(loader: _Loader, node: yaml.Node, annotation: Any) -> Any:
    """Return the value of a node; `annotation` decides whether a plain scalar is text."""
    if isinstance(node, yaml.MappingNode) and node.tag == MAP:
        loader.flatten_mapping(node)
        model, values = nested_model(annotation), {}
        for key_node, value_node in node.value:
            key = loader.construct_object(key_node, deep=True)
            if key in values:
                raise yaml.constructor.ConstructorError(None, None, f"duplicate key {key!r}", key_node.start_mark)
            field = model.model_fields.get(key) if model is not None and isinstance(key, str) else None
            values[key] = _construct(loader, value_node, field.annotation if field is not None else Any)
        return values
    if isinstance(node, yaml.SequenceNode) and node.tag == SEQ:
        item = item_annotation(annotation)
        return [_construct(loader, part, item) for part in node.value]
    is_plain = isinstance(node, yaml.ScalarNode) and node.style is None
    if is_plain and takes_text(annotation) and not (node.value in NULLS and takes_null(annotation)):
        return node.value
    return loader.construct_object(node, deep=True)


def _members(annotation: Any) -> Iterator[Any]:
    """Yield the alternatives of an annotation: what stands in `Annotated`, and each part of a union."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        yield from _members(typing.get_args(annotation)[0])
    elif origin in (typing.Union, types.UnionType):
        for part in typing.get_args(annotation):
            yield from _members(part)
    else:
        yield annotation


def takes_null(annotation: Any) -> bool:
    """Whether null is allowed."""
    return any(member in (None, type(None)) for member in _members(annotation))


def takes_text(annotation: Any) -> bool:
    """Whether the only values are text, paths or named choices, and perhaps null."""
    members = [member for member in _members(annotation) if member not in (None, type(None))]
    return bool(members) and all(
        member in (str, Path)
        or (typing.get_origin(member) is Literal and all(isinstance(value, str) for value in typing.get_args(member)))
        for member in members
    )


def item_annotation(annotation: Any) -> Any:
    """Return what the items of a list are, Any if it is not a list."""
    for member in _members(annotation):
        if typing.get_origin(member) is list:
            return typing.get_args(member)[0]
    return Any


def nested_model(annotation: Any) -> type[BaseModel] | None:
    """Return the section that an annotation holds: `Section`, `Section | None` or `list[Section]`."""
    for member in _members(annotation):
        if isinstance(member, type) and issubclass(member, BaseModel):
            return member
        if typing.get_origin(member) is list:
            return nested_model(typing.get_args(member)[0])
    return None
