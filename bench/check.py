"""What the contract check costs: nothing while it is off, and how many times a call while it is on.

    python bench/check.py               (on the CPU)

Each op runs eagerly, as the launch object of a generated wrapper, and in a compiled graph; the figures are medians, off and on in turn.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import opaq
import opaq.extern_kernels as kernels
import torch
from common import host_us, save
from opaq import _runtime

TWICE = "void twice(float* y, const float* x, long n) { for (long i = 0; i < n; ++i) y[i] = 2 * x[i]; }"


def nothing() -> None:
    pass


def cost(off: Callable[[], Any], on: Callable[[], Any], per: int) -> dict[str, float]:
    def many(call: Callable[[], Any]) -> Callable[[], None]:
        def calls() -> None:
            for _ in range(per):
                call()

        return calls

    rounds = [
        (host_us(many(off), per=per, synchronize=nothing, repeats=20), host_us(many(on), per=per, synchronize=nothing, repeats=20)) for _ in range(5)
    ]
    best = [min(times) for times in zip(*rounds)]
    return {"off_us": round(best[0], 3), "on_us": round(best[1], 3), "ratio": round(best[1] / best[0], 2)}


def main() -> None:
    twice = opaq.op("bench_check::twice(Tensor x) -> (Tensor y)", outputs=opaq.like("x"))
    twice.cpu(source=TWICE, entry="twice", args="y, x, x.numel()")
    measured: dict[str, Any] = {}
    hash = twice.info["hash"]
    for count in (1, 4096, 1 << 20):
        x, y = torch.randn(count), torch.empty(count)
        plain, checked = (_runtime.launcher(twice.name, hash, "cpu", "op0", "bench", False, "", check) for check in (False, True))
        measured[f"launch object, {count} floats doubled"] = cost(
            functools.partial(plain, x, y), functools.partial(checked, x, y), 1 if count > 4096 else 100
        )

    weight = torch.randn(1024)
    works = {
        "rms_norm of 512 x 1024": (lambda x: kernels.rms_norm(x, weight), torch.randn(512, 1024)),
        "sin, rms_norm, cos of 512 x 1024": (lambda x: kernels.rms_norm(x.sin(), weight)[0].cos(), torch.randn(512, 1024)),
    }
    for name, (function, x) in works.items():
        off, on = (torch.compile(function, backend="opaq", options={"check": check}) for check in ("", "contract"))
        off(x)
        on(x)
        measured[f"compiled, {name}"] = cost(functools.partial(off, x), functools.partial(on, x), 1)
    save("check", measured, what="the contract check of launches, off and on")


if __name__ == "__main__":
    main()
