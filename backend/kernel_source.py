"""Finds the `__global__` functions of CUDA C++ text: names, templates, parameters, bodies.

Nothing is preprocessed or compiled: what macros generate is not seen, and of the alternatives of an
#if all are.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Parameter:
    """Of a function or a template."""

    type: str  # as written, without attributes and `const`: "float*", "scalar_t", "typename"
    name: str
    default: str = ""
    pointee: str = ""  # of a pointer: "float"; "" for a value
    const: bool = False  # a pointer to const


@dataclass(frozen=True)
class Kernel:
    name: str  # qualified: "ns::norm"
    template: list[Parameter] = field(default_factory=list)
    params: list[Parameter] = field(default_factory=list)
    threads: str = ""  # the first argument of __launch_bounds__, as written
    body: str = ""  # without comments and strings; "" for a declaration
    line: int = 0


def find_kernels(text: str) -> list[Kernel]:
    """In the order of the file. Of kernels that are declared and defined, the definition."""
    code = _blanked(text)
    kernels: dict[tuple[str, str], Kernel] = {}
    for match in re.finditer(r"\b__global__\b", code):
        kernel = _kernel(code, match)
        if kernel is None:
            continue
        key = (kernel.name, ", ".join(param.type for param in kernel.params))
        if key not in kernels or not kernels[key].body:
            kernels[key] = kernel
    return list(kernels.values())


def find_structs(text: str) -> dict[str, list[Parameter]]:
    """The structs and classes that are defined in a text, each with its fields; not with those that
    it inherits. Arrays and functions are left out.
    """
    code = _blanked(text)
    structs = {}
    head = r"\b(?:struct|class)\s+(?:\w+\s*\([^)]*\)\s*)?(\w+)\s*(?::(?!:)[^;{}()]*)?\{"
    for match in re.finditer(head, code):
        end = _closing(code, match.end() - 1)
        if end is not None:
            structs[match[1]] = _fields(code[match.end() : end])
    return structs


def _fields(body: str) -> list[Parameter]:
    fields: list[Parameter] = []
    body = re.sub(r"\b(?:public|private|protected)\s*:", ";", body)
    for statement in _at_top(body):
        if re.search(
            r"[(){}\[\]]|\b(?:using|typedef|static|template|friend|enum|operator)\b", statement
        ):
            continue
        first, *others = _split(statement)
        made = _parameter(first, len(fields)) if len(first.split()) > 1 or "*" in first else None
        if made is None:
            continue
        fields.append(made)
        base = made.type.rstrip("*")
        fields += [_parameter(f"{base} {item}", len(fields)) for item in others]
    return fields


def _at_top(body: str) -> list[str]:
    """The statements of a block, without the blocks in it."""
    statements, depth, begin = [], 0, 0
    for i, letter in enumerate(body):
        depth += {"{": 1, "}": -1}.get(letter, 0)
        if letter == ";" and depth == 0 or letter == "}" and depth == 0:
            statements.append(" ".join(body[begin:i].split()))
            begin = i + 1
    return [statement for statement in statements if statement]


def _blanked(text: str) -> str:
    """The text with comments, the contents of strings, and preprocessor lines as spaces."""
    pattern = re.compile(
        r"//(?:\\\n|[^\n])*|/\*.*?\*/|R\"(\w*)\(.*?\)\1\"|\"(?:\\.|[^\"\\\n])*\"|"
        r"'(?:\\.|[^'\\\n])'|^[ \t]*#(?:\\\n|/\*.*?\*/|[^\n])*",
        re.S | re.M,
    )
    return pattern.sub(lambda found: re.sub(r"[^\n]", " ", found[0]), text)


def _kernel(code: str, match: re.Match[str]) -> Kernel | None:
    begin = max(code.rfind(mark, 0, match.start()) for mark in ";{}") + 1
    header = code[begin : match.start()]
    threads, at = "", match.end()
    while True:  # attributes and the return type, up to the name and its parameters
        word = re.compile(r"\s*(?:\[\[.*?\]\]|([\w:]+)\s*(\()?)", re.S).match(code, at)
        if word is None or (word[1] is None and word[2] is None and not word[0].strip()):
            return None
        at = word.end()
        if not word[2]:
            continue
        close = _closing(code, at - 1)
        if close is None:
            return None
        if not re.fullmatch(r"__\w+__|__\w+", word[1]):
            break
        if word[1] == "__launch_bounds__":
            threads = " ".join(code[at:close].partition(",")[0].split())
        at = close + 1
    after = re.compile(r"\s*([;{(])").match(code, close + 1)
    is_instantiation = re.search(r"\btemplate\b(?!\s*<)", header)
    if after is None or after[1] == "(" or is_instantiation:
        return None
    body = ""
    if after[1] == "{":
        end = _closing(code, after.end() - 1)
        body = code[after.end() : end]
    template = re.search(r"\btemplate\s*<", header)
    items: list[str] = []
    if template:
        last = _closing(header, template.end() - 1)
        items = [] if last is None else _split(header[template.end() : last])
    return Kernel(
        "::".join([*_namespaces(code[:begin]), word[1]]),
        [_template_parameter(item, i) for i, item in enumerate(items)],
        _parameters(code[at:close]),
        threads,
        body,
        code.count("\n", 0, match.start()) + 1,
    )


_OPEN, _CLOSE = "([{<", ")]}>"


def _closing(text: str, begin: int) -> int | None:
    """Where the bracket at `begin` is closed. `<` counts only if it is that bracket's kind."""
    angles = text[begin] == "<"
    depth = 0
    for i in range(begin, len(text)):
        letter = text[i]
        if letter in "<>" and not angles:
            continue
        if letter in _OPEN:
            depth += 1
        elif letter in _CLOSE and text[i - 1 : i + 1] != "->":
            depth -= 1
            if depth == 0:
                return i
    return None


def _split(text: str) -> list[str]:
    """The items of a list, by the commas that are in no brackets; white space made single."""
    items, depth, begin = [], 0, 0
    for i, letter in enumerate(text):
        if letter in _OPEN:
            depth += 1
        elif letter in _CLOSE:
            depth -= 1
        elif letter == "," and depth == 0:
            items.append(text[begin:i])
            begin = i + 1
    items.append(text[begin:])
    found = [" ".join(item.split()) for item in items]
    return [] if found == [""] else found


def _namespaces(before: str) -> list[str]:
    """The named namespaces that are open at the end of this text."""
    open_blocks: list[str] = []
    for match in re.finditer(r"(?:\bnamespace\s+([\w:]*)\s*)?(\{)|(\})", before):
        if match[2]:
            open_blocks.append(match[1] or "")
        elif open_blocks:
            open_blocks.pop()
    return [name for name in open_blocks if name]


def _parameters(text: str) -> list[Parameter]:
    """Of those with one name, which are alternatives of an #if, the first."""
    items = [item for item in _split(text) if item != "void"]
    params: dict[str, Parameter] = {}
    for i, item in enumerate(items):
        made = _parameter(item, i)
        params.setdefault(made.name, made)
    return list(params.values())


def _parameter(item: str, index: int) -> Parameter:
    text, _, default = item.partition("=")
    text = re.sub(r"__restrict(__)?\b|\brestrict\b|__grid_constant__|\bvolatile\b", " ", text)
    text = re.sub(r"__align__\s*\([^)]*\)|\[\[.*?\]\]|\b(?:struct|typename)\b", " ", text)
    array = re.search(r"\[[^\]]*\]\s*$", text)
    text = text[: array.start()] if array else text
    named = re.match(r"(.*[\s*&>])(\w+)\s*$", text, re.S)
    only_type = not named or named[2] in ("int", "long", "short", "char", "float", "double", "bool")
    written, name = (text, f"arg{index}") if only_type else (named[1], named[2])
    if array:
        written += "*"
    pointee, star, _ = written.rpartition("*")
    const = bool(star) and re.search(r"\bconst\b", pointee) is not None
    plain = _without_const(written)
    return Parameter(plain, name, default.strip(), _without_const(pointee), const)


def _template_parameter(item: str, index: int) -> Parameter:
    text, _, default = item.partition("=")
    named = re.match(r"(.*?[\s>.])(\w+)\s*$", text.strip(), re.S)
    written, name = (named[1], named[2]) if named else (text, f"Arg{index}")
    return Parameter(" ".join(written.split()), name, default.strip())


def _without_const(text: str) -> str:
    return re.sub(r"\s*\*\s*", "*", " ".join(re.sub(r"\bconst\b", " ", text).split()))
