"""Random programs over declared ops: lists of statements, all of which the twins can run."""

from __future__ import annotations

import dataclasses
import inspect
import linecache
import random
import re
from typing import Any

import prelude
import torch
from declare import SCALARS, Op

LIMIT = 2**18  # values stay below, so that sums of them are exact in float32


@dataclasses.dataclass(frozen=True)
class Program:
    """`inputs`: expressions over `seed`, `grow` (added to the first size) and earlier inputs."""

    ops: tuple[Op, ...]
    inputs: tuple[str, ...]
    statements: tuple[str, ...]
    results: tuple[str, ...]
    gradients: bool = False

    def declarations(self, namespace: str, device: str) -> str:
        parts = []
        for op in self.ops:
            parts += [op.body(), op.declaration(namespace, device)]
            if op.gradient:
                parts.append(op.gradient_declaration(namespace, device))
        return "\n\n".join(parts)

    def twins(self) -> str:
        return "\n\n".join(text for op in self.ops for text in (op.body(), op.twin()))

    def stock(self, namespace: str) -> str:
        return "\n\n".join(text for op in self.ops for text in (op.body(), op.stock(namespace)))

    def inputs_source(self) -> str:
        lines = [f"    x{i} = {text}" for i, text in enumerate(self.inputs)]
        return "\n".join(
            [
                "def inputs(seed=0, grow=0):",
                *lines,
                f"    return [{', '.join(f'x{i}' for i in range(len(self.inputs)))}]",
            ]
        )

    def source(self, name: str = "program") -> str:
        lines = [
            f"def {name}({', '.join(f'x{i}' for i in range(len(self.inputs)))}):",
            *(f"    {line}" for line in self.statements),
        ]
        return "\n".join([*lines, f"    return ({', '.join(self.results)},)"])

    def used(self) -> Program:
        """The program without the ops that no statement calls."""
        return dataclasses.replace(
            self,
            ops=tuple(
                op for op in self.ops if any(f"{op.name}(" in line for line in self.statements)
            ),
        )

    def without_ops(self) -> Program:
        """The program without calls of ops and the statements that need their results."""
        known = {"x" + str(i) for i in range(len(self.inputs))}
        kept = []
        for line in self.statements:
            made, value = re.fullmatch(r"(?:([v\d, ]+) = )?(.*)", line).groups()
            if set(re.findall(r"\b[vx]\d+\b", value)) <= known and not any(
                f"{op.name}(" in line for op in self.ops
            ):
                kept.append(line)
                known |= set((made or "").split(", "))
        return dataclasses.replace(
            self,
            statements=tuple(kept),
            results=tuple(name for name in self.results if name in known),
        )


def execute(text: str, names: dict[str, Any], file: str) -> dict[str, Any]:
    """Runs source that tracebacks can show."""
    linecache.cache[file] = (len(text), None, text.splitlines(True), file)
    exec(compile(text, file, "exec"), names)  # noqa: S102  (programs are text, so that they can be printed)
    return names


def base() -> dict[str, Any]:
    return {name: value for name, value in vars(prelude).items() if not name.startswith("__")}


def prelude_source() -> str:
    return inspect.getsource(prelude)


def random_inputs(rng: random.Random) -> list[str]:
    made: list[str] = []
    for i in range(rng.choice([1, 1, 2, 2, 3])):
        if made and rng.random() < 0.15:  # two inputs that share memory
            views = [f"x{i - 1}", f"x{i - 1}.t() if x{i - 1}.dim() == 2 else x{i - 1}"]
            row_major = (
                made[-1].startswith("fill(") and ")." not in made[-1] and not made[-1].endswith("]")
            )
            # PyTorch (2.11 to 2.15) does not notice that two parts of rows overlap if they begin at
            # the same column: x[:, 1:5] and x[1:, 1:5].
            made.append(
                rng.choice([*views, f"x{i - 1}[1:]", f"x{i - 1}[:-1]"] if row_major else views)
            )
            continue
        dtype = rng.choice([""] * 8 + [", torch.float64", ", torch.int64"])
        shape = rng.choice(
            [
                "(4 + grow, 4)",
                "(4 + grow, 4)",
                "(2 + grow, 4)",
                "(8 + grow,)",
                "(3 + grow, 5)",
                "(2 + grow, 2, 4)",
                "(1 + grow, 4)",
            ]
        )
        plain = f"fill(seed + {i}, {shape}{dtype})"
        layouts = [
            plain,
            plain,
            plain,
            f"{plain}.t()" if shape.count(",") == 1 and "," in shape[:-2] else plain,
            f"{plain}[1:]",
            f"{plain}[..., ::2]",
            f"fill(seed + {i}, (6 + grow, 8){dtype})[1:5, 1:5]",
            f"fill(seed + {i}, (4 * (4 + grow) + 3,){dtype})[3:].view(4 + grow, 4)",
            f"fill(seed + {i}, (4 + grow, 1){dtype}).expand(4 + grow, 4)",
            f"fill(seed + {i}, (6 + grow, 4){dtype})[::2]",
        ]
        made.append(rng.choice(layouts))
    return made


VIEWS = [
    "{u}.t()",
    "{u}.transpose(0, -1)",
    "{u}[1:]",
    "{u}[:-1]",
    "{u}[..., ::2]",
    "{u}[:, 1:]",
    "{u}.view(-1)",
    "{u}.reshape(-1, 2)",
    "{u}.reshape(4, -1)",
    "{u}.unsqueeze(0)",
    "{u}.squeeze()",
    "{u}[0]",
    "{u}[-1]",
    "{u}.select(-1, 0)",
    "{u}.unsqueeze(0).expand(2, *{u}.shape)",
    "{u}.expand(4, 4)",
    "{u}.diagonal()",
    "{u}.detach()",
    "{u}.narrow(0, 0, 2)",
    "{u}.chunk(2)[1]",
    "{u}.view_as({u})",
    "{u}.view({u}.shape)",
]
COPIES = [
    "{u}.clone()",
    "{u}.clone()",
    "{u}.clone()",
    "{u}.contiguous()",
    "{u}.contiguous()",
    "{u} + 1",
    "{u} + 1",
    "{u} * 2",
    "{u} + {w}",
    "{u} - {w}",
    "rev({u})",
    "{u}.flip(0)",
    "torch.cat([{u}, {w}])",
    "torch.zeros_like({u})",
    "torch.ones_like({u})",
    "torch.empty_like({u}).copy_({w})",
    "{u}.to(torch.float64)",
    "{u}.float()",
    "{u}.t().contiguous()",
    "{u}.clone(memory_format=torch.contiguous_format)",
    "{u}.new_zeros({u}.shape)",
    "{u}.sum(0)",
    "{u} @ {w}",
    "torch.stack([{u}, {w}])",
    "torch.where({u} > 0, {u}, {w})",
    "{u}.roll(1, 0)",
    "torch.relu({u})",
    "{u}.repeat(2, 1)",
    "torch.ops.aten.alias({u})",
]
WRITES = [
    "{u}.add_(1)",
    "{u}.mul_(2)",
    "{u}.copy_({w})",
    "{u}[0] = 3",
    "{u}.zero_()",
    "{u}.add_({w})",
    "{u}[..., 1:].sub_(1)",
    "{u}.t().add_(2)",
]


class _Growing:
    """A program that is being made. A statement that fails with the twins, or makes numbers too
    large, is removed again.
    """

    def __init__(
        self, rng: random.Random, ops: tuple[Op, ...], inputs: list[str], twins: dict[str, Any]
    ) -> None:
        self.rng, self.ops, self.inputs, self.twins = rng, ops, inputs, twins
        self.statements: list[str] = []
        self.count = 0
        self.tensors = self._try([])

    def _try(self, statements: list[str]) -> dict[str, torch.Tensor] | None:
        names = dict(self.twins)
        try:
            for i, text in enumerate(self.inputs):
                names[f"x{i}"] = eval(text, {**names, "seed": 0, "grow": 0})
            exec("\n".join(statements), names)  # noqa: S102
        except Exception:  # noqa: BLE001  (whatever the reason, the statement is no program)
            return None
        found = {name: value for name, value in names.items() if isinstance(value, torch.Tensor)}
        small = all(
            value.numel() <= 256 and (not value.numel() or value.abs().max() < LIMIT)
            for value in found.values()
        )
        return found if small else None

    def add(self, statement: str) -> None:
        found = self._try([*self.statements, statement])
        if found is not None:
            self.tensors = found
            self.statements.append(statement)

    def new(self) -> str:
        self.count += 1
        return f"v{self.count}"

    def any(self) -> str:
        names = sorted(self.tensors)
        return self.rng.choice(names[-3:] if self.rng.random() < 0.4 else names)

    def like(self, first: str) -> str:
        """An operand that goes with `first`: itself, another of its shape, or made from one."""
        shape, dtype = self.tensors[first].shape, self.tensors[first].dtype
        same = [
            name
            for name, value in self.tensors.items()
            if value.shape == shape and value.dtype == dtype
        ]
        name = self.rng.choice(same)
        return name + self.rng.choice(
            [""] * 6
            + [".clone()", ".clone()", " + 1", ".flip(0)", ".t()", ".contiguous()", ".t().clone()"]
        )

    def call(self, op: Op) -> str:
        rng, first = self.rng, self.any()
        arguments = [first + rng.choice([""] * 8 + [".clone()", ".t()", ".contiguous()"])]
        arguments += [self.like(first) for name in op.tensors[1:] if name != "c"]
        if op.optional and rng.random() < 0.6:
            arguments.append(f"c={self.like(first)}")
        arguments += [
            f"{name}={rng.choice(SCALARS[name][2])}" for name in op.scalars if rng.random() < 0.5
        ]
        return f"{op.name}({', '.join(arguments)})"

    def op_statement(self) -> str:
        op = self.rng.choice(self.ops)
        call = self.call(op)
        if not op.outputs:
            return call
        return f"{', '.join(self.new() for _ in op.outputs)} = {call}"

    def cond_statement(self) -> str:
        u = self.any()
        op = self.rng.choice(
            [op for op in self.ops if not op.written and len(op.outputs) == 1] or [None]
        )
        if op is None:
            return "pass"
        arguments = ", ".join(
            self.rng.choice(["t", "t", "t + 1", "t.clone()"]) for name in op.tensors if name != "c"
        )
        other = self.rng.choice(
            [
                "t + 1",
                "t.clone()",
                f"{op.name}({', '.join('t * 2' for name in op.tensors if name != 'c')})",
            ]
        )
        return (
            f"{self.new()} = cond({u}.sum() > 0, lambda t: {op.name}({arguments}), lambda t: "
            f"{other}, ({u},))"
        )

    def torch_statement(self, texts: list[str]) -> str:
        u = self.any()
        text = self.rng.choice(texts).format(u=u, w=self.like(u))
        return text if texts is WRITES else f"{self.new()} = {text}"


def random_program(
    rng: random.Random, ops: tuple[Op, ...], twins: dict[str, Any]
) -> Program | None:
    """A random program; None if it calls no op. twins: names of the prelude and the twins."""
    gradients = rng.random() < 0.25
    chosen = [op for op in ops if op.gradient or not gradients or rng.random() < 0.1] or list(ops)
    growing = _Growing(
        rng, tuple(rng.sample(chosen, min(3, len(chosen)))), random_inputs(rng), twins
    )
    if growing.tensors is None:
        return None
    kinds = {
        growing.op_statement: 5,
        lambda: growing.torch_statement(COPIES): 4,
        lambda: growing.torch_statement(VIEWS): 3,
        lambda: growing.torch_statement(WRITES): 2,
        growing.cond_statement: 0.2,
    }
    goal = rng.randint(2, 9)
    for _ in range(4 * goal):
        if len(growing.statements) >= goal:
            break
        growing.add(rng.choices(list(kinds), list(kinds.values()))[0]())
    if not any(f"{op.name}(" in line for op in ops for line in growing.statements):
        growing.add(growing.op_statement())
    names = sorted(growing.tensors)
    late = [name for name in names if name.startswith("v")] or names
    results = {
        rng.choice(late),
        late[-1],
        *rng.sample(names, rng.randint(0, 2) if len(names) > 2 else 0),
    }
    program = Program(
        ops, tuple(growing.inputs), tuple(growing.statements), tuple(sorted(results)), gradients
    ).used()
    return program if program.ops else None
