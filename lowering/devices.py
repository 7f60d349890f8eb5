"""The names of devices in generated code, the runtime and reports."""

from __future__ import annotations

import torch


def device_name(device: torch.device) -> str:
    """The name that the runtime reads and writes (runtime/base/device.h): "cpu", "cuda:0"."""
    return f"cuda:{device.index or 0}" if device.type == "cuda" else device.type
