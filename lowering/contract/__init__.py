"""The contract check of compiled graphs: compares each call of an opaque op with the call that was
traced.

    traced.py    while compiling: keeps a copy of the traced graph, with every copy that a write
                 needs, and marks the calls in Inductor's graph
    replay.py    at each run of the compiled graph: runs the kept graph too, op by op, as far as
                 each launch needs it
    compare.py   whether two values are the same
    checked.py   launches and functions of a generated wrapper: compares their arguments with those
                 in the kept graph, and their results with those of the op run by itself

What one launch does to memory is checked by the runtime (runtime/check). With the option `check` no
compile cache is used, since caches do not hold the kept graph.
"""
