"""The C++ functions that CUDA wrappers use, run without a GPU on a driver that records launches:
choice of image, digests, limits, messages.
"""

from __future__ import annotations

import hashlib
import pathlib
import subprocess

import pytest

from opaq import _runtime

PRELUDE = (
    "errors",
    "expressions",
    "launch",
    "files",
    "cuda",
    "tensor_maps",
    "dl_tensors",
    "matmul",
)
DECLARATIONS = """
#include <cstdint>
#include <stdexcept>
typedef struct AtenTensorOpaque* AtenTensorHandle;
typedef int32_t AOTITorchError;
extern "C" {
AOTITorchError aoti_torch_get_data_ptr(AtenTensorHandle, void**);
AOTITorchError aoti_torch_get_sizes(AtenTensorHandle, int64_t**);
AOTITorchError aoti_torch_get_strides(AtenTensorHandle, int64_t**);
AOTITorchError aoti_torch_get_dim(AtenTensorHandle, int64_t*);
AOTITorchError aoti_torch_get_numel(AtenTensorHandle, int64_t*);
AOTITorchError aoti_torch_get_device_type(AtenTensorHandle, int32_t*);
AOTITorchError aoti_torch_get_device_index(AtenTensorHandle, int32_t*);
AOTITorchError aoti_torch_empty_strided(int64_t, const int64_t*, const int64_t*, int32_t, int32_t,
    int32_t, AtenTensorHandle*);
AOTITorchError aoti_torch_copy_(AtenTensorHandle, AtenTensorHandle, int32_t);
AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void**);
}
namespace torch::aot_inductor {
struct RAIIAtenTensorHandle {
  RAIIAtenTensorHandle() = default;
  explicit RAIIAtenTensorHandle(AtenTensorHandle) {}
};
}
inline void check_call(AOTITorchError error) {
  if (error) throw std::runtime_error("call failed");
}
#define AOTI_TORCH_ERROR_CODE_CHECK(call) check_call(call)
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the program printed for each case."""
    folder = tmp_path_factory.mktemp("prelude")
    files = {"old.cubin": "OLD", "new.cubin": "NEW", "any.ptx": "ANY", "bad.cubin": "CHANGED"}
    digests = "".join(
        f'#define {text} "{hashlib.sha256(text.encode()).hexdigest()}"\n'
        for text in ("OLD", "NEW", "ANY")
    )
    for name, text in files.items():
        (folder / name).write_text(text)
    source = DECLARATIONS + digests + "".join(map(_runtime.cpp_prelude, PRELUDE))
    (folder / "check.cpp").write_text(
        source + (pathlib.Path(__file__).parent / "cuda_prelude_check.cpp").read_text()
    )
    includes = [f"-I{path}" for path in _runtime.doctor()["nvrtc"]["include_dirs"]]
    command = [
        "g++",
        "-std=c++17",
        "-Wall",
        "-Wextra",
        "-Werror",
        *includes,
        folder / "check.cpp",
        "-o",
        folder / "check",
    ]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    output = subprocess.run(
        [folder / "check", folder], capture_output=True, text=True, check=True
    ).stdout
    return dict(line.split(": ", 1) for line in output.splitlines())


def test_the_best_image_is_loaded_once(said: dict[str, str]) -> None:
    assert said["first"] == "loaded NEW, grid 7, shared 0 of 0, loads 1, launches 1"
    assert said["again"] == "loaded NEW, grid 8, shared 0 of 0, loads 1, launches 2"
    assert said["minor"].startswith("loaded OLD")  # sm_80 on 8.6
    assert said["newer"].startswith("loaded ANY")  # PTX on 10.0: sm_90a serves 9.0 alone
    assert said["none"] == (
        "lib::op: `f<float>` is compiled for sm_80, sm_90a, compute_80, sm_75; cuda:0 is sm_70; "
        "for a package, add this arch to opaq.package(archs=[...]), or pass ptx=True; for an op "
        'that brings binaries, declare one for it: binary={"sm_70": ...}'
    )


def test_files_are_checked(said: dict[str, str]) -> None:
    assert said["damaged"].startswith("lib::op: the code of `f<float>` for sm_75 is damaged: ")
    assert (
        f"has SHA-256 {hashlib.sha256(b'CHANGED').hexdigest()}; expected "
        f"{hashlib.sha256(b'OLD').hexdigest()}" in said["damaged"]
    )
    assert said["missing"].startswith("lib::op: the code of `f<float>` for sm_90a is missing: ")


def test_limits_and_messages_are_the_runtimes(said: dict[str, str]) -> None:
    assert said["empty grid"] == said["again"]
    assert (
        said["grid too large"]
        == "lib::op: grid.x `n` is 2147483648; it must be between 0 and 2147483647"
    )
    assert said["negative grid"] == "lib::op: grid.x `n` is -1; it must be between 0 and 2147483647"
    assert said["block too large"] == "lib::op: block.x `b` is 1025; it must be between 1 and 1024"
    assert said["more shared"].endswith("shared 100000 of 100000, loads 1, launches 3")
    assert said["too much shared"] == (
        "lib::op: shared `s` is 200000 bytes, but cuda:0 allows a block at most 200000 bytes, "
        "of which `f<float>` declares 1024 itself; use a smaller tile"
    )
    assert said["driver error"] == (
        "lib::op: launching `f<float>` on cuda:0 with grid (666, 1, 1), block (128, 1, 1), 0 "
        "bytes of dynamic shared memory: "
        "CUDA_ERROR_OF_THE_TEST (as asked for)"
    )
    assert said["half"] == (
        "3c00 7bff 1 ae66 lib::op: argument 1 `v` is 65520, which does not fit the kernel's "
        "parameter `__half`; "
        "declare the parameter as float or double, whose range is wider"
    )


def test_captures_and_contexts(said: dict[str, str]) -> None:
    assert said["captured too early"] == (
        "lib::op: `f<float>` is not loaded on cuda:0 yet, and nothing can be loaded while a stream "
        "is captured; run it once with these arguments, or call opaq.warmup(...) with them, before "
        "the capture"
    )
    assert said["captured"].startswith("loaded ")  # what is loaded can be launched
    assert said["contexts"] == "pushed 1, left 0"


def test_tensor_maps_are_encoded_where_something_changed(said: dict[str, str]) -> None:
    assert said["tensor maps"] == (
        "0 0 encoded 0, 7 8 encoded 1, 7 8 encoded 1, 7 8 encoded 2, lib::op: argument 1 `map`: "
        "the last item of box is 3 elements of 4 bytes, but together they must be a multiple of 16 "
        "bytes"
    )
