import multiprocessing.connection
import os
import signal
import sys
import time
from types import ModuleType

import pytest

from teachclip.data.video import pool, workers
from teachclip.data.video.workers import Failure, guarded_map
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


def leak(kind, kept=[]):  # noqa: B006  (what a library keeps for ever)
    if kind == "leak":
        for _ in range(100):
            kept.append(bytearray(os.urandom(1)) * 10_000_000)  # 1 GB in all, some at a time as a decoder does
            time.sleep(0.005)
    return misbehave(kind)


def leak_a_little(number, kept=[]):  # noqa: B006
    kept.append(bytearray(b"x") * 60_000_000)
    time.sleep(0.06)
    return number


def process_id(_):
    return os.getpid()


def memory(_):
    return pool.resident_memory()


def fresh_memory():
    """What a worker holds before its first item; the process of the tests may hold much more."""
    return next(iter(guarded_map(memory, [(None,)], workers=1, time_limit=30)))


def cannot_start(_):
    raise RuntimeError("no")


def test_results_come_in_order_and_every_item_once():
    assert list(guarded_map(double, ((n,) for n in range(50)), workers=2, time_limit=30)) == [
        2 * n for n in range(50)
    ]


def test_a_hang_or_a_crash_costs_one_item():
    kinds = ["a", "hang", "b", "exit", "c", "crash", "d", "video", "bug", "e"]
    found = list(guarded_map(misbehave, ((kind,) for kind in kinds), workers=2, time_limit=3))
    reasons = {
        kind: outcome.error for kind, outcome in zip(kinds, found, strict=True) if isinstance(outcome, Failure)
    }
    assert [outcome for outcome in found if not isinstance(outcome, Failure)] == list("abcde")
    assert reasons == {
        "hang": "took longer than 3 seconds",
        "exit": "its process died (exit status 7)",
        "crash": "its process died (SIGSEGV)",
        "video": "a.mp4: cannot be decoded",
        "bug": "KeyError: 'name'",
    }


def die_while_sending(number):
    if number == 1:

        def send_half(self, content, write=os.write):
            write(self._handle, bytes(content[: len(content) // 2]))
            os._exit(1)

        multiprocessing.connection.Connection._send = send_half
        return b"x" * 30_000
    return number


def test_a_process_that_dies_while_it_sends_a_result_costs_that_item(monkeypatch):
    """It leaves half a message and a lock that nobody releases, so all must start anew."""
    monkeypatch.setattr(workers, "STUCK_SECONDS", 8.0)
    found = list(guarded_map(die_while_sending, [(0,), (1,), (2,), (3,)], workers=2, time_limit=0.5))
    assert [found[0], *found[2:]] == [0, 2, 3] and isinstance(found[1], Failure)
    assert found[1].error.startswith("its process died")


def test_a_decoder_that_sleeps_one_that_dies_and_one_that_leaks_cost_their_files_alone():
    kinds = [*"abcd", "hang", *"ef", "crash", *"gh", "leak", *"ijklmnop"]
    limit = fresh_memory() + 600_000_000
    found = list(guarded_map(leak, ((kind,) for kind in kinds), workers=2, time_limit=10, memory_limit=limit))
    failed = {kind: got.error for kind, got in zip(kinds, found, strict=True) if isinstance(got, Failure)}
    assert failed == {
        "hang": "took longer than 10 seconds",
        "crash": "its process died (SIGSEGV)",
        "leak": f"used more than {limit / 1e9:g} GB of memory",
    }
    assert [got for got in found if not isinstance(got, Failure)] == list("abcdefghijklmnop")
    assert all(reason.startswith(workers.TRANSIENT) for reason in failed.values()), "a later run tries again"


def test_a_slow_leak_is_not_blamed_on_the_file_that_meets_the_limit():
    limit = fresh_memory() + 400_000_000
    found = guarded_map(leak_a_little, ((n,) for n in range(20)), workers=1, time_limit=30, memory_limit=limit)
    assert list(found) == list(range(20)), "1.2 GB are leaked in all"


def test_without_a_limit_memory_is_free():
    assert list(guarded_map(leak_a_little, [(1,), (2,)], workers=1, time_limit=30)) == [1, 2]


def test_workers_are_replaced_after_some_items(monkeypatch):
    monkeypatch.setattr(pool, "TASKS_PER_WORKER", 5)
    found = list(guarded_map(process_id, ((n,) for n in range(20)), workers=1, time_limit=30))
    assert len(set(found)) == 4 and os.getpid() not in found


def test_few_items_are_submitted_in_advance():
    submitted = []

    def items():
        for number in range(100):
            submitted.append(number)
            yield (number,)

    outcomes = guarded_map(double, items(), workers=2, time_limit=30)
    assert next(outcomes) == 0
    assert len(submitted) == 2 * workers.QUEUED_PER_WORKER
    outcomes.close()


def test_workers_that_cannot_start_raise_and_do_not_hang(monkeypatch):
    monkeypatch.setattr(pool, "_prepare_worker", cannot_start)
    with pytest.raises(DataError, match="worker processes cannot start"):
        list(guarded_map(double, [(1,)], workers=1, time_limit=30))


def test_workers_do_not_run_the_script_again(tmp_path, monkeypatch):
    """So a script needs no `if __name__ == "__main__"`: run again, it would start workers of its own."""
    script, main = tmp_path / "script.py", ModuleType("__main__")
    script.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    main.__file__, main.__spec__ = str(script), None
    monkeypatch.setitem(sys.modules, "__main__", main)
    assert list(guarded_map(double, [(1,), (2,)], workers=1, time_limit=30)) == [2, 4]
    assert not (tmp_path / "ran").exists() and sys.modules["__main__"] is main
