"""Which cases of a test the long run leaves out, and the shares of the rest."""

import argparse
from collections import Counter
from pathlib import Path
from types import FunctionType, ModuleType, SimpleNamespace
from typing import Any

import pytest

from long_run import is_of_share, share_of
from schedules import SCHEDULES, claim_and_case, find_repetitions, marks_of, schedule_of


class Item:
    """What is asked of a test: it takes a device under a schedule, and stands in a file."""

    def __init__(self, claim: str, schedule: str, file: str, case: int, of_contract: bool) -> None:
        self.function: Any = FunctionType((lambda: None).__code__, {}, claim)
        self.function.__qualname__ = claim
        self.function.__module__ = "contract" if of_contract else file
        self.module, self.path = ModuleType(file), Path(f"tests/{file}.py")
        self.cls = f"Test{case}" if of_contract else None
        numbers = {"cuda_device": 0, **({} if of_contract else {"case": case})}
        self.callspec = SimpleNamespace(params={"cuda_device": schedule}, indices=numbers)
        self.fixturenames = ["cuda_device"]
        self.schedule = schedule
        self.marks = list(marks_of(schedule))

    def iter_markers(self, name: str) -> Any:
        return iter(self.marks)


def kept(n_claims: int, n_cases: int, file: str, *, of_contract: bool, n_marks: int = 0) -> Any:
    items: list[Any] = [
        Item(f"test_{claim}", schedule, file, case, of_contract)
        for claim in range(n_claims)
        for case in range(n_cases)
        for schedule, _ in SCHEDULES
    ]
    for item in items:
        item.marks += [pytest.mark.long.mark] * n_marks
    assert {schedule_of(item) for item in items} == {"lazy", "eager", "random"}
    repetitions = find_repetitions(items)
    return [item for item in items if item not in repetitions]


@pytest.mark.parametrize(
    ("file", "n_cases", "n_lazy"),
    [
        *[("test_cuda_memory", n_cases, n_cases) for n_cases in (1, 2, 4)],
        ("test_device_cage", 2, 2),
        ("test_device_cage", 4, 2),
    ],
)
def test_each_claim_of_a_contract_meets_each_schedule_and_each_case_is_tried(
    file: str, n_cases: int, n_lazy: int
) -> None:
    items = kept(30, n_cases, file, of_contract=True)
    tried = Counter((item.function.__qualname__, item.schedule) for item in items)
    assert len({(item.function.__qualname__, item.cls) for item in items}) == 30 * n_cases
    for claim in range(30):
        assert tried[f"test_{claim}", "lazy"] == n_lazy
        assert tried[f"test_{claim}", "eager"] == tried[f"test_{claim}", "random"] == 1
    # No case is left to one schedule.
    assert len({(item.cls, item.schedule) for item in items}) == 3 * n_cases


@pytest.mark.parametrize("n_cases", [1, 2, 5])
def test_what_the_short_run_has_is_eager_as_on_a_real_device(n_cases: int) -> None:
    items = kept(9, n_cases, "test_streams", of_contract=False)
    tried = Counter((item.function.__qualname__, item.schedule) for item in items)
    assert {schedule for _, schedule in tried} == {"lazy", "random"}
    assert {tried[f"test_{claim}", "lazy"] for claim in range(9)} == {n_cases}
    # Which cases come first, a claim's name decides.
    assert {tried[f"test_{claim}", "random"] for claim in range(9)} <= {
        *(n_cases // 2, (n_cases + 1) // 2)
    }


def test_each_long_case_is_tried_under_one_more_schedule() -> None:
    items = kept(9, 5, "test_streams", of_contract=False, n_marks=1)
    tried = Counter(claim_and_case(item) for item in items)
    assert {*tried.values()} == {2}
    alone = kept(9, 1, "test_streams", of_contract=False, n_marks=1)
    assert {*Counter(claim_and_case(item) for item in alone).values()} == {3}


def test_a_share_is_two_numbers_and_each_test_is_of_one() -> None:
    assert [share_of(text) for text in ("0/1", "1/2", "10/11")] == [(0, 1), (1, 2), (10, 11)]
    for text in ("", "1", "1/", "/2", "2/2", "-1/2", "0/0", "1/2/3", "a/2", " 0/2", "0.5/2"):
        with pytest.raises(argparse.ArgumentTypeError, match="expected K/N, as 0/2 or 1/2"):
            share_of(text)
    for name in ("tests/one.py::test", "tests/two.py::test[case]"):
        assert sorted(is_of_share(name, (number, 3)) for number in range(3)) == [False, False, True]
