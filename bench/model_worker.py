"""A process that runs one contestant of `opaq bench model`, and the parent's end of it.

Parent and worker exchange lines of JSON: {"do": name, ...}, answered by {"ok": facts} or
{"error": text}. What the model prints goes to the worker's log.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from opaq.user_file import WrongTarget

from .wanted import Made, Wanted, values_of

if TYPE_CHECKING:
    import torch

FIRST_CALL = "first call"
MODES = ("max-autotune", "max-autotune-no-cudagraphs", "reduce-overhead")
LARGE = 200_000_000  # parameters; a larger model is converted to float32, not to float64
# Of the steps that are timed together: on a GPU, so many that the host's work before the first
# kernel, which a loop of steps has once, does not count.
LEAST_SECONDS = {"cpu": 0.03, "cuda": 0.25}


class WorkerFailed(Exception):
    """In one line."""


class Worker:
    """The parent's end. backend: as of --backend. folder: for its log and its caches. patience:
    seconds within which it must answer."""

    def __init__(self, wanted: Wanted, backend: str, folder: str, patience: float) -> None:
        self._patience = patience
        os.makedirs(folder)
        self._log = f"{folder}/log"
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "opaq.bench.model_worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={
                    **os.environ,
                    "TORCHINDUCTOR_CACHE_DIR": f"{folder}/inductor",
                    "OPAQ_CACHE_DIR": f"{folder}/opaq",
                },
            )
        try:
            self._ask("start", wanted=dataclasses.asdict(wanted), backend=backend)
        except WorkerFailed:
            self.close()
            raise

    def first_call(self, size: Mapping[str, int], expected: str, is_first: bool) -> dict[str, Any]:
        """expected: the file of the first contestant's results, which it writes."""
        return self._ask("first_call", size=size, expected=expected, is_first=is_first)

    def seconds_of_step(self) -> float:
        return self._ask("seconds_of_step")

    def facts_of_step(self) -> dict[str, Any]:
        return self._ask("facts_of_step")

    def close(self) -> None:
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):  # a request that it did not live to read
                self._process.stdin.close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _ask(self, what: str, **more: Any) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        ended = threading.Event()

        def end() -> None:
            ended.set()
            self._process.kill()

        timer = threading.Timer(self._patience, end)
        timer.start()
        try:
            self._process.stdin.write(json.dumps({"do": what, **more}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            timer.cancel()
        if ended.is_set():
            raise WorkerFailed(f"no answer within {self._patience:g} s (--timeout)")
        if not line:
            raise WorkerFailed(f"its process ended: {self._end()}")
        answer = json.loads(line)
        if "wrong_use" in answer:
            raise WrongTarget(answer["wrong_use"])
        if "error" in answer:
            raise WorkerFailed(answer["error"])
        return answer["ok"]

    def _end(self) -> str:
        status = self._process.wait()
        with open(self._log, encoding="utf-8", errors="replace") as stream:
            lines = [line.strip() for line in stream if line.strip()]
        return f"exit status {status}{f', {lines[-1][:300]}' if lines else ''}"


class Contestant:
    """The worker's end."""

    def start(self, wanted: Mapping[str, Any], backend: str) -> None:
        import torch

        self._wanted = Wanted(**wanted)
        self._wanted.seed_generators()  # a file may draw its tensors where it is loaded
        self._wanted.load()  # first, since the file may register the backend
        self._compile = compiler_of(backend)
        self._made: Made | None = None
        self._on_gpu = self._wanted.device.startswith("cuda")
        if self._on_gpu:
            torch.cuda.init()

    def first_call(self, size: Mapping[str, int], expected: str, is_first: bool) -> dict[str, Any]:
        import torch

        from opaq.lowering.compat import graphs

        from . import measure

        made = self._wanted.make(size)
        if self._made is None:
            self._made = made
            self._compiled = self._compile(made.model)
        else:
            self._made.put_back(made.model)
            made.model = self._made.model
        self._step = _Step(made, self._compiled, self._wanted.train)
        before = graphs.counts()
        start = time.perf_counter()
        self._step()
        self._synchronize()
        seconds = time.perf_counter() - start
        facts: dict[str, Any] = {"first_call_s": seconds, "mistake": ""}
        generators = self._generators()
        results = self._step.results()
        if is_first:
            why = "" if results else "they hold no tensors and no numbers"
            if self._generators() != generators:
                why = f"{made.dropout() or 'what the model draws'} is random"
            torch.save((results, None if why else self._exact(size), why), expected)
        else:
            theirs, exact, why = torch.load(expected)
            if not why:
                facts["mistake"] = measure.mistake(results, measure.Expected(theirs, exact))
        facts["unchecked"] = f"results are not compared: {why}" if why else ""
        after = graphs.counts()
        facts["graphs"] = after.graphs
        facts["recompiled"] = after.graphs - before.graphs if before.graphs else 0
        facts["graph_breaks"] = after.breaks
        least = LEAST_SECONDS["cuda" if self._on_gpu else "cpu"]
        start = time.perf_counter()
        for _ in range(3):
            self._step()
        self._synchronize()
        self._repeats = max(1, round(least / ((time.perf_counter() - start) / 3)))
        if self._on_gpu:
            torch.cuda.empty_cache()  # for the other processes, until it is this one's turn
        return facts

    def seconds_of_step(self) -> float:
        if self._on_gpu:
            self._step()  # gets the memory that was freed for other processes again
        self._synchronize()
        start = time.perf_counter()
        for _ in range(self._repeats):
            self._step()
        self._synchronize()
        self._seconds = (time.perf_counter() - start) / self._repeats
        return self._seconds

    def facts_of_step(self) -> dict[str, Any]:
        from . import device

        found: dict[str, Any] = {"peak_mib": device.peak_mib(self._step, self._wanted.device)}
        if self._on_gpu:
            found |= device.kernels_of(self._step, self._seconds)
        return found

    def _generators(self) -> list[bytes]:
        """The states of torch's generators, which change where random numbers are drawn."""
        import torch

        states = [torch.get_rng_state()]
        if self._on_gpu:
            states.append(torch.cuda.get_rng_state())
        return [state.numpy().tobytes() for state in states]

    def _exact(self, size: Mapping[str, int]) -> Any:
        """The results of as many steps from the same state in float64; where the model is too large
        for that or does not take it, in float32, if that is wider; else None."""
        for dtype in self._wider_dtypes():
            try:
                exact = self._wanted.make(size).in_dtype(dtype)
                step = _Step(exact, exact.model, self._wanted.train)
                step()
                return step.results()
            except Exception:
                continue  # it takes other dtypes only, or the memory does not suffice
        return None

    def _wider_dtypes(self) -> list[torch.dtype]:
        """Those that the model that was made may be converted to."""
        import torch

        from . import measure

        made = self._made
        assert made is not None
        is_module = isinstance(made.model, torch.nn.Module)
        parameters = list(made.model.parameters()) if is_module else []
        given = [*parameters, *measure.tensors_in((made.args, made.kwargs))]
        wider = [] if sum(each.numel() for each in parameters) > LARGE else [torch.float64]
        if not any(each.is_floating_point() and each.itemsize >= 4 for each in given):
            wider.append(torch.float32)
        return wider

    def _synchronize(self) -> None:
        from . import measure

        measure.synchronizer(self._wanted.device)()


class _Step:
    """Forward under no_grad; with `train` forward, the loss or the sum of means, and backward."""

    def __init__(self, made: Made, compiled: Callable[..., Any], train: bool) -> None:
        import torch

        from . import measure

        self._made, self._compiled, self._train = made, compiled, train
        self._begin = torch.compiler.cudagraph_mark_step_begin
        self._begin()  # once here, since it imports Dynamo, which is no part of the first call
        self._leaves = [
            each for each in measure.tensors_in((made.args, made.kwargs)) if each.requires_grad
        ]
        if isinstance(made.model, torch.nn.Module):
            self._leaves += made.model.parameters()

    def __call__(self) -> Any:
        import torch

        self._begin()
        if not self._train:
            with torch.no_grad():
                return self._compiled(*self._made.args, **self._made.kwargs)
        for leaf in self._leaves:
            leaf.grad = None
        output = self._compiled(*self._made.args, **self._made.kwargs)
        _loss(output).backward()
        return output

    def results(self) -> list[Any]:
        """Outputs and gradients, on the CPU; of large ones a part."""
        import torch

        from . import measure

        found = measure.tensors_in(self(), numbers=True)
        found += [each.grad for each in self._leaves if each.grad is not None]
        dense = [each if each.layout == torch.strided else each.to_dense() for each in found]
        return [measure.sampled(each.detach()).cpu().clone() for each in dense]


def _loss(output: Any) -> Any:
    import torch

    from . import measure

    loss = getattr(output, "loss", None)
    outputs = [loss] if isinstance(loss, torch.Tensor) else measure.tensors_in(output)
    outputs = [each for each in outputs if each.requires_grad]
    if not outputs:
        raise ValueError(
            "--train: no result needs a gradient; expected a model with parameters or arguments "
            "that require one, and a result that depends on them; leave out --train"
        )
    real = [each.abs() if each.is_complex() else each for each in outputs]
    return sum(each.float().mean() if each.dtype.itemsize < 4 else each.mean() for each in real)


def compiler_of(backend: str) -> Callable[[Any], Any]:
    """ "eager", "max-autotune", "opaq:tune=search+strict=true". Raises WrongTarget."""
    import torch

    name, _, text = backend.partition(":")
    options = values_of(text, "+")
    if name == "eager":
        return lambda model: model
    if name in MODES:
        if options:
            raise WrongTarget(f"--backend {backend}: {name} takes no options")
        return lambda model: torch.compile(model, mode=name)
    known = torch.compiler.list_backends(exclude_tags=())
    if name not in known:
        raise WrongTarget(
            f"--backend: got {name!r}; expected eager, {', '.join(MODES)}, {', '.join(known)}"
        )
    return lambda model: torch.compile(model, backend=name, options=options or None)


def main() -> None:
    """Answers requests until the parent closes the pipe."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # prints of the model
    contestant = Contestant()
    for line in sys.stdin:
        request = json.loads(line)
        answer: dict[str, Any]
        try:
            answer = {"ok": getattr(contestant, request.pop("do"))(**request)}
        except WrongTarget as error:
            answer = {"wrong_use": str(error)}
        except Exception as error:
            import traceback

            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
