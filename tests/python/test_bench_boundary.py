"""`opaq bench boundary`: figures, contestants that are absent, wrong or fail, mistakes of users."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import Any

import pytest
import torch

from opaq import cli
from opaq.bench import boundary, boundary_peers
from opaq.bench.boundary_kernel import Kernel

Records = dict[tuple[str, str, str], dict[str, Any]]
NEEDS_CUDA = ["triton_op", "CuPy RawKernel", "cuda.core", "torch.cuda._compile_kernel"]


def bench(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, Records]:
    """The exit status and the records of a run."""
    status = cli.main(
        ["bench", "boundary", "--device", "cpu", "--rounds", "1", "--json", *arguments]
    )
    made = json.loads(capsys.readouterr().out)
    assert made["benchmark"] == "boundary" and made["method"]["rounds"] == 1
    return status, {
        (each["case"], each["contestant"], each["metric"]): each for each in made["records"]
    }


def test_figures_of_a_chain(capsys: pytest.CaptureFixture[str]) -> None:
    names = "opaq,custom_op,triton_op,cupy,cuda_core,compile_kernel"
    status, found = bench(capsys, "--chain", "3", "--ways", "eager,python", "--only", names)
    assert status == 0
    for way in ("eager", "Python wrapper"):
        raw, ours, theirs = (
            {
                metric: found[case, contestant, metric]
                for case, metric in (
                    (f"{way}, chain of 3", "added op"),
                    (f"{way}, chain of 3", "op in a chain"),
                    (way, "call of one op"),
                )
            }
            for contestant in ("raw loop", "opaq", "torch.library.custom_op")
        )
        for of_metric in (ours, theirs):
            call, in_chain = (
                of_metric[metric]["value"] for metric in ("call of one op", "op in a chain")
            )
            added = (3 * in_chain - call) / 2
            assert of_metric["added op"]["value"] == pytest.approx(added, rel=1e-2, abs=1e-2)
            assert of_metric["call of one op"]["to"] == "raw loop"
            assert of_metric["call of one op"]["floor"] == raw["call of one op"]["value"]
        assert raw["added op"]["verdict"] == "baseline"
        assert 0 < raw["added op"]["value"] < ours["call of one op"]["value"]
        assert ours["call of one op"]["value"] < theirs["call of one op"]["value"]
    for contestant in NEEDS_CUDA:
        record = found["eager, chain of 3", contestant, "added op"]
        assert (record["verdict"], record["note"]) == ("absent", "needs a GPU")
        in_compiled = ("Python wrapper, chain of 3", contestant, "added op") in found
        assert in_compiled == (contestant == "triton_op")


def test_lengths_and_numbers_of_tensors(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--chain", "1,2,4", "--tensors", "1,2,16", "--ways", "eager"]
    status, found = bench(capsys, *options, "--only", "opaq,custom_op,library_impl")
    assert status == 0
    assert all(record["value"] is not None for record in found.values())
    assert list(dict.fromkeys(case for case, _, _ in found)) == [
        f"eager{chain}{tensors}"
        for tensors in (", tensors: 1", "", ", tensors: 16")
        for chain in (", chain of 2", ", chain of 4", "")
    ]


def test_what_is_not_here_is_absent(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tvm_ffi", None)
    monkeypatch.setenv("CXX", "no-such-g++")
    status, found = bench(capsys, "--chain", "1", "--ways", "eager,package-cpp")
    assert status == 0
    notes = {name: record["note"] for (case, name, _), record in found.items() if case == "eager"}
    assert notes.pop("TVM-FFI") == "not installed: apache-tvm-ffi"
    assert {notes.pop(name) for name in NEEDS_CUDA} == {"needs a GPU"}
    assert set(notes) == {
        "raw loop", "opaq", "C++ TORCH_LIBRARY", "torch.library.custom_op", "Library.impl"
    }  # fmt: skip
    assert set(notes.values()) == {"needs a C++ compiler: there is no no-such-g++"}
    assert {record["verdict"] for record in found.values()} == {"absent"}


def test_wrong_and_failing_contestants_are_called_out(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        raise ValueError("no such chip\nmore of it")

    planted = {"custom_op": lambda a, b: a * b + 1.01 * a, "library_impl": broken}
    for name, op in planted.items():
        peer = dataclasses.replace(boundary_peers.PEERS[name], make=lambda kernel, op=op: op)
        monkeypatch.setitem(boundary.PEERS, name, peer)
    names = "opaq,custom_op,library_impl"
    status, found = bench(capsys, "--chain", "2", "--ways", "eager", "--only", names)
    assert status == 1
    case = "eager, chain of 2"
    wrong = found[case, "torch.library.custom_op", "added op"]
    assert (wrong["verdict"], wrong["value"]) == ("wrong", None)
    assert wrong["note"].startswith("chain of 1: result 0: relative error 0.0")
    failed = found[case, "Library.impl", "added op"]
    assert (failed["verdict"], failed["note"]) == ("failed", "ValueError: no such chip")
    assert found[case, "opaq", "added op"]["value"] is not None


@pytest.mark.parametrize("tensors", [1, 2, 16])
def test_the_kernels_of_cuda_compile(tensors: int) -> None:
    kernel = Kernel(tensors, "cuda")
    op = boundary_peers.of_opaq(kernel)
    examples = [torch.empty(16, 256, device="meta") for _ in range(tensors)]
    checked = op.check(*examples, arch="sm_90a")
    assert checked.ok, checked.problems
    if tensors == 2:
        triton_op = boundary_peers.of_triton(kernel)
        assert len(triton_op._opoverload._schema.arguments) == tensors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--chain", "0"], "--chain: got '0'; expected whole numbers from 1 to 10000, as in 1,10"),
        (["--chain", "5,x"], "--chain: got '5,x'; expected whole numbers from 1 to 10000"),
        (["--tensors", "17"], "--tensors: got '17'; expected whole numbers from 1 to 16"),
        (["--ways", "egar"], "--ways: got 'egar'; expected eager, python, cpp, package-python"),
        (["--only", "opaq,tvm"], "--only: got 'tvm'; expected opaq, cpp, triton_op, custom_op"),
        (["--ways", "cuda-graph"], "--ways cuda-graph needs --device cuda; this runs on the cpu"),
    ],
)
def test_mistakes_of_the_user_are_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    try:
        status = cli.main(["bench", "boundary", "--device", "cpu", *arguments])
    except SystemExit as exit:  # by argparse
        status = exit.code
    shown = capsys.readouterr()
    assert status == 2 and shown.out == ""
    assert message in shown.err.strip().splitlines()[-1]
