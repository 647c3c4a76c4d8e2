"""A program with a library whose lock is held wherever it is forked; it loads batches by processes of their own."""

from __future__ import annotations

import os
import time

import torch
from tiny import tiny_batches


def never_ends() -> None:
    while True:
        time.sleep(1)


if __name__ == "__main__":
    os.register_at_fork(after_in_child=never_ends)
    batches = tiny_batches()
    for one, other in zip(batches.loader(0, 3, workers=0), batches.loader(0, 3, workers=1), strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)
    print("all equal")
