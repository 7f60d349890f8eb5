"""Inductor's names for the installed torch. Importing this imports Inductor, which takes seconds."""

from __future__ import annotations

import importlib

import torch

from .version import adapter_name

_adapter = importlib.import_module(f".{adapter_name(torch.__version__)}", __package__)

OrderedSet = _adapter.OrderedSet
V = _adapter.V
WrittenValue = _adapter.WrittenValue
as_strided = _adapter.as_strided
before_writes = _adapter.before_writes
cache_dir = _adapter.cache_dir
can_copy = _adapter.can_copy
cexpr = _adapter.cexpr
compile_fx = _adapter.compile_fx
constants_wrapper = _adapter.constants_wrapper
copies_into = _adapter.copies_into
copy_into = _adapter.copy_into
expressions = _adapter.expressions
fake_of = _adapter.fake_of
fakes_of = _adapter.fakes_of
folds_constants = _adapter.folds_constants
functional_calls = _adapter.functional_calls
graph_label = _adapter.graph_label
has_row_major = _adapter.has_row_major
has_strides = _adapter.has_strides
insert_call = _adapter.insert_call
insert_copy = _adapter.insert_copy
ir = _adapter.ir
is_first_version = _adapter.is_first_version
is_view = _adapter.is_view
known_at_most = _adapter.known_at_most
known_true = _adapter.known_true
leaves_by_argument = _adapter.leaves_by_argument
live_values = _adapter.live_values
lowering = _adapter.lowering
obey_partition_rule = _adapter.obey_partition_rule
on_cache_key = _adapter.on_cache_key
op_name = _adapter.op_name
overwritten = _adapter.overwritten
packaged = _adapter.packaged
pexpr = _adapter.pexpr
prints_two_wrappers = _adapter.prints_two_wrappers
register_lowering = _adapter.register_lowering
replace_value = _adapter.replace_value
root_wrapper = _adapter.root_wrapper
schema_defaults = _adapter.schema_defaults
schema_text = _adapter.schema_text
shares_storage = _adapter.shares_storage
size_hint = _adapter.size_hint
stock_fallback = _adapter.stock_fallback
tree_leaves = _adapter.tree_leaves
tree_map = _adapter.tree_map
use_layout_tag = _adapter.use_layout_tag
user_stream = _adapter.user_stream
views_of_one = _adapter.views_of_one
with_leaves = _adapter.with_leaves
wrapper_language = _adapter.wrapper_language
write_in_place = _adapter.write_in_place
writes = _adapter.writes
written_values = _adapter.written_values
