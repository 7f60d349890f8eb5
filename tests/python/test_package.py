"""AOTInductor packages: one file that runs from Python and from C++ with neither opaq, its cache
nor the sources present.
"""

from __future__ import annotations

import io
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator

import forked
import pytest
import torch
from fake_cuda import wrapper_source

import opaq
from opaq import cli, lowering, package_contents

pytestmark = pytest.mark.usefixtures("kernels_as_users_have_them")

SIZES = (0, 1, 2, 7, 64, 1000)
HOST_EXAMPLE = pathlib.Path(__file__).parent.parent / "host_example"

scale = opaq.op("package_test::scale(Tensor x, float by=2.0) -> Tensor", outputs=opaq.like("x"))
scale.cpu(
    source="""template <typename T> void scale(const T* x, float by, T* out, int n) {
      for (int i = 0; i < n; ++i) out[i] = x[i] * by; }""",
    entry="scale<{x.dtype}>",
    args="x, by, out, x.numel()",
    requires="x.size(0) != 13",
)
add_ = opaq.op("package_test::add_(Tensor(a!) total, Tensor x, int times=1) -> ()")
add_.cpu(
    source="void add(float* total, const float* x, long times, long n) { for (long i = 0; i < "
    "n; ++i) total[i] += x[i] * times; }",
    entry="add",
    args="total, x, times, x.numel()",
)


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.arange(32, dtype=torch.float32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        total = scale(x) + self.weight
        add_(total, x, 3)
        return scale(total, 0.5)


def expected(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return (x * 2 + weight + 3 * x) * 0.5


def export(model: torch.nn.Module, x: torch.Tensor) -> torch.export.ExportedProgram:
    with torch.no_grad():
        return torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> str:
    return opaq.package(
        export(Model(), torch.randn(8, 32)), tmp_path_factory.mktemp("package") / "model.pt2"
    )


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("cases") / "cases.pt"
    found: dict[str, object] = {"count": len(SIZES)}
    for i, size in enumerate(SIZES):
        found[f"x{i}"] = x = torch.randn(size, 32)
        found[f"y{i}"] = expected(x, torch.arange(32.0))
    torch.save(found, path)
    return path


def bare_environment(tmp_path: pathlib.Path) -> dict[str, str]:
    keep = {
        key: value
        for key, value in os.environ.items()
        if key not in ("PYTHONPATH", "OPAQ_CACHE_DIR")
    }
    return {
        **keep,
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor"),
        "OPAQ_CACHE_DIR": str(tmp_path / "opaq"),
    }


def test_a_new_process_without_opaq_runs_it_on_every_size(
    package: str, cases: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    program = """if True:
        import sys, torch
        sys.modules["opaq"] = None  # an import of it would fail
        model = torch._inductor.aoti_load_package(sys.argv[1])
        cases = torch.load(sys.argv[2])
        for i in range(cases["count"]):
            torch.testing.assert_close(model(cases[f"x{i}"]), cases[f"y{i}"])
        print(cases["count"], "cases equal")
    """
    command = [sys.executable, "-c", program, package, str(cases)]
    done = forked.run(command, env=bare_environment(tmp_path), cwd=tmp_path, inductor=True)
    assert done.stdout.strip() == f"{len(SIZES)} cases equal", done.stderr


def test_a_c_plus_plus_program_runs_it_through_libtorch(
    package: str, cases: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    cmake, ninja = (
        shutil.which(tool, path=f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}")
        for tool in ("cmake", "ninja")
    )
    if not cmake or not ninja:
        pytest.skip("needs cmake and ninja")
    configure = [
        cmake,
        "-S",
        HOST_EXAMPLE,
        "-B",
        tmp_path,
        "-G",
        "Ninja",
        f"-DCMAKE_MAKE_PROGRAM={ninja}",
    ]
    subprocess.run(
        [*configure, f"-DCMAKE_PREFIX_PATH={torch.utils.cmake_prefix_path}"],
        check=True,
        capture_output=True,
    )
    built = subprocess.run(
        [cmake, "--build", tmp_path], check=False, capture_output=True, text=True
    )
    assert built.returncode == 0, built.stdout
    command = [tmp_path / "host_example", package, cases]
    done = subprocess.run(
        command, env=bare_environment(tmp_path), capture_output=True, text=True, check=False
    )
    assert done.stdout.strip().endswith(f"{len(SIZES)} cases equal"), done.stderr


def test_weights_are_updated_as_in_any_package(package: str) -> None:
    model = torch._inductor.aoti_load_package(package)
    x, weight = torch.randn(3, 32), torch.randn(32)
    model.load_constants({"weight": weight}, check_full_update=True)
    torch.testing.assert_close(model(x), expected(x, weight))


class OnWeights(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.arange(32, dtype=torch.float32))
        self.bias = torch.nn.Parameter(torch.ones(32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return scale(x + scale(self.weight + 1, 3.0) + self.bias)


@pytest.mark.parametrize("fold", [False, True])
def test_an_op_on_a_weight_follows_its_updates(fold: bool, tmp_path: pathlib.Path) -> None:
    """Also if AOTInductor computes the op only when the package is loaded and when the weights
    change.
    """
    model, x = OnWeights(), torch.randn(3, 32)
    configs = {"aot_inductor.use_runtime_constant_folding": fold}
    path = opaq.package(
        export(model, torch.randn(8, 32)), tmp_path / "model.pt2", inductor_configs=configs
    )
    (found,) = package_contents.read(path)["models"]
    assert [node.startswith("constants:") for op in found["ops"] for node in op["nodes"]] == [
        fold,
        False,
    ]
    loaded = torch._inductor.aoti_load_package(path)
    torch.testing.assert_close(loaded(x), model(x))
    for weights in (
        {"weight": torch.randn(32), "bias": torch.randn(32)},
        {"weight": torch.randn(32)},
    ):
        loaded.load_constants(weights, check_full_update=len(weights) == 2)
        model.load_state_dict(weights, strict=False)
        torch.testing.assert_close(loaded(x), model(x))


def test_a_requirement_unmet_at_a_launch_is_an_error_that_names_it(
    package: str, capfd: pytest.CaptureFixture[str]
) -> None:
    model = torch._inductor.aoti_load_package(package)
    with pytest.raises(RuntimeError) as error:
        model(torch.randn(13, 32))
    text = str(error.value) + capfd.readouterr().err
    assert (
        "package_test::scale: no implementation fits this call: cpu requires x.size(0) != 13; "
        "change the argument" in text
    )


def change(package: str, to: pathlib.Path, edit) -> str:
    """The same package with edit(name, content) in place of each file's content; None leaves the
    file out.
    """
    with zipfile.ZipFile(package) as source, zipfile.ZipFile(to, "w") as target:
        for item in source.infolist():
            content = edit(item.filename, source.read(item))
            if content is not None:
                # the folder is named after the file
                target.writestr(item.filename.replace("model/", "changed/", 1), content)
    return str(to)


@pytest.mark.parametrize("how", ["damaged", "missing"])
def test_a_damaged_package_is_an_error_that_names_the_entry(
    package: str, how: str, tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def edit(name: str, content: bytes) -> bytes | None:
        if "/scale_" not in name or not name.endswith(".host"):
            return content
        return (
            None
            if how == "missing"
            else content[:1000] + bytes([content[1000] ^ 1]) + content[1001:]
        )

    model = torch._inductor.aoti_load_package(change(package, tmp_path / "changed.pt2", edit))
    with pytest.raises(RuntimeError) as error:
        model(torch.randn(2, 32))
    text = str(error.value) + capfd.readouterr().err
    assert f"package_test::scale: the code of `scale<float>` is {how}: " in text
    assert "package or compile the model again" in text


def damaged_packages(package: str) -> Iterator[tuple[str, bytes, set[str], int]]:
    """(what is wrong, the file, outcomes of loading and launching it, status of `opaq inspect`).

    Outcomes: "refused" by torch's loader, "error" of opaq at the launch, "right" values. torch runs
    the wrapper's own library without a check, so that flipped bytes in it may do anything: it is
    only inspected here, unless torch refuses it.
    """
    whole = pathlib.Path(package).read_bytes()
    with zipfile.ZipFile(package) as archive:
        members = {item.filename: archive.read(item) for item in archive.infolist()}
        headers = {item.filename: item.header_offset for item in archive.infolist()}
    host, manifest, library, source = (
        next(name for name in members if name.endswith(end))
        for end in (".host", "/opaq.json", ".wrapper.so", ".wrapper.cpp")
    )
    directory = whole.index(b"PK\1\2")

    def flipped(place: int) -> bytes:
        return whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]

    def rebuilt(name: str, content: bytes | None) -> bytes:
        made = io.BytesIO()
        with zipfile.ZipFile(made, "w") as archive:
            for other, old in members.items():
                if other != name or content is not None:
                    archive.writestr(
                        other, content if other == name and content is not None else old
                    )
        return made.getvalue()

    yield "nothing", whole, {"right"}, 0
    for size in (0, 100, directory // 2, directory, len(whole) - 30, len(whole) - 1):
        yield f"cut to {size} bytes", whole[:size], {"refused"}, 2
    yield "another file", b"no package" * 1000, {"refused"}, 2
    begin = whole.index(members[host])
    for part in range(8):
        yield f"code flipped, {part}", flipped(begin + len(members[host]) * part // 8), {"error"}, 1
    yield (
        "code of zeros",
        whole[:begin] + bytes(len(members[host])) + whole[begin + len(members[host]) :],
        {"error"},
        1,
    )
    for what, content in (
        ("missing", None),
        ("empty", b""),
        ("half", members[host][:5000]),
        ("another library", members[library]),
    ):
        yield f"code {what}, the archive whole", rebuilt(host, content), {"error"}, 1
    begin = whole.index(members[manifest])
    for part in range(4):
        yield (
            f"manifest flipped, {part}",
            flipped(begin + len(members[manifest]) * part // 4),
            {"right"},
            2,
        )
    for what, content in (("missing", None), ("empty", b""), ("half", members[manifest][:300])):
        yield f"manifest {what}, the archive whole", rebuilt(manifest, content), {"right"}, 2
    for what, content in (("missing", None), ("empty", b"")):
        yield f"library {what}, the archive whole", rebuilt(library, content), {"refused"}, 0
    for name in (host, source):
        yield f"header of {name}", flipped(headers[name]), {"refused"}, 1
        yield f"name in the header of {name}", flipped(headers[name] + 30), {"right"}, 1
        yield (
            f"name of {name} in the directory",
            flipped(whole.index(name.encode(), directory) + len(name) - 8),
            {"error" if name == host else "right"},
            1,
        )
    for place in range(directory, len(whole), 97):
        yield (
            f"directory flipped at {place - directory}",
            flipped(place),
            {"refused", "error", "right"},
            -1,
        )


def test_a_damaged_package_is_refused_or_runs_right(
    package: str, tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path, x = tmp_path / "model.pt2", torch.randn(2, 32)
    failures = []
    for what, content, outcomes, status in damaged_packages(package):
        path.write_bytes(content)
        capfd.readouterr()
        told = cli.main(["inspect", str(path)])
        output = capfd.readouterr()
        if told == 2 and (not output.err.startswith(str(path)) or output.err.count("\n") != 1):
            failures.append((what, output.err))
        outcome = "right"
        try:
            model = torch._inductor.aoti_load_package(str(path))
        except RuntimeError:
            outcome = "refused"
        else:
            try:
                if not torch.equal(model(x), expected(x, torch.arange(32.0))):
                    outcome = "wrong"
            except RuntimeError as error:
                text = str(error) + capfd.readouterr().err
                clear = (
                    "package_test::" in text
                    and ": the code of `" in text
                    and "package or compile the model again" in text
                )
                outcome = "error" if clear else text
        if outcome not in outcomes or told != status != -1:
            failures.append((what, outcome, told))
    assert failures == []


def test_inspect_checks_the_files_that_torch_loads_unchecked(
    package: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = bytearray(pathlib.Path(package).read_bytes())
    with zipfile.ZipFile(package) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".wrapper.so"))
        content[content.index(archive.read(name)) + 100_000] ^= 1
    path = tmp_path / "changed.pt2"
    path.write_bytes(content)
    assert cli.main(["inspect", str(path)]) == 1
    assert (
        f"  {name} is damaged: Bad CRC-32 for file {name!r}; copy the package again or package "
        "the model again" in capsys.readouterr().out
    )
    assert cli.main(["inspect", str(path), "--json"]) == 1
    assert [item["file"] for item in json.loads(capsys.readouterr().out)["damaged"]] == [name]
    assert (
        cli.main(
            [
                "inspect",
                change(
                    package,
                    path,
                    lambda name, content: None if name.endswith("/opaq.json") else content,
                ),
            ]
        )
        == 2
    )
    assert re.search(
        r"/opaq\.json is missing, the list of the opaque ops that .*\.wrapper\.cpp has; package "
        r"the model again",
        capsys.readouterr().err,
    )


def test_inspect_lists_ops_images_and_rules(
    package: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["inspect", package, "--json"]) == 0
    (model,) = json.loads(capsys.readouterr().out)["models"]
    ops = {op["op"]: op for op in model["ops"]}
    assert (
        ops["package_test::scale"]["schema"]
        == "package_test::scale(Tensor x, float by=2.0) -> Tensor"
    )
    assert len(ops["package_test::scale"]["nodes"]) == 2
    (implementation,) = ops["package_test::scale"]["implementations"]
    assert implementation["entry"] == "scale<float>"
    assert implementation["rule"]["args"] == ["x", "by", "out", "x.numel()"]
    assert implementation["checked_at_launch"] == ["x.size(0) != 13"]
    (image,) = implementation["images"]
    with zipfile.ZipFile(package) as archive:
        assert [
            info.file_size for info in archive.infolist() if info.filename.endswith(image["file"])
        ] == [image["bytes"]]
    assert image["state"] == "whole"
    assert cli.main(["inspect", package]) == 0
    assert "  where x.size(0) != 13" in capsys.readouterr().out


def test_inspect_refuses_what_is_no_package(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "text.pt2"
    path.write_text("no zip file")
    assert cli.main(["inspect", str(path)]) == 2
    assert (
        f"{path} cannot be read as a package: File is not a zip file; give a .pt2"
        in capsys.readouterr().err
    )


# ---- refusals ------------------------------------------------------------------------------------


def refusal(model: torch.nn.Module, x: torch.Tensor, tmp_path: pathlib.Path) -> str:
    with pytest.raises(Exception) as error:
        opaq.package(export(model, x), tmp_path / "refused.pt2")
    assert not (tmp_path / "refused.pt2").exists()
    return str(error.value)


class Call(torch.nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


def test_a_python_function_cannot_go_into_a_package(unique: str, tmp_path: pathlib.Path) -> None:
    op = opaq.op(f"{unique}(Tensor x) -> Tensor", outputs=opaq.like("x"))
    op.reference(lambda x: x + 1)
    message = refusal(Call(op), torch.randn(4, 4), tmp_path)
    assert re.search(
        rf"{unique} \(node \w+, cpu\) cannot go into a package: no implementation fits \(no "
        r"implementation for cpu\)",
        message,
    )
    remedy = "give the op an implementation in CUDA or C++, or of a library"
    assert remedy in message
    op.python(lambda x, out: torch.add(x, 1, out=out), device="cpu")
    assert remedy in refusal(Call(op), torch.randn(4, 4), tmp_path)
    source = "void vectors(float* out) {}"
    op.cpu(source=source, entry="vectors", args="out", requires=["x.dim() == 1"])
    message = refusal(Call(op), torch.randn(4, 4), tmp_path)
    assert "add an implementation that fits, or change the arguments" in message

    @opaq.custom_op(f"{unique}_function", mutates_args=())
    def function(x: torch.Tensor) -> torch.Tensor:
        return x + 1

    function.register_fake(torch.empty_like)
    message = refusal(Call(function), torch.randn(4, 4), tmp_path)
    assert f"{unique}_function (node" in message
    assert (
        "cannot go into a package: it is a Python function; declare it by opaq.op with an "
        "implementation in CUDA or C++; or by torch.library.custom_op, for a package" in message
    )


def test_a_template_value_that_changes_is_refused(unique: str, tmp_path: pathlib.Path) -> None:
    op = opaq.op(f"{unique}(Tensor x) -> Tensor", outputs=opaq.like("x"))
    op.cpu(
        source="template <int N> void f(const float* x, float* out) {}",
        entry="f<{x.size(0)}>",
        args="x, out",
    )
    message = refusal(Call(op), torch.randn(4, 4), tmp_path)
    assert (
        "the entry `f<{x.size(0)}>` of cpu has the template argument `x.size(0)`, which changes "
        "from call to call" in message
    )
    assert "pass it as an argument of the kernel, or mark the dimension as static" in message


def cuda_op(unique: str) -> opaq.Op:
    op = opaq.op(f"{unique}(Tensor x) -> Tensor", outputs=opaq.like("x"))
    return op.cuda(
        source='extern "C" __global__ void f(const float* x, float* out) {}',
        entry="f",
        args="x, out",
    )


def test_a_cuda_package_needs_an_arch(unique: str) -> None:
    if torch.cuda.is_available():
        pytest.skip("here there is a GPU to ask")
    op = cuda_op(unique)
    lowering.activate()
    with pytest.raises(
        Exception,
        match=r"no arch to compile CUDA source for: none is given.*opaq\.package\(\.\.\., "
        r'archs=\["sm_90a"\]\)',
    ):
        wrapper_source(lambda x: op.overload(x), (4,), package=True)
