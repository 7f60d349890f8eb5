"""The command `opaq`: a mistake of the user's is one line on stderr and exit status 2, never a
traceback.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forked
import pytest
import torch

import opaq
from opaq import cli, demo

OPAQ = [sys.executable, "-m", "opaq"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "opaq: the following arguments are required: command; see opaq --help"),
        (["frobnicate"], "opaq: argument command: invalid choice: 'frobnicate'"),
        (
            ["inspect"],
            "opaq inspect: the following arguments are required: model; see opaq inspect --help",
        ),
        (["inspect", "a", "b"], "opaq: unrecognized arguments: b"),
        (["doctor", "--jsno"], "opaq: unrecognized arguments: --jsno"),
        (
            ["demo", "--steps", "0"],
            (
                "opaq demo: argument --steps: got '0'; expected a whole number, at least 1; see "
                "opaq demo --help"
            ),
        ),
        (["demo", "--steps", "-3"], "expected a whole number, at least 1"),
        (["demo", "--steps", "many"], "got 'many'; expected a whole number, at least 1"),
        (["demo", "--steps", "9" * 5000], "expected a whole number, at least 1"),
        (
            ["demo", "--seed", "-1"],
            "argument --seed: got '-1'; expected a whole number, at least 0",
        ),
        (["demo", "--seed", str(1 << 64)], "expected a whole number, at least 0"),
        (["demo", "--device", "tpu"], "opaq demo: argument --device: invalid choice: 'tpu'"),
        (["demo", "--device", "\x1b[31mcpu\n"], "\\x1b[31mcpu"),
    ],
)
def test_wrong_use_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as raised:
        cli.main(arguments)
    out, err = capsys.readouterr()
    assert raised.value.code == 2
    assert out == ""
    assert message in err
    assert err.count("\n") == 1 and err[:-1].isprintable()


@pytest.mark.skipif(torch.cuda.is_available(), reason="here there is a GPU")
def test_a_device_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["demo", "--device", "cuda", "--steps", "2"]) == 2
    assert (
        capsys.readouterr().err
        == "device 'cuda' was asked for, but torch sees no GPU; run `opaq doctor`, or pass "
        "--device cpu\n"
    )


def run(*arguments: str, before: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """The installed command in a process of its own, after the Python code `before`."""
    start = f"import sys\n{before}\nimport opaq_command\nsys.exit(opaq_command.main())"
    return forked.run(
        [sys.executable, "-c", start, *arguments],
        env={**os.environ, **environment},
    )


def test_version() -> None:
    done = run("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"opaq {opaq.__version__}\n", "")


def test_pyproject_alone_says_the_version() -> None:
    root = Path(__file__).parents[2]
    stated = re.search(r'^version = "([\d.]+)"', (root / "pyproject.toml").read_text(), re.M)
    assert stated is not None and stated[1] == opaq.__version__
    for path in ("CMakeLists.txt", "backend/__init__.py", "backend/cli.py"):
        assert stated[1] not in (root / path).read_text()


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("OPAQ_CACHE_SIZE", "lots", "OPAQ_CACHE_SIZE='lots' is not a size; expected"),
        ("OPAQ_CHECK", "yes", "OPAQ_CHECK='yes' is no kind of check"),
    ],
)
def test_a_bad_variable_is_one_line(variable: str, value: str, message: str) -> None:
    done = run("doctor", **{variable: value})
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"opaq: {message}") and done.stderr.count("\n") == 1


def test_only_the_demo_needs_the_packages_of_the_demo() -> None:
    hidden = "for name in ('rich', 'transformers'): sys.modules[name] = None"
    done = run("demo", before=hidden)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "the demo needs rich and transformers; run `pip install rich transformers`\n"
    )
    done = run("doctor", before=hidden)
    assert done.returncode == 0, done.stderr
    assert re.search(r"rich +found|rich +MISSING .* pip install rich", done.stdout)


def test_the_extra_holds_what_the_demo_imports() -> None:
    needed = importlib.metadata.requires("opaq") or []
    stated = {name.split(";")[0].strip() for name in needed if "demo" in name.partition(";")[2]}
    assert stated == set(demo.DEMO_PACKAGES)
    assert [name for name in needed if "extra" not in name] == ["torch>=2.11"]


def test_doctor_shows_the_cublaslt_that_products_use(tmp_path: Path) -> None:
    """The copy that torch has loaded, where it has; else that of the packages' folders."""
    header = Path(__file__).parents[2] / "runtime/standalone/include/standalone/cublaslt.h"
    symbols = set(re.findall(r'find\("(\w+)"', header.read_text())) - {"cublasLtGetVersion"}
    code = "".join(f"void {name}(void) {{}}\n" for name in symbols)
    packaged = tmp_path / "nvidia" / "a" / "lib" / "libcublasLt.so.13"
    packaged.parent.mkdir(parents=True)
    command = ["cc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(packaged)]
    code += "unsigned long cublasLtGetVersion(void) { return 120405; }"
    subprocess.run(command, input=code, text=True, check=True)
    loaded = re.findall(r"(/\S+/libcublasLt\.so\.\S+)", Path("/proc/self/maps").read_text())
    done = run("doctor", before=f"sys.path.insert(0, {str(tmp_path)!r})")
    path, version = (loaded[0], r"\d+\.\d+\.\d+") if loaded else (str(packaged), "12.4.5")
    assert re.search(rf"cuBLASLt +found +{version} .* {re.escape(path)}", done.stdout)


def wrapped(error: Exception) -> Exception:
    """An exception of a compilation, as torch.compile raises it."""
    outer = RuntimeError(f"BackendCompilerFailed: {error}")
    outer.__cause__ = error
    return outer


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (opaq.MissingError("no C++ compiler; set CXX"), "no C++ compiler; set CXX\n"),
        (wrapped(opaq.MissingError("no C++ compiler")), "no C++ compiler\n"),
        (wrapped(opaq.CompileError("x.cpp: it is wrong\nline\nline")), "x.cpp: it is wrong\n"),
        (FileNotFoundError(2, "No such file", "/x"), "/x: No such file\n"),
        (wrapped(torch.OutOfMemoryError("CUDA out of memory.")), "CUDA out of memory.\n"),
    ],
)
def test_what_a_user_can_mend_is_one_line(
    error: Exception,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def failing(**_: Any) -> Any:
        raise error

    monkeypatch.setattr(demo, "run", failing)
    assert cli.main(["demo"]) == 2
    assert capsys.readouterr() == ("", message)


def test_a_defect_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "run", lambda **_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli.main(["demo"])


def test_ctrl_c_ends_quietly(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from opaq import doctor

    def interrupted() -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "examine", interrupted)
    assert cli.main(["doctor"]) == 130
    assert capsys.readouterr() == ("", "interrupted\n")


@pytest.fixture
def many_ops(tmp_path: Path) -> str:
    path = tmp_path / "model.pt2"
    op = (
        '{"schema": "a::b()\u202e", "function": "f", "device": "cpu", "nodes": [], '
        '"implementations": []}'
    )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(
            "m/data/aotinductor/model/opaq.json", '{"ops": [' + ", ".join([op] * 20_000) + "]}"
        )
    return str(path)


def test_a_reader_that_goes_away(many_ops: str) -> None:
    with subprocess.Popen(
        [*OPAQ, "inspect", many_ops], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 1


def _full(many_ops: str) -> subprocess.CompletedProcess[str]:
    with open("/dev/full", "w", encoding="utf-8") as full:
        return subprocess.run(
            [*OPAQ, "inspect", many_ops],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )


def _closed(many_ops: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/bin/sh", "-c", f"{sys.executable} -m opaq inspect {many_ops} >&-"],
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )


def _ascii(many_ops: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    return subprocess.run(
        [*OPAQ, "inspect", many_ops + "\u00e9"],
        capture_output=True,
        env=environment,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("write", "status", "message"),
    [
        (_full, 2, "the output cannot be written: No space left on device\n"),
        (_closed, 0, ""),
        (_ascii, 2, "model.pt2\\xe9 cannot be read as a package: No such file or directory"),
    ],
)
def test_an_output_that_takes_less(
    write: Callable[[str], subprocess.CompletedProcess[str]],
    status: int,
    message: str,
    many_ops: str,
) -> None:
    done = write(many_ops)
    assert done.returncode == status
    assert message in done.stderr
    assert done.stderr.count("\n") <= 1


def test_a_package_is_not_read_from_a_pipe() -> None:
    done = subprocess.run(
        [*OPAQ, "inspect", "/dev/stdin"], input="", capture_output=True, text=True, check=False
    )
    assert "it is a named pipe, not a file" in done.stderr
    assert done.returncode == 2
