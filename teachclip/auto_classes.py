"""Make transformers know the student after `import teachclip`, without importing transformers or torch before that.

The Auto classes get two light stand-ins as soon as their modules are imported, or at once if they are there already.
A stand-in imports the real classes when it is first used; these register themselves (`teachclip.models.student`).
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any


class _StandIn:
    """Calls the class methods with which transformers makes an object from files on the real class."""

    @classmethod
    def _real(cls) -> Any:
        return getattr(importlib.import_module("teachclip.models.student"), cls.__name__)

    @classmethod
    def from_dict(cls, *args: Any, **kwargs: Any) -> Any:
        return cls._real().from_dict(*args, **kwargs)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        return cls._real().from_pretrained(*args, **kwargs)


class _StudentConfig(_StandIn):
    model_type = "teachclip"


class _StudentProcessor(_StandIn):
    pass


_StudentConfig.__name__, _StudentProcessor.__name__ = "StudentConfig", "StudentProcessor"  # files name them so


def _register_config(module: ModuleType) -> None:
    if "teachclip" not in module.CONFIG_MAPPING:  # the real class may be there
        module.AutoConfig.register("teachclip", _StudentConfig)


def _register_processor(module: ModuleType) -> None:
    if module.processor_class_from_name("StudentProcessor") is None:
        module.AutoProcessor.register(_StudentConfig, _StudentProcessor)


_AFTER_IMPORT = {
    "transformers.models.auto.configuration_auto": _register_config,
    "transformers.models.auto.processing_auto": _register_processor,
}


class _Finder:
    """Finds the modules of `_AFTER_IMPORT` as usual, and lets them register the stand-ins once they are imported."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        register = _AFTER_IMPORT.get(name)
        spec = PathFinder.find_spec(name, path) if register else None
        if register is None or spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            register(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def register_student() -> None:
    """Register the stand-ins, now or when transformers is imported. Calling it again changes nothing."""
    for name, register in _AFTER_IMPORT.items():
        if (module := sys.modules.get(name)) is not None:
            register(module)
    if not any(finder is _Finder for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder)  # type: ignore[arg-type]
