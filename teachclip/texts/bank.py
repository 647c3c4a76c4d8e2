"""A bank of texts on everyday things: a small grammar over lists of words, `everyday.yaml`."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from teachclip.errors import DataError
from teachclip.registry import closest

_NAME = re.compile(r"\{(\w+)\}")


GRAMMARS = ("everyday", "shapes")
"""The grammars that come with the toolkit."""


@functools.cache
def everyday() -> Mapping[str, Any]:
    """Return the grammar of everyday words; see `read_grammar`."""
    return read_grammar("everyday")


def read_grammar(source: str | Path) -> Mapping[str, Any]:
    """Return a grammar: `patterns`, each with how many of its texts are taken at most, and lists of words by name.

    `source`: a name of `GRAMMARS`, or the path of a YAML file. Raises DataError for a file that holds something else
    or a pattern that names no list.
    """
    path = resources.files("teachclip.texts") / f"{source}.yaml" if source in GRAMMARS else Path(source)
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        known = f"; grammars by name: {', '.join(GRAMMARS)}{closest(str(source), GRAMMARS)}"
        raise DataError(f"{source}: cannot read the grammar: {' '.join(str(error).split())[:200]}{known}") from error
    if not isinstance(found, dict) or not isinstance(found.get("patterns"), dict):
        raise DataError(f"{source}: a grammar has 'patterns', texts with {{lists}} and how many are taken of each")
    lists = {name: words for name, words in found.items() if name != "patterns"}
    for name, words in lists.items():
        if not isinstance(words, list) or not words or not all(isinstance(word, str) for word in words):
            raise DataError(f"{source}: {name} is {words!r:.60}; allowed: words (quote 'no' and numbers)")
    for pattern, most in found["patterns"].items():
        if not isinstance(most, int) or isinstance(most, bool) or most < 1:
            raise DataError(f"{source}: {pattern!r}: {most!r:.60} texts; allowed: 1 or more")
        for name in _NAME.findall(str(pattern)):
            if name not in lists:
                raise DataError(f"{source}: {pattern!r} names no list: {name}{closest(name, lists)}")
    return found


def bank(grammar: Mapping[str, Any] | None = None) -> list[str]:
    """Return all texts of a grammar, each once, in the order of its patterns; None: of everyday words.

    A text is a function of the grammar alone. Of a pattern with more choices than its number allows, choices that
    are spread evenly over all are taken, so that every word occurs about as often as any other of its list.
    """
    grammar = everyday() if grammar is None else grammar
    found: dict[str, None] = {}
    for pattern, most in grammar["patterns"].items():
        names = _NAME.findall(pattern)
        lists = [grammar[name] for name in names]
        for words in _spread(lists, most):
            text = pattern
            for name, word in zip(names, words, strict=True):
                text = text.replace("{" + name + "}", word, 1)
            found[text] = None
    return list(found)


def _spread(lists: Sequence[Sequence[str]], most: int) -> list[tuple[str, ...]]:
    """Return at most `most` choices of a word of each list.

    They are taken in steps that have no factor in common with their number, so that the words of all lists vary.
    """
    total = math.prod(map(len, lists))
    step = max(1, round(total * 0.618034))
    while math.gcd(step, total) > 1:
        step += 1
    chosen = []
    for number in sorted((count * step) % total for count in range(min(most, total))):
        words = []
        for choices in reversed(lists):
            number, at = divmod(number, len(choices))
            words.append(choices[at])
        chosen.append(tuple(reversed(words)))
    return chosen
