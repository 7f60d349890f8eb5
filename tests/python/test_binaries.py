"""Kernels that the user has compiled: one image or one for each target, as bytes or files."""

from __future__ import annotations

import pathlib

import pytest
from fake_cuda import wrapper_source

import opaq
from opaq import _runtime, lowering

SOURCE = """extern "C" __global__ void add_one(const float* x, float* out, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) out[i] = x[i] + 1;
}"""
FACTS = [("float32", (4096,), (1,), "cuda:0", 256)]


def declare(name: str, **code: object) -> opaq.Op:
    op = opaq.op(f"{name}(Tensor x) -> Tensor", outputs=opaq.like("x"))
    return op.cuda(entry="add_one", args="x, out, x.numel()", block=256, **code)  # type: ignore[arg-type]


def files(op: opaq.Op, *archs: str) -> list[dict]:
    """What a C++ wrapper or a package carries for a node of this op."""
    choice = _runtime.choose(op.name, "cuda", {"cuda": []}, [])["handle"]
    node = _runtime.cpp_node(op.name, choice, FACTS, "cuda:0", archs, False, False)
    return _runtime.cpp_code(node)[0]


@pytest.fixture(scope="module")
def images() -> dict[str, bytes]:
    """Images of SOURCE by target."""
    archs = ("sm_80", "sm_90a", "compute_80")
    op = declare("binaries::source", source=SOURCE)
    return dict(zip(archs, (made["bytes"] for made in files(op, *archs))))


def compiled_for(op: opaq.Op, arch: str) -> dict:
    return _runtime.compile(op.name, FACTS, arch, "cuda")


def test_each_device_gets_the_best(unique: str, images: dict[str, bytes]) -> None:
    op = declare(unique, binary=images)
    sizes = {arch: len(image) for arch, image in images.items()}
    for arch, best in [
        ("sm_80", "sm_80"),
        ("sm_86", "sm_80"),
        ("sm_90", "sm_90a"),
        ("sm_100", "compute_80"),
    ]:
        assert compiled_for(op, arch)["bytes"] == sizes[best], arch
    with pytest.raises(opaq.MissingError) as error:
        compiled_for(op, "sm_75")
    assert str(error.value) == (
        f"{unique}: `add_one` is compiled for sm_80, sm_90a, compute_80; the device is sm_75; for "
        "a package, add this arch to opaq.package(archs=[...]), or pass ptx=True; for an op that "
        'brings binaries, declare one for it: binary={"sm_75": ...}'
    )


def test_packages_carry_them_all(unique: str, images: dict[str, bytes]) -> None:
    carried = files(declare(unique, binary=images), "sm_120a")  # archs are for sources
    assert {file["arch"]: file["bytes"] for file in carried} == images
    lowering.activate()
    op = declare(f"{unique}_printed", binary=images)
    with lowering.options.use(archs=["sm_90a"]):
        text = wrapper_source(lambda x: op.overload(x), (4096,), package=True)
    for arch in images:
        assert f'{{"{arch}", ' in text


def test_files_are_read_and_named_in_errors(
    unique: str, images: dict[str, bytes], tmp_path: pathlib.Path
) -> None:
    path = tmp_path / "k80.cubin"
    path.write_bytes(images["sm_80"])
    op = declare(unique, binary={"sm_80": opaq.file(path), "compute_80": images["compute_80"]})
    assert compiled_for(op, "sm_80")["bytes"] == len(images["sm_80"])
    path.write_bytes(images["sm_80"].replace(b"add_one", b"add_two"))
    other = declare(f"{unique}_other", binary={"sm_80": opaq.file(path)})
    with pytest.raises(opaq.CompileError, match="'add_one' is not in k80.cubin, which has add_two"):
        compiled_for(other, "sm_80")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda i: {}, 'binary: got {} (dict); expected images by target, such as {"sm_90a"'),
        (
            lambda i: {"90a": i["sm_90a"]},
            'binary["90a"]: expected a target such as "sm_80", "sm_90a", or "compute_80" for PTX',
        ),
        (
            lambda i: {"sm_90a": i["sm_80"]},
            'binary["sm_90a"] holds a cubin for sm_80; name it so, or give the right file',
        ),
        (
            lambda i: {"sm_80": i["compute_80"]},
            'binary["sm_80"] holds PTX for compute_80; name it so, or give the right file',
        ),
        (lambda i: {"sm_80": "k.cubin"}, "binary=opaq.file('k.cubin')"),
    ],
)
def test_what_is_no_image_for_its_target_is_refused(
    unique: str, images: dict[str, bytes], change: object, message: str
) -> None:
    op = opaq.op(f"{unique}(Tensor x) -> Tensor", outputs=opaq.like("x"))
    with pytest.raises(opaq.DeclarationError) as error:
        op.cuda(entry="add_one", args="x, out, x.numel()", binary=change(images))  # type: ignore[operator]
    assert f"{unique}: .cuda(...)" in str(error.value) and message in str(error.value)


def test_one_cubin_for_another_device_is_refused_before_the_driver_sees_it(
    unique: str, images: dict[str, bytes]
) -> None:
    op = declare(unique, binary=images["sm_80"])
    assert compiled_for(op, "sm_86")["bytes"] == len(images["sm_80"])
    with pytest.raises(opaq.MissingError, match="is compiled for sm_80; the device is sm_90; "):
        compiled_for(op, "sm_90a")
    assert files(op)[0]["arch"] == "sm_80"


def test_replacing_one_of_the_images_is_another_declaration(
    unique: str, images: dict[str, bytes]
) -> None:
    declare(unique, binary=images)
    declare(unique, binary=dict(images))
    fewer = {"sm_80": images["sm_80"]}
    with pytest.raises(opaq.DeclarationError, match="replace=True"):
        declare(unique, binary=fewer)


def test_the_argument_list_is_checked_without_a_driver(
    unique: str, images: dict[str, bytes]
) -> None:
    op = opaq.op(f"{unique}(Tensor x) -> Tensor", outputs=opaq.like("x"))
    op.cuda(entry="add_one", args="x, out", binary={"sm_80": images["sm_80"]})
    with pytest.raises(opaq.CompileError, match=r"takes 3 parameters \(8 bytes, 8 bytes, 4 "):
        compiled_for(op, "sm_80")


def test_a_check_tells_which_architectures_have_no_image(
    unique: str, images: dict[str, bytes]
) -> None:
    report = declare(unique, binary=images["sm_80"]).check(arch=["sm_80", "sm_90a"])
    (found,) = report.implementations
    fits, missing = found.code
    assert (fits["arch"], fits["problem"]) == ("sm_80", "") and fits["resources"] is not None
    assert missing["arch"] == "sm_90a" and not report.ok
    assert "is compiled for sm_80; the device is sm_90; " in missing["problem"]
    fits_all = declare(f"{unique}_all", binary=images)
    assert fits_all.check(arch=["sm_80", "sm_90a", "sm_100a"]).ok
