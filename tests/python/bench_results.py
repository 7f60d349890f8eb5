"""Results of `opaq bench` as tests need them: invented figures in the one format."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def record(case: str, contestant: str, value: float | None, **others: Any) -> dict[str, Any]:
    """A record with an interval of 2 % to each side."""
    low, high = (None, None) if value is None else (value * 0.98, value * 1.02)
    return {
        "case": case,
        "contestant": contestant,
        "metric": "added op",
        "unit": "us",
        "better": "less",
        "value": value,
        "low": low,
        "high": high,
        "ratio": None,
        "ratio_low": None,
        "ratio_high": None,
        "to": "",
        "verdict": "",
        "floor": None,
        "note": "",
        **others,
    }


def compared(case: str, contestant: str, value: float, to: float, **others: Any) -> dict[str, Any]:
    """A record with a ratio to the raw loop, which takes `to`."""
    ratio = value / to
    low, high = ratio * 0.98, ratio * 1.02
    verdict = "faster" if high < 1 else "slower" if low > 1 else "equal"
    found = record(case, contestant, value, to="raw loop", ratio=ratio, verdict=verdict)
    return {**found, "ratio_low": low, "ratio_high": high, **others}


def result(records: Sequence[dict[str, Any]], **others: Any) -> dict[str, Any]:
    return {
        "format": 1,
        "benchmark": "boundary",
        "title": "Host time of one op",
        "what": "Host time of one op in a chain of 50.",
        "command": "opaq bench boundary --device cuda",
        "date": "2026-11-27",
        "machine": {
            "device": "NVIDIA H200",
            "driver": "580.159.04",
            "torch": "2.15.0+cu132",
            "cuda": "13.2",
            "environment": {"OMP_NUM_THREADS": "1"},
        },
        "method": {"rounds": 15},
        "records": list(records),
        **others,
    }


def small(case: str = "chain of 50", floor: float = 2.9) -> list[dict[str, Any]]:
    """A case with contestants of every kind."""
    base = compared(case, "raw loop", 3.0, 3.0, verdict="first", ratio=1.0)
    return [
        {**base, "ratio_low": None, "ratio_high": None, "floor": floor},
        compared(case, "opaq", 3.5, 3.0, floor=floor),
        compared(case, "triton_op", 2.5, 3.0, floor=floor),
        record(case, "CuPy", None, verdict="absent", note="not installed: CuPy"),
        record(case, "numba", None, verdict="wrong", note="error 0.3; at most 1e-5"),
        record(case, "custom_op", None, verdict="failed", note="RuntimeError: no kernel image"),
    ]


def many(count: int) -> dict[str, Any]:
    """A result of so many cases, with figures that differ by a factor of a thousand."""
    records = []
    for i in range(count):
        case, base = f"{2 ** (i % 12)} x {64 * i + 64} x 4096, bfloat16", 1.5 ** (i % 18)
        records += [
            compared(case, "raw loop", base, base, verdict="first", ratio=1.0),
            compared(case, "opaq", base * (0.9 + 0.001 * i), base),
            compared(case, "opaq, tuned", base * (0.8 + 0.001 * i), base),
        ]
    return result(records)
