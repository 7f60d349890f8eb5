"""Inductor's names for the installed torch. Importing this imports Inductor, which takes seconds."""

from __future__ import annotations

import importlib

import torch

from .version import adapter_name

_adapter = importlib.import_module(f".{adapter_name(torch.__version__)}", __package__)

OrderedSet = _adapter.OrderedSet
V = _adapter.V
compile_fx = _adapter.compile_fx
copy_into = _adapter.copy_into
expressions = _adapter.expressions
fake_of = _adapter.fake_of
graph_label = _adapter.graph_label
has_strides = _adapter.has_strides
ir = _adapter.ir
known_true = _adapter.known_true
lowering = _adapter.lowering
on_cache_key = _adapter.on_cache_key
op_name = _adapter.op_name
pexpr = _adapter.pexpr
register_lowering = _adapter.register_lowering
root_wrapper = _adapter.root_wrapper
schema_defaults = _adapter.schema_defaults
schema_text = _adapter.schema_text
stock_fallback = _adapter.stock_fallback
tree_leaves = _adapter.tree_leaves
tree_map = _adapter.tree_map
use_layout_tag = _adapter.use_layout_tag
uses_python_wrapper = _adapter.uses_python_wrapper
