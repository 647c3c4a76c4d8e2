"""A run folder: its recipe, its log, its checkpoints, and where to resume."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from teachclip.errors import BusyError, CheckpointError
from teachclip.processes import Processes
from teachclip.store.array_store import describe_difference
from teachclip.store.files import check_regular, occupied_folder, read_json, write_atomic
from teachclip.training.checkpoint import (
    checkpoint_name,
    damaged_checkpoint,
    drop_after,
    keep_newest,
    load_part,
    load_state,
    newest_checkpoint,
    save_checkpoint,
)
from teachclip.training.finetuning import WeightAverage
from teachclip.training.optim import load_optimizer_tensors, optimizer_tensors


@dataclass
class Progress:
    """How far a run is: steps done, and the best validation so far."""

    step: int = 0
    best: float = float("-inf")
    best_step: int = -1

    @classmethod
    def of(cls, values: Any) -> Progress:
        """Return the progress that a checkpoint tells. Raises ValueError for values that it cannot have."""
        kinds: dict[str, Any] = {"step": int, "best": (int, float), "best_step": int}
        if not isinstance(values, dict) or values.keys() != kinds.keys():
            raise ValueError("it tells no progress")
        for name, kind in kinds.items():
            if not isinstance(values[name], kind) or isinstance(values[name], bool):
                raise ValueError(f"its {name} is no number")
        if not 0 <= values["step"] < 10**12:
            raise ValueError("its step is not a number of steps")
        return cls(**values)


@dataclass
class Run:
    """A run folder. Every process reads it; only the main process writes."""

    folder: Path
    settings: Mapping[str, Any]
    processes: Processes = field(default_factory=Processes)
    _lines: list[str] = field(default_factory=list)

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.folder / "checkpoints"

    def check(self) -> None:
        """Raise CheckpointError, naming the difference, if the folder holds a run with other settings.

        Only the settings that are known so far are compared: those of this object.
        """
        path = self.folder / "settings.json"
        if not path.exists() and newest_checkpoint(self.checkpoints, "step") is not None:
            raise CheckpointError(
                f"{self.folder} holds checkpoints but no {path.name}; give another output= or delete it"
            )
        if path.exists():
            try:
                before = read_json(path)
            except (OSError, ValueError) as error:
                message = f"{path} cannot be read: {error}; give another output= or delete {self.folder}"
                raise CheckpointError(message) from error
            if not isinstance(before, dict):
                raise CheckpointError(f"{path} holds no settings; give another output= or delete {self.folder}")
            before = {key: value for key, value in before.items() if key in self.settings}
            if isinstance(before.get("teaching"), dict):  # older runs named what no number depends on
                before["teaching"] = {key: value for key, value in before["teaching"].items() if key != "batch_size"}
            if before != json.loads(json.dumps(self.settings)):
                difference = describe_difference(before, self.settings)
                raise CheckpointError(
                    f"{self.folder} holds a run with other settings: {difference}; give another output= or delete it"
                )

    def open(self) -> None:
        """Make the folder, or check that it is this run's. Raises CheckpointError if it is not or cannot be made."""
        self.check()
        path = self.folder / "settings.json"
        try:
            if self.processes.is_main and not path.exists():
                self.checkpoints.mkdir(parents=True, exist_ok=True)
                write_atomic(path, json.dumps(self.settings, indent=1).encode())
        except OSError as error:
            raise CheckpointError(f"{self.folder}: cannot make the run folder: {error}") from error
        self.processes.wait()

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Open the folder and hold it, so that no other run writes there.

        Raises BusyError, naming the other run's host and process, while there is one, and what `open` raises.
        """
        with ExitStack() as stack:
            busy = ""
            if self.processes.is_main:
                try:
                    stack.enter_context(occupied_folder(self.folder, wait=False))
                except BusyError as error:
                    busy = f"{error}, or give another output="
            if busy := self.processes.gather(busy)[0]:
                raise BusyError(busy)
            self.open()
            yield

    def resume(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        scaler: Any = None,
        average: WeightAverage | None = None,
    ) -> Progress:
        """Load the newest whole checkpoint, if there is one, and cut the log back to it."""
        newest = newest_checkpoint(self.checkpoints, "step")
        if newest is None:
            progress = Progress()
        else:
            state = load_state(newest)
            try:
                progress = Progress.of(state.get("progress"))
                model.load_state_dict(load_part(newest, "model"))
                load_optimizer_tensors(optimizer, trained_names(model), load_part(newest, "optimizer"))
                if scaler is not None and state.get("scaler"):
                    scaler.load_state_dict(state["scaler"])
                if average is not None:
                    average.load(load_part(newest, "average"))
            except (ValueError, RuntimeError, KeyError, TypeError) as error:
                raise damaged_checkpoint(newest / "state.json", str(error)) from error
        self.processes.wait()
        if self.processes.is_main:
            drop_after(self.checkpoints, "best", progress.step)
            self._cut_log(progress.step)
        self.processes.wait()
        return progress

    def save(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        progress: Progress,
        scaler: Any = None,
        average: WeightAverage | None = None,
    ) -> None:
        """Write a checkpoint and keep the last two."""
        if self.processes.is_main:
            self.flush()
            tensors = {"model": model.state_dict(), "optimizer": optimizer_tensors(optimizer, trained_names(model))}
            tensors |= {} if average is None else {"average": average.tensors}
            state = {"progress": vars(progress), "scaler": scaler.state_dict() if scaler is not None else None}
            save_checkpoint(self.checkpoints, checkpoint_name("step", progress.step), tensors, state)
            keep_newest(self.checkpoints, "step", count=2)
            keep_newest(self.checkpoints, "best", count=1)  # only now: a resumed run may still need the one before

    def save_best(self, model: nn.Module, progress: Progress, metrics: Mapping[str, Any]) -> None:
        """Write the weights that validation prefers so far."""
        if self.processes.is_main:
            name = checkpoint_name("best", progress.step)
            save_checkpoint(
                self.checkpoints,
                name,
                {"model": model.state_dict()},
                {"step": progress.step, "metrics": dict(metrics)},
            )
        self.processes.wait()

    def best_weights(self) -> dict[str, Tensor]:
        """Return the weights that validation chose. Raises CheckpointError if they are gone or damaged."""
        best = newest_checkpoint(self.checkpoints, "best")
        if best is None:
            raise CheckpointError(f"{self.checkpoints} holds no best-* checkpoint; delete the run and train again")
        return load_part(best, "model")

    def log(self, values: Mapping[str, Any]) -> None:
        """Add a line to `log.jsonl`; it reaches the disk at the next `flush`."""
        if self.processes.is_main:
            self._lines.append(json.dumps(values))

    def flush(self) -> None:
        """Write the lines logged so far."""
        if self.processes.is_main and self._lines:
            with open(self.folder / "log.jsonl", "a", encoding="utf-8") as file:
                file.write("\n".join(self._lines) + "\n")
            self._lines.clear()

    def _cut_log(self, step: int) -> None:
        """Forget what was logged after the checkpoint, so that a resumed log equals an uninterrupted one."""
        path = self.folder / "log.jsonl"
        if not path.exists():
            return
        try:
            check_regular(path)
            text = path.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error}; delete it and run again") from error
        kept = []
        for line in text.splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
            except (ValueError, LookupError, TypeError, RecursionError):  # cut short by the end of the process
                continue
        write_atomic(path, "".join(kept).encode())


def trained_names(model: nn.Module) -> dict[nn.Parameter, str]:
    """Return the name of every parameter that is trained."""
    return {parameter: name for name, parameter in model.named_parameters() if parameter.requires_grad}


class StopRequest:
    """Whether someone asked the run to stop (Ctrl-C, or a scheduler's SIGTERM)."""

    def __init__(self) -> None:
        self.requested = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handle the signal: note it; a second one stops at once."""
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True


@contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
    """Turn SIGINT and SIGTERM into a request that the loop answers after the step in progress."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
