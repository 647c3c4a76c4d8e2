"""A bank of texts on everyday things: a small grammar over lists of words, `everyday.yaml`."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import yaml

_NAME = re.compile(r"\{(\w+)\}")


@functools.cache
def everyday() -> Mapping[str, Any]:
    """Return the grammar: `patterns`, how many texts of each at most, and the lists of words by name."""
    text = (resources.files("teachclip.texts") / "everyday.yaml").read_text(encoding="utf-8")
    found: Mapping[str, Any] = yaml.safe_load(text)
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
