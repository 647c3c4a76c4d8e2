"""Load checkpoint files safely, recognise their model, and check them against an expected state dict.

No code from a file is run: `.safetensors` files, and torch files with `weights_only=True`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pickle
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from teachclip.errors import CheckpointError

STALE_KEYS = ("position_ids", "input_resolution", "context_length", "vocab_size")
"""Last parts of names without weights: buffers of old transformers and sizes in OpenAI's archives."""

_SHOWN = 3
COMPILED = "_orig_mod."
"""What `torch.compile` puts before the names of a module's weights."""


def first_line(error: BaseException) -> str:
    """Return the first line of the message of an error, for one-line errors."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def load_content(path: str | os.PathLike[str]) -> Mapping[str, Any]:
    """Return the content of a checkpoint file: a state dict, or a mapping with one under `state_dict`.

    Reads `.safetensors` and torch files (`.bin`, `.pt`, `.pth`) onto the CPU. Raises CheckpointError if the file is
    missing, damaged, not a mapping, or a pickle that would run code.
    """
    file = Path(path)
    if not file.is_file():
        problem = "is a folder, expected a checkpoint file" if file.is_dir() else "no such checkpoint file"
        raise CheckpointError(f"{file}: {problem}")
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about TorchScript archives, which raise an error below
            content = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(f"{file}: {_problem(file, error)}") from error
    except OSError as error:
        # torch seeks before the start of a short file: EINVAL means truncated, not a failing disk.
        problem = (
            _problem(file, error) if error.errno == errno.EINVAL else f"cannot be read: {error.strerror or error}"
        )
        raise CheckpointError(f"{file}: {problem}") from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{file}: contains a {type(content).__name__}, expected a mapping of names to tensors")
    return content


def _problem(file: Path, error: Exception) -> str:
    """Describe why torch cannot open a file."""
    text = str(error)
    if "TorchScript" in text:
        return "is a TorchScript archive; save its state_dict() with torch.save, or give the model's hub id"
    with open(file, "rb") as opened:
        head = opened.read(64)
    if not head:
        return "the file is empty"
    if head.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the checkpoint itself: fetch it with git lfs pull"
    is_pickle = head.startswith((b"PK", b"\x80"))  # zip archives of torch, or bare pickles
    if is_pickle and isinstance(error, pickle.UnpicklingError) and ("Unsupported" in text or "GLOBAL" in text):
        return "contains Python objects, which could run code when loaded; save plain tensors instead"
    if not is_pickle and file.suffix != ".safetensors":
        return f"is truncated or not a checkpoint: it begins with {head[:16]!r}"
    return (
        f"is truncated or not a checkpoint ({text.strip().splitlines()[0][:120] if text.strip() else 'end of file'})"
    )


def unwrap_state(content: Mapping[str, Any], *, source: str) -> dict[str, Tensor]:
    """Return the tensors of a state dict, or of the one under `state_dict`, without `STALE_KEYS`.

    The prefix `module.` of DataParallel and `_orig_mod.` of compiled modules are removed from the names. `source`:
    names the checkpoint in errors. Raises CheckpointError if an entry is not a tensor or none is left.
    """
    inner = content.get("state_dict", content)
    if not isinstance(inner, Mapping):
        raise CheckpointError(f"{source}: state_dict is a {type(inner).__name__}, expected a mapping")
    named = {str(key).replace(COMPILED, ""): value for key, value in inner.items()}
    if named and all(key.startswith("module.") for key in named):
        named = {key.removeprefix("module."): value for key, value in named.items()}
    state = {key: value for key, value in named.items() if key.rsplit(".", 1)[-1] not in STALE_KEYS}
    other = [key for key, value in state.items() if not isinstance(value, Tensor)]
    if other:
        kind = type(state[other[0]]).__name__
        nested = [key for key in other if isinstance(state[key], Mapping) and state[key]]
        hint = f"; if {nested[0]!r} contains the weights, save only that entry" if nested else ""
        raise CheckpointError(f"{source}: {_some(other)} should be tensors ({other[0]} is a {kind}){hint}")
    if not state:
        raise CheckpointError(f"{source}: contains no tensors")
    return state


def load_tensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Return the state dict of a checkpoint file. Raises what `load_content` and `unwrap_state` do."""
    return unwrap_state(load_content(path), source=str(path))


def to_float32(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy floating-point tensors to float32: the official files mix float16 and float32."""
    return {
        key: tensor.detach().to(torch.float32, copy=True) if tensor.is_floating_point() else tensor.detach().clone()
        for key, tensor in state.items()
    }


def save_checkpoint(content: object, path: Path) -> None:
    """Write tensors in plain containers as a torch file, atomically.

    Raises CheckpointError if it cannot be written.
    """
    path = Path(os.path.realpath(path))  # the file behind a link, and not the link, is replaced
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise CheckpointError(f"{path}: cannot write the checkpoint: {error}") from error


@contextlib.contextmanager
def explained_loading(source: object, what: str) -> Iterator[None]:
    """Raise CheckpointError, in one line, for whatever transformers raises on a damaged or hostile folder.

    It checks few of the values that it reads: a wrong type or size in a JSON file shows anywhere, as any error.
    """
    try:
        yield
    except (
        *(OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError, MemoryError),
        *(SafetensorError, StrictDataclassError),
    ) as error:
        cause = first_line(error)[:300] or type(error).__name__
        raise CheckpointError(f"{source}: cannot be loaded as {what}: {cause}") from error


TEACHCLIP_STUDENT = "a TeachCLIP student checkpoint"
CLIP4CLIP_SEQUENTIAL = "a CLIP4Clip seqTransf checkpoint"
CLIP4CLIP_MEAN = "a CLIP4Clip meanP checkpoint"

_KEYS_OF_MODELS: Sequence[tuple[str, str]] = (
    ("aggregation.score.", "a teachclip student (load its folder instead)"),
    ("pool_frames.", "an X-Pool checkpoint"),
    (".attn.net.", "a TS2-Net checkpoint (original layout, with token shift)"),
    ("visual_token_selector.", "a TS2-Net checkpoint (TeachCLIP layout, without token shift)"),
    ("global_mat_weight", "an X-CLIP checkpoint"),
    ("weight_center", "a CLIP2Video checkpoint"),
    ("frameLinear.", TEACHCLIP_STUDENT),
    ("similarity_dense.", "a CLIP4Clip tightTransf checkpoint"),
    ("lstm_visual.", "a CLIP4Clip seqLSTM checkpoint"),
    ("cross.", "a CLIP4Clip tightTransf checkpoint"),
    ("transformerClip.", CLIP4CLIP_SEQUENTIAL),
    ("clip.visual.", CLIP4CLIP_MEAN),
    ("clip.vision_model.", "a transformers CLIP under the prefix clip."),
    ("vision_model.", "a transformers CLIP"),
    ("visual.", "an OpenAI CLIP"),
)


def describe_checkpoint(state: Mapping[str, Any]) -> str:
    """Describe whose checkpoint a state dict is, by names that only this kind of model has."""
    for pattern, description in _KEYS_OF_MODELS:
        if any(key.startswith(pattern) or f".{pattern.lstrip('.')}" in key for key in state):
            return description
    return f"an unknown checkpoint with {len(state)} entries ({_names(sorted(map(str, state)))})"


def another_model(state: Mapping[str, Any], expected: str, *, source: str) -> CheckpointError:
    """Return the error for a checkpoint of another model than `expected`, e.g. "an X-CLIP"."""
    return CheckpointError(f"{source}: expected {expected} checkpoint, this looks like {describe_checkpoint(state)}")


def check_state(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], *, source: str) -> None:
    """Raise CheckpointError unless `state` has exactly the names and shapes of `expected`.

    The message names a few of the missing, unexpected and differently shaped entries and gives their number.
    """
    problems = []
    missing = [key for key in expected if key not in state]
    unexpected = [key for key in state if key not in expected]
    other = [key for key in expected if key in state and state[key].shape != expected[key].shape]
    if missing:
        problems.append(f"{_some(missing)} missing")
    if unexpected:
        problems.append(f"{_some(unexpected)} unexpected")
    if other:
        got, wanted = (tuple(tensors[other[0]].shape) for tensors in (state, expected))
        problems.append(f"{_some(other)} of another shape ({other[0]}: {got}, expected {wanted})")
    integers = [key for key in expected if key in state and not state[key].is_floating_point()]
    if integers := [key for key in integers if expected[key].is_floating_point()]:
        dtype = state[integers[0]].dtype
        problems.append(f"{_some(integers)} of another type ({integers[0]}: {dtype}, expected floating point)")
    if problems:
        raise CheckpointError(f"{source}: {'; '.join(problems)}")


def check_finite(state: Mapping[str, Tensor], *, source: str) -> None:
    """Raise CheckpointError if weights are NaN or infinite, as every score would become NaN; it names the first."""
    for key, tensor in state.items():
        if not tensor.is_floating_point() or tensor.is_meta or bool(tensor.sum().isfinite()):
            continue  # one number that is not finite would make the sum so
        if count := int((~tensor.isfinite()).sum()):
            raise CheckpointError(f"{source}: {count} of {tensor.numel()} numbers of {key} are NaN or infinite")


def tensor_of(state: Mapping[str, Tensor], key: str, *, source: str, dimensions: int | None = None) -> Tensor:
    """Return one tensor of a state dict. Raises CheckpointError if it is missing or has other dimensions."""
    if key not in state:
        raise CheckpointError(f"{source}: {key} is missing; this looks like {describe_checkpoint(state)}")
    if dimensions is not None and state[key].ndim != dimensions:
        raise CheckpointError(
            f"{source}: {key} has shape {tuple(state[key].shape)}, expected {dimensions} dimensions"
        )
    return state[key]


def count_layers(state: Iterable[str], prefix: str) -> int:
    """Return how many layers are named `{prefix}{index}.` in a state dict."""
    numbers = [key[len(prefix) :].split(".", 1)[0] for key in state if key.startswith(prefix)]
    return 1 + max((int(number) for number in numbers if number.isdigit()), default=-1)


def _names(keys: Sequence[str]) -> str:
    return ", ".join(keys[:_SHOWN]) + (", ..." if len(keys) > _SHOWN else "")


def _some(keys: Sequence[str]) -> str:
    return f"{len(keys)} {'entry' if len(keys) == 1 else 'entries'} ({_names(keys)})"
