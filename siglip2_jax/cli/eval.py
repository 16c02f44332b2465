"""`siglip2 eval`: benchmarks, our number beside the published one."""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from pathlib import Path

from siglip2_jax.cli.options import (
    add_host_options,
    add_model_options,
    add_template_option,
    any_path,
    load_decoder,
    load_model,
    local_path,
    output_file,
    positive,
    use_all_devices,
)


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the subcommand."""
    parser = commands.add_parser(
        "eval",
        help="measure a model on benchmarks, beside the published numbers",
        description="Measures a model on one or several benchmarks. With --out, results and "
        "a report are written, and the same command continues an interrupted run. On a slice, run "
        "it on every host with the same data.",
        epilog="example: siglip2 eval siglip2_b16_naflex.npz --task imagenet,coco --data /data "
        "--budgets 64,256 --out results",
    )
    add_model_options(parser)
    parser.add_argument(
        "--task", default="", help="names of tasks, separated by commas; `list` prints all tasks"
    )
    parser.add_argument("--suite", help="Python file with a suite(), instead of --task")
    parser.add_argument(
        "--data",
        type=local_path,
        help="directory with one subdirectory for each data set, or the directory of one data set",
    )
    parser.add_argument(
        "--budgets",
        type=_budgets,
        default=None,
        metavar="N,N",
        help="token budgets for NaFlex models (default: --max-num-patches)",
    )
    add_template_option(parser, "those of each task, mostly clip_paper")
    parser.add_argument(
        "--out", type=any_path, help="directory for results and report; resumes there"
    )
    parser.add_argument(
        "--json", type=output_file, metavar="FILE", help="file to write the results to, as JSON"
    )
    parser.add_argument(
        "--transformers",
        action="store_true",
        help="run a Hugging Face SOURCE with transformers and torch; if both agree, a difference "
        "to a published number comes from the protocol",
    )
    add_host_options(parser)
    parser.set_defaults(run=run)


def _budgets(text: str) -> tuple[int, ...]:
    return tuple(positive(part.strip()) for part in text.split(","))


def run(args: argparse.Namespace) -> int:
    """Prints a line for each result; exit code 1 if no data was found.

    Raises:
      ValueError: neither or both of --task and --suite, or no --data.
    """
    from siglip2_jax.benchmarks.suite import evaluate, parse_entries
    from siglip2_jax.benchmarks.suite_file import load_suite
    from siglip2_jax.benchmarks.tasks.catalogue import all_tasks

    if args.task == "list":
        for task in all_tasks().values():
            print(f"{task.name:20} {task.folder}: {task.setup_hint}")
        return 0
    if bool(args.task) == bool(args.suite):
        raise ValueError("pass one of --task NAME and --suite FILE; --task list lists the tasks")
    if args.data is None or not Path(args.data).is_dir():
        raise ValueError(
            f"--data is {args.data}; expected the directory with a directory for each data set"
        )
    budgets = args.budgets or (args.max_num_patches,)
    suite = load_suite(args.suite) if args.suite else parse_entries(args.task, budgets)
    model, batch_size = _open_model(args)
    results = []
    for result in evaluate(
        model,
        suite,
        Path(args.data),
        args.out,
        pretrained=args.source if args.stage is None else f"{args.source}, stage {args.stage}",
        batch_size=batch_size,
        templates=args.templates or (),
        decoder=partial(load_decoder, args),
    ):
        results.append(result)
        _print(result)
    if _is_first():
        _write(args, results)
        _compare_templates(args.source, results)
    return int(all(result.missing for result in results))


def _open_model(args: argparse.Namespace):
    """The model on this host's devices, and images per program call."""
    if args.transformers:
        if args.source.startswith("gs://"):
            raise ValueError(
                f"--transformers reads no gs:// paths, got {args.source}; copy it here"
            )
        if args.stage is not None:
            raise ValueError("--stage names a stage of a run; leave it out with --transformers")
        from siglip2_jax.benchmarks.adapters.transformers_model import open_transformers
        from siglip2_jax.preprocess.tokenizer import Tokenizer

        text_norm = args.text_norm or "unicode_lower"
        words = args.tokenizer and Tokenizer.load(args.tokenizer, text_norm=text_norm)
        exif = not args.no_exif
        model = open_transformers(args.source, words, text_norm=text_norm, exif=exif)
        return model, args.batch_size
    from siglip2_jax.train.distributed import join_hosts

    if not args.no_distributed:
        join_hosts(args.coordinator, args.num_processes, args.process_id)
    model = load_model(args)
    return model, args.batch_size * use_all_devices(model)


def _is_first() -> bool:
    import jax

    return jax.process_index() == 0


def _print(result) -> None:
    from siglip2_jax.benchmarks.report.rows import rows

    if not _is_first():
        return
    place = f"{result.dataset}, {result.protocol['num_patches']} patches"
    if result.missing:
        print(f"{place}: no data: {result.missing}", flush=True)
        return
    numbers = []
    for row in rows(result):
        number, published, _ = row.texts()
        numbers.append(
            f"{row.metric} {number}" + (f" (published {published})" if row.theirs else "")
        )
    print(
        f"{place}: {', '.join(numbers)}; {result.images} images, {result.images_per_s:.1f}/s, "
        f"data wait {result.data_wait:.0%}",
        flush=True,
    )
    for problem in result.failed[:10]:
        print(f"siglip2: counted as wrong: {problem}", file=sys.stderr)


def _compare_templates(source: str, results: list) -> None:
    """Warns if the evaluators of a training run used other prompts."""
    from siglip2_jax.evals.prompts import name_templates
    from siglip2_jax.evals.trained import trained_templates

    templates = dict.fromkeys(x.protocol["templates"] for x in results if "templates" in x.protocol)
    trained = [name_templates(x) for x in trained_templates(source)] if templates else []
    if trained and (unseen := [x for x in templates if x not in trained]):
        print(
            f"siglip2: measured with the prompts {', '.join(unseen)}, but the run's evaluators "
            f"used {', '.join(trained)}; see --templates",
            file=sys.stderr,
        )


def _write(args: argparse.Namespace, results: list) -> None:
    from siglip2_jax.benchmarks.report.write import write_report
    from siglip2_jax.outputs import write_whole

    if args.json:
        rows = [result.to_json() for result in results]
        write_whole(args.json, json.dumps(rows, indent=2, ensure_ascii=False) + "\n")
    if args.out:
        report = write_report(results, args.out)
        print(f"report: {report}")
        if report.suffix == ".md":
            print(
                "siglip2: report.html, with plots, needs pip install 'siglip2_jax[report]'",
                file=sys.stderr,
            )
