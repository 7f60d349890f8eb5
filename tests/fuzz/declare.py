"""Random declarations: an op that computes sums of products, printed as opaq's declaration with its
kernels and as its twin in PyTorch.
"""

from __future__ import annotations

import dataclasses
import random

# For each scalar argument: its schema, its default, values, and coefficients of terms that use it.
# A coefficient is valid both in Python and in opaq's expression language.
SCALARS = {
    "s": ("float s", "2.0", ["3.0", "-1.0", "2"], ["s", "s if s > 0 else 2"]),
    "k": ("int k", "1", ["2", "-3", "5"], ["k", "k % 3", "k // 2"]),
    "flag": ("bool flag", "False", ["True", "False"], ["2 if flag else 1"]),
    "w": ("int[] w", "[1, 2]", ["[3]", "[2, -1, 4]", "(1, 1)"], ["w[0]", "w[-1]", "len(w)"]),
    "mode": ("str mode", "'plus'", ["'minus'", "'plus'"], ["1 if mode == 'plus' else -1"]),
    "dtype": (
        "ScalarType dtype",
        "float32",
        ["torch.float64", "torch.float32", "torch.int64"],
        ["2 if dtype == float64 else 1"],
    ),
}
# Requirements. None is about alignment: Inductor's buffer may be aligned where eager's tensor is
# not, and another implementation is then right.
CONDITIONS = [
    "{t}.stride(-1) == 1",
    "{t}.stride(0) == 1",
    "{t}.size(0) % 2 == 0",
    "{t}.numel() >= 8",
    "{t}.stride(0) % 2 == 0",
    "{t}.size(-1) != 3",
    "{t}.stride(0) >= {t}.stride(-1)",
]
SCALAR_CONDITIONS = {
    "s": "s > 0",
    "k": "k % 2 == 1",
    "flag": "not flag",
    "w": "len(w) == 2",
    "mode": "mode != 'minus'",
    "c": "not defined(c)",
}


@dataclasses.dataclass(frozen=True)
class Term:
    """coefficient * product of tensors, each read forwards or in reversed row-major order."""

    coefficient: str
    factors: tuple[tuple[str, bool], ...] = ()

    def python(self, optional: str) -> str:
        text = " * ".join(
            [
                f"({self.coefficient})",
                *(f"rev({name})" if reverse else name for name, reverse in self.factors),
            ]
        )
        return (
            f"({text} if {optional} is not None else 0)" if optional in dict(self.factors) else text
        )

    def cpp(self, coefficients: list[str], optional: str) -> str:
        text = " * ".join(
            [
                f"k{coefficients.index(self.coefficient)}",
                *(f"{n.upper()}({'n - 1 - i' if r else 'i'})" for n, r in self.factors),
            ]
        )
        return f"({optional} ? {text} : 0)" if optional in dict(self.factors) else text


@dataclasses.dataclass(frozen=True)
class Phase:
    """Computes one target completely, then writes it. rows: sums over the last dimension."""

    target: str
    terms: tuple[Term, ...]
    rows: bool = False


@dataclasses.dataclass(frozen=True)
class Implementation:
    """strided: reads two-dimensional tensors by their strides; else they must be row-major."""

    strided: bool
    requires: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Op:
    name: str
    tensors: tuple[str, ...]  # d, e: written; c: optional
    scalars: tuple[str, ...]
    outputs: tuple[tuple[str, str], ...]  # name, kind: like, dtype, transposed, rows
    phases: tuple[Phase, ...]
    implementations: tuple[Implementation, ...]
    reference: bool = False
    python: bool = False  # opaq.custom_op
    gradient: str = ""  # "op": by name, "function"
    keyword_only: bool = False

    @property
    def written(self) -> list[str]:
        return [name for name in self.tensors if name in "de"]

    @property
    def optional(self) -> str:
        return "c" if "c" in self.tensors else ""

    @property
    def coefficients(self) -> list[str]:
        return sorted(
            {
                term.coefficient
                for phase in self.phases
                for term in phase.terms
                if term.coefficient != "mark"
            }
        ) + ["mark"]

    def schema(self, namespace: str) -> str:
        tensors = [
            {"c": "Tensor? c=None", "d": "Tensor(a!) d", "e": "Tensor(b!) e"}.get(
                name, f"Tensor {name}"
            )
            for name in self.tensors
        ]
        scalars = [f"{SCALARS[name][0]}={SCALARS[name][1]}" for name in self.scalars]
        star = ["*"] if self.keyword_only and scalars else []
        results = [
            f"Tensor {name}" if self.gradient or name.startswith("grad_") else "Tensor"
            for name, _ in self.outputs
        ]
        return (
            f"{namespace}::{self.name}({', '.join(tensors + star + scalars)}) -> "
            f"{results[0] if len(results) == 1 else '(' + ', '.join(results) + ')'}"
        )

    def parameters(self) -> str:
        tensors = [f"{name}=None" if name == "c" else name for name in self.tensors]
        scalars = [
            f"{name}={'torch.' * (name == 'dtype')}{SCALARS[name][1]}" for name in self.scalars
        ]
        return ", ".join(tensors + ["*"] * bool(self.keyword_only and scalars) + scalars)

    def body(self) -> str:
        """`<name>_body(tensors..., scalars..., mark)`: the op in PyTorch."""
        lines = [f"def {self.name}_body({', '.join([*self.tensors, *self.scalars, 'mark'])}):"]
        lines += [f"    {name} = {made}" for name, made in self._made()]
        for phase in self.phases:
            value = " + ".join(_python(term.python(self.optional)) for term in phase.terms)
            lines.append(
                f"    put({phase.target}, {f'({value}).sum(-1)' if phase.rows else value})"
            )
        names = [name for name, _ in self.outputs]
        return "\n".join([*lines, f"    return {', '.join(names) or None}"])

    def _made(self) -> list[tuple[str, str]]:
        first = self.tensors[0]
        shapes = {
            "like": f"torch.empty({first}.shape, dtype={first}.dtype, device={first}.device)",
            "dtype": f"torch.empty({first}.shape, "
            f"dtype={'dtype' if 'dtype' in self.scalars else 'torch.float64'}, "
            f"device={first}.device)",
            "transposed": f"torch.empty_strided({first}.shape, (1, {first}.shape[0]), "
            f"dtype={first}.dtype, device={first}.device)",
            "rows": f"torch.empty({first}.shape[:-1], dtype={first}.dtype, device={first}.device)",
        }
        return [(name, shapes[kind]) for name, kind in self.outputs]

    def twin(self) -> str:
        """The function `<name>` in PyTorch: chooses the implementation by the rules in opaq's
        documentation, and calls the body.
        """
        arguments = ", ".join([*(f"placed['{name}']" for name in self.tensors), *self.scalars])
        if self.python:
            lines = [
                f"def {self.name}({self.parameters()}):",
                *([f"    alike({', '.join(self.tensors)})"] if self.gradient else []),
            ]
            return "\n".join(
                [
                    *lines,
                    f"    return {self.name}_body({', '.join([*self.tensors, *self.scalars])}, 0)",
                ]
            )
        choices = []
        for item in self.implementations:
            condition = " and ".join(_python(text) for text in self._requires(item)) or "True"
            choices.append(f"(lambda: {condition}, {[] if item.strided else list(self.tensors)})")
        reference = ", reference=True" if self.reference else ""
        return f"""def {self.name}({self.parameters()}):
    position, placed, carry_back = choose([{", ".join(choices)}],
        dict({", ".join(f"{name}={name}" for name in self.tensors)}), {self.written}{reference})
    result = {self.name}_body({arguments}, 64 * position)
    carry_back()
    return result"""

    def stock(self, namespace: str) -> str:
        """The twin as a custom op of PyTorch. What it cannot do when compiled, opaq need not do
        either.
        """
        text = self._custom_op(f"{namespace}_stock").replace(
            "@opaq.custom_op", "@torch.library.custom_op", 1
        )
        twin = self.twin().replace(f"def {self.name}(", f"def {self.name}_twin(", 1)
        keywords = [f"{name}={name}" for name in self.scalars]
        call = f"{self.name}_twin({', '.join([*self.tensors, *keywords])})"
        gradient = (
            dataclasses.replace(self, python=True, gradient="function").gradient_declaration("", "")
            if self.gradient
            else ""
        )
        body = text.replace(f"return {self.name}_body(", f"return {call} #", 1)
        return f"{twin}\n{body}\n{gradient}"

    def _requires(self, item: Implementation) -> list[str]:
        flat = any(kind == "transposed" for _, kind in self.outputs)
        return [
            *([f"{self.tensors[0]}.dim() == 2"] if item.strided or flat else []),
            *item.requires,
        ]

    def declaration(self, namespace: str, device: str) -> str:
        """opaq's declaration; `<name>_body` must be defined."""
        return self._custom_op(namespace) if self.python else self._op(namespace, device)

    def _custom_op(self, namespace: str) -> str:
        schema = self.schema(namespace)
        made = ", ".join(text for _, text in self._made())
        written = "(" + "".join(f"'{name}', " for name in self.written) + ")"
        return f"""@opaq.custom_op("{namespace}::{self.name}", mutates_args={written}, schema="{
            schema[schema.index("(") :]
        }")
def {self.name}({self.parameters()}):
    return {self.name}_body({", ".join([*self.tensors, *self.scalars])}, 0)
@{self.name}.register_fake
def _({self.parameters()}):
    return {made or None}"""

    def _op(self, namespace: str, device: str) -> str:
        first = self.tensors[0]
        rules = {
            "like": f'opaq.like("{first}")',
            "dtype": f'opaq.like("{first}", '
            f'dtype="{"dtype" if "dtype" in self.scalars else "float64"}")',
            "transposed": f'opaq.like("{first}", strides="1, {first}.size(0)")',
            "rows": f'opaq.tensor("{first}.shape[:-1]", dtype="{first}.dtype")',
        }
        names = [f"out{i}" if len(self.outputs) > 1 else "out" for i in range(len(self.outputs))]
        if self.gradient or self.name.endswith("_backward"):
            names = [name for name, _ in self.outputs]
        ruled = ", ".join(
            f'"{name}": {rules[kind]}' for name, (_, kind) in zip(names, self.outputs)
        )
        outputs = f", outputs={rules[self.outputs[0][1]]}" if names else ""
        if len(names) > 1:
            outputs = f", outputs={{{ruled}}}"
        lines = [f'{self.name} = opaq.op("{self.schema(namespace)}"{outputs})']
        for position, item in enumerate(self.implementations):
            code, arguments = self._kernel(
                item, device, dict(zip((name for name, _ in self.outputs), names))
            )
            arguments = [text if text != "mark" else str(64 * position) for text in arguments]
            types = ["{" + first + ".dtype}", *("{" + name + ".dtype}" for name in names)]
            lines.append(
                f'{self.name}.{device}(name="{device}:{position}", '
                f"priority={len(self.implementations) - position}, "
                f'entry="f<{", ".join(types)}>",\n'
                f'    args="{", ".join(arguments)}", requires={self._requires(item)},\n    '
                f'source="""{code}""")'
            )
        if self.reference:
            lines.append(
                f"{self.name}.reference(lambda {self.parameters()}: "
                f"{self.name}_body({', '.join([*self.tensors, *self.scalars])}, "
                f"{64 * len(self.implementations)}))"
            )
        return "\n".join(lines)

    def _kernel(
        self, item: Implementation, device: str, named: dict[str, str]
    ) -> tuple[str, list[str]]:
        """Source of a kernel that runs in one thread, and its argument list."""
        parameters, arguments, macros = [], [], []
        kinds = dict(self.outputs)
        for name in [*self.tensors, *kinds]:
            read_only = name not in kinds and name not in self.written
            kind = f"O{list(kinds).index(name)}" if name in kinds else "T"
            parameters.append(f"{'const ' * read_only}{kind}* {name}")
            arguments.append(named.get(name, name))
            if (item.strided and name not in kinds) or kinds.get(name) == "transposed":
                parameters += [f"long {name}0", f"long {name}1"]
                present = f" if defined({name}) else 0" if name == "c" else ""
                arguments += [f"{named.get(name, name)}.stride({axis}){present}" for axis in (0, 1)]
                macros.append(
                    f"#define {name.upper()}(i) {name}[((i) / m) * {name}0 + ((i) % m) * {name}1]"
                )
            else:
                macros.append(f"#define {name.upper()}(i) {name}[i]")
        parameters += [*(f"double k{i}" for i in range(len(self.coefficients))), "long n", "long m"]
        arguments += [
            *self.coefficients,
            f"{self.tensors[0]}.numel()",
            f"{self.tensors[0]}.size(-1)",
        ]
        summed = next(
            (named.get(name, name) for name, kind in self.outputs if kind == "rows"), None
        )
        if summed:
            parameters.append("long rows")
            arguments.append(f"{summed}.numel()")
        lines = [
            *macros,
            f"template <class T{''.join(f', class O{i}' for i in range(len(kinds)))}>",
        ]
        lines.append(
            f"{'__global__ ' if device == 'cuda' else ''}void f({', '.join(parameters)}) {{"
        )
        lines.append(f"  double* t = new double[{'n + rows' if summed else 'n'}];")
        for phase in self.phases:
            value = " + ".join(term.cpp(self.coefficients, self.optional) for term in phase.terms)
            count = "rows" if phase.rows else "n"
            if phase.rows:
                lines.append("  for (long r = 0; r < rows; ++r) t[r] = 0;")
                lines.append(f"  for (long i = 0; i < n; ++i) t[i / m] += {value};")
            else:
                lines.append(f"  for (long i = 0; i < n; ++i) t[i] = {value};")
            lines.append(f"  for (long i = 0; i < {count}; ++i) {phase.target.upper()}(i) = t[i];")
        return "\n".join([*lines, "  delete[] t;", "}"]), arguments

    def backward(self) -> Op:
        """The op that computes the gradient. It is a sum of products too, since reversing the order
        is its own inverse.
        """
        phases, used = [], set()
        for name in self.tensors:
            terms = []
            for phase in self.phases:
                for term in phase.terms:
                    for i, (factor, reverse) in enumerate(term.factors):
                        if factor == name:
                            others = [
                                (other, r != reverse)
                                for j, (other, r) in enumerate(term.factors)
                                if j != i
                            ]
                            terms.append(
                                Term(term.coefficient, ((f"grad_{phase.target}", reverse), *others))
                            )
                            used |= {other for other, _ in others} | {
                                other for other in self.tensors if f"{other}." in term.coefficient
                            }
            phases.append(Phase(f"grad_{name}", tuple(terms or [Term("0")])))
        grads = tuple(f"grad_{name}" for name, _ in self.outputs)
        tensors = (*grads, *sorted(used))
        outputs = tuple((f"grad_{name}", "like") for name in self.tensors)
        return Op(
            f"{self.name}_backward",
            tensors,
            self.scalars,
            outputs,
            tuple(phases),
            (Implementation(False, ()),),
        )

    def gradient_declaration(self, namespace: str, device: str) -> str:
        back = self.backward()
        if self.gradient == "op":
            declared = back.declaration(namespace, device)
            return f"{back.body()}\n{declared}\n{self.name}.backward({back.name})"
        arguments = [
            name if name.startswith("grad_") else f"saved['{name}']" for name in back.tensors
        ]
        nothing = ", None" * len(self.scalars)
        register = f"{self.name}.register_autograd" if self.python else f"{self.name}.backward"
        extra = (
            ", keyword_only_inputs" if self.keyword_only and self.scalars and self.python else ""
        )
        names = [*self.tensors, *([] if extra else self.scalars)]
        return f"""{back.body()}
def {self.name}_setup(ctx, inputs{extra}, output):
    ctx.save_for_backward(*inputs[:{len(self.tensors)}])
    ctx.scalars = {
            "dict(keyword_only_inputs)"
            if extra
            else f"dict(zip({names[len(self.tensors) :]}, inputs[{len(self.tensors)}:]))"
        }
def {self.name}_gradient(ctx, {", ".join(f"grad_{name}" for name, _ in self.outputs)}):
    saved = dict(zip({list(self.tensors)}, ctx.saved_tensors))
    result = {back.name}_body({
            ", ".join([*arguments, *(f"ctx.scalars['{name}']" for name in self.scalars), "0"])
        })
    return {f"(*result{nothing},)" if len(back.outputs) > 1 else f"result{nothing}"}
{register}({self.name}_gradient, setup_context={self.name}_setup)"""


def _python(text: str) -> str:
    """Expression language to Python: only the spelling of dtypes differs."""
    return text.replace("== float64", "== torch.float64")


def random_op(rng: random.Random, name: str) -> Op:
    differentiable = rng.random() < 0.35
    reads = ["a", "b"][: rng.choice([1, 1, 2])]
    writes = [] if differentiable else rng.choice([[], ["d"], ["d"], ["d", "e"]])
    optional = ["c"] if not differentiable and rng.random() < 0.25 else []
    tensors = [*reads, *writes]
    rng.shuffle(tensors)
    scalars = rng.sample(sorted(SCALARS), rng.choice([0, 0, 1, 1, 2]))
    python = rng.random() < 0.25
    if differentiable or python:
        scalars = [name for name in scalars if name != "dtype"]
    kinds = (
        ["like", "like", "transposed"]
        if differentiable
        else ["like", "like", "transposed", "rows", "dtype"]
    )
    outputs = [
        (f"y{i}", rng.choice(kinds))
        for i in range(rng.choice([1, 1, 2] if differentiable or not writes else [0, 0, 1, 1, 2]))
    ]
    if "dtype" in scalars and not any(kind == "dtype" for _, kind in outputs):
        outputs.append((f"y{len(outputs)}", "dtype"))
    coefficients = ["1", "2", "-1", "3", f"{tensors[0]}.size(0)", f"{tensors[0]}.dim()"] + [
        c for scalar in scalars for c in SCALARS[scalar][3]
    ]

    def term(names: list[str], products: bool = False) -> Term:
        count = 2 if products and rng.random() < 0.3 else 1
        return Term(
            rng.choice(coefficients),
            tuple((rng.choice(names), rng.random() < 0.5) for _ in range(count)),
        )

    # A written argument is changed before the others are read, and results are written before the
    # last read, so that memory which is shared by mistake gives wrong values.
    phases = [Phase(target, (term([target]), Term(rng.choice(coefficients)))) for target in writes]
    for target, kind in outputs:
        terms = (
            term(reads, differentiable),
            *([term([*tensors])] if rng.random() < 0.5 else []),
            *([term(optional)] if optional else []),
        )
        phases.append(Phase(target, (*terms, Term("mark")), rows=kind == "rows"))
    for target in writes:
        phases.append(Phase(target, (Term("1", ((target, False),)), term(reads), Term("mark"))))
    if not differentiable and outputs and outputs[0][1] == "like" and rng.random() < 0.7:
        phases.append(Phase("y0", (Term("1", (("y0", False),)), term(reads))))

    implementations = []
    for _ in range(rng.choice([0, 1, 1, 2])):
        requires = (
            [rng.choice(CONDITIONS).format(t=rng.choice(tensors))] if rng.random() < 0.8 else []
        )
        requires += [
            SCALAR_CONDITIONS[s]
            for s in (*scalars, *optional)
            if s in SCALAR_CONDITIONS and rng.random() < 0.3
        ]
        # then opaq passes the tensor as it is
        reads_strides = any("stride" in text for text in requires)
        implementations.append(Implementation(reads_strides or rng.random() < 0.5, tuple(requires)))
    reference = bool(implementations) and rng.random() < 0.3
    if not reference:
        implementations.append(Implementation(rng.random() < 0.2, ()))
    gradient = rng.choice(["function"] if python else ["op", "function"]) if differentiable else ""
    return Op(
        name,
        (*tensors, *optional),
        tuple(scalars),
        tuple(outputs),
        tuple(phases),
        tuple(implementations),
        reference and not python,
        python,
        gradient,
        keyword_only=not gradient and rng.random() < 0.2,
    )
