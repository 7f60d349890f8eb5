"""A model with opaque ops as one file, which runs in Python and, with LibTorch alone, in a C++
program.

    python package.py           makes a package and runs it in Python
    python package.py --host    builds the C++ program of tests/host_example (needs CMake) and runs
                                the package in it too
"""

import pathlib
import subprocess
import sys
import tempfile

import torch

import opaq

square = opaq.op("examples::square(Tensor x) -> Tensor", outputs=opaq.like("x"))
square.cuda(
    source="""
    __global__ void square(const float* x, float* out, long n) {
      const long i = blockIdx.x * (long)blockDim.x + threadIdx.x;
      if (i < n) out[i] = x[i] * x[i];
    }
    """,
    entry="square",
    grid="ceil_div(x.numel(), 256)",
    block=256,
    args="x, out, x.numel()",
)
square.cpu(
    source="void square(const float* x, float* y, long n) { for (; n; --n, ++x) *y++ = *x * *x; }",
    entry="square",
    args="x, out, x.numel()",
)


class Model(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return square(x)


def main(folder: pathlib.Path) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    x = torch.randn(4, 16, device=device)
    rows = torch.export.Dim.DYNAMIC  # the package takes any number of rows
    exported = torch.export.export(Model(), (x,), dynamic_shapes=({0: rows},))
    path = opaq.package(exported, folder / "model.pt2")  # archs=["sm_80", ...] for other GPUs

    loaded = torch._inductor.aoti_load_package(path)
    for count in (1, 4, 9):
        x = torch.randn(count, 16, device=device)
        torch.testing.assert_close(loaded(x), x * x)
    print("the package agrees with PyTorch")
    if "--host" in sys.argv:
        run_in_cpp(path, x, folder)


def run_in_cpp(path: str, x: torch.Tensor, folder: pathlib.Path) -> None:
    """Builds the C++ host and runs the package in it; it compares with the result given here."""
    source = pathlib.Path(__file__).parent.parent / "host_example"
    prefix = f"-DCMAKE_PREFIX_PATH={torch.utils.cmake_prefix_path}"
    for command in (["cmake", "-S", source, "-B", folder, prefix], ["cmake", "--build", folder]):
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    torch.save({"count": 1, "x0": x, "y0": x * x}, folder / "cases.pt")
    subprocess.run([folder / "host_example", path, folder / "cases.pt"], check=True)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(pathlib.Path(temporary))
