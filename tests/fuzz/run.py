"""A differential fuzz: random ops and programs, opaq against PyTorch's own arithmetic. `python
tests/run.py fuzz --help` lists the options.
"""

from __future__ import annotations

import argparse
import collections
import faulthandler
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from typing import Any

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import fast_kernels  # noqa: E402

BATCH = 40  # programs over the same ops
HANG = 600  # seconds


def main(argv: list[str] | None = None) -> int:
    """Runs workers and sums up what they found; 1 if something differs silently, fails or
    dies."""
    options = parse(argv)
    if options.worker is not None:
        return work(options)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="opaq-fuzz-") as folder:
        os.environ.update(fast_kernels.environment(folder, folder))
        workers = [Worker(options, index, folder) for index in range(options.workers)]
        total: collections.Counter[str] = collections.Counter()
        reasons: dict[str, collections.Counter[str]] = {
            "refused": collections.Counter(),
            "torch": collections.Counter(),
        }
        failures = 0
        for worker in workers:
            report, texts = worker.result()
            total.update(report["counts"])
            for kind, found in report["reasons"].items():
                reasons[kind].update(found)
            failures += len(texts)
            for text in texts:
                print(text, flush=True)
    line = {
        "seed": options.seed,
        "seconds": round(time.monotonic() - started),
        "device": options.device,
        "failures": failures,
        **total,
        **{f"{kind} by reason": dict(found.most_common()) for kind, found in reasons.items()},
    }
    print(json.dumps(line), flush=True)
    return 1 if failures else 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tests/run.py fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=1)
    parser.add_argument(
        "--programs", type=int, help="end each worker after this many, before the minutes are over"
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=None,
        help="of the first batch of ops; the time of day when not given",
    )
    parser.add_argument("--workers", type=int, default=min(8, os.cpu_count() or 1))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--batch", type=int, help="run this batch of ops only")
    parser.add_argument("--program", type=int, help="run this program of the batch only")
    parser.add_argument(
        "--forms",
        help="only these, by commas: eager, stock, backend, dynamic, cpp_wrapper, dynamic "
        "cpp_wrapper, package",
    )
    parser.add_argument("--keep-going", action="store_true", help="go on after a failure")
    parser.add_argument("--found", help="a folder for a file for each failure")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.seed is None:
        options.seed = int(time.time())
    if options.batch is not None:
        options.workers = 1
    return options


class Worker:
    """A process of its own: if it crashes, the report is still made."""

    def __init__(self, options: argparse.Namespace, index: int, folder: str) -> None:
        self.folder = os.path.join(folder, str(index))
        os.makedirs(self.folder)
        given = {
            key.replace("_", "-"): value
            for key, value in vars(options).items()
            if key not in ("worker", "folder") and value is not None
        }
        flags = [
            f"--{key}" if value is True else f"--{key}={value}"
            for key, value in given.items()
            if value is not False
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        environment.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
        command = [sys.executable, __file__, *flags, f"--worker={index}", f"--folder={self.folder}"]
        with open(os.path.join(self.folder, "log"), "w") as log:
            self.process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=subprocess.STDOUT
            )

    def result(self) -> tuple[dict[str, Any], list[str]]:
        """The counts, and the text of each failure. A worker that died is a failure."""
        code = self.process.wait()
        texts = []
        for name in sorted(os.listdir(self.folder)):
            if name.startswith("failure"):
                with open(os.path.join(self.folder, name)) as stream:
                    texts.append(stream.read())
        report: dict[str, Any] = {"counts": {}, "reasons": {}, "at": "its start"}
        if os.path.exists(os.path.join(self.folder, "report.json")):
            with open(os.path.join(self.folder, "report.json")) as stream:
                report = json.load(stream)
        if code != 0:
            with open(os.path.join(self.folder, "log")) as stream:
                texts.append(
                    f"A worker ended with {code} at {report['at']}:\n{stream.read()[-4000:]}"
                )
        return report, texts


def work(options: argparse.Namespace) -> int:
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    import check
    import declare
    import prelude
    import program

    prelude.DEVICE = options.device
    check.quiet()
    counts: collections.Counter[str] = collections.Counter()
    reasons: dict[str, collections.Counter[str]] = {
        "refused": collections.Counter(),
        "torch": collections.Counter(),
    }
    end = time.monotonic() + 60 * options.minutes
    batch = options.worker if options.batch is None else options.batch

    def over() -> bool:
        return time.monotonic() > end or counts["programs"] == options.programs

    while not over():
        namespace = f"fuzz_{options.seed}_{batch}"
        rng = random.Random(f"{options.seed} {batch}")
        ops = tuple(declare.random_op(rng, f"f{i}") for i in range(8))
        everything = program.Program(ops, (), (), ())
        declared = program.execute(
            everything.declarations(namespace, options.device), program.base(), f"<{namespace}>"
        )
        twins = program.execute(everything.twins(), program.base(), f"<twins of {namespace}>")
        for index in range(BATCH) if options.program is None else [options.program]:
            if over():
                break
            rng = random.Random(f"{options.seed} {batch} {index}")
            made = program.random_program(rng, ops, twins)
            if made is None:
                continue
            checked = check.Checked(made, declared, twins)
            if not checked.valid():
                continue
            counts["programs"] += 1
            where = f"--seed {options.seed} --batch {batch} --program {index}"
            for form in (
                check.forms(rng, made) if options.forms is None else options.forms.split(",")
            ):
                faulthandler.dump_traceback_later(HANG, exit=True)
                save(options.folder, counts, reasons, f"{where} ({form})")
                finding = checked.check(form, options.folder)
                counts[f"calls {form}"] += checked.calls
                counts["calls compared"] += checked.calls
                if finding is None:
                    continue
                counts[finding.kind] += 1
                if finding.kind != "failed":
                    reasons[finding.kind][finding.text] += 1
                    continue
                command = f"python tests/run.py fuzz {where} --device {options.device}"
                faulthandler.cancel_dump_traceback_later()
                smallest = check.shrink(checked, finding, options.folder)
                faulthandler.dump_traceback_later(HANG, exit=True)
                finding = smallest.check(form, options.folder) or finding
                text = check.reproducer(smallest, finding, options.device, command)
                for folder, name in (
                    (options.folder, f"failure{counts['failed']}"),
                    (options.found, f"{namespace}_{index}_{form.replace(' ', '_')}.py"),
                ):
                    if folder:
                        os.makedirs(folder, exist_ok=True)
                        with open(os.path.join(folder, name), "w") as stream:
                            stream.write(text)
                if not options.keep_going:
                    save(options.folder, counts, reasons, where)
                    return 0
                break
        if options.batch is not None:
            break
        batch += options.workers
    save(options.folder, counts, reasons, "its end")
    faulthandler.cancel_dump_traceback_later()
    return 0


def save(folder: str, counts: Any, reasons: Any, at: str) -> None:
    with open(os.path.join(folder, "report.json"), "w") as stream:
        json.dump({"counts": counts, "reasons": reasons, "at": at}, stream)


if __name__ == "__main__":
    sys.exit(main())
