"""Train the tiny set-up, in one process or several.

`python train_tiny.py FOLDER STEPS [ONLINE] [SECONDS] [CLIP_WEIGHTS] [CAPTIONS_PER_VIDEO] [CHUNK_SIZE]`
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from tiny import tiny_batches, tiny_clip, tiny_optimizer, tiny_schedule, tiny_student

from teachclip.pipeline.encoders import set_clip_weights
from teachclip.training.distributed import build_accelerator, processes_of
from teachclip.training.loop import fit
from teachclip.training.run import Run
from teachclip.training.task import DistillationTask, DistillationTerms, OnlineTeacher


def main(
    folder: str,
    steps: str,
    online: str = "",
    pause: str = "0",
    clip_weights: str = "float32",
    together: str = "1",
    chunk_size: str = "",
) -> None:
    torch.set_num_threads(1)
    from teachers.xpool import XPool

    accelerator = build_accelerator()
    processes = processes_of(accelerator)
    batches = tiny_batches(processes, stored=not online, captions_per_video=int(together))
    teachers = [OnlineTeacher(XPool.from_clip(tiny_clip(1)).eval())] if online else []
    student = tiny_student()
    set_clip_weights(student, clip_weights)
    task = DistillationTask(student, DistillationTerms(), stored_weights=() if online else (1.0,), online=teachers)
    run = Run(Path(folder), {"settings": "tiny", "online": online}, processes)
    run.open()

    def validate() -> dict:
        time.sleep(float(pause))
        return {"t2v": {"recall_at_1": 1.0}}

    fit(
        task,
        tiny_optimizer(student),
        batches,
        accelerator,
        run,
        tiny_schedule(int(steps), evaluate_every=1, chunk_size=int(chunk_size) if chunk_size else None),
        validate,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
