"""Replaces parts of unmodified models by ops: `options={"substitute": ...}` of backend="opaq".

    pattern.py       what is found, and what is put in its place
    spelling.py      functions as graphs: the spellings of a pattern
    forms.py         what a node computes, whichever way it is written
    calls.py         by the name of its function and its arguments in one order
    products.py      products, however their factors are associated
    parts.py         parts of a tensor, however they are taken
    operations.py    what is known of a node of a graph
    normal.py        detours that models take, written as the operations of patterns
    means.py         means of squares, however they are written
    linear.py        sums of two values that took the same linear steps
    rotations.py     rotations by matrices of cos and sin
    modes.py         changes of a mode that change nothing
    local_writes.py  writes that nothing else sees, as operations
    masks.py         masks that are true nowhere
    nodes.py         what is known of the nodes of a graph
    match.py         finds the places of a graph that compute what a spelling does
    measured.py      where the op was measured to be faster than what Inductor makes
    searched.py      where it is measured on this machine
    rewrite.py       puts the op there
    padding.py       where Inductor pads rows that the op would read (imports Inductor)
    packages.py      what cannot go into a package
    apply.py         all of it, for one graph (imports Inductor)

This works on the graph that Dynamo traced, before gradients are made: the op brings its own
gradient, so that forward and backward graphs change together, and a pattern has the form in which
models are written.
"""
