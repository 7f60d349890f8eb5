"""What all benchmarks share: a description of the machine, timing on the host, the format of
results."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

RESULTS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "results")


def machine() -> dict[str, Any]:
    """The device, driver and versions on which a result depends."""
    import torch

    facts: dict[str, Any] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cpu_cores": os.cpu_count(),
    }
    if torch.cuda.is_available():
        facts["device"] = torch.cuda.get_device_name(0)
        query = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=False,
        )
        facts["driver"] = (
            query.stdout.strip().splitlines()[0] if query.returncode == 0 else "unknown"
        )
        facts["cuda"] = torch.version.cuda
        try:
            import triton

            facts["triton"] = triton.__version__
        except ImportError:
            facts["triton"] = None
    else:
        facts["device"] = "cpu"
    return facts


def host_us(
    call: Callable[[], Any],
    *,
    per: int,
    synchronize: Callable[[], None],
    repeats: int = 200,
    warmups: int = 20,
) -> float:
    """Median host time of one of the `per` steps inside `call`, in microseconds; the device is idle
    when each repeat starts.
    """
    for _ in range(warmups):
        call()
    times = []
    for _ in range(repeats):
        synchronize()
        start = time.perf_counter()
        call()
        times.append((time.perf_counter() - start) * 1e6 / per)
    synchronize()
    return statistics.median(times)


def save(name: str, measured: dict[str, Any], *, what: str) -> str:
    """Writes bench/results/<name>.json and prints it. Of `what`, the first paragraph is kept."""
    result = {
        "benchmark": name,
        "what": " ".join(what.strip().split("\n\n")[0].split()),
        "command": "python " + " ".join([os.path.relpath(sys.argv[0]), *sys.argv[1:]]),
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "results": measured,
    }
    folder = arguments().parse_known_args()[0].output
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, f"{name}.json")
    with open(path, "w", encoding="utf-8") as stream:
        json.dump(result, stream, indent=2)
        stream.write("\n")
    print(json.dumps(result, indent=2))
    return path


def arguments() -> argparse.ArgumentParser:
    """The arguments of every benchmark, as a parent for a parser with more."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument(
        "--output", default=RESULTS, help="folder of the result; bench/results by default"
    )
    return parser
