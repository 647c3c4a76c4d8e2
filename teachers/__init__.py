"""The teachers, loaded by name from their official checkpoints; TS2-Net's parts are in files of their own."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from typing import Any

from pydantic import ConfigDict, PydanticSchemaGenerationError, TypeAdapter, ValidationError
from torch import nn

from teachclip.errors import CheckpointError, RecipeError
from teachclip.models.checkpoints import check_finite, load_content, unwrap_state
from teachclip.registry import TEACHER_GROUP, TEACHERS, closest, resolve
from teachclip.scorer import Teacher, teacher_factories

__all__ = ["TEACHERS", "load_teacher", "teacher_class"]


def teacher_class(name: str) -> Any:
    """Return the class of a teacher: one of `TEACHERS`, of an installed package, or `module:Name`.

    Raises RecipeError if the name is unknown, or if what it names has neither `from_state_dict` nor `from_source`.
    """
    teacher = resolve("teacher", name, TEACHERS, group=TEACHER_GROUP)
    factories = teacher_factories(teacher)
    if factories.from_state_dict is None and factories.from_source is None:
        raise RecipeError(
            f"teacher {name!r}: {teacher!r} has neither from_state_dict(state, **options) nor "
            "from_source(checkpoint, **options)"
        )
    return teacher


def load_teacher(name: str, checkpoint: str | os.PathLike[str] | Mapping[str, Any], **options: Any) -> Teacher:
    """Load a teacher in evaluation mode and float32, its weights frozen.

    `checkpoint`: a file or a mapping; a state dict, or one under `state_dict`. Layout and sizes are read off names
    and shapes. Options stored in the file under `options` hold unless given here. For a teacher with `from_source` it
    is a hub id or a folder. Raises RecipeError for an unknown teacher or option, CheckpointError for a checkpoint
    that does not fit.
    """
    cls = teacher_class(name)
    teacher: nn.Module
    if teacher_factories(cls).from_source is not None:
        _check_options(name, cls.from_source, options)
        _check_required(name, cls.from_source, options)
        if isinstance(checkpoint, Mapping):
            raise CheckpointError(f"teacher {name!r}: got a mapping, expected a hub id or a folder")
        teacher = cls.from_source(checkpoint, **options)
        check_finite(dict(teacher.named_parameters()), source=str(checkpoint))
        return teacher.float().eval().requires_grad_(False)  # type: ignore[return-value]
    if isinstance(checkpoint, Mapping):
        content, source = checkpoint, f"{name} checkpoint"
    else:
        content, source = load_content(checkpoint), str(checkpoint)
    state = unwrap_state(content, source=source)
    stored = content.get("options", {}) if "state_dict" in content else {}
    if not isinstance(stored, Mapping):
        raise CheckpointError(f"{source}: options is a {type(stored).__name__}, expected a mapping")
    _check_options(name, cls.from_state_dict, options)
    check_finite(state, source=source)
    allowed = _allowed(cls.from_state_dict)
    takes_any = _takes_any(cls.from_state_dict)
    known = {key: value for key, value in stored.items() if takes_any or key in allowed}
    _check_required(name, cls.from_state_dict, {**known, **options})
    # First with what is known: the file of another teacher is then called by its name.
    teacher = cls.from_state_dict(state, source=source, **{**known, **options})
    _check_options(name, cls.from_state_dict, stored, where=f"{source}: ")
    return teacher.float().eval().requires_grad_(False)  # type: ignore[return-value]


def _allowed(factory: Any) -> dict[str, Any]:
    """Return the options of a factory with their annotations: all that it takes by name but what it loads from."""
    try:
        signature = inspect.signature(factory, eval_str=True)
    except NameError:  # a name that is imported for type checkers alone
        signature = inspect.signature(factory)
    by_name = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    options = list(signature.parameters.values())[1:]
    return {
        option.name: option.annotation for option in options if option.kind in by_name and option.name != "source"
    }


def _check_required(name: str, factory: Any, given: Mapping[str, Any]) -> None:
    """Raise RecipeError for an option without a default that is not given."""
    parameters = inspect.signature(factory).parameters
    for key in _allowed(factory):
        if parameters[key].default is inspect.Parameter.empty and key not in given:
            raise RecipeError(f"teacher {name!r} needs the option {key!r}: write it under the teacher's options")


def _takes_any(factory: Any) -> bool:
    """Whether a factory takes options of any name, as `**options`."""
    kinds = [parameter.kind for parameter in inspect.signature(factory).parameters.values()]
    return inspect.Parameter.VAR_KEYWORD in kinds


def _check_options(name: str, factory: Any, given: Mapping[str, Any], *, where: str = "") -> None:
    """Raise RecipeError, with `where` in front, for an option that the factory does not know or of another type."""
    allowed = _allowed(factory)
    for key, value in given.items():
        if key not in allowed:
            if _takes_any(factory):
                continue
            known = ", ".join(allowed) or "none"
            raise RecipeError(f"{where}teacher {name!r} has no option {key!r}; known: {known}{closest(key, allowed)}")
        annotation = allowed[key]
        if annotation is inspect.Parameter.empty or isinstance(annotation, str):
            continue
        try:
            TypeAdapter(annotation, config=ConfigDict(strict=True)).validate_python(value)
        except PydanticSchemaGenerationError:  # a type of someone's own
            continue
        except ValidationError as error:
            what = error.errors()[0]["msg"].lower()
            raise RecipeError(f"{where}teacher {name!r}: option {key} is {value!r}: {what}") from error
