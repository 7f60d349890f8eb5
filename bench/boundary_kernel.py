"""The kernel of `opaq bench boundary`, for a number of tensors: its text in CUDA C++ and in C++,
its meaning, and its lower bound, a C++ loop that does nothing but launch it.
"""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Sequence

import torch

ENTRY = "addmul"
HERE = os.path.dirname(os.path.abspath(__file__))
SHAPES = {"cpu": (16,), "cuda": (16, 256)}
# (loops in a measurement, launches in a loop): few enough for the driver's queue
LOOPS = {"cpu": (20, 4000), "cuda": (20, 400)}


class Absent(Exception):
    """What a contestant needs is not here: one line."""


def compiler() -> str:
    """The C++ compiler."""
    wanted = os.environ.get("CXX", "g++")
    if shutil.which(wanted) is None:
        raise Absent(f"needs a C++ compiler: there is no {wanted}")
    return wanted


def library(sources: Sequence[str], options: Sequence[str] = ()) -> str:
    """The path of a shared library of C++ files of this folder and of texts, which are those with
    a line break. The caller removes its folder once it is loaded."""
    command = [compiler(), "-std=c++17", "-O3", "-shared", "-fPIC"]
    folder, paths = tempfile.mkdtemp(prefix="opaq_bench_"), []
    for number, source in enumerate(sources):
        paths.append(f"{folder}/{number}.cpp" if "\n" in source else os.path.join(HERE, source))
        if "\n" in source:
            with open(paths[-1], "w", encoding="utf-8") as stream:
                stream.write(source)
    path = f"{folder}/library.so"
    command += ["-o", path, *paths, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        shutil.rmtree(folder)
        errors = [line for line in done.stderr.splitlines() if "error" in line]
        raise RuntimeError(f"{command[0]}: {(errors or [f'exit status {done.returncode}'])[0]}")
    return path


class Kernel:
    """t0 * t1 + t0 + t2 + t3 + ... of float32 tensors, of one tensor t0 * t0 + t0."""

    def __init__(self, tensors: int, device: str) -> None:
        self.tensors, self.device = tensors, device
        self.names = [f"t{i}" for i in range(tensors)]
        self.schema = f"({', '.join(f'Tensor {name}' for name in self.names)}) -> Tensor"
        pointers = ", ".join(f"const float* {name}" for name in self.names)
        second = self.names[min(1, tensors - 1)]
        self.expression = " + ".join([f"t0 * {second} + t0", *self.names[2:]])
        value = " + ".join([f"t0[i] * {second}[i] + t0[i]", *(f"{t}[i]" for t in self.names[2:])])
        self.cpu_source = f"""extern "C" void {ENTRY}({pointers}, float* out, long n) {{
  for (long i = 0; i < n; ++i) out[i] = {value};
}}
"""
        self.cuda_source = f"""extern "C" __global__ void {ENTRY}({pointers}, float* out, int n) {{
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) out[i] = {value};
}}
"""

    def reference(self, *tensors: torch.Tensor) -> torch.Tensor:
        first, rest = tensors[0], tensors[2:]
        out = first * tensors[min(1, self.tensors - 1)] + first
        for tensor in rest:
            out = out + tensor
        return out

    def operands(self) -> list[torch.Tensor]:
        """Small values: those of a chain stay finite."""
        shape = SHAPES[self.device]
        return [torch.rand(shape, device=self.device) * 0.01 for _ in self.names]

    @functools.cached_property
    def cuda_kernel(self) -> Callable[..., None]:
        """As torch.cuda makes one of a text."""
        return torch.cuda._compile_kernel(self.cuda_source, ENTRY)

    @functools.cached_property
    def _library(self) -> ctypes.CDLL:
        """The loop, and on the CPU the kernel."""
        sources = ["boundary_floor.cpp", *([self.cpu_source] if self.device == "cpu" else [])]
        path = library(sources, [f"-DTENSORS={self.tensors}"])
        try:
            loaded = ctypes.CDLL(path)
        finally:
            shutil.rmtree(os.path.dirname(path))
        loaded.raw_loop.argtypes = [ctypes.c_void_p] * 5 + [ctypes.c_int64] * 2
        loaded.raw_loop.restype = ctypes.c_double
        return loaded

    @functools.cached_property
    def cpu_function(self) -> Callable[..., None]:
        """Of addresses and the number of values."""
        function = self._library[ENTRY]
        function.argtypes = [ctypes.c_void_p] * (self.tensors + 1) + [ctypes.c_long]
        function.restype = None
        return function

    @functools.cached_property
    def addresses(self) -> tuple[int, int]:
        """Of the kernel, and of the driver's cuLaunchKernel or 0."""
        if self.device == "cpu":
            return ctypes.cast(self.cpu_function, ctypes.c_void_p).value or 0, 0
        launch = ctypes.CDLL("libcuda.so.1").cuLaunchKernel
        return self.cuda_kernel.func.value, ctypes.cast(launch, ctypes.c_void_p).value or 0

    def floor_us(self, synchronize: Callable[[], None]) -> Callable[[], float]:
        """Measures microseconds of a launch in a loop that does nothing else: the median over
        loops that each start on an idle device."""
        operands = self.operands()
        out = torch.empty_like(operands[0])
        pointers = (ctypes.c_void_p * self.tensors)(*(each.data_ptr() for each in operands))
        stream = torch.cuda.current_stream().cuda_stream if self.device == "cuda" else 0
        function, launch = self.addresses
        loops, launches = LOOPS[self.device]

        def measure() -> float:
            times = []
            for _ in range(loops):
                synchronize()
                times.append(
                    self._library.raw_loop(
                        function, launch, stream, pointers, out.data_ptr(), out.numel(), launches
                    )
                )
            if min(times) < 0:
                raise RuntimeError("cuLaunchKernel failed")
            return statistics.median(times)

        measure()
        torch.testing.assert_close(out, self.reference(*operands))
        return measure
