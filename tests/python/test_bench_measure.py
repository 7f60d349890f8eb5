"""The method of benchmarks: intervals, verdicts, turns, and what is called wrong."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch

from opaq import output_file
from opaq.bench import measure, result


@pytest.mark.parametrize("rounds", [6, 9, 15, 40])
def test_an_interval_holds_the_true_median_in_95_of_100_cases(rounds: int) -> None:
    chance = random.Random(1)
    held = 0
    for _ in range(2000):
        found = measure.interval([chance.expovariate(1) for _ in range(rounds)])
        held += found.low <= 0.693147 <= found.high
    assert held >= 0.94 * 2000


def test_an_interval_of_few_rounds_is_all_that_was_seen() -> None:
    assert measure.interval([3.0, 1.0, 2.0]) == measure.Interval(2.0, 1.0, 3.0, 3)
    assert measure.interval([7.0]) == measure.Interval(7.0, 7.0, 7.0, 1)


def test_contestants_take_turns_in_alternating_order() -> None:
    seen: list[str] = []

    def contestant(name: str) -> float:
        seen.append(name)
        return float(len(seen))

    found = measure.in_turns({name: lambda name=name: contestant(name) for name in "abc"}, 2)
    assert seen == ["a", "b", "c", "c", "b", "a"]
    assert found == {"a": [1.0, 6.0], "b": [2.0, 5.0], "c": [3.0, 4.0]}


def test_verdicts_follow_the_interval_of_the_ratio_in_the_same_round() -> None:
    chance = random.Random(2)
    base = [chance.uniform(1, 3) for _ in range(20)]  # the machine's speed changes by three times
    noise = [chance.uniform(0.99, 1.01) for _ in range(20)]
    rounds = {
        "first": base,
        "slow": [1.1 * each for each in base],
        "fast": [each / 1.1 for each in base],
        "same": [each * other for each, other in zip(base, noise)],
    }
    for better, expected in {
        "less": ["baseline", "slower", "faster", "equal"],
        "more": ["baseline", "faster", "slower", "equal"],
    }.items():
        records = result.of_rounds("c", "m", "us", rounds, to="first", better=better)
        assert [record.verdict for record in records] == expected
    assert records[1].ratio == pytest.approx(1.1)


def test_a_floor_is_the_median_of_the_contestant_that_is_the_floor() -> None:
    records = result.of_rounds(
        "c", "m", "us", {"raw": [1.0, 2.0, 3.0], "op": [4.0, 4.0, 4.0]}, to="raw", floor="raw"
    )
    assert [record.floor for record in records] == [None, 2.0]


def mistake(got: torch.Tensor, expected: torch.Tensor, exact: torch.Tensor | None = None) -> str:
    with_exact = None if exact is None else [exact]
    return measure.mistake([got], measure.Expected([expected], with_exact))


def test_right_results() -> None:
    x = torch.randn(100)
    assert mistake(x, x) == ""
    assert mistake(x * (1 + 1e-6), x) == ""
    assert mistake(torch.tensor([1.0, torch.inf]), torch.tensor([1.0, torch.inf])) == ""
    assert mistake(torch.empty(0), torch.empty(0)) == ""
    eight = x.to(torch.float8_e4m3fn)
    assert mistake(eight, eight) == "" and mistake(eight, eight, eight) == ""
    special = torch.tensor([complex(torch.nan, 1), complex(torch.inf, 0), 1j])
    assert mistake(special, special.clone()) == ""
    rough = x.bfloat16()
    # far from the first contestant's result, which is itself as far from the exact one
    assert mistake((x.double() * 1.08).bfloat16(), (x.double() * 0.92).bfloat16(), x.double()) == ""
    assert mistake(rough, rough) == ""


def test_a_value_of_float8_in_the_middle_of_two_may_be_either() -> None:
    x = torch.randn(8, 8192, generator=torch.Generator().manual_seed(0))
    eight = x.to(torch.float8_e4m3fn)

    def rounded_the_other_way(places: torch.Tensor) -> torch.Tensor:
        bits = eight.view(torch.uint8).clone().flatten()
        bits[places] += 1
        return bits.view(torch.float8_e4m3fn).view_as(eight)

    largest = x.abs().flatten().topk(2)[1]
    assert mistake(rounded_the_other_way(largest), eight, eight) == ""
    wrong = mistake(rounded_the_other_way(torch.arange(0, x.numel(), 100)), eight, eight)
    assert "to the result in float8_e4m3fn; allowed are 0.00" in wrong


@pytest.mark.parametrize(
    ("got", "expected", "message"),
    [
        (torch.ones(3) * 1.01, torch.ones(3), "result 0: relative error 0.01 to those"),
        (torch.ones(3), torch.ones(4), "result 0: float32[3]; expected float32[4]"),
        (torch.ones(3).half(), torch.ones(3), "result 0: float16[3]; expected float32[3]"),
        (torch.tensor([1, 2]), torch.tensor([1, 3]), "result 0: 1 of 2 values differ"),
        (torch.tensor([torch.nan, 1.0]), torch.ones(2), "result 0: nan or infinity where there"),
        (torch.tensor([-torch.inf]), torch.tensor([torch.inf]), "result 0: nan or infinity"),
        (torch.tensor([torch.nan]), torch.tensor([torch.inf]), "result 0: nan or infinity"),
        (torch.ones(2), torch.tensor([torch.nan, 1.0]), "result 0: nan or infinity where there"),
    ],
)
def test_wrong_results(got: torch.Tensor, expected: torch.Tensor, message: str) -> None:
    assert mistake(got, expected).startswith(message)


def test_a_row_that_was_not_written_is_wrong() -> None:
    exact = torch.randn(512, 8, dtype=torch.float64)
    got = exact.bfloat16()
    got[7] = 0
    assert "relative error" in mistake(got, exact.bfloat16(), exact)


def test_an_error_beyond_that_of_the_first_contestant_is_wrong() -> None:
    exact = torch.randn(100, dtype=torch.float64)
    message = mistake((exact * 1.2).bfloat16(), exact.bfloat16(), exact)
    assert message.startswith("result 0: relative error 0.2 to the result in float64; allowed are")


def test_a_number_of_results_that_differs() -> None:
    x = torch.ones(1)
    assert measure.mistake([x], measure.Expected([x, x])) == "1 results; expected 2"


def test_a_result_is_written_as_a_whole_and_read_again(tmp_path: Path) -> None:
    records = result.of_rounds("c", "m", "us", {"a": [1.0, 2.0]}, to="a")
    records.append(result.without_value("c", "b", "m", "us", "absent", "not\ninstalled"))
    made = result.make("model", "A title", "What.\n\nMore.", "opaq bench model", {}, records)
    path = tmp_path / "new" / "model.json"
    output_file.check(str(path))
    output_file.write(result.as_json(made), str(path))
    found = json.loads(path.read_text())
    assert found == json.loads(json.dumps(made))
    assert found["what"] == "What." and found["records"][1]["note"] == "not installed"
    assert [each.name for each in path.parent.iterdir()] == ["model.json"]
