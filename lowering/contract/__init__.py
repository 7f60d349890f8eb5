"""The contract check of compiled graphs: each call of an opaque op is held against the call that
was traced.

    traced.py    while compiling: keeps a graph as it was traced, with every copy that a write
                 needs, and marks the calls in Inductor's graph
    replay.py    at each run of the compiled graph: runs the kept graph beside it, op by op, as far
                 as each launch needs it
    compare.py   when two values are the same
    checked.py   the launches and functions of a generated wrapper: compares what they get with the
                 kept graph, and what they make with the op run alone

What one launch does to memory is checked by the runtime (runtime/check). With the option `check` no
compile cache is used: the kept graph is not in it.
"""
