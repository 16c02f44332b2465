"""`siglip2 watch`: shows how a training run goes, and says whether it is sick."""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING

from siglip2_jax.cli.options import output_file
from siglip2_jax.cli.printing import print_json

if TYPE_CHECKING:
    from rich.text import Text

    from siglip2_jax.watch.run import WatchedRun

SECONDS = 10.0


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the subcommand."""
    parser = commands.add_parser(
        "watch",
        help="show the curves of a training run, and whether it is healthy",
        description="Reads metrics.jsonl and events.jsonl of a workdir. On a terminal the picture "
        "is drawn anew until Ctrl-C, elsewhere once. The verdict is HEALTHY, LOOK or SICK, by "
        "rules that docs/training.md lists. Drawn once, the exit code is 1 for a sick run.",
        epilog="example: siglip2 watch gs://BUCKET/b16_256 --html b16.html",
    )
    parser.add_argument("workdir", metavar="WORKDIR", help="directory of a run; local or gs://")
    parser.add_argument("--once", action="store_true", help="draw once, on a terminal too")
    parser.add_argument(
        "--html", metavar="FILE", type=output_file, help="write a self-contained page too"
    )
    parser.add_argument(
        "--seconds",
        type=_seconds,
        default=SECONDS,
        help=f"time between two looks (default: {SECONDS:g})",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, once")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Draws the run; 1 if it is sick, 0 after Ctrl-C."""
    from siglip2_jax.watch.run import WatchedRun
    from siglip2_jax.watch.summary import summarize, to_json

    watched = WatchedRun(args.workdir)
    if sys.stdout.isatty() and not args.once and not args.json:
        return _follow(watched, args)
    now = time.time()
    _write_page(watched, now, args)
    if args.json:
        print_json(to_json(watched, now))
    else:
        from rich.console import Console

        console = Console(highlight=False)
        console.print(_picture(watched, now, console.width), soft_wrap=True)
    return int(summarize(watched, now).verdict == "sick")


def _follow(watched: WatchedRun, args: argparse.Namespace) -> int:
    """Draws the run anew until Ctrl-C; the last picture stays."""
    from rich.console import Console
    from rich.live import Live

    console = Console(highlight=False)
    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
        try:
            while True:
                now = time.time()
                _write_page(watched, now, args)
                live.update(_picture(watched, now, console.width), refresh=True)
                time.sleep(args.seconds)
                watched.refresh()
        except KeyboardInterrupt:
            return 0


def _picture(watched: WatchedRun, now: float, width: int) -> Text:
    from siglip2_jax.watch.terminal import RAMP, draw

    try:
        RAMP.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return draw(watched, now, width, plain=True)
    return draw(watched, now, width)


def _write_page(watched: WatchedRun, now: float, args: argparse.Namespace) -> None:
    if args.html:
        from siglip2_jax.outputs import write_whole
        from siglip2_jax.watch.page import draw_page

        write_whole(args.html, draw_page(watched, now))


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.1 <= value <= 86400:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 0.1 to 86400")
    return value
