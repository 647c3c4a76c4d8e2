"""Items made by a thread in advance, and work that one finishes behind."""

import threading

import pytest

from teachclip.background import done_behind, made_ahead


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "made ahead"]


def test_items_come_in_order_and_no_more_are_made_than_asked_for():
    made, reached = [], threading.Event()

    def items():
        for number in range(6):
            made.append((number, threading.current_thread().name))
            if number == 3:
                reached.set()
            yield number

    found = made_ahead(items(), 3)
    assert next(found) == 0
    assert reached.wait(10)  # one is in use, three are made ahead of it
    assert [number for number, _ in made] == [0, 1, 2, 3]
    assert {name for _, name in made} == {"made ahead"}
    assert list(found) == [1, 2, 3, 4, 5] and not threads()


def test_an_error_is_raised_where_its_item_would_be():
    def items():
        yield 1
        raise ValueError("the second item")

    found = made_ahead(items(), 2)
    assert next(found) == 1
    with pytest.raises(ValueError, match="the second item"):
        next(found)
    assert not threads()


def test_a_generator_that_is_closed_ends_its_thread():
    found = made_ahead(iter(range(100)), 2)
    assert next(found) == 0
    found.close()
    assert not threads()


def test_work_is_done_behind_in_order_and_waited_for_at_the_end():
    done, go_on = [], threading.Event()

    def work(number):
        assert go_on.wait(10)
        done.append(number)

    with done_behind() as behind:
        behind(work, 0)
        assert done == []  # the caller went on
        go_on.set()
        for number in range(1, 5):
            behind(work, number)
            assert done[:number] == list(range(number)), "two calls were on their way"
    assert done == [0, 1, 2, 3, 4]


def test_an_error_behind_is_raised_by_the_next_call_or_at_the_end():
    def fail():
        raise ValueError("the disk is full")

    with pytest.raises(ValueError, match="disk is full"), done_behind() as behind:
        behind(fail)
        behind(fail)
        pytest.fail("the second call did not say so")
    with pytest.raises(ValueError, match="disk is full"), done_behind() as behind:
        behind(fail)


def test_the_thread_closes_the_generator_that_it_reads():
    closed = []

    def items():
        try:
            yield from range(100)
        finally:
            closed.append(threading.current_thread().name)

    found = made_ahead(items(), 2)
    assert next(found) == 0
    found.close()
    assert closed == ["made ahead"] and not threads()
