"""Many processes use one cache while some are killed and bits of its files are flipped: every value
is right, and the cache is undamaged afterwards.
"""

from __future__ import annotations

import pathlib

from programs import LONG, Places, places, run  # noqa: F401

KEYS, PROCESSES, SECONDS = (200, 8, 60) if LONG else (30, 4, 4)

OP = """
def keyed(i, number):
    op = opaq.op(f"life::k{i}(Tensor x) -> (Tensor y)", outputs=opaq.tensor("1", dtype="int64",
        device="x"))
    op.cpu(source="volatile long number = %d; void f(long* y) { *y = number; }" % number, entry="f",
        args="y")
    return op
"""

# Replaces the compiler, which would take 0.2 s for each key: gives the library with the number that
# is in the source.
COMPILER = """#!/bin/sh
while [ "$1" != -o ]; do case "$1" in *source.cpp) source=$1;; esac; shift; done
exec cp "{libraries}/$(sed -n 's/^volatile long number = \\([0-9]*\\);.*/\\1/p' "$source")" "$2"
"""

STORM = """
import random
cache = os.environ["OPAQ_CACHE_DIR"]
chance = random.Random(0)
numbers = {{i: 10**12 + i for i in range({keys})}}
ops = {{i: keyed(i, number) for i, number in numbers.items()}}

def child():
    pid = os.fork()
    if pid: return pid
    try:
        signal.alarm(100)  # a hang is an end by SIGALRM
        order = list(ops); random.Random(os.getpid()).shuffle(order)
        wrong = {{i: value for i in order if (value := ops[i](x).item()) != numbers[i]}}
        if wrong: print("wrong", wrong, flush=True)
        os._exit(bool(wrong))
    except BaseException as error:
        print("failed", type(error).__name__, error, flush=True)
        os._exit(2)

def flip():
    try:
        names = [entry.path for entry in os.scandir(cache) if entry.is_file()]
        with open(chance.choice(names), "r+b") as stream:
            at = chance.randrange(os.path.getsize(stream.fileno()))
            stream.seek(at); byte = stream.read(1)[0]
            stream.seek(at); stream.write(bytes([byte ^ (1 << chance.randrange(8))]))
        return 1
    except (OSError, IndexError,
        ValueError): return 0  # nothing is stored yet, or another process took it away

running = [child() for _ in range({processes})]
end = time.monotonic() + {seconds}
endings = dict.fromkeys(["whole", "killed"], 0); flips = 0
while running:
    storming = time.monotonic() < end
    time.sleep(0.01)
    if storming:
        flips += flip()
        if chance.random() < 0.1: os.kill(chance.choice(running), signal.SIGKILL)
    for pid in list(running):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if not ended: continue
        assert status in (0, signal.SIGKILL), status
        endings["killed" if status else "whole"] += 1
        running.remove(pid)
        if storming:
            running.append(child())
assert endings["whole"] >= 1 and flips >= 1, (endings, flips)
print(endings, flips, file=sys.stderr)

# Every entry is whole, or is compiled again and then is.
assert os.waitpid(child(), 0)[1] == 0
for op in ops.values(): op(x)
print("compiled", sum(item["compiled"] for item in _runtime.implementation_stats()))
# Temporary files that the killed have left go when they are an hour old.
for entry in os.scandir(cache):
    if entry.name.startswith(".tmp-"): os.utime(entry.path, (0, 0))
keyed("last", 1234567890123)(x)
print("temporary", [name for name in os.listdir(cache) if name.startswith(".")])
"""


def test_a_storm(places: Places, tmp_path: pathlib.Path) -> None:
    libraries = tmp_path / "libraries"
    libraries.mkdir()
    run(
        places,
        OP
        + f"""
op = keyed("model", 1234567890123); op(x)
choice = _runtime.choose(op.name, "cpu", {{"cpu": []}}, [])["handle"]
facts = [("float32", (3,), (1,), "cpu", 64)]
node = _runtime.cpp_node(op.name, choice, facts, "cpu", [], False, False)
library = _runtime.cpp_code(node)[0][0]["bytes"]
model = (1234567890123).to_bytes(8, "little")
assert library.count(model) == 1
for number in (1234567890123, *range(10**12, 10**12 + {KEYS})):
    open(os.path.join({str(libraries)!r}, str(number)), "wb").write(library.replace(model,
        number.to_bytes(8, "little")))
""",
    )
    compiler = tmp_path / "compiler"
    compiler.write_text(COMPILER.format(libraries=libraries))
    compiler.chmod(0o700)
    places.cache = tmp_path / "storm" / "cache"
    output = run(
        places,
        OP + STORM.format(keys=KEYS, processes=PROCESSES, seconds=SECONDS),
        environment={"OPAQ_CXX": str(compiler)},
        timeout=SECONDS + 200,
    )
    assert output.splitlines()[-2:] == ["compiled 0", "temporary []"], output
    assert places.left_behind() == []
