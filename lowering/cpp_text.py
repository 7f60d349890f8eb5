"""The C++ function that launches one op: views of its arguments, then one block for each
implementation that may serve.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import sympy

from .cpp_plan import Form
from .symbolic import Facts

if TYPE_CHECKING:
    from opaq._runtime import CppArgument, CppLaunch, CppText, OpInfo

_INDENT = "    "


def function_text(
    info: OpInfo,
    forms: Sequence[Form],
    codes: Sequence[list[dict[str, Any]]],
    device: str,
    values: Mapping[str, Any],
    counted: bool,
) -> tuple[list[tuple[str, str]], str]:
    """(parameters in order as (argument or result, its type), the definition of a function
    OPAQ_FUNCTION).

    counted: the last parameter is the node's counters, one for each form and one more."""
    changed = {
        name for form in forms for name in (*form.candidate.contiguous, *form.candidate.copied)
    }
    used = {name for form in forms for name in form.launch["reads"]} | changed
    shaped = {name for form in forms for name in form.launch["shaped"]} | changed
    strided = {name for form in forms for name in form.launch["strided"]} | changed
    types = {arg["name"]: arg["torch_type"] for arg in info["args"]} | {
        output["name"]: "Tensor" for output in info["outputs"]
    }
    optional = {arg["name"] for arg in info["args"] if arg["optional"]}
    written = [arg["name"] for arg in info["args"] if arg["mutated"]] + [
        output["name"] for output in info["outputs"]
    ]
    written = [name for name in written if isinstance(values[name], Facts)]

    parameters, declared, views = [], [], []
    for name, kind in types.items():
        value = values[name]
        if name not in used and name not in written:
            continue
        if kind == "Tensor":
            if isinstance(value, Facts):
                parameters.append((name, kind))
                declared.append(f"AtenTensorHandle opaq_{name}")
            if name in used:
                read = (
                    "opaq_strided_view"
                    if name in strided
                    else "opaq_view"
                    if name in shaped
                    else "opaq_address_of"
                )
                views.append(_view(name, value, read, name in optional))
        else:
            parameters.append((name, kind))
            declared.append(_parameter(name, kind, name in optional))
            if "[" in kind:
                views.append(_list_view(name, name in optional))
    if device == "cuda":
        declared += ["int opaq_device", "CUstream opaq_stream", "const opaq_folder& opaq_dir"]
    if counted:
        declared.append("opaq_counter* opaq_node_calls")

    lines = []
    if written and not any(_never_empty(values[name]) for name in written):
        done = f"return opaq_count(opaq_node_calls[{len(forms)}]);" if counted else "return;"
        lines.append(f"if ({' && '.join(f'opaq_empty(opaq_{name})' for name in written)}) {done}")
    lines += views
    for index, (form, code) in enumerate(zip(forms, codes)):
        count = [f"opaq_count(opaq_node_calls[{index}]);"] if counted else []
        lines += _attempt(info, form, code, device, count)
    if forms[-1].candidate.conditions:
        unmet = "; ".join(
            f"{form.implementation['name']} requires {' and '.join(form.candidate.conditions)}"
            for form in forms
        )
        message = (
            f"{info['name']}: no implementation fits this call: {unmet}; change the "
            "argument, or add an implementation without the requirement"
        )
        lines.append(f'opaq_raise("%s", {c_string(message)});')
    body = "\n".join(_INDENT + line if line else "" for line in lines)
    return parameters, (
        f"static void OPAQ_FUNCTION({', '.join(declared)}) {{\n"
        f'  const char* opaq_place = "";\n  try {{\n{body}\n'
        f"  }} catch (const std::exception& opaq_error) {{\n    "
        f"opaq_rethrow({c_string(info['name'])}, opaq_place, opaq_error);\n  }}\n}}\n"
    )


def _never_empty(facts: Facts) -> bool:
    return all(isinstance(size, (int, sympy.Integer)) and size != 0 for size in facts.sizes)


def c_string(text: str) -> str:
    """A C++ string literal; JSON's escapes are C++'s, and what is not ASCII goes in as it is."""
    return json.dumps(text, ensure_ascii=False)


def _view(name: str, value: Any, read: str, optional: bool) -> str:
    kind = "std::optional<opaq_tensor>" if optional else "opaq_tensor"
    if not isinstance(value, Facts):
        return f"[[maybe_unused]] const {kind} {name};"
    facts = f"opaq_{name}" if read == "opaq_address_of" else _handle_facts(name, {name: value})
    return f"const {kind} {name} = {read}({facts});"


_SCALARS = {
    "float": "double",
    "bool": "bool",
    "str": "std::string_view",
    "ScalarType": "opaq_dtype",
}


def _parameter(name: str, kind: str, optional: bool) -> str:
    if "[" in kind:
        ints = "std::initializer_list<int64_t>"
        return f"const {f'std::optional<{ints}>' if optional else ints}& opaq_{name}"
    scalar = _SCALARS.get(kind, "int64_t")
    return f"{f'std::optional<{scalar}>' if optional else scalar} {name}"


def _list_view(name: str, optional: bool) -> str:
    if optional:
        return (
            f"const auto {name} = opaq_{name} ? "
            f"std::optional<opaq_ints>(opaq_list(*opaq_{name})) : std::nullopt;"
        )
    return f"const opaq_ints {name} = opaq_list(opaq_{name});"


def _attempt(
    info: OpInfo, form: Form, code: list[dict[str, Any]], device: str, count: list[str]
) -> list[str]:
    launch, name, candidate = form.launch, form.implementation["name"], form.candidate
    optional = {arg["name"] for arg in info["args"] if arg["optional"]}
    conditions = [
        f"opaq_holds([&] {{ return {requirement['cpp']}; }})" for requirement in candidate.at_launch
    ]
    conditions += [f"{_there(arg, optional)}.is_contiguous()" for arg in candidate.contiguous]
    head = f"if ({' && '.join(conditions)}) {{  // {name}" if conditions else f"{{  // {name}"
    library = form.implementation["kind"] == "library"
    stream = ["opaq_stream"] if device == "cuda" else []
    body = [*count, *_copies(form, optional)]
    if device == "cuda" and not library:
        body += _rule(info, form) + _images(code) + _geometry(form)
    elif library:
        types = [arg["parameter"].strip("`") for arg in launch["args"]] + (
            ["void*"] if device == "cuda" else []
        )
        body.append(f"using opaq_type = void (*)({', '.join(types)});")
        body.append(
            "static const auto opaq_call = "
            f"reinterpret_cast<opaq_type>({_symbol(info, form, code)});"
        )
        body.append(_threw(launch))
        body.append(f"opaq_call({', '.join([*map(_library_value, launch['args']), *stream])});")
    else:
        body.append(
            "static const auto opaq_call = "
            f"reinterpret_cast<opaq_invoke_type>({_symbol(info, form, code)});"
        )
    if not library:
        body += _values(info["name"], launch["args"])
        if device == "cuda":
            body.append(
                f"static opaq_kernel<{len(code)}> opaq_code(opaq_this_rule, "
                f"{c_string(launch['entry'])}, {c_string(launch['symbol'])}, opaq_images);"
            )
            body.append(
                "opaq_code.launch(opaq_shape, opaq_device, opaq_dir, opaq_stream, opaq_pointers);"
            )
        else:
            body += [_threw(launch), "opaq_call(opaq_pointers);"]
    return [head, *("  " + line for line in body), "  return;", "}"]


def _threw(launch: CppLaunch) -> str:
    """What the function itself throws is not the fault of an argument."""
    what = f"its function `{launch['entry']}` threw"
    return f"opaq_place = {c_string(what)};"


def _there(name: str, optional: Collection[str]) -> str:
    return f"{name}.value()" if name in optional else name


def _copies(form: Form, optional: Collection[str]) -> list[str]:
    """Row-major copies that hide the arguments they are of, for the rest of the block."""
    lines = []
    for name in form.candidate.copied:
        lines.append(
            f"const opaq_row_major opaq_copy_of_{name}(opaq_{name}, {_there(name, optional)});"
        )
    for name in form.candidate.copied:
        kind = "std::optional<opaq_tensor>" if name in optional else "opaq_tensor"
        lines.append(f"const {kind} {name} = opaq_copy_of_{name}.view;")
    return lines


def _handle_facts(name: str, values: Mapping[str, Any]) -> str:
    dtype = values[name].dtype
    return f"opaq_{name}, opaq_{str(dtype).removeprefix('torch.')}, {dtype.itemsize}"


def _symbol(info: OpInfo, form: Form, code: list[dict[str, Any]]) -> str:
    item, launch = code[0], form.launch
    texts = (info["name"], launch["entry"], item["file"], item["sha256"], launch["symbol"])
    return f"opaq_symbol({', '.join(map(c_string, texts))})"


def _rule(info: OpInfo, form: Form) -> list[str]:
    launch = form.launch
    dims = [
        f"{{{', '.join(c_string(item['text']) for item in launch[key]) or 'nullptr'}}}"
        for key in ("grid", "block", "cluster")
    ]
    flags = ["true" if launch[key] else "false" for key in ("cooperative", "programmatic")]
    return [
        (
            f"static constexpr opaq_rule opaq_this_rule = {{{c_string(info['name'])}, "
            f"{', '.join(dims)}, "
            f"{c_string(launch['shared']['text'])}, {', '.join(flags)}}};"
        )
    ]


def _images(code: list[dict[str, Any]]) -> list[str]:
    items = ", ".join(
        f"{{{c_string(item['arch'])}, {c_string(item['file'])}, {c_string(item['sha256'])}}}"
        for item in code
    )
    return [f"static constexpr opaq_image opaq_images[] = {{{items}}};"]


def _geometry(form: Form) -> list[str]:
    launch = form.launch

    def call(function: str, items: Sequence[CppText]) -> str:
        return f"{function}(opaq_this_rule, opaq_shape, {', '.join(item['cpp'] for item in items)})"

    lines = [
        "opaq_geometry opaq_shape{};",
        *_place("grid", launch["grid"]),
        f"if (!{call('opaq_grid', launch['grid'])}) return;",
    ]
    lines += [*_place("block", launch["block"]), call("opaq_block", launch["block"]) + ";"]
    if launch["cluster"]:
        lines += [
            *_place("cluster", launch["cluster"]),
            call("opaq_cluster", launch["cluster"]) + ";",
        ]
    return [
        *lines,
        *_place("shared", [launch["shared"]]),
        call("opaq_shared", [launch["shared"]]) + ";",
    ]


def _place(what: str, items: Sequence[CppText]) -> list[str]:
    """Where an error of an expression belongs; nothing for those that cannot fail."""
    if not any("(" in item["cpp"] for item in items):
        return []
    texts = [item["text"] for item in items]
    while len(texts) > 1 and texts[-1] == "1":
        texts.pop()
    where = f"{what} `{', '.join(texts)}`"
    return [f"opaq_place = {c_string(where)};"]


def _values(op: str, args: Sequence[CppArgument]) -> list[str]:
    """The parameters of a kernel or a host function as pointers to 64 bits each."""
    if not args:
        return ["void** opaq_pointers = nullptr;"]
    lines = [f"uint64_t opaq_values[{len(args)}];"]
    for index, arg in enumerate(args):
        where = f"argument {index + 1} `{arg['text']}`"
        if arg["type"] != "Tensor" and "(" in arg["cpp"]:
            lines.append(f"opaq_place = {c_string(where)};")
        lines.append(f"opaq_values[{index}] = {_value(arg, f'{op}: {where}')};")
    return [
        *lines,
        f"void* opaq_pointers[] = {{{', '.join(f'&opaq_values[{i}]' for i in range(len(args)))}}};",
    ]


def _value(arg: CppArgument, where: str) -> str:
    messages = f"{c_string(where)}, {c_string(arg['parameter'])}"
    form, cpp = arg["form"], arg["cpp"]
    if arg["type"] == "Tensor":
        return f"opaq_as_pointer({cpp})"
    if form == "integer":
        limits = [
            "INT64_MIN"
            if n == -(1 << 63)
            else "INT64_MAX"
            if n == (1 << 63) - 1
            else f"INT64_C({n})"
            for n in (arg["low"], arg["high"])
        ]
        return f"opaq_as_integer({cpp}, {', '.join(limits)}, {messages})"
    return f"opaq_as_double({cpp})" if form == "double" else f"opaq_as_{form}({cpp}, {messages})"


def _library_value(arg: CppArgument) -> str:
    if arg["type"] == "Tensor":
        return f"reinterpret_cast<void*>(opaq_as_pointer({arg['cpp']}))"
    return f"static_cast<{arg['parameter'].strip('`')}>({arg['cpp']})"
