"""C++ wrappers and packages on a GPU: direct launches, together with Triton kernels, on the
caller's streams, with more than 2^31 elements, and what is refused.
"""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import zipfile

import pytest
import torch
from torch._inductor.utils import run_and_get_code

import opaq

CPP = {"cpp_wrapper": True}
ADDMUL = """extern "C" __global__
void addmul(const float* a, const float* b, float* out, long long n) {
  long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
  if (i < n) out[i] = a[i] * b[i] + a[i];
}"""


def addmul(name: str) -> opaq.Op:
    op = opaq.op(f"{name}(Tensor a, Tensor b) -> Tensor", outputs=opaq.like("a"))
    return op.cuda(
        source=ADDMUL,
        entry="addmul",
        grid="ceil_div(a.numel(), 256)",
        block=256,
        args="a, b, out, a.numel()",
    )


def pair(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(*shape, device="cuda"), torch.randn(*shape, device="cuda")


class Mixed(torch.nn.Module):
    """Opaque ops before, between and after Triton kernels."""

    def __init__(self, op: opaq.Op) -> None:
        super().__init__()
        self.op = op

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return self.op(self.op(a, b).sin() + 1, b.relu()).cos()


class Alone(Mixed):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return self.op(self.op(a, b), b)


def pack(model: torch.nn.Module, folder: pathlib.Path, **options: object) -> str:
    rows = {0: torch.export.Dim.DYNAMIC}
    with torch.no_grad():
        exported = torch.export.export(model, pair(8, 64), dynamic_shapes=(rows, rows))
    return opaq.package(exported, folder / "model.pt2", **options)


@pytest.mark.parametrize("backend", ["inductor", "opaq"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_launches_beside_triton(unique: str, backend: str, dynamic: bool) -> None:
    model = Mixed(addmul(unique))
    compiled = torch.compile(model, backend=backend, fullgraph=True, dynamic=dynamic, options=CPP)
    with torch.no_grad():
        a, b = pair(16, 256)
        result, code = run_and_get_code(compiled, a, b)
        torch.testing.assert_close(result, model(a, b))
        assert "opaq_current_stream(0)" in code[0] and "aoti_torch_call_dispatcher(" not in code[0]
        if dynamic:
            for rows in (7, 1000):
                a, b = pair(rows, 256)
                torch.testing.assert_close(compiled(a, b), model(a, b))


def test_the_callers_stream_is_taken(unique: str) -> None:
    """The second stream waits for work that the kernel's result depends on; on any other stream the
    kernel would run before it.
    """
    model = Alone(addmul(unique))
    compiled = torch.compile(model, fullgraph=True, options=CPP)
    with torch.no_grad():
        a, b = pair(64, 64)
        compiled(a, b)
        for stream in (torch.cuda.Stream(), torch.cuda.Stream()):
            torch.cuda.synchronize()
            with torch.cuda.stream(stream):
                torch.cuda._sleep(50_000_000)
                changed = a + 1
                result = compiled(changed, b)
            stream.synchronize()
            torch.testing.assert_close(result, model(a + 1, b))


def test_dynamic_shared_memory_past_48_kb(unique: str) -> None:
    op = opaq.op(f"{unique}(Tensor x) -> Tensor", outputs=opaq.like("x"))
    op.cuda(
        source="""extern "C" __global__ void turn(const float* x, float* out, int n) {
          extern __shared__ float held[];
          for (int i = threadIdx.x; i < n; i += blockDim.x) held[i] = x[i];
          __syncthreads();
          for (int i = threadIdx.x; i < n; i += blockDim.x) out[i] = held[n - 1 - i];
        }""",
        entry="turn",
        args="x, out, x.numel()",
        block=256,
        shared="x.numel() * 4",
    )
    compiled = torch.compile(lambda x: op(x), fullgraph=True, dynamic=True, options=CPP)
    for size in (100, 20_000, 16_000):
        x = torch.randn(size, device="cuda")
        torch.testing.assert_close(compiled(x), x.flip(0))
    with pytest.raises(
        RuntimeError,
        match=rf"{unique}: shared `x.numel\(\) \* 4` is 4000000 bytes, but cuda:0 allows a block "
        r"at most",
    ):
        compiled(torch.randn(1_000_000, device="cuda"))


@pytest.mark.parametrize("kind", [Mixed, Alone])
def test_a_package_runs_without_opaq_on_every_size(
    unique: str, kind: type[Mixed], tmp_path: pathlib.Path
) -> None:
    model = kind(addmul(unique))
    path = pack(model, tmp_path)
    cases = []
    for rows in (0, 1, 2, 7, 129, 4096):
        a, b = pair(rows, 64)
        cases.append((a, b, model(a, b)))
    torch.save(cases, tmp_path / "cases.pt")
    program = """if True:
        import sys, torch
        sys.modules["opaq"] = None
        model = torch._inductor.aoti_load_package(sys.argv[1])
        for a, b, y in torch.load(sys.argv[2]):
            torch.testing.assert_close(model(a, b), y)
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            torch.testing.assert_close(model(a, b), y)
        print("equal")
    """
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor"),
        "OPAQ_CACHE_DIR": str(tmp_path / "opaq"),
    }
    command = [sys.executable, "-c", program, path, str(tmp_path / "cases.pt")]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.stdout.strip() == "equal", done.stderr


def test_a_package_past_two_to_the_31_elements(unique: str, tmp_path: pathlib.Path) -> None:
    if torch.cuda.mem_get_info()[0] < 12 << 30:
        pytest.skip("needs 12 GiB of free GPU memory")
    op = opaq.op(f"{unique}(Tensor x) -> Tensor", outputs=opaq.like("x"))
    op.cuda(
        source="""extern "C" __global__
        void next(const signed char* x, signed char* out, long long n) {
          long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
          if (i < n) out[i] = x[i] + 1;
        }""",
        entry="next",
        args="x, out, x.numel()",
        grid="ceil_div(x.numel(), 256)",
        block=256,
    )

    class Model(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return op(x)

    example = torch.zeros(1000, dtype=torch.int8, device="cuda")
    exported = torch.export.export(
        Model(), (example,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)
    )
    run = torch._inductor.aoti_load_package(opaq.package(exported, tmp_path / "model.pt2"))
    for size in (0, 1000, 2**31 + 1000):
        x = torch.zeros(size, dtype=torch.int8, device="cuda")
        y = run(x)
        assert y.shape == x.shape
        assert bool((y[-2000:] == 1).all()) and int(y.sum(dtype=torch.int64)) == size


def test_a_package_for_another_arch_says_which_it_has(
    unique: str, tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]
) -> None:
    if torch.cuda.get_device_capability()[0] == 7:
        pytest.skip("this device runs sm_75")
    run = torch._inductor.aoti_load_package(pack(Alone(addmul(unique)), tmp_path, archs=["sm_75"]))
    with pytest.raises(RuntimeError) as error:
        run(*pair(8, 64))
    assert (
        f"{unique}: `addmul` is compiled for sm_75; cuda:0 is sm_"
        in str(error.value) + capfd.readouterr().err
    )


def test_ptx_serves_newer_devices(unique: str, tmp_path: pathlib.Path) -> None:
    model = Alone(addmul(unique))
    run = torch._inductor.aoti_load_package(pack(model, tmp_path, archs=["sm_75"], ptx=True))
    a, b = pair(8, 64)
    torch.testing.assert_close(run(a, b), model(a, b))


def test_a_damaged_image_is_an_error_that_names_the_entry(
    unique: str, tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = pack(Alone(addmul(unique)), tmp_path)
    changed = tmp_path / "changed.pt2"
    short = unique.split("::")[1]
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(changed, "w") as target:
        for item in source.infolist():
            content = source.read(item)
            if f"/{short}_" in item.filename and item.filename.endswith(".cubin"):
                content = content[:-1] + bytes([content[-1] ^ 1])
            target.writestr(item.filename.replace("model/", "changed/", 1), content)
    run = torch._inductor.aoti_load_package(str(changed))
    with pytest.raises(RuntimeError) as error:
        run(*pair(8, 64))
    assert (
        f"{unique}: the code of `addmul` for sm_"
        in (text := str(error.value) + capfd.readouterr().err)
        and "is damaged: " in text
    )
