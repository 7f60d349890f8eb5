"""LTO-IR, alone, in a fatbin, for one target or with a device library, linked by nvJitLink."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import forked
import pytest
from fake_cuda import wrapper_source
from lto_ir import fatbin, lto_ir

import opaq
from opaq import _runtime, lowering

SOURCE = """extern "C" __global__ void add_one(const float* x, float* out, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) out[i] = x[i] + 1;
}
template <class T> __global__ void scale(const T* x, T* out, int n) { out[n] = 2 * x[n]; }
template __global__ void scale<float>(const float*, float*, int);"""
CALLER = """extern __device__ float helper(float);
extern "C" __global__ void add_one(const float* x, float* out, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) out[i] = helper(x[i]);
}"""
HELPER = "__device__ float helper(float x) { return x + 1; }"
FACTS = [("float32", (4096,), (1,), "cuda:0", 256)]
DOCTOR = _runtime.doctor()

pytestmark = pytest.mark.skipif(
    not (DOCTOR["nvrtc"]["found"] and DOCTOR["nvjitlink"]["found"]),
    reason="NVRTC and nvJitLink are not both installed",
)


def declare(name: str, **fields: object) -> opaq.Op:
    op = opaq.op(f"{name}(Tensor x) -> Tensor", outputs=opaq.like("x"))
    given = {"entry": "add_one", "args": "x, out, x.numel()", "block": 256, "grid": 16}
    return op.cuda(**{**given, **fields})  # type: ignore[arg-type]


def linked_for(op: opaq.Op, arch: str) -> dict:
    return _runtime.compile(op.name, FACTS, arch, "cuda")


def files(op: opaq.Op, *archs: str) -> list[dict]:
    """What a C++ wrapper or a package carries for a node of this op."""
    choice = _runtime.choose(op.name, "cuda", {"cuda": []}, [])["handle"]
    node = _runtime.cpp_node(op.name, choice, FACTS, "cuda:0", archs, False, False)
    return _runtime.cpp_code(node)[0]


def test_is_linked_for_each_architecture_and_kept(unique: str) -> None:
    code = lto_ir(SOURCE.replace("+ 1", f"+ {time.time()}"))  # in no cache yet
    op = declare(unique, binary=code)
    found = {arch: linked_for(op, arch) for arch in ("sm_80", "sm_90a")}
    for image in found.values():
        assert image["compiler"] == "nvJitLink" and not image["from_cache"]
        used = image["resources"]
        assert used["registers"] > 0 and (used["spill_stores"], used["spill_loads"]) == (0, 0)
    again = linked_for(declare(f"{unique}_again", binary=code), "sm_90a")
    assert again["from_cache"] and again["bytes"] == found["sm_90a"]["bytes"]
    assert again["resources"] == found["sm_90a"]["resources"]


def test_kernels_are_found_as_in_a_cubin(unique: str) -> None:
    code = lto_ir(SOURCE)
    by_name = declare(unique, binary=code, entry="scale<float>")
    by_symbol = declare(f"{unique}_symbol", binary=code, entry="_Z5scaleIfEvPKT_PS0_i")
    assert linked_for(by_name, "sm_90a")["bytes"] == linked_for(by_symbol, "sm_90a")["bytes"]
    wrong = declare(f"{unique}_wrong", binary=code, entry="ad_one")
    with pytest.raises(opaq.CompileError) as error:
        linked_for(wrong, "sm_90a")
    assert str(error.value) == (
        f"{unique}_wrong: entry 'ad_one' is not in the binary, which has scale<float>, add_one; "
        "did you mean 'add_one'?"
    )


def test_the_argument_list_is_checked(unique: str) -> None:
    op = declare(unique, binary=lto_ir(SOURCE), args="x, out")
    with pytest.raises(opaq.CompileError, match=r"takes 3 parameters \(8 bytes, 8 bytes, 4 "):
        linked_for(op, "sm_80")


def test_a_fatbin_with_lto_ir_is_linked(unique: str, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "k.fatbin"
    path.write_bytes(fatbin((80, lto_ir(SOURCE)), (90, lto_ir(SOURCE, "compute_90"))))
    op = declare(unique, binary=opaq.file(path))
    assert linked_for(op, "sm_90a")["compiler"] == "nvJitLink"
    with pytest.raises(opaq.CompileError) as error:
        linked_for(op, "sm_75")
    assert str(error.value).startswith(
        f"{unique}: k.fatbin has nothing that can be linked for sm_75; it holds lto_80,lto_90; "
        "nvJitLink says:\n"
    )
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(opaq.CompileError, match=r"k.fatbin is damaged: it ends after \d+ bytes"):
        linked_for(declare(f"{unique}_cut", binary=opaq.file(path)), "sm_90a")


def test_a_list_is_linked_together(unique: str, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "helper.ltoir"
    path.write_bytes(lto_ir(HELPER))
    op = declare(unique, binary=[lto_ir(CALLER), opaq.file(path)])
    plain = declare(f"{unique}_plain", binary=lto_ir(SOURCE))
    assert linked_for(op, "sm_90a")["resources"] == linked_for(plain, "sm_90a")["resources"]
    alone = declare(f"{unique}_alone", binary=lto_ir(CALLER))
    with pytest.raises(opaq.CompileError) as error:
        linked_for(alone, "sm_90a")
    assert str(error.value).startswith(f"{unique}_alone: linking the binary for sm_90a failed:\n")
    assert str(error.value).endswith(
        "\nnothing defines 'helper(float)'; link what does, too, as in "
        'binary=[opaq.file("kernel.ltoir"), opaq.file("library.ltoir")]'
    )


@pytest.mark.skipif(not DOCTOR["nvcc"]["found"], reason="nvcc is not installed")
def test_what_nvcc_writes(unique: str, tmp_path: pathlib.Path) -> None:
    for name, source in {"kernel": SOURCE, "caller": CALLER, "helper": HELPER}.items():
        (tmp_path / f"{name}.cu").write_text(source)

    def nvcc(name: str, source: str, *options: str) -> str:
        command = [DOCTOR["nvcc"]["path"], *options, "-o", name, f"{source}.cu"]
        subprocess.run(command, cwd=tmp_path, check=True)
        return opaq.file(tmp_path / name)

    cubin_too = ["-gencode", "arch=compute_80,code=[lto_80,sm_80]", "-rdc=true"]
    parts = ("caller", "helper")
    objects = [nvcc(f"{name}.o", name, "-dlto", "-dc", "-arch=sm_80") for name in parts]
    cubin = ("-dc", "-cubin", "-arch=sm_90a")
    relocatable = [nvcc(f"{name}.cubin", name, *cubin) for name in parts]
    subprocess.run(["ar", "rcs", "libhelper.a", "helper.o"], cwd=tmp_path, check=True)
    forms = [
        nvcc("kernel.ltoir", "kernel", "-dlto", "-ltoir", "-arch=sm_80"),
        nvcc("kernel.fatbin", "kernel", "-dlto", "-fatbin", "-arch=sm_90a"),
        nvcc("cubin_too.fatbin", "kernel", "-fatbin", *cubin_too),
        [objects[0], opaq.file(tmp_path / "libhelper.a")],
        [objects[0], nvcc("helper.ltoir", "helper", "-dlto", "-ltoir", "-dc", "-arch=sm_80")],
        relocatable,
    ]
    found = [
        linked_for(declare(f"{unique}_{i}", binary=form), "sm_90a") for i, form in enumerate(forms)
    ]
    assert {image["compiler"] for image in found} == {"nvJitLink"}
    registers = [image["resources"]["registers"] for image in found]
    assert max(registers[:5]) < registers[5]  # inlined, or called


def test_for_targets_of_a_set(unique: str) -> None:
    cubin = files(declare(f"{unique}_cubin", source=SOURCE), "sm_80")[0]["bytes"]
    op = declare(unique, binary={"sm_80": cubin, "sm_90a": [lto_ir(CALLER), lto_ir(HELPER)]})
    assert linked_for(op, "sm_86")["bytes"] == len(cubin)
    assert linked_for(op, "sm_90a")["compiler"] == "nvJitLink"
    carried = {file["arch"]: file["bytes"] for file in files(op)}
    assert carried["sm_80"] == cubin and carried["sm_90a"].startswith(b"\x7fELF")
    with pytest.raises(opaq.MissingError, match="is compiled for sm_80, sm_90a; the device is "):
        linked_for(op, "sm_100")


def test_a_newer_architecture_is_named(unique: str) -> None:
    report = declare(unique, binary=lto_ir(SOURCE, "compute_90a")).check(arch=["sm_90a", "sm_80"])
    fits, newer = report.implementations[0].code
    assert (fits["problem"], fits["compiler"]) == ("", "nvJitLink") and fits["occupancy"]
    assert newer["problem"].startswith(
        f"{unique}: the binary is compiled for a newer architecture than sm_80: compile it for "
        "sm_80 or an older one, or declare another implementation for sm_80; nvJitLink says:\n"
    )


def test_lto_ir_of_a_newer_cuda_is_named(unique: str) -> None:
    newer = bytearray(lto_ir(SOURCE))
    newer[5] = 0x7F  # the version of its format
    with pytest.raises(opaq.CompileError) as error:
        linked_for(declare(unique, binary=bytes(newer)), "sm_90a")
    version, path = DOCTOR["nvjitlink"]["version"], DOCTOR["nvjitlink"]["path"]
    text = str(error.value)
    assert text.startswith(
        f"{unique}: the binary comes from a newer CUDA than nvJitLink {version} ({path}): compile "
        f"it with CUDA {version} or older, or get a newer nvJitLink: "
    )
    assert "`pip install --upgrade nvidia-nvjitlink" in text


def test_options_are_those_of_nvjitlink(unique: str) -> None:
    code = lto_ir(SOURCE)
    op = declare(unique, binary=code, options=["-maxrregcount=16", "-lineinfo"])
    plain = declare(f"{unique}_plain", binary=code)
    assert linked_for(op, "sm_90a")["bytes"] != linked_for(plain, "sm_90a")["bytes"]
    for options, message in [
        (["-no-such"], "nvJitLink takes no such options as -no-such; nvJitLink says:\n"),
        (["-ptx"], "nvJitLink made no image of the binary for sm_90a; it was given the options "),
    ]:
        wrong = declare(f"{unique}_{options[0][1:3]}", binary=code, options=options)
        with pytest.raises(opaq.CompileError) as error:
            linked_for(wrong, "sm_90a")
        assert message in str(error.value)
    with pytest.raises(opaq.CompileError, match=r"nvJitLink [\d.]+ \(.*\) cannot link the binary "):
        linked_for(plain, "sm_99")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"binary": []}, "binary: got [] (list); expected what is linked together, such as ["),
        (
            {"binary": [b"int main() {}"]},
            "binary[0] is nothing that nvJitLink links: expected LTO-IR, a cubin, a fatbin, PTX, ",
        ),
        ({"binary": ["k.ltoir"]}, "write binary=opaq.file('k.ltoir')"),
        ({"include_dirs": ["/tmp"]}, "takes no include_dirs, got '/tmp'; leave it out"),
        (
            {"args": ["x", "out", opaq.struct("P", n="x.numel()")]},
            "is a struct, and device code to link does not tell how its fields",
        ),
    ],
)
def test_what_cannot_be_linked_is_refused(unique: str, fields: dict, message: str) -> None:
    with pytest.raises(opaq.DeclarationError) as error:
        declare(unique, **{"binary": lto_ir(SOURCE), **fields})
    assert message in str(error.value) and unique in str(error.value)


def test_packages_carry_what_was_linked(unique: str) -> None:
    op = declare(unique, binary=lto_ir(SOURCE))
    carried = files(op, "sm_80", "sm_90a", "compute_80")
    assert [file["arch"] for file in carried] == ["sm_80", "sm_90a", "compute_80"]
    assert [file["bytes"][:4] == b"\x7fELF" for file in carried] == [True, True, False]
    assert b".entry add_one" in carried[2]["bytes"]
    lowering.activate()
    with lowering.options.use(archs=["sm_80", "sm_90a"]):
        text = wrapper_source(lambda x: op.overload(x), (4096,), package=True)
    assert '{"sm_80", ' in text and '{"sm_90a", ' in text


# ---- other processes -----------------------------------------------------------------------------

PROGRAM = """
import signal, sys, opaq
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored if pytest is in the background
from opaq import _runtime
op = opaq.op("lto_test::add_one(Tensor x) -> Tensor", outputs=opaq.like("x"))
op.cuda(binary=opaq.file(sys.argv[1]), entry="add_one", args="x, out, x.numel()", block=1, grid=1)
facts = [("float32", (4096,), (1,), "cuda:0", 256)]
print("declared", flush=True)
try:
    print(_runtime.compile(op.name, facts, "sm_90a", "cuda")["from_cache"])
except opaq.Error as error:
    print(type(error).__name__, error)
except KeyboardInterrupt:
    print("interrupted")
"""


def start(folder: pathlib.Path, nvjitlink: object) -> forked.Process:
    (folder / "k.ltoir").write_bytes(lto_ir(SOURCE))
    cache = str(folder / "cache")
    return forked.start(
        [sys.executable, "-c", PROGRAM, str(folder / "k.ltoir")],
        env={**os.environ, "OPAQ_NVJITLINK": str(nvjitlink), "OPAQ_CACHE_DIR": cache},
        stdout=subprocess.PIPE,
    )


def pretended(folder: pathlib.Path, linking: str) -> pathlib.Path:
    """A library that does this where nvJitLink would link."""
    names = [f"nvJitLinkGet{log}Log{size}" for log in ("Error", "Info") for size in ("", "Size")]
    names += ["nvJitLinkGetLinkedCubin", "nvJitLinkGetLinkedCubinSize"]
    names += ["nvJitLinkGetLinkedPtx", "nvJitLinkGetLinkedPtxSize"]
    names += ["nvJitLinkCreate", "nvJitLinkAddData"]
    code = "#include <stdlib.h>\n#include <unistd.h>\nint nvJitLinkComplete() { " + linking + " }\n"
    code += "int nvJitLinkVersion(unsigned* a, unsigned* b) { *a = 99; *b = 0; return 0; }\n"
    code += "".join(f"int {name}() {{ return 0; }}\n" for name in names)
    (folder / "fake.c").write_text(code)
    library = folder / "libnvJitLink.so.99"
    command = [_runtime.settings()["cxx"], "-x", "c", "-shared", "-fPIC", "-o", library]
    subprocess.run([*command, folder / "fake.c"], check=True)
    return library


def test_without_nvjitlink_it_is_said_what_to_install(tmp_path: pathlib.Path) -> None:
    out, _ = start(tmp_path, "/no/such/libnvJitLink.so.13").communicate()
    assert (
        "MissingError lto_test::add_one: nvJitLink, the CUDA library that links LTO-IR, was not "
        "found: OPAQ_NVJITLINK is '/no/such/libnvJitLink.so.13', and there is no such library; "
        "install it with `pip install 'nvidia-nvjitlink"
    ) in out
    (tmp_path / "empty.so").write_bytes(b"")
    out, _ = start(tmp_path, tmp_path / "empty.so").communicate()
    assert f"MissingError lto_test::add_one: nvJitLink at {tmp_path}/empty.so cannot be " in out


def test_a_crash_of_nvjitlink_is_an_error(tmp_path: pathlib.Path) -> None:
    out, _ = start(tmp_path, pretended(tmp_path, "abort();")).communicate()
    assert (
        "CompileError lto_test::add_one: the compiler ended without a result: signal 6; its memory "
        "may have run out, or it has crashed"
    ) in out


def test_ctrl_c_stops_nvjitlink(tmp_path: pathlib.Path) -> None:
    process = start(tmp_path, pretended(tmp_path, "sleep(100); return 0;"))
    assert process.stdout is not None and process.stdout.readline() == "declared\n"
    time.sleep(1)
    began = time.monotonic()
    os.kill(process.pid, signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert "interrupted" in out and time.monotonic() - began < 20


def test_the_doctor_names_nvjitlink() -> None:
    def doctor(**environment: str) -> dict:
        done = forked.run(
            [sys.executable, "-m", "opaq", "doctor", "--json"],
            env={**os.environ, **environment},
            check=True,
        )
        parts = json.loads(done.stdout)["parts"]
        return next(part for part in parts if part["name"] == "nvJitLink")

    found = doctor()
    assert found["found"] and found["version"] == DOCTOR["nvjitlink"]["version"]
    assert "libnvJitLink.so" in found["path"]
    missing = doctor(OPAQ_NVJITLINK="/no/such/libnvJitLink.so")
    assert not missing["found"] and "pip install 'nvidia-nvjitlink" in missing["advice"]
