import os
import signal
import time

import pytest

from teachclip.data import workers
from teachclip.data.workers import Failure, guarded_map
from teachclip.errors import DataError, VideoError


def double(number):
    return 2 * number


def misbehave(kind):
    if kind == "hang":
        time.sleep(1000)
    if kind == "exit":
        os._exit(7)
    if kind == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if kind == "video":
        raise VideoError("a.mp4: cannot be decoded")
    if kind == "bug":
        raise KeyError("name")
    return kind


def process_id(_):
    return os.getpid()


def cannot_start():
    raise RuntimeError("no")


def test_results_come_in_order_and_every_item_once():
    assert list(guarded_map(double, ((n,) for n in range(50)), workers=2, time_limit=30)) == [
        2 * n for n in range(50)
    ]


def test_a_hang_or_a_crash_costs_one_item():
    kinds = ["a", "hang", "b", "exit", "c", "crash", "d", "video", "bug", "e"]
    found = list(guarded_map(misbehave, ((kind,) for kind in kinds), workers=2, time_limit=3))
    reasons = {
        kind: outcome.reason for kind, outcome in zip(kinds, found, strict=True) if isinstance(outcome, Failure)
    }
    assert [outcome for outcome in found if not isinstance(outcome, Failure)] == list("abcde")
    assert reasons == {
        "hang": "took longer than 3 seconds",
        "exit": "its process died (exit status 7)",
        "crash": "its process died (SIGSEGV)",
        "video": "a.mp4: cannot be decoded",
        "bug": "KeyError: 'name'",
    }


def test_workers_are_replaced_after_some_items(monkeypatch):
    monkeypatch.setattr(workers, "TASKS_PER_WORKER", 5)
    found = list(guarded_map(process_id, ((n,) for n in range(20)), workers=1, time_limit=30))
    assert len(set(found)) == 4 and os.getpid() not in found


def test_few_items_are_given_out_ahead():
    given = []

    def items():
        for number in range(100):
            given.append(number)
            yield (number,)

    outcomes = guarded_map(double, items(), workers=2, time_limit=30)
    assert next(outcomes) == 0
    assert len(given) == 2 * workers.AHEAD
    outcomes.close()


def test_workers_that_cannot_start_raise_and_do_not_hang(monkeypatch):
    monkeypatch.setattr(workers, "_prepare_worker", cannot_start)
    with pytest.raises(DataError, match="worker processes cannot start"):
        list(guarded_map(double, [(1,)], workers=1, time_limit=30))
