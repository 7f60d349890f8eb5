"""The machine, versions and settings that a result depends on."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from typing import Any

import torch

# Settings that change what is measured.
_VARIABLES = ("CUDA_", "OMP_", "OPAQ_", "PYTORCH_", "TORCH", "TRITON_")
_PACKAGES = ("triton", "transformers", "cupy-cuda13x", "cuda-core", "apache-tvm-ffi")


def facts() -> dict[str, Any]:
    """Device, driver, clocks, versions, and variables of the environment."""
    found: dict[str, Any] = {
        "device": "cpu",
        "cpu": _cpu(),
        "cpu_cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "opaq": metadata.version("opaq"),
    }
    found |= {name: version for name in _PACKAGES if (version := _version(name))}
    if torch.cuda.is_available():
        found["device"] = torch.cuda.get_device_name()
        found["cuda"] = torch.version.cuda
        found |= _of_nvidia_smi()
    found["environment"] = {
        name: value
        for name, value in sorted(os.environ.items())
        if name.startswith(_VARIABLES) and not name.endswith(("_DIR", "_HOME", "_PATH"))
    }
    return found


def _of_nvidia_smi() -> dict[str, str]:
    """The driver, and what decides the speed of the device: clocks now and at most, power."""
    wanted = {
        "driver": "driver_version",
        "clock_sm": "clocks.sm",
        "clock_sm_max": "clocks.max.sm",
        "clock_memory": "clocks.mem",
        "power_limit": "power.limit",
        "temperature_c": "temperature.gpu",
    }
    query = ["nvidia-smi", "--query-gpu=" + ",".join(wanted.values()), "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return {"driver": "unknown: nvidia-smi failed"}
    return dict(zip(wanted, (value.strip() for value in done.stdout.splitlines()[0].split(","))))


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as stream:
            for line in stream:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.machine()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
