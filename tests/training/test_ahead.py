"""Items made by a thread in advance."""

import threading

import pytest

from teachclip.training.ahead import made_ahead


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "batches made ahead"]


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
    assert {name for _, name in made} == {"batches made ahead"}
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
