"""`opaq new FILE.cu`: a declaration for each kernel in a file, to be completed by the user."""

from __future__ import annotations

import keyword
import os
import re
from dataclasses import replace

import torch

from .kernel_source import Kernel, Parameter, find_kernels, find_structs

FILL_IN = "FILL IN"

# Types that kernels spell in several ways; a wrong guess is seen by `Op.check`.
_MAP = "CUtensorMap"
_DTYPES = {
    "float": "float32",
    "double": "float64",
    "half": "float16",
    "__half": "float16",
    "at::Half": "float16",
    "c10::Half": "float16",
    "nv_bfloat16": "bfloat16",
    "__nv_bfloat16": "bfloat16",
    "at::BFloat16": "bfloat16",
    "c10::BFloat16": "bfloat16",
    "int": "int32",
    "int32_t": "int32",
    "int64_t": "int64",
    "long": "int64",
    "long long": "int64",
    "int8_t": "int8",
    "uint8_t": "uint8",
    "unsigned char": "uint8",
    "char": "int8",
    "bool": "bool",
}
_INTEGERS = re.compile(
    r"(std::|cuda::std::)?(u?int(8|16|32|64)?_t|s?size_t|ptrdiff_t|u?intptr_t)|"
    r"(unsigned|signed|short|int|long|char|ushort|uint|ulong)( (int|long|short|char))*"
)
_LIKE_INTEGERS = re.compile(r"int|idx|index|size|offset|len", re.I)  # names of template types
_FLOATS = re.compile(r"(float|double|(__)?half|(__)?nv_bfloat16|(at|c10)::(Half|BFloat16))")


class NoKernels(ValueError):
    """The file cannot be read, or has no kernels: one line."""


def declarations(path: str, namespace: str = "mylib") -> str:
    """A Python module that declares an op for each kernel of the file. Raises NoKernels."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            text = file.read()
    except OSError as error:
        raise NoKernels(f"{path}: {error.strerror}; give a file with CUDA C++ source") from error
    kernels, structs = find_kernels(text), find_structs(text)
    if not re.fullmatch(r"[A-Za-z_]\w*", namespace) or keyword.iskeyword(namespace):
        raise NoKernels(f"--namespace: got {namespace!r}; expected a name such as mylib")
    if not kernels:
        raise NoKernels(
            f"{path}: it has no __global__ function outside of macros; give the file that defines "
            "the kernel"
        )
    names: set[str] = {"opaq", "SOURCE"}
    parts = [_head(path)]
    parts += [_declaration(_Values(kernel, structs), namespace, names) for kernel in kernels]
    return "\n\n".join(parts) + "\n"


def _head(path: str) -> str:
    name = os.path.basename(path).replace("\\", "\\\\").replace('"""', "'''")
    return (
        f'"""Ops for the kernels in {name}, begun by `opaq new`.\n\n'
        f"Complete what is marked {FILL_IN}, and compare with the code that launches the kernel. "
        "Then add an\nexample, and run `opaq check` on this file.\n"
        f'"""\n\nimport opaq\n\nSOURCE = opaq.file({_quoted(path)})'
    )


class _Values:
    """What a declaration says of each parameter of a kernel, and of each field of a struct."""

    def __init__(self, kernel: Kernel, structs: dict[str, list[Parameter]]) -> None:
        kernel = replace(kernel, params=[_mapped(param) for param in kernel.params])
        self.kernel = kernel
        self.fields: dict[str, list[Parameter]] = {}  # of each struct parameter
        self.all: list[Parameter] = []
        for param in kernel.params:
            if not self.is_struct(param):
                self.all.append(param)
                continue
            fields = structs.get(param.type.partition("<")[0].rpartition("::")[2], [])
            self.fields[param.name] = [
                replace(field) for field in map(_mapped, fields) if not self.is_struct(field)
            ]
            self.all += self.fields[param.name]
        self.names: dict[int, str] = {}
        for param in self.all:
            self.names[id(param)] = _unique(_plain_name(param.name), set(self.names.values()))
        pointers = [param for param in self.all if param.pointee]
        self.inputs = [param for param in pointers if param.const]
        others = [param for param in pointers if not param.const]
        self.results = [param for param in others if _is_result(param.name, kernel.body)]
        if not self.inputs and len(self.results) == len(others):
            self.results = self.results[1:]  # an op needs a tensor argument
        self.written = [param for param in others if param not in self.results]
        self.numbers = [param for param in self.all if not param.pointee]

    def of(self, param: Parameter) -> str:
        return self.names[id(param)]

    def is_struct(self, param: Parameter) -> bool:
        return not param.pointee and not self.number(param)

    def number(self, param: Parameter) -> str:
        """The schema's type of a parameter that is no pointer; "" for a struct."""
        if param.type == "bool":
            return "bool"
        if _INTEGERS.fullmatch(param.type):
            return "int"
        if _FLOATS.fullmatch(param.type):
            return "float"
        types = [item.name for item in self.kernel.template if _is_type(item)]
        if param.type in types:
            return "int" if _LIKE_INTEGERS.search(param.type) else "float"
        return "int" if re.fullmatch(r"\w*(index|idx|size|int)\w*_t", param.type) else ""

    def tensor_of_type(self, type_name: str) -> Parameter | None:
        for param in (*self.inputs, *self.written, *self.results):
            if param.pointee == type_name:
                return param
        return None


def _declaration(values: _Values, namespace: str, names: set[str]) -> str:
    kernel = values.kernel
    short = kernel.name.rpartition("::")[2]
    variable = _unique(_plain_name(re.sub(r"_kernel$", "", short) or short), names)
    names.add(variable)
    if not values.inputs and not values.written:
        why = "takes no pointer"
        if values.fields:
            why = f"takes structs that are not in this file ({', '.join(values.fields)})"
        return f"# {kernel.name}, line {kernel.line}, {why}: declare it by hand."
    return "\n".join(
        [
            f"# {kernel.name}, line {kernel.line}",
            f"{variable} = opaq.op(",
            *_schema(values, f"{namespace}::{variable}"),
            *_outputs(values),
            ")",
            f"{variable}.cuda(",
            "    source=SOURCE,",
            *_entry(values),
            *_sizes(values),
            *_arguments(values),
            ")",
        ]
    )


def _schema(values: _Values, name: str) -> list[str]:
    ordered = [param for param in values.all if param in values.inputs + values.written]
    texts, letters = [], iter("abcdefghijklmnopqrstuvwxyz" * 3)
    for param in ordered:
        alias = f"({next(letters)}!)" if param in values.written else ""
        texts.append(f"Tensor{alias} {values.of(param)}")
    texts += [f"{values.number(param)} {values.of(param)}" for param in values.numbers]
    results = ", ".join(f"Tensor {values.of(param)}" for param in values.results)
    lines = []
    if values.written:
        lines.append(_note(values.written, values, "taken for arguments that are written"))
    if values.results:
        note = _note(values.results, values, "taken for results, which the kernel writes whole")
        lines.append(note)
    if values.numbers:
        lines.append(
            "    # Numbers that follow from the tensors need not be arguments: write them in "
            "`args`, as x.numel()"
        )
    arguments = [*[f"{text}, " for text in texts[:-1]], *texts[-1:]]
    pieces = [f"{name}(", *arguments, ")", f" -> ({results})"]
    return [*lines, *_wrapped("    ", pieces)]


def _wrapped(indent: str, pieces: list[str], most: int = 96) -> list[str]:
    """The pieces as one string, on as many lines as it takes, and a comma."""
    lines = [""]
    for piece in pieces:
        if lines[-1] and len(indent) + len(lines[-1]) + len(piece) > most:
            lines.append("")
        lines[-1] += piece
    return [f"{indent}{_quoted(line)}" for line in lines[:-1]] + [f"{indent}{_quoted(lines[-1])},"]


def _note(params: list[Parameter], values: _Values, what: str) -> str:
    names = ", ".join(values.of(param) for param in params)
    return f"    # {FILL_IN}: {names}: {what}"


def _outputs(values: _Values) -> list[str]:
    rules = []
    for param in values.results:
        same = [item for item in values.inputs if item.pointee == param.pointee]
        candidates = same or values.inputs or values.written
        words = param.name.split("_")  # grad_x is like x, k_out like k
        like = max(candidates, key=lambda item: item.name in words)
        dtype = "" if same else _DTYPES.get(param.pointee, "")
        given = f', dtype="{dtype}"' if dtype else ""
        rules.append((values.of(param), f'opaq.like("{values.of(like)}"{given})'))
    if not rules:
        return []
    comment = f"  # {FILL_IN}: shape and dtype"
    if len(rules) == 1:
        return [f"    outputs={rules[0][1]},{comment}"]
    return ["    outputs={", *[f'        "{n}": {rule},{comment}' for n, rule in rules], "    },"]


def _entry(values: _Values) -> list[str]:
    kernel = values.kernel
    items, notes = [], []
    needed = list(kernel.template)
    while needed and (needed[-1].default or "..." in needed[-1].type):
        needed.pop()  # the rest have defaults
    for item in needed:
        tensor = values.tensor_of_type(item.name) if _is_type(item) else None
        if tensor is not None:
            items.append("{" + values.of(tensor) + ".dtype}")
            continue
        items.append(item.default or _template_value(item))
        notes.append(f"{item.name} = {items[-1]}")
    text = kernel.name + (f"<{', '.join(items)}>" if kernel.template else "")
    comment = f"  # {FILL_IN}: {', '.join(notes)}" if notes else ""
    return [f"    entry={_quoted(text)},{comment}"]


def _template_value(item: Parameter) -> str:
    if _is_type(item):
        return "int" if _LIKE_INTEGERS.search(item.name) else "float"
    if item.type == "bool":
        return "false"
    return "1" if _INTEGERS.fullmatch(item.type) else f"static_cast<{item.type}>(0)"


def _sizes(values: _Values) -> list[str]:
    kernel = values.kernel
    tensor = values.of((values.results or values.inputs or values.written)[0])
    if values.results:
        tensor = values.of((values.inputs or values.written)[0])
    by_elements = re.search(
        r"blockIdx\s*\.\s*x\s*\*\s*(\(\s*[\w: ]+\s*\)\s*)?blockDim|blockDim\s*\.\s*x\s*\*\s*"
        r"(\(\s*[\w: ]+\s*\)\s*)?blockIdx",
        kernel.body,
    )
    threads = kernel.threads if re.fullmatch(r"\d+", kernel.threads) else "256"
    grid = (
        f"ceil_div({tensor}.numel(), {threads})"
        if by_elements
        else f"{tensor}.numel() // {tensor}.size(-1)"
    )
    text = f'"{grid}"'
    used = [axis for axis in "yz" if re.search(rf"blockIdx\s*\.\s*{axis}", kernel.body)]
    if used:
        text = f"[{text}, 1, 1]" if "z" in used else f"[{text}, 1]"
    bounds = f", at most {kernel.threads} by its launch bounds" if kernel.threads else ""
    lines = [
        f"    grid={text},  # {FILL_IN}: blocks, as the launcher computes them",
        f"    block={threads},  # {FILL_IN}: threads of a block{bounds}",
    ]
    if re.search(r"\bextern\b[^;]*\b__shared__\b", kernel.body):
        lines.append(f"    shared=0,  # {FILL_IN}: bytes of dynamic shared memory, an expression")
    return lines


def _arguments(values: _Values) -> list[str]:
    notes = [f"the other fields of {name}, if there are any" for name in values.fields]
    tables = [param for param in values.all if param.pointee.endswith("*")]
    notes += [f"{values.of(param)} is a table of pointers" for param in tables]
    maps = [param for param in values.all if _is_map(param)]
    if maps:
        notes.append(f"box and swizzle of {', '.join(map(values.of, maps))}")
    comment = f"  # {FILL_IN}: {'; '.join(notes)}" if notes else ""
    if not values.fields and not maps:
        names = [values.of(param) for param in values.kernel.params]
        text = ", ".join(names)
        if len(text) <= 80:
            return [f"    args={_quoted(text)},{comment}"]
        lines = _wrapped("        ", [f"{name}, " for name in names[:-1]] + names[-1:])
        return [f"    args=({comment}", *lines[:-1], lines[-1].removesuffix(","), "    ),"]
    lines = [f"    args=[{comment}"]
    for param in values.kernel.params:
        fields = values.fields.get(param.name)
        if fields is None:
            lines.append(f"        {_item(values, param)},")
            continue
        lines += ["        opaq.struct(", f"            {_quoted(param.type.partition('<')[0])},"]
        lines += ["            ...,"]
        plain = [field for field in fields if not keyword.iskeyword(field.name)]
        lines += [f"            {field.name}={_item(values, field)}," for field in plain]
        for field in fields:
            if field not in plain:
                lines.append(f'            **{{"{field.name}": {_item(values, field)}}},')
        lines.append("        ),")
    return [*lines, "    ],"]


def _is_map(param: Parameter) -> bool:
    """Whether it is a tensor map (TMA descriptor) by value."""
    return param.pointee == _MAP


def _mapped(param: Parameter) -> Parameter:
    """A tensor map as the tensor that it is made from, one that is only read."""
    if param.type.rpartition("::")[2] not in (_MAP, "CUtensorMap_st", "TmaDescriptor"):
        return param
    return replace(param, pointee=_MAP, const=True)


def _item(values: _Values, param: Parameter) -> str:
    name = _quoted(values.of(param))
    return f"opaq.tensor_map({name}, box=[64, 64])" if _is_map(param) else name


def _is_type(item: Parameter) -> bool:
    return item.type.split(" ")[0].rstrip(".") in ("typename", "class")


_RESULTS = re.compile(r"(.*_)?(out|output|outputs|y|dst|result|results)(_ptr)?|out_.*")
_IN_PLACE = re.compile(r".*in_?(out|place).*")


def _is_result(name: str, body: str) -> bool:
    """Whether the body assigns to a pointer's elements, or the name says so, and nothing shows that
    it reads them; as far as a look at the text tells. In doubt a parameter is a written argument,
    which is right for those that are read, too.
    """
    assigned = False
    for match in re.finditer(rf"\b{re.escape(name)}\s*\[", body):
        close = _end_of_index(body, match.end() - 1)
        before = body[: match.start()].rstrip()
        if before.endswith("&") and not before.endswith("&&"):
            continue  # the address of an element: not known what for
        if not re.match(r"(\s*\.\s*\w+)?\s*=[^=]", body[close + 1 :]):
            return False
        assigned = True
    calls = rf"\b(\w*(?:atomic|load|ld|read)\w*)\s*(?:<[^;<>]*>)?\s*\(\s*&?\s*{re.escape(name)}\b"
    if re.search(calls, body, re.I) or _IN_PLACE.fullmatch(name.lower()):
        return False
    return assigned or _RESULTS.fullmatch(name.lower()) is not None


def _end_of_index(body: str, begin: int) -> int:
    depth = 0
    for at in range(begin, len(body)):
        depth += {"[": 1, "]": -1}.get(body[at], 0)
        if depth == 0:
            return at
    return len(body)


def _plain_name(name: str) -> str:
    """A name that Python and schemas take."""
    if name.startswith("opaq"):
        return f"my_{name}"
    taken = keyword.iskeyword(name) or name in ("true", "false")
    taken = taken or isinstance(getattr(torch, name, None), torch.dtype)
    return f"{name}_" if taken else name


def _unique(name: str, names: set[str]) -> str:
    count = 2
    made = name
    while made in names:
        made, count = f"{name}_{count}", count + 1
    return made


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
