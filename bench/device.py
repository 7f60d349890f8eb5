"""What a call does on the device: its time under CUDA graph replay, memory, kernels."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch

from . import measure

L2_BYTES = 256 << 20  # more than any device's cache
CALLS = 20  # in a graph

Tensors = list[Any]


def operands(make: Callable[[], Tensors]) -> list[Tensors]:
    """As many sets of operands as are larger together than the L2 cache, so that each call of a
    graph reads from memory."""
    first = make()
    size = sum(t.numel() * t.element_size() for t in first if isinstance(t, torch.Tensor))
    count = max(2, min(CALLS, L2_BYTES // max(size, 1) + 1))
    return [first, *(make() for _ in range(count - 1))]


def replay_us(call: Callable[..., Any], sets: Sequence[Tensors]) -> Callable[[], float]:
    """A function that replays a CUDA graph of CALLS calls, on the sets of operands in turn, and
    returns the microseconds of one. The call runs once with each set before."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for each in sets:
            call(*each)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for i in range(CALLS):
            call(*sets[i % len(sets)])

    def measure() -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1e3 / CALLS

    measure()
    return measure


def call_us(call: Callable[..., Any], sets: Sequence[Tensors], on_gpu: bool) -> Callable[[], float]:
    """A function that returns the microseconds of a call: on a GPU as replay_us, else on the first
    set, from cache."""
    if on_gpu:
        return replay_us(call, sets)
    return functools.partial(
        measure.host_us,
        lambda: call(*sets[0]),
        per=1,
        synchronize=measure.synchronizer("cpu"),
        repeats=5,
        warmups=1,
    )


def peak_mib(call: Callable[[], Any], device: str) -> float | None:
    """The most memory that is in use during a call: on CUDA of PyTorch's allocator, on the CPU of
    the process. None where the system does not tell."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() / 2**20
    try:
        with open("/proc/self/clear_refs", "w", encoding="utf-8") as stream:
            stream.write("5")  # forgets the peak so far
        call()
        with open("/proc/self/status", encoding="utf-8") as stream:
            found = re.search(r"VmHWM:\s*(\d+) kB", stream.read())
    except OSError:
        return None
    return int(found[1]) / 1024 if found else None


PROFILED_CALLS = 5


def kernels_of(call: Callable[[], Any], seconds: float) -> dict[str, float]:
    """Means of some calls: "kernels": how many kernels and copies a call runs; "device_ms": for how
    long the device runs any, which varies less than the time of a call; "host_bound": the
    percentage of `seconds`, a call's time without a profiler, during which it runs none."""
    from torch.profiler import ProfilerActivity, profile

    call()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(PROFILED_CALLS):
            call()
        torch.cuda.synchronize()
    spans = sorted(
        (event.time_range.start, event.time_range.end)
        for event in profiler.events()
        if event.device_type == torch.autograd.DeviceType.CUDA
    )
    busy, until = 0.0, float("-inf")
    for first, last in spans:
        busy += max(0.0, last - max(first, until)) / PROFILED_CALLS
        until = max(until, last)
    return {
        "kernels": round(len(spans) / PROFILED_CALLS),
        "device_ms": busy / 1e3,
        "host_bound": max(0.0, 100 * (1 - busy / (seconds * 1e6))),
    }
