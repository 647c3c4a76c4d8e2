"""Checkpoints of a run: written whole or not at all, found again newest first, without pickle.

A checkpoint is a folder `step-00000300` with `model.safetensors`, `optimizer.safetensors` and `state.json`. It is
written under a temporary name, flushed to disk and renamed. `best-00000200` holds the weights that validation chose.
`state.json` has the checksums of all files, its own too: a run never goes on from a damaged checkpoint.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from teachclip.errors import CheckpointError, StoreError
from teachclip.store.files import file_hash, read_json
from teachclip.store.fingerprint import check_seal, seal

Tensors = Mapping[str, Tensor]


def save_checkpoint(folder: Path, name: str, tensors: Mapping[str, Tensors], state: Mapping[str, Any]) -> Path:
    """Write `folder/name` with one safetensors file per entry of `tensors` and `state.json`; replace it if it exists.

    Raises CheckpointError if it cannot be written, for example because the disk is full; what was there stays.
    """
    target, temporary = folder / name, folder / f".{name}.tmp"
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        for part, values in tensors.items():
            cpu = {key: value.detach().cpu().contiguous().clone() for key, value in values.items()}
            save_file(cpu, temporary / f"{part}.safetensors")
        sums = {path.name: file_hash(path) for path in temporary.iterdir()}
        content = seal({"sha256": sums, "state": state})
        (temporary / "state.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
        for path in temporary.iterdir():
            _flush(path)
        if target.exists():
            shutil.rmtree(target)
        os.replace(temporary, target)
        _flush(folder)
    except (OSError, SafetensorError, StoreError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(f"{target}: cannot write the checkpoint: {error}") from error
    return target


def newest_checkpoint(folder: Path, kind: str) -> Path | None:
    """Return the newest whole checkpoint `kind-<step>` of a folder, or None."""
    complete = [path for path in _checkpoints(folder, kind) if (path / "state.json").exists()]
    return complete[-1] if complete else None


def checkpoint_name(kind: str, step: int) -> str:
    """Return the name of a checkpoint; names sort by step."""
    return f"{kind}-{step:08d}"


def keep_newest(folder: Path, kind: str, *, count: int) -> None:
    """Delete all but the newest `count` checkpoints of a kind. Call it after a new one is whole."""
    folders = _checkpoints(folder, kind)
    for path in folders[: max(0, len(folders) - count)]:
        shutil.rmtree(path)


def drop_after(folder: Path, kind: str, step: int) -> None:
    """Delete checkpoints of a kind from later steps: a resumed run will make them again."""
    for path in _checkpoints(folder, kind):
        if int(path.name.rpartition("-")[2]) > step:
            shutil.rmtree(path)


def load_state(path: Path) -> dict[str, Any]:
    """Read the state in a checkpoint's `state.json`. Raises CheckpointError if it is damaged."""
    state = _read_state(path)["state"]
    if not isinstance(state, dict):
        raise damaged_checkpoint(path / "state.json", "it has no state")
    return state


def load_part(path: Path, part: str) -> dict[str, Tensor]:
    """Read one safetensors file of a checkpoint. Raises CheckpointError if it is missing or damaged."""
    file, wanted = path / f"{part}.safetensors", _read_state(path)["sha256"]
    try:
        if file_hash(file) != wanted.get(file.name):
            raise damaged_checkpoint(file, "its checksum differs")
        return dict(load_file(file))
    except (OSError, SafetensorError, StoreError) as error:
        raise damaged_checkpoint(file, str(error)) from error


def _checkpoints(folder: Path, kind: str) -> list[Path]:
    """Return the checkpoints of a kind, oldest first; other files and folders are not ours."""
    return sorted(
        path for path in folder.glob(f"{kind}-*") if re.fullmatch(r"\w+-\d{8,}", path.name) and path.is_dir()
    )


def _read_state(path: Path) -> dict[str, Any]:
    """Return the whole content of `state.json`: `sha256` by file name, and `state`."""
    file = path / "state.json"
    try:
        content = read_json(file)
        if not isinstance(content, dict) or not {"sha256", "state", "seal"} <= content.keys():
            raise ValueError("it has no checksums")
        check_seal(content)
    except (OSError, ValueError) as error:
        raise damaged_checkpoint(file, str(error)) from error
    return content


def damaged_checkpoint(file: Path, cause: str) -> CheckpointError:
    """Return the error of a file of a checkpoint that cannot be used, with what to do about it."""
    cause, folder = " ".join(cause.split())[:300], file.parent.name
    return CheckpointError(
        f"{file}: cannot read the checkpoint: {cause}; delete {folder} and run again to go on from the one before"
    )


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
