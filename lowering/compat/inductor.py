"""Inductor's names for the installed torch. Importing this imports Inductor, which takes seconds."""

from __future__ import annotations

import importlib

import torch

from .version import adapter_name

_adapter = importlib.import_module(f".{adapter_name(torch.__version__)}", __package__)

cache_dir = _adapter.cache_dir
cexpr = _adapter.cexpr
OrderedSet = _adapter.OrderedSet
V = _adapter.V
compile_fx = _adapter.compile_fx
constants_wrapper = _adapter.constants_wrapper
copy_into = _adapter.copy_into
expressions = _adapter.expressions
fake_of = _adapter.fake_of
folds_constants = _adapter.folds_constants
graph_label = _adapter.graph_label
has_strides = _adapter.has_strides
ir = _adapter.ir
known_true = _adapter.known_true
lowering = _adapter.lowering
on_cache_key = _adapter.on_cache_key
op_name = _adapter.op_name
packaged = _adapter.packaged
pexpr = _adapter.pexpr
prints_two_wrappers = _adapter.prints_two_wrappers
register_lowering = _adapter.register_lowering
root_wrapper = _adapter.root_wrapper
schema_defaults = _adapter.schema_defaults
schema_text = _adapter.schema_text
size_hint = _adapter.size_hint
stock_fallback = _adapter.stock_fallback
tree_leaves = _adapter.tree_leaves
tree_map = _adapter.tree_map
use_layout_tag = _adapter.use_layout_tag
user_stream = _adapter.user_stream
wrapper_language = _adapter.wrapper_language
