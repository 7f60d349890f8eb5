"""Inductor's names for the installed torch: those in the adapter's `__all__`. Importing this
imports Inductor, which takes seconds.
"""

from __future__ import annotations

import importlib

import torch

from .version import adapter_name

_adapter = importlib.import_module(f".{adapter_name(torch.__version__)}", __package__)
globals().update({name: getattr(_adapter, name) for name in _adapter.__all__})
