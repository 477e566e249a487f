"""Work in threads: in order, no more than bounded ahead of its reader."""

import threading
import time

import pytest

from datasets.parallel import ahead


def test_results_come_in_order_from_several_threads() -> None:
    names = set()

    def work(number: int) -> int:
        names.add(threading.current_thread().name)
        time.sleep(0.02 * (number % 3))
        return number**2

    assert list(ahead(work, range(12), workers=3)) == [number**2 for number in range(12)]
    assert len(names) == 3


def test_no_more_than_one_result_a_worker_waits_for_its_reader() -> None:
    begun = []
    results = ahead(begun.append, range(100), workers=2)
    for taken in range(1, 20):
        next(results)
        time.sleep(0.01)
        assert len(begun) <= taken + 2


def test_an_error_comes_in_its_turn_and_ends_the_work() -> None:
    begun = []

    def work(number: int) -> int:
        begun.append(number)
        return 1 // (3 - number)

    results = ahead(work, range(1000), workers=2)
    assert [next(results) for _ in range(3)] == [0, 0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert len(begun) < 10
