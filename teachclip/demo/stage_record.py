"""The stages of the demo: what each runs, what it makes, and which are done already.

A stage is recognised by its fingerprint: its command, the recipe's content, the version of teachclip and the
fingerprints of the stages that it needs. The record is one small file, written atomically.
"""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from teachclip import __version__
from teachclip.errors import StoreError
from teachclip.store.files import read_json, write_atomic
from teachclip.store.fingerprint import fingerprint_of

LAUNCHED = ("train-teacher", "precompute", "distill")
"""Commands that train or precompute with several processes where there are several devices."""


@dataclass(frozen=True)
class Stage:
    """One command and what it leaves behind."""

    name: str
    command: tuple[str, ...]
    """A command of teachclip with its arguments: ("distill", "recipes/x.yaml", "seed=1")."""
    outputs: tuple[Path, ...]
    """Files or folders that are there when the stage is done."""
    owns: tuple[Path, ...] = ()
    """What is removed before the stage runs with another fingerprint."""
    needs: tuple[str, ...] = ()
    content: Mapping[str, Any] = field(default_factory=dict)
    """Whatever else its outputs depend on, such as the recipe's hash."""

    def shown(self, environment: Mapping[str, str] | None = None) -> str:
        """Return the plain command that a user would type for it."""
        name, *arguments = self.command
        script = Path("tools") / f"{name.replace('-', '_')}.py"
        if not script.exists():  # installed without a clone
            words = ["teachclip", name]
        else:
            words = ["accelerate", "launch", str(script)] if name in LAUNCHED else ["python", str(script)]
        values = [f"{key}={shlex.quote(value)}" for key, value in (environment or {}).items()]
        return " ".join([*values, *words, *map(shlex.quote, arguments)])


class StageRecord:
    """Which stages are done, kept in a file that is whole at any moment."""

    def __init__(self, path: Path, stages: Sequence[Stage]):
        self.path = path
        self.stages = {stage.name: stage for stage in stages}
        self._entries = self._read()

    def fingerprint(self, stage: Stage) -> str:
        """Return the sha256 of everything that the stage's outputs depend on."""
        return fingerprint_of(
            {
                "command": list(stage.command),
                "content": dict(stage.content),
                "version": __version__,
                "needs": {name: self.fingerprint(self.stages[name]) for name in stage.needs},
            }
        )

    def is_done(self, stage: Stage) -> bool:
        """Whether the stage was finished with this fingerprint and its outputs are still there."""
        entry = self._entries.get(stage.name, {})
        is_same = entry.get("fingerprint") == self.fingerprint(stage) and entry.get("state") == "done"
        return is_same and all(map(_is_there, stage.outputs))

    def start(self, stage: Stage) -> None:
        """Note that a stage runs, so that a change while it is unfinished is noticed too."""
        self._entries[stage.name] = self._entry(stage, "started")
        self._write()

    def finish(self, stage: Stage, seconds: float) -> None:
        """Note that a stage is done. Raises StoreError if it left an output out."""
        missing = [str(path) for path in stage.outputs if not _is_there(path)]
        if missing:
            raise StoreError(f"stage {stage.name} ended well but did not write {', '.join(missing)}")
        self._entries[stage.name] = {**self._entry(stage, "done"), "seconds": round(seconds, 1)}
        self._write()

    def seconds(self, stage: Stage) -> float | None:
        """Return how long a finished stage took."""
        return self._entries.get(stage.name, {}).get("seconds")

    def discard_changed(self) -> list[str]:
        """Remove what stages of the record made under another fingerprint. Returns the names of those stages.

        Only what such a stage was recorded to own is removed, and nothing outside the folder of all runs.
        """
        root = self.path.resolve().parents[1]
        changed = [
            name
            for name, stage in self.stages.items()
            if name in self._entries and self._entries[name].get("fingerprint") != self.fingerprint(stage)
        ]
        for name in changed:
            for path in map(Path, self._entries[name].get("owns", [])):
                if not path.resolve().is_relative_to(root) or path.resolve() == root:
                    continue
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            del self._entries[name]
        if changed:
            self._write()
        return changed

    def _entry(self, stage: Stage, state: str) -> dict[str, Any]:
        return {
            "state": state,
            "fingerprint": self.fingerprint(stage),
            "outputs": [str(path) for path in stage.outputs],
            "owns": [str(path) for path in stage.owns],
        }

    def _read(self) -> dict[str, Any]:
        if not self.path.exists():
            return {}
        try:
            entries = read_json(self.path)["stages"]
            return {str(name): dict(entry) for name, entry in entries.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise StoreError(f"{self.path} is not a record of stages ({error}); delete it and run again") from error

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(self.path, json.dumps({"stages": self._entries}, indent=1).encode())


def _is_there(path: Path) -> bool:
    """Whether a file, or a folder with something in it, exists."""
    return any(path.iterdir()) if path.is_dir() else path.exists()
