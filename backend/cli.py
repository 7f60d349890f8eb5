"""The command `opaq`: demo, doctor, inspect."""

from __future__ import annotations

import argparse
import json
import sys


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="opaq", description="Opaque operators that torch.compile's Inductor launches directly.")
    commands = parser.add_subparsers(dest="command", required=True)

    demo = commands.add_parser("demo", help="train a small language model whose kernels are opaque ops, and check it against plain PyTorch")
    demo.add_argument("--steps", type=int, help="training steps")
    demo.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is a GPU")
    demo.add_argument("--seed", type=int, default=0)
    demo.add_argument("--json", action="store_true", help="print the facts as JSON and nothing else")

    doctor = commands.add_parser("doctor", help="show the parts opaq stands on and what is missing")
    doctor.add_argument("--json", action="store_true")

    inspect = commands.add_parser("inspect", help="list the ops, images and launch rules inside a model.pt2")
    inspect.add_argument("model", help="a package that AOTInductor wrote")
    inspect.add_argument("--json", action="store_true")

    arguments = parser.parse_args(argv)
    if arguments.command == "inspect":
        from . import inspect as app

        try:
            found = app.read(arguments.model)
        except app.NotAPackage as error:
            print(error, file=sys.stderr)
            return 1
        print(json.dumps(found, indent=2) if arguments.json else app.as_text(found))
        return 0

    if arguments.command == "demo":
        from . import demo as app

        facts = app.run(steps=arguments.steps, device=arguments.device, json=arguments.json, seed=arguments.seed)
        if arguments.json:
            print(json.dumps(facts, indent=2))
        return 0 if facts["agree"] else 1

    from . import doctor as app

    parts = app.examine()
    if arguments.json:
        print(json.dumps(app.as_json(parts), indent=2))
    else:
        app.show(parts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
