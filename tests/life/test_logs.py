"""What TORCH_LOGS, torch._logging.set_logs and TORCH_TRACE show of opaq, in fresh processes."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import time
from typing import Any

import forked
import pytest

DECLARE = """
import logging, torch, opaq
COPY = "void f(const float* x, float* out, long n) { for (long i = 0; i < n; ++i) out[i] = x[i]; }"
op = opaq.op("logs::f(Tensor x) -> (Tensor out)", outputs=opaq.like("x"))
op.cpu(name="large", source=COPY, entry="f", args="x, out, x.numel()",
       requires="x.numel() > 100", priority=1)
op.cpu(source=COPY, entry="f", args="x, out, x.numel()")
"""
COMPILE = """
torch.compile(lambda x: op(op(x) + 1), options={"cpp_wrapper": CPP})(torch.ones(3))
"""
DECISION = "logs::f on cpu runs cpu (large: "


def run(script: str, **environment: str) -> str:
    """What the program writes to stderr."""
    known = {key: value for key, value in os.environ.items() if not key.startswith("TORCH_LOGS")}
    command = [sys.executable, "-c", script]
    if environment:  # torch reads these variables when it is imported
        done = subprocess.run(
            command, env=known | environment, capture_output=True, text=True, check=False
        )
    else:
        done = forked.run(command, inductor=True, env=known)
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.parametrize(("setting", "cpp"), [("opaq", False), ("+opaq", True), ("", False)])
def test_torch_logs(setting: str, cpp: bool) -> None:
    # A C++ wrapper out of Inductor's cache decides nothing.
    never_cached_before = COMPILE.replace("+ 1", f"+ {time.time_ns()}")
    program = DECLARE + f"CPP = {cpp}" + never_cached_before
    log = run(program, **({"TORCH_LOGS": setting} if setting else {}))
    assert log.count(DECISION) == (2 if setting else 0), log
    assert log.count("[0/0] model__0_inference_0 op") == (2 if setting else 0)  # torch's own format
    assert "Traceback" not in log


def test_opaq_may_be_imported_before_torch() -> None:
    program = "import opaq\n" + DECLARE + "CPP = False" + COMPILE
    assert run(program, TORCH_LOGS="+opaq").count(DECISION) == 2


def test_set_logs() -> None:
    set_logs = 'torch._logging.set_logs(modules={"opaq": logging.INFO})\n'
    imported = '"opaq.lowering.compat.inductor" in __import__("sys").modules'
    program = DECLARE + set_logs + f"assert not ({imported})\nCPP = False" + COMPILE
    assert run(program).count(DECISION) == 2


def test_logs_of_the_standard_library() -> None:
    basic = 'logging.basicConfig(); logging.getLogger("opaq").setLevel(logging.INFO)\n'
    assert run(DECLARE + basic + "CPP = False" + COMPILE).count("INFO:opaq:model__0") == 2


# ---- the structured trace ------------------------------------------------------------------------


def records(folder: pathlib.Path) -> list[tuple[dict[str, Any], Any]]:
    """(entry, content) of opaq's artifacts in a trace: a line of JSON, then its payload."""
    found = []
    (path,) = folder.iterdir()
    lines = path.read_text().splitlines()
    for i, line in enumerate(lines):
        if line[:1] != "V" or '"artifact": {"name": "opaq"' not in line:
            continue
        payload = []
        for following in lines[i + 1 :]:
            if not following.startswith("\t"):
                break
            payload.append(following[1:])
        found.append((json.loads(line[line.index("{") :]), json.loads("\n".join(payload))))
    return found


@pytest.mark.parametrize("cpp", [False, True], ids=["python", "cpp"])
def test_a_record_of_each_compiled_graph(cpp: bool, tmp_path: pathlib.Path) -> None:
    number = time.time_ns()  # graphs with it are in no cache
    never_cached_before = COMPILE.replace("+ 1", f"+ {number}")
    no_opaque_ops = f"\ntorch.compile(lambda x: x * {number})(torch.ones(3))"
    program = DECLARE + f"CPP = {cpp}" + never_cached_before + no_opaque_ops
    for attempt in ("compiled", "from Inductor's cache"):
        folder = tmp_path / attempt
        run(program, TORCH_TRACE=str(folder))
        ((entry, content),) = records(folder)
        (trace,) = folder.iterdir()
        assert ("fx_graph_cache_hit" in trace.read_text()) == (attempt != "compiled")
        assert entry["artifact"] == {"name": "opaq", "encoding": "json"}
        assert (entry["frame_id"], entry["frame_compile_id"]) == (0, 0)
        assert content["graph"] == "model__0_inference_0"
        nodes = content["nodes"]
        assert [(n["op"], n["device"], n["implementation"]) for n in nodes] == [
            ("logs::f", "cpu", "cpu")
        ] * 2
        assert all("x.numel() > 100" in node["reason"] for node in nodes)
        assert len({node["node"] for node in nodes}) == 2
        assert [(i["implementation"], i["image_bytes"]) for i in content["implementations"]] == [
            ("large", None),
            ("cpu", None),
        ]
