"""From a name in a recipe to an object in the code.

A name is looked up in a dict literal of `"module:attribute"` strings, then among the entry points of a group that
installed packages declare, and may itself be written `module:attribute`: of an installed package, or of a file in the
current folder.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import inspect
import os
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import entry_points
from typing import Any

from teachclip.errors import RecipeError

TEACHERS: Mapping[str, str] = {
    "clip2video": "teachers.clip2video:CLIP2Video",
    "cross_encoder": "teachers.cross_encoder:CrossEncoder",
    "dual_encoder": "teachers.dual_encoder:DualEncoder",
    "guided_xpool": "teachers.guided_xpool:GuidedXPool",
    "scores": "teachers.scores:Scores",
    "sentence_transformer": "teachers.sentence_transformer:SentenceEncoder",
    "ts2net": "teachers.ts2net:TS2Net",
    "video_encoder": "teachers.video_encoder:VideoEncoder",
    "xclip": "teachers.xclip:XCLIP",
    "xpool": "teachers.xpool:XPool",
}
"""The teachers that come with the toolkit; other packages declare theirs in the entry-point group below."""

TEACHER_GROUP = "teachclip.teachers"

VIDEO_TEXT_LOSSES: Mapping[str, str] = {
    "pearson": "teachclip.losses.video_text:pearson_distance",
    "cross_entropy": "teachclip.losses.video_text:soft_cross_entropy",
    "smooth_l1": "teachclip.losses.video_text:smooth_l1_distance",
    "kl": "teachclip.losses.video_text:kl_divergence",
}
"""Kinds of `losses.video_text`; see `teachclip.losses.video_text` for what such a function gets and returns."""

FRAME_TEXT_LOSSES: Mapping[str, str] = {
    "cross_entropy": "teachclip.losses.frame_text:soft_cross_entropy",
    "binary_cross_entropy": "teachclip.losses.frame_text:binary_cross_entropy",
    "pearson": "teachclip.losses.frame_text:pearson_distance",
    "smooth_l1": "teachclip.losses.frame_text:smooth_l1_distance",
}
"""Kinds of `losses.frame_text`; see `teachclip.losses.frame_text` for what such a function gets and returns."""


def closest(name: str, names: Iterable[str]) -> str:
    """Return `; did you mean X?` for the known name nearest to `name`, or an empty string."""
    known = list(names)
    matches = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    matches = matches or sorted((other for other in known if other in name or name in other), key=len)[-1:]
    return f"; did you mean {matches[0]}?" if matches else ""


def resolve(kind: str, name: str, table: Mapping[str, str], *, group: str | None = None) -> Any:
    """Return the object that `name` stands for.

    `kind` names what is looked up ("teacher", "data format") for messages. Raises RecipeError if the name is unknown
    or its module cannot be imported.
    """
    target = table.get(name)
    if target is None and group is not None:
        targets = {point.name: point.value for point in entry_points(group=group)}
        target = targets.get(name)
        table = {**table, **targets}
    if target is None and ":" in name:
        target = name
    if target is None:
        known = ", ".join(sorted(table))
        raise RecipeError(f"unknown {kind} {name!r}; known: {known}, or module:name{closest(name, table)}")
    module_name, _, attribute = target.partition(":")
    if os.getcwd() not in sys.path:  # `python script.py` looks beside the script, a console script nowhere
        sys.path.append(os.getcwd())
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise RecipeError(f"{kind} {name!r} ({target}) cannot be imported: {error}") from error


def code_hash(thing: Any) -> str | None:
    """Return a SHA-256 of the file that defines a class or function of someone's own, or None if it is ours.

    What is computed with code that has changed since must not be taken for what the code computes now. The toolkit's
    own code is the matter of its versions, and of the tests that hold its numbers.
    """
    module = inspect.getmodule(thing)
    if module is None or module.__name__.split(".")[0] in ("teachclip", "teachers", "transformers", "torch"):
        return None
    try:
        source = inspect.getsourcefile(module)
    except TypeError:  # built in
        return None
    if source is None:
        return None
    with open(source, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()
