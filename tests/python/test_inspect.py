"""`opaq inspect`: the resources that images of a package use, from the compiler's output if it was
compiled by opaq, else from the cubin. No GPU is needed.
"""

from __future__ import annotations

import json
import pathlib
import re
import zipfile
from typing import Any

import pytest
from fake_cuda import wrapper_source

import opaq
from opaq import _runtime, cli, lowering

pytestmark = pytest.mark.skipif(
    not _runtime.doctor()["nvrtc"]["found"],
    reason="NVRTC is not installed: pip install nvidia-cuda-nvrtc",
)

FACTS = ("registers", "shared", "stack", "spill_stores", "spill_loads")
SOURCE = r"""
template <int N> __device__ __forceinline__ void keep(float* y) {
  float a[N];
#pragma unroll
  for (int i = 0; i < N; ++i) a[i] = y[i * 7 + threadIdx.x];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < N; ++i) y[i] += a[N - 1 - i] * a[i];
}
template <int N> __device__ __noinline__ void apart(float* y) { keep<N>(y); }
__device__ __noinline__ float recurse(float* p, int n) {
  float a[50];
  for (int i = 0; i < 50; ++i) a[i] = p[i * n];
  if (n > 3) a[n % 50] += recurse(p + 1, n - 1);
  return a[n % 50];
}
#define KERNEL extern "C" __global__ void __launch_bounds__(1024, 1)
KERNEL plain(float* y) { y[0] = 1; }
KERNEL spill(float* y) { keep<128>(y); }
KERNEL local(float* y) { float a[64]; for (int i = 0; i < 99; ++i) a[int(y[i]) & 63] = y[i];
    y[0] = a[threadIdx.x & 63]; }
KERNEL statics(float* y) { __shared__ float s[300]; s[threadIdx.x] = y[0]; __syncthreads();
    y[1] = s[threadIdx.x ^ 1]; }
KERNEL both(float* y) {
  __shared__ float s[3];
  extern __shared__ float d[];
  s[threadIdx.x % 3] = y[0]; d[threadIdx.x] = y[1]; __syncthreads();
      y[2] = s[threadIdx.x % 2] + d[threadIdx.x ^ 1];
}
KERNEL calls(float* y) { apart<128>(y); apart<128>(y + 1); }
KERNEL recurses(float* y) { y[0] = recurse(y, 7); }
"""
KERNELS = ["plain", "spill", "local", "statics", "both", "calls", "recurses"]


def declare(name: str, **code: Any) -> opaq.Op:
    return opaq.op(f"{name}(Tensor(a!) y) -> ()").cuda(args="y", block=32, **code)


def compiled(op: opaq.Op, *archs: str) -> list[dict[str, Any]]:
    choice = _runtime.choose(op.name, "cuda", {"cuda": []}, [])["handle"]
    facts = [("float32", (4096,), (1,), "cuda:0", 256)]
    node = _runtime.cpp_node(op.name, choice, facts, "cuda:0", archs, False, False)
    return _runtime.cpp_code(node)[0]


def package(op: opaq.Op, folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch, *archs: str) -> str:
    """A zip file with what AOTInductor packs for a graph of one node; nothing is linked."""
    lowering.activate()
    from opaq.lowering import cpp_files

    monkeypatch.setattr(cpp_files.inductor, "cache_dir", lambda: str(folder))
    with lowering.options.use(archs=archs):
        wrapper_source(lambda y: op.overload(y), (4096,), package=True)
    with zipfile.ZipFile(folder / "model.pt2", "w") as archive:
        for path in folder.rglob("*"):
            if path.is_file() and path.suffix != ".pt2":
                archive.write(path, f"model/data/aotinductor/model/{path.name}")
    return str(folder / "model.pt2")


def inspected(path: str, capsys: pytest.CaptureFixture[str]) -> tuple[list[dict[str, Any]], str]:
    """(the images of the package, the text of `opaq inspect`)"""
    assert cli.main(["inspect", path, "--json"]) == 0
    (model,) = json.loads(capsys.readouterr().out)["models"]
    assert cli.main(["inspect", path]) == 0
    return model["ops"][0]["implementations"][0]["images"], capsys.readouterr().out


def test_of_compiled_source_everything_is_known(
    unique: str,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    op = declare(unique, source=SOURCE, entry="spill")
    images, text = inspected(
        package(op, tmp_path, monkeypatch, "sm_80", "sm_90a", "compute_80"), capsys
    )
    assert [image["arch"] for image in images] == ["sm_80", "sm_90a", "compute_80"]
    for image, made in zip(images[:2], compiled(op, "sm_80", "sm_90a")):
        assert image["state"] == "whole"
        assert {key: image[key] for key in FACTS} == made["resources"]
        assert image["registers"] == 64  # 1024 threads share 65536
        assert image["spill_stores"] > 0 and image["spill_loads"] > 0
        expected = (
            "registers {registers}, shared 0 bytes, stack {stack} bytes, spills "
            "{spill_stores} bytes stored, {spill_loads} loaded"
        )
        assert f"    {expected.format(**image)}\n" in text
    assert [images[2][key] for key in FACTS] == [None] * 5  # the driver that loads PTX decides
    assert text.endswith("registers unknown, shared unknown, stack unknown, spills unknown\n")


@pytest.mark.parametrize(("entry", "spills"), [("statics", 0), ("local", None)])
def test_of_a_users_cubin_spills_are_known_where_there_is_no_stack(
    unique: str,
    entry: str,
    spills: int | None,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (made,) = compiled(declare(f"{unique}_source", source=SOURCE, entry=entry), "sm_90a")
    op = declare(unique, binary=made["bytes"], entry=entry)
    known = {**made["resources"], "spill_stores": spills, "spill_loads": spills}
    assert compiled(op)[0]["resources"] == known
    (image,), text = inspected(package(op, tmp_path, monkeypatch), capsys)
    assert {key: image[key] for key in FACTS} == known
    assert re.search(
        r"registers \d+, shared \d+ bytes, stack \d+ bytes, spills "
        rf"{'unknown' if spills is None else '0 bytes'}\n",
        text,
    )


def read(content: bytes, symbol: str) -> _runtime.Resources:
    return _runtime.cubin_resources(content, symbol.encode())


@pytest.mark.parametrize(
    "arch",
    [
        "sm_75",
        "sm_90a",
        *[
            pytest.param(arch, marks=pytest.mark.life)
            for arch in ("sm_80", "sm_90", "sm_100a", "sm_120")
        ],
    ],
)
def test_a_cubin_tells_nothing_that_the_compiler_contradicts(unique: str, arch: str) -> None:
    if arch.removesuffix("a") not in _runtime.doctor()["nvrtc"]["archs"]:
        pytest.skip(f"this NVRTC does not compile for {arch}")
    for entry in KERNELS:
        (made,) = compiled(declare(f"{unique}_{entry}", source=SOURCE, entry=entry), arch)
        told, found = made["resources"], read(made["bytes"], entry)
        for fact in ("registers", "shared"):
            assert found[fact] == told[fact], entry
        assert found["stack"] == told["stack"] or (
            found["stack"] is None and entry in ("calls", "recurses")
        ), entry
        for fact in ("spill_stores", "spill_loads"):
            assert found[fact] in (None, told[fact]), entry
            assert (found[fact] == 0) == (entry in ("plain", "statics", "both")), entry


def test_what_is_no_whole_cubin_tells_nothing(unique: str) -> None:
    (made,) = compiled(declare(unique, source=SOURCE, entry="plain"), "sm_90a")
    nothing = dict.fromkeys(FACTS)
    assert read(made["bytes"], "another") == nothing
    # a fatbin: an image for each of several archs, compressed mostly
    assert read(b"\x50\xed\x55\xba" + made["bytes"], "plain") == nothing
    whole = read(made["bytes"], "plain")
    assert None not in whole.values()
    for size in range(0, len(made["bytes"]), 7):
        assert read(made["bytes"][:size], "plain") in (nothing, whole)
