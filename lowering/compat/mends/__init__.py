"""Faults of torch that affect graphs with opaque ops, and the patches that correct them. Only
`Inductor211.install_mends` installs them.

Each fault is in torch 2.11, the oldest that opaq supports, and in later torches before
`fixed_in`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from . import (
    argument_names,
    backward_wrappers,
    cache_files,
    cpp_arrays,
    dependencies,
    donated_inputs,
    eager_values,
    keyword_names,
    old_values,
    packages,
    partitions,
    random_calls,
    recomputed_calls,
    storage_offsets,
    written_views,
)

__all__ = ["MENDS", "Mend"]


@dataclasses.dataclass(frozen=True)
class Mend:
    wrong: str  # what is wrong upstream
    install: Callable[[], None]
    fixed_in: tuple[int, int] | None  # the first torch minor without the fault; None: no torch yet


MENDS = (
    Mend(
        "Inductor loads graphs and wrappers from its cache folder without checking whether the "
        "files are damaged.",
        cache_files.heal_files,
        fixed_in=None,
    ),
    Mend(
        "An op that writes cannot be traced if an argument is called `mode` or `ctx`: torch passes "
        "arguments by keyword to functions that have parameters of these names.",
        argument_names.make_own_parameters_positional,
        fixed_in=None,
    ),
    Mend(
        "A call that gives an argument by a keyword which Python reserves, **{'from': x}, is "
        "printed into the code of a graph as `from = x`.",
        keyword_names.print_by_position,
        fixed_in=None,
    ),
    Mend(
        "Inductor lowers `sym_storage_offset` to 0.",
        storage_offsets.lower_storage_offset,
        fixed_in=None,
    ),
    Mend(
        "Inductor counts the offset of `as_strided` on a graph input from where the input begins, "
        "instead of from the start of its storage.",
        storage_offsets.count_from_storage_start,
        fixed_in=(2, 15),
    ),
    Mend(
        "A written view of a graph input that does not begin at the start of its storage is "
        "recorded as a wrong slice of it, so other elements are written.",
        written_views.record_slices,
        fixed_in=None,
    ),
    Mend(
        "A written view of a tensor that was written before is recorded with eager's strides and "
        "offset, though its base is then a new, dense tensor.",
        written_views.record_places,
        fixed_in=None,
    ),
    Mend(
        "What eager mode gave to a writing op is not recorded if the op has a layout tag, so that "
        "copies which Inductor removes in spite of the write are not seen.",
        eager_values.record_of_writes,
        fixed_in=None,
    ),
    Mend(
        "The scheduler forgets that a write waits for readers of the old value when it computes "
        "the loops of a CPU kernel again to fuse it.",
        dependencies.keep_added_dependencies,
        fixed_in=(2, 15),
    ),
    Mend(
        "The scheduler fuses a write in place with a reader of the same memory without checking "
        "that both visit the elements in the same order.",
        dependencies.keep_reads_before_writes,
        fixed_in=(2, 15),
    ),
    Mend(
        "Equal calls of a custom op that draws random numbers are merged into one.",
        random_calls.keep_random_calls_apart,
        fixed_in=(2, 15),
    ),
    Mend(
        "With activation_memory_budget below 1, a backward graph makes calls with ordered effects "
        "and random calls again.",
        recomputed_calls.save_results,
        fixed_in=None,
    ),
    Mend(
        "A backward graph computes again, from what was written, a value that the forward graph "
        "computed from an input before it wrote to the input.",
        old_values.save_old_values,
        fixed_in=None,
    ),
    Mend(
        "A saved tensor counts as held by nothing else, and is written over, though an argument or "
        "a result of the forward graph is a view of its memory, if a pass removed an operation "
        "between them that changes nothing, such as x.clone() or x / 1.",
        donated_inputs.leave_memory_that_others_hold,
        fixed_in=None,
    ),
    Mend(
        "A graph that reads a size from the device fails when it is recorded as a CUDA graph: the "
        "part after the read gets None as an argument.",
        partitions.pass_only_memory,
        fixed_in=None,
    ),
    Mend(
        "With caching_precompile, a stored graph that cannot be loaded is an AssertionError, "
        "CompilePackage is already initialized, though torch means to compile again.",
        packages.begin_again,
        fixed_in=None,
    ),
    Mend(
        "A C++ wrapper can use an array of sizes or strides before the line that declares it.",
        cpp_arrays.keep_arrays_apart,
        fixed_in=(2, 15),
    ),
    Mend(
        "A backward graph with a C++ wrapper is compiled without their configuration: on a GPU its "
        "nodes are printed into a Python wrapper first.",
        backward_wrappers.configure_cpp_wrappers,
        fixed_in=(2, 15),
    ),
)
