"""The command `opaq`: bench, check, demo, doctor, explain, inspect, new. Results go to stdout,
progress and messages to stderr. A mistake of the user's is one line on stderr and exit status 2.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from .terminal import plain

WRONG_USE = 2
DAMAGED = 1  # the package can be read, but files in it are damaged
PROBLEMS = 1  # `opaq check` found some
INTERRUPTED = 130  # as shells report Ctrl-C

# torch's exceptions about this machine, by name: importing their classes would load Inductor.
_MACHINE_ERRORS = ("OutOfMemoryError", "InvalidCxxCompiler", "CppCompileError")


class UserError(Exception):
    """A mistake of the user's, in one line."""


class _Parser(argparse.ArgumentParser):
    """Reports an error in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(WRONG_USE, plain(f"{self.prog}: {message}; see {self.prog} --help") + "\n")


def main(argv: list[str] | None = None) -> int:
    """Runs one command and returns the exit status."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # the terminal's encoding may lack characters of the text
            stream.reconfigure(errors="backslashreplace")
    argv = sys.argv[1:] if argv is None else argv
    arguments = _parser(argv).parse_args(argv)
    try:
        status = {
            "bench": lambda arguments: _bench(arguments, argv),
            "check": _check,
            "demo": _demo,
            "doctor": _doctor,
            "explain": _explain,
            "inspect": _inspect,
            "new": _new,
        }[arguments.command](arguments)
        if sys.stdout is not None:
            sys.stdout.flush()  # here, so that a closed pipe is handled below
        return status
    except UserError as error:
        print(plain(str(error)), file=sys.stderr)
        return WRONG_USE
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # as with `opaq inspect model.pt2 | head`
        _discard_output()
        return 1
    except Exception as error:
        if _is_of_output(error):
            _discard_output()
        message = _message_for_user(error)
        if message is None:
            raise
        print(plain(message), file=sys.stderr)
        return WRONG_USE


def _is_of_output(error: BaseException) -> bool:
    return (
        isinstance(error, OSError)
        and error.filename is None
        and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO)
    )


def _message_for_user(error: BaseException) -> str | None:
    """The problem in one line, if `error` or an exception that caused it is one that a user can
    solve (a missing part, a file, a bad setting); None for any other, which is a bug.
    """
    from . import Error, call_site

    for found in call_site.causes(error):
        if _is_of_output(found):
            return f"the output cannot be written: {found.strerror}"
        if isinstance(found, OSError) and found.filename is not None:
            return f"{found.filename}: {found.strerror}"
        if isinstance(found, (Error, MemoryError)) or type(found).__name__ in _MACHINE_ERRORS:
            return (str(found) or "out of memory").strip().splitlines()[0]
    return None


def _parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    parser = _Parser(
        prog="opaq",
        description="Opaque operators that torch.compile's Inductor launches directly.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    commands = parser.add_subparsers(dest="command", required=True)

    bench = commands.add_parser(
        "bench",
        help="measure a model under several backends, or what opaque ops cost on this machine",
    )
    if argv[:1] == ["bench"]:  # its parsers are in modules that other commands need not load
        from .bench import command

        command.add_parsers(bench, argv[1:2])

    check = commands.add_parser(
        "check",
        help="compile every implementation of the ops in a file, check argument lists, and tell "
        "registers, shared memory, spills and occupancy, without a GPU; exit status 1 if there "
        "are problems",
    )
    check.add_argument(
        "target",
        metavar="FILE_OR_MODULE[:OP]",
        help="a Python file or module that declares ops; and the name of one",
    )
    check.add_argument(
        "--arch",
        action="append",
        default=[],
        metavar="ARCH[,ARCH]",
        help="what CUDA source is compiled for, such as sm_80,sm_90a; default: this GPU's",
    )
    check.add_argument(
        "--example",
        action="append",
        default=[],
        metavar="ARGUMENTS",
        help="arguments of a call, such as 'bfloat16[8, 4096], bfloat16[4096], eps=1e-6'; beside "
        "those that the file gives with Op.example",
    )
    check.add_argument("--json", action="store_true")

    demo = commands.add_parser(
        "demo",
        help="train a small language model whose kernels are opaque ops, and check it against "
        "plain PyTorch",
    )
    demo.add_argument("--steps", type=_whole_number(1), help="training steps, at least 1")
    demo.add_argument(
        "--device", choices=("cpu", "cuda"), help="default: cuda where there is a GPU"
    )
    demo.add_argument("--seed", type=_whole_number(0), default=0)
    demo.add_argument(
        "--json", action="store_true", help="print the facts as JSON and nothing else"
    )

    doctor = commands.add_parser(
        "doctor", help="show the software that opaq depends on, and what is missing"
    )
    doctor.add_argument("--json", action="store_true")

    explain = commands.add_parser(
        "explain",
        help="tell how each opaque op of a model would be served and why, without running it",
    )
    explain.add_argument(
        "target",
        metavar="FILE_OR_MODULE:FUNCTION",
        help="a function that returns (model, args) or (model, args, kwargs)",
    )
    explain.add_argument(
        "--arch",
        action="append",
        default=[],
        metavar="ARCH[,ARCH]",
        help="what CUDA source is compiled for, such as sm_80,sm_90a; default: this GPU's",
    )
    explain.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        default="",
        help="the function is called with this default device, and makes tensors "
        "without values, for which no GPU and no memory are needed",
    )
    explain.add_argument("--json", action="store_true")
    explain.add_argument("--html", metavar="PATH", help="write a page, too")

    inspect = commands.add_parser(
        "inspect",
        help="list the ops, images and launch rules inside a model.pt2; exit status 1 if a file "
        "in it is damaged",
    )
    inspect.add_argument("model", help="a package that AOTInductor wrote")
    inspect.add_argument("--json", action="store_true")

    new = commands.add_parser(
        "new", help="print a declaration, to be completed, for each kernel in a CUDA C++ file"
    )
    new.add_argument("file", help="CUDA C++ source")
    new.add_argument("--namespace", default="mylib", help="of the ops; default: mylib")
    return parser


class _Version(argparse.Action):
    """Prints the version, which is looked up only when asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        from . import __version__

        print(f"opaq {__version__}")
        parser.exit()


def _whole_number(least: int) -> Any:
    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = None
        if value is None or not least <= value < 1 << 63:
            raise argparse.ArgumentTypeError(
                f"got {text[:40]!r}; expected a whole number, at least {least}"
            )
        return value

    return read


def _bench(arguments: argparse.Namespace, argv: Sequence[str]) -> int:
    from .bench import command as app
    from .user_file import WrongTarget

    try:
        return app.run(arguments, argv)
    except (app.Unavailable, WrongTarget) as error:
        raise UserError(str(error)) from error


def _inspect(arguments: argparse.Namespace) -> int:
    from . import package_contents as app

    try:
        found = app.read(arguments.model)
    except app.NotAPackage as error:
        raise UserError(str(error)) from error
    print(json.dumps(found, indent=2) if arguments.json else app.as_text(found))
    return 0 if app.whole(found) else DAMAGED


def _check(arguments: argparse.Namespace) -> int:
    from . import check_command as app

    try:
        found = app.run(arguments.target, _archs(arguments), arguments.example, _tell)
    except app.WrongTarget as error:
        raise UserError(str(error)) from error
    if arguments.json:
        print(json.dumps({key: found[key] for key in found if key != "reports"}, indent=2))
    else:
        print("\n".join(map(plain, app.as_text(found).splitlines())))
    return 0 if found["ok"] else PROBLEMS


def _explain(arguments: argparse.Namespace) -> int:
    from . import explain_command as app
    from . import output_file

    if arguments.html:
        output_file.check(arguments.html)
    try:
        found = app.run(arguments.target, _archs(arguments), arguments.device)
    except app.WrongTarget as error:
        raise UserError(str(error)) from error
    if arguments.html:
        output_file.write(found.html(), arguments.html)
    if arguments.json:
        print(json.dumps(found.as_dict(), indent=2))
    else:
        print("\n".join(map(plain, str(found).splitlines())))
    return 0


def _archs(arguments: argparse.Namespace) -> list[str]:
    return [arch.strip() for item in arguments.arch for arch in item.split(",")]


def _tell(line: str) -> None:
    print(f"checking {plain(line)}", file=sys.stderr, flush=True)


def _new(arguments: argparse.Namespace) -> int:
    from . import skeleton as app

    try:
        print(app.declarations(arguments.file, arguments.namespace), end="")
    except app.NoKernels as error:
        raise UserError(str(error)) from error
    return 0


def _demo(arguments: argparse.Namespace) -> int:
    from . import demo as app

    facts = app.run(
        steps=arguments.steps, device=arguments.device, json=arguments.json, seed=arguments.seed
    )
    if arguments.json:
        print(json.dumps(facts, indent=2))
    return 0 if facts["agree"] else 1


def _doctor(arguments: argparse.Namespace) -> int:
    from . import doctor as app

    parts = app.examine()
    if arguments.json:
        print(json.dumps(app.as_json(parts), indent=2))
    else:
        app.show(parts)
    return 0


def _discard_output() -> None:
    """So that the interpreter's last flush, at exit, does not fail again."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
    except (OSError, ValueError):
        pass


if __name__ == "__main__":
    sys.exit(main())
