"""Checks one program: compares opaq, in eager and in each compiled form, with the twins (the same
ops in PyTorch), and shrinks a program that differs.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import random
import re
import time
import warnings
from collections.abc import Iterator
from typing import Any

import fast_kernels
import prelude
import torch
import torch._inductor.config
from prelude import Outcome, compiled, difference, run
from program import Program, base, execute

import opaq

_names = itertools.count()  # of namespaces, which PyTorch keeps for good


@dataclasses.dataclass(frozen=True)
class Finding:
    """kind: "refused" (an error of opaq), "torch" (compiled PyTorch fails too), "failed"."""

    form: str
    kind: str
    text: str
    calls: int = 0


class Checked:
    """A program with its declared ops and their twins, and the outcome with the twins."""

    def __init__(self, program: Program, ops: dict[str, Any], twins: dict[str, Any]) -> None:
        self.program = program
        self.ops = execute(program.source(), dict(ops), f"<fuzz {id(self)}>")["program"]
        self.twin = execute(program.source("twin"), dict(twins), f"<twin {id(self)}>")["twin"]
        self.inputs = execute(program.inputs_source(), base(), f"<inputs {id(self)}>")["inputs"]

    def expected(self, seed: int, grow: int) -> Outcome:
        return run(self.twin, self.inputs(seed, grow), self.program.gradients)

    def valid(self) -> bool:
        return self.expected(0, 0).error is None

    def check(self, form: str, folder: str) -> Finding | None:
        """The first finding; None if all forms agree. Counts the compared calls in `calls`."""
        self.calls = 0
        function = self.ops
        sizes = (0, 1, 2) if form.startswith("dynamic") or form == "eager" else (0,)
        if form != "eager":
            try:
                function = compiled(form, self.ops, self.inputs(), folder)
            except Exception as error:  # noqa: BLE001  (a package is made before it is called)
                return self._judge(form, Outcome(), Outcome(error=error), 0, 0, folder)
        for seed, grow in [(0, 0), (1, 0), *((2, grow) for grow in sizes if grow)]:
            expected = self.expected(seed, grow)
            if expected.error is not None:
                continue
            got = run(function, self.inputs(seed, grow), self.program.gradients)
            self.calls += 1
            if difference(expected, got):
                return self._judge(form, expected, got, seed, grow, folder)
        return None

    def stock(self, record: list[Any] | None = None) -> Any:
        """The program over custom ops of PyTorch, which add to `record` what `prelude.choose`
        does."""
        name = f"fuzz{next(_names)}"
        names = {**base(), "choose": functools.partial(prelude.choose, record=record)}
        return execute(
            self.program.source(),
            execute(self.program.stock(name), names, f"<{name}>"),
            f"<program of {name}>",
        )["program"]

    def traceable(self, seed: int, grow: int) -> Any:
        """The twin for a compiler: without conditions that are unknown while it traces, which would
        break the graph. For calls with inputs of this seed.
        """
        record: list[Any] = []
        for size in dict.fromkeys([0, grow]):
            self._twin(functools.partial(prelude.choose, record=record))(*self.inputs(seed, size))
        shared = [shares for _, _, shares in record if shares]

        def choose(
            implementations: Any, tensors: Any, written: Any, reference: bool = False
        ) -> Any:
            position, copied = prelude.pick(implementations, tensors, reference)
            return position, *prelude.place(
                tensors,
                written,
                shared.pop(0) if copied and written else {name: name for name in copied},
            )

        return self._twin(choose)

    def _twin(self, choose: Any) -> Any:
        names = execute(self.program.twins(), {**base(), "choose": choose}, f"<twins {id(choose)}>")
        return execute(self.program.source("twin"), names, f"<twin {id(choose)}>")["twin"]

    def _judge(
        self, form: str, expected: Outcome, got: Outcome, seed: int, grow: int, folder: str
    ) -> Finding:
        text = difference(expected, got)
        if got.error is not None and refusal(got.error):
            return Finding(form, "refused", refusal(got.error), self.calls)
        # It is no failure of opaq if compiled PyTorch gets the program wrong with the twins, or
        # cannot run it with custom ops of its own.
        if got.error:
            torch_does = difference(
                expected, self._attempt(form, self.stock, seed, grow, folder)
            ) or self._fails_without_ops(form, seed, grow, folder)
        else:
            control = self._attempt(form, lambda: self.traceable(seed, grow), seed, grow, folder)
            torch_does = (
                (control.error is None and difference(expected, control))
                or self._fails_without_ops(form, seed, grow, folder)
                or self._given_other_strides(form, got, seed, grow, folder)
            )
        if torch_does:
            return Finding(form, "torch", _general(text), self.calls)
        return Finding(form, "failed", f"{text}\n(seed {seed}, grow {grow})", self.calls)

    def _attempt(self, form: str, make: Any, seed: int, grow: int, folder: str) -> Outcome:
        """The outcome of a function in this form. It is compiled for inputs that do not grow."""
        try:
            function = make()
            control = (
                function if form == "eager" else compiled(form, function, self.inputs(seed), folder)
            )
            if grow:
                run(control, self.inputs(seed), self.program.gradients)
            return run(control, self.inputs(seed, grow), self.program.gradients)
        except Exception as error:  # noqa: BLE001  (a package is made before it is called)
            return Outcome(error=error)

    def _fails_without_ops(self, form: str, seed: int, grow: int, folder: str) -> bool:
        """Whether the program without its calls of ops is wrong, or raises, in this form too."""
        rest = self.program.without_ops()
        if not rest.results:
            return False
        expected, got = (
            self._attempt(
                each,
                lambda: execute(rest.source("twin"), base(), f"<rest {id(self)}>")["twin"],
                seed,
                grow,
                folder,
            )
            for each in ("eager", form)
        )
        return not expected.error and bool(difference(expected, got))

    def _given_other_strides(
        self, form: str, got: Outcome, seed: int, grow: int, folder: str
    ) -> bool:
        """Whether compiled PyTorch passes other strides to custom ops of its own than eager does,
        and the outcome of opaq is that of those ops, or of the implementations that fit those
        strides.

        PyTorch may compute the new value of a written tensor with other strides than the tensor's.
        """
        record: list[Any] = []
        eager = self._attempt("eager", lambda: self.stock(record), seed, grow, folder)
        in_eager = [given for given, _, _ in record]
        record.clear()
        outcome = self._attempt(form, lambda: self.stock(record), seed, grow, folder)
        if eager.error or outcome.error or all(given in in_eager for given, _, _ in record):
            return False
        if not difference(outcome, got):
            return True
        # of the run with these inputs
        picks = [picked for _, picked, _ in record[-len(record) // (2 if grow else 1) :]]
        return not difference(
            run(
                self._twin(functools.partial(prelude.choose, picks=picks)),
                self.inputs(seed, grow),
                self.program.gradients,
            ),
            got,
        )


def refusal(error: Exception) -> str:
    """The general text of an error by which opaq refuses a call; "" for any other error."""
    seen: Any = error
    while seen is not None:
        if isinstance(seen, opaq.Error):
            return _general(f"{type(seen).__name__}: {seen}")
        seen = seen.__cause__ or seen.__context__
    found = re.search(
        r"(Trying to backward through fuzz_\w+.\w+.default but no|\w+\.LaunchError|fuzz_\w+::).*",
        str(error),
        re.DOTALL,
    )
    return _general(found.group(0)) if found else ""


def _general(text: str) -> str:
    """An error's text without names and numbers of the program, so that reasons can be counted."""
    text = re.sub(r"fuzz_\w+::\w+", "OP", text.strip().split("\n\n")[0])
    return re.sub(r"\s+", " ", re.sub(r"\d+", "N", text))[:240]


def forms(rng: random.Random, program: Program) -> list[str]:
    """The forms to check: eager always, forms with a C++ wrapper (ten seconds of g++) rarely."""
    chosen = rng.sample(["stock", "backend", "dynamic"], 1 if program.gradients else 2)
    if not program.gradients:
        chosen += [
            form
            for form, share in (
                ("cpp_wrapper", 0.02),
                ("dynamic cpp_wrapper", 0.01),
                ("package", 0.01),
            )
            if rng.random() < share
        ]
    return ["eager", *chosen]


def quiet() -> None:
    """Settings of the process: no warnings, Inductor's kernels are compiled fast, and sizes that
    are equal by chance are not assumed to be equal.
    """
    for name, value in fast_kernels.SETTINGS.items():
        setattr(torch._inductor.config, name, value)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    torch.fx.experimental._config.use_duck_shape = False
    torch._dynamo.config.recompile_limit = 64
    torch._logging.set_logs(all=50)
    if prelude.DEVICE == "cuda":
        torch.cuda.init()


def shrink(checked: Checked, finding: Finding, folder: str, seconds: float = 60) -> Checked:
    """The smallest program that fails in the same form, as far as the time allows to find it."""
    end = time.monotonic() + seconds
    ops, twins = checked.ops.__globals__, checked.twin.__globals__
    smaller = True
    while smaller:
        smaller = False
        for program in _smaller(checked.program):
            if time.monotonic() > end:
                return checked
            candidate = Checked(program, ops, twins)
            found = candidate.check(finding.form, folder) if candidate.valid() else None
            if (
                found is not None
                and found.kind == "failed"
                and found.text.startswith("raised") == finding.text.startswith("raised")
            ):
                checked, smaller = candidate, True
                break
    return checked


def _smaller(program: Program) -> Iterator[Program]:
    if len(program.results) > 1:
        for result in program.results:
            yield dataclasses.replace(
                program, results=tuple(name for name in program.results if name != result)
            )
    for i in reversed(range(len(program.statements))):
        yield dataclasses.replace(
            program, statements=program.statements[:i] + program.statements[i + 1 :]
        ).used()
    if len(program.inputs) > 1:
        yield dataclasses.replace(program, inputs=program.inputs[:-1])
    for i, text in enumerate(program.inputs):
        if text != "fill(seed, (4 + grow, 4))":
            yield dataclasses.replace(
                program,
                inputs=(*program.inputs[:i], "fill(seed, (4 + grow, 4))", *program.inputs[i + 1 :]),
            )
    if program.gradients:
        yield dataclasses.replace(program, gradients=False)


def reproducer(checked: Checked, finding: Finding, device: str, command: str) -> str:
    """A stand-alone program that shows the finding."""
    from program import prelude_source

    program = checked.program
    parts = [
        f'"""{finding.form}: {finding.text.splitlines()[0]}\n\nFound by: {command}"""',
        prelude_source()
        .split('"""', 2)[2]
        .strip()
        .replace('DEVICE = "cpu"', f'DEVICE = "{device}"'),
        "# ---- the ops, and the same in plain PyTorch",
        program.declarations("found", device),
        program.source("program"),
        "def twins():\n"
        + "\n".join(
            "    " + line
            for line in f"{program.twins()}\n\n{program.source('twin')}\n\nreturn twin".splitlines()
        ),
        program.inputs_source(),
        f"""form = "{finding.form}"
function = program if form == "eager" else compiled(form, program, inputs())
for seed, grow in ((0, 0), (1, 0), (2, 1), (2,
    2))[: 4 if "dynamic" in form or form == "eager" else 2]:
    expected = run(twins(), inputs(seed, grow), {program.gradients})
    got = run(function, inputs(seed, grow), {program.gradients})
    print(f"seed {{seed}}, grow {{grow}}:",
        "twins raise" if expected.error else difference(expected, got) or "the same")
    if got.error and not expected.error:
        raise got.error""",
    ]
    return "\n\n".join(parts) + "\n"
