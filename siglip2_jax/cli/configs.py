"""`siglip2 configs`: lists the recipes that ship with the package."""

from __future__ import annotations

import argparse
import json


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the subcommand."""
    parser = commands.add_parser(
        "configs",
        help="list the configs that ship with the package",
        description="Lists the recipes, the configs that ship with the package. Every command that "
        "takes a CONFIG finds them by name.",
        epilog="example: siglip2 configs --json",
    )
    parser.add_argument("--json", action="store_true", help="print a list of objects as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Prints one line for each."""
    from siglip2_jax.recipes import summaries

    recipes = summaries()
    if args.json:
        print(json.dumps([{"name": n, "summary": line} for n, line in recipes.items()], indent=2))
        return
    width = max(map(len, recipes))
    print("\n".join(f"{name:{width}}  {line}" for name, line in recipes.items()))
