"""The training loop, top to bottom."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm import tqdm

from teachclip.errors import TrainingError
from teachclip.scoring.inputs import to_device
from teachclip.training.batches import TrainingBatches
from teachclip.training.finetuning import FineTuning, is_encoder_group
from teachclip.training.run import Progress, Run, StopRequest, stop_on_signal
from teachclip.training.step import prepare_step
from teachclip.training.step_times import DATA, OPTIMIZER, StepTimes
from teachclip.training.task import Task

Validate = Callable[[], Mapping[str, Any]]


@dataclass(frozen=True)
class Schedule:
    """Lengths, in optimizer steps, the gradient clip, and the pairs that a process encodes at a time (None: all)."""

    steps: int
    rate: Callable[[float], float]
    max_grad_norm: float
    evaluate_every: int
    checkpoint_every: int
    log_every: int = 10
    workers: int = 0
    seed: int = 0
    chunk_size: int | None = None
    select_last: bool = False
    """Keep the weights of the last validation, whatever it says; otherwise those of the best."""
    frozen_steps: int = 0
    """Steps at first in which the encoders do not move (LP-FT; Kumar et al., ICLR 2022, section 3.3)."""
    ema: float | None = None
    """Decay of a `WeightAverage` that is validated and kept in place of the weights; None: there is none."""
    l2_start: float = 0.0
    """Strength of the `StartPull`."""

    def factors(self, step: int) -> tuple[float, float]:
        """Return the factors of the rate before a step: of the encoders, and of everything else.

        The encoders' schedule begins, with a warm-up of its own, where they begin to move.
        """
        begun, all_steps = step - self.frozen_steps, self.steps - self.frozen_steps
        return (self.rate(begun / all_steps) if begun >= 0 else 0.0), self.rate(step / self.steps)


def fit(
    task: Task,
    optimizer: torch.optim.Optimizer,
    batches: TrainingBatches,
    accelerator: Accelerator,
    run: Run,
    schedule: Schedule,
    validate: Validate | None,
) -> Progress:
    """Train `task` until `schedule.steps`; go on from the newest checkpoint of `run`, exactly.

    Raises TrainingError on a non-finite loss, KeyboardInterrupt after saving when it was asked to stop.
    """
    times = StepTimes(accelerator.device)
    step, optimizer = prepare_step(task, optimizer, accelerator, schedule.chunk_size, mark=times.mark)
    tuning = FineTuning(task, optimizer, schedule.frozen_steps, schedule.l2_start, schedule.ema)
    progress = run.resume(task, _plain(optimizer), accelerator.scaler, tuning.average)
    loader = batches.loader(progress.step, schedule.steps, workers=schedule.workers)
    pending: list[_Step] = []
    bar = tqdm(
        total=schedule.steps, initial=progress.step, unit="step", desc="train", disable=not run.processes.is_main
    )
    with stop_on_signal() as stop, bar, contextlib.closing(loader):
        times.start()
        for batch in loader:
            times.mark(DATA)
            # dropout: the same on resume and per process
            torch.manual_seed(schedule.seed * 1_000_003 + progress.step)
            _set_rates(optimizer, *schedule.factors(progress.step))
            batch["progress"] = torch.tensor(progress.step / max(1, schedule.steps - 1))
            batch = to_device(batch, accelerator.device)
            with tuning.step(progress.step, cut=accelerator.num_processes == 1):
                losses = step(batch)
            losses["grad_norm"] = accelerator.clip_grad_norm_(task.parameters(), schedule.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            task.clamp_scale()
            progress.step += 1
            tuning.after_step(progress.step)
            times.mark(OPTIMIZER)
            pending.append(_Step(progress.step, batch["rows"], losses, _rates(optimizer)))
            bar.update()
            last = progress.step == schedule.steps
            logging = _due(progress.step, schedule.log_every, last)
            stopping = (logging or accelerator.num_processes == 1) and _agree(accelerator, stop)
            saving = stopping or _due(progress.step, schedule.checkpoint_every, last)
            if saving or logging:
                _write(pending, times, run, bar, accelerator, batches)
            if validate is not None and _due(progress.step, schedule.evaluate_every, last):
                with tuning.averaged():
                    _select(validate, task, run, progress, accelerator, keep=schedule.select_last)
                saving = True
            if saving:
                run.save(task, _plain(optimizer), progress, accelerator.scaler, tuning.average)
            if stopping and not last:
                raise KeyboardInterrupt(f"stopped and saved after step {progress.step} of {schedule.steps}")
            times.start()
    run.processes.wait()
    return progress


def _due(step: int, every: int, last: bool) -> bool:
    return last or step % every == 0


def _set_rates(optimizer: Any, encoders: float, others: float) -> None:
    """Set the rate of every group: its highest one times the factor of the encoders, or of everything else."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * (encoders if is_encoder_group(group) else others)


def _plain(optimizer: Any) -> torch.optim.Optimizer:
    """Return the optimizer inside Accelerate's wrapper."""
    return optimizer.optimizer  # type: ignore[no-any-return]


def _agree(accelerator: Accelerator, stop: StopRequest) -> bool:
    """Whether any process was asked to stop; all processes get the same answer."""
    if accelerator.num_processes == 1:
        return stop.requested
    flag = torch.tensor([float(stop.requested)], device=accelerator.device)
    return bool(accelerator.reduce(flag, reduction="sum").item() > 0)  # type: ignore[union-attr]


class _Step:
    """A step that is not logged yet: its number, caption rows, losses on the device, and learning rates."""

    def __init__(self, number: int, rows: Tensor, losses: Mapping[str, Tensor], rates: Mapping[str, float]) -> None:
        self.number, self.rows, self.rates = number, rows, rates
        self.losses = {name: value.detach() for name, value in losses.items()}


def _rates(optimizer: Any) -> dict[str, float]:
    """Return the learning rate of each group of parameters, as `lr.NAME`."""
    groups = enumerate(optimizer.param_groups)
    return {f"lr.{group.get('name', number)}".removesuffix("_no_decay"): group["lr"] for number, group in groups}


def _write(
    pending: list[_Step],
    times: StepTimes,
    run: Run,
    bar: tqdm,
    accelerator: Accelerator,
    batches: TrainingBatches,
) -> None:
    """Log the steps since the last call. Here the losses are read, so here it shows whether they are finite."""
    # One copy from the device for all of them, not one, and a wait, for each.
    numbers = torch.stack([value.float() for step in pending for value in step.losses.values()]).tolist()
    read = iter(numbers)
    for step in pending:
        values = {name: next(read) for name in step.losses}
        if accelerator.scaler is not None:  # float16: too large a gradient is normal, the scaler skips that step
            values["skipped"] = float(not _finite(values["grad_norm"]))
            values["grad_norm"] = values["grad_norm"] if _finite(values["grad_norm"]) else -1.0
        if not all(map(_finite, values.values())):
            run.flush()
            raise TrainingError(_save_culprits(run, step.number, step.rows, values, batches))
        run.log({"step": step.number, **values, **step.rates})
        accelerator.log({**values, **step.rates}, step=step.number)
        bar.set_postfix(loss=f"{values['loss']:.4f}", refresh=False)
    if pending:
        _write_costs(times.report(), pending[-1].number, run, accelerator)
    pending.clear()
    run.flush()


def _write_costs(costs: Mapping[str, Any], step: int, run: Run, accelerator: Accelerator) -> None:
    """Log where the time of the last steps went, in a line of its own: it differs from run to run."""
    run.log({"step": step, **costs})
    numbers = {f"seconds.{part}": value for part, value in costs["seconds"].items()}
    accelerator.log(numbers | {f"peak_mb.{name}": value for name, value in costs["peak_mb"].items()}, step=step)


def _finite(value: float) -> bool:
    return abs(value) != float("inf") and value == value


def _save_culprits(run: Run, step: int, rows: Tensor, values: Mapping[str, float], batches: TrainingBatches) -> str:
    """Write down the batch whose loss is not finite and say where."""
    path = run.folder / f"nonfinite-step-{step}.json"
    captions = rows.tolist()
    if run.processes.is_main:
        record = {
            "step": step,
            "losses": {name: str(value) for name, value in values.items()},
            "caption_rows": captions,
            "pairs": [batches.pair_ids(row) for row in captions],
        }
        path.write_text(json.dumps(record, indent=1), encoding="utf-8")
    bad = ", ".join(f"{name} is {value}" for name, value in values.items() if not _finite(value))
    return f"step {step}: {bad}; the batch's videos and captions are in {path}; the last checkpoint is whole"


def _select(
    validate: Validate, model: nn.Module, run: Run, progress: Progress, accelerator: Accelerator, *, keep: bool
) -> None:
    """Validate, and keep the weights if text-to-video recall at 1 is at least the best so far (as published).

    `keep`: keep them in any case.
    """
    model.eval()
    metrics = validate()
    value = float(run.processes.gather(metrics["t2v"]["recall_at_1"])[0])  # one decision, whatever rounding does
    run.log({"step": progress.step, "validation": metrics})
    accelerator.log({"validation_t2v_recall_at_1": value}, step=progress.step)
    if keep or value >= progress.best:
        progress.best, progress.best_step = value, progress.step
        run.save_best(model, progress, metrics)
