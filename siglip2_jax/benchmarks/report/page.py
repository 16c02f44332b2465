"""The report of an evaluation as one self-contained HTML page."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from string import Template

from siglip2_jax.benchmarks.report.plots import report_plots
from siglip2_jax.benchmarks.report.published import LOWER_IS_BETTER
from siglip2_jax.benchmarks.report.result import Result
from siglip2_jax.benchmarks.report.rows import (
    Row,
    advice,
    by_model,
    dataset_name,
    parts,
    place,
    protocol,
    rows,
    setting,
)

SUMMARY = (
    "Shares are in per cent, depth errors in metres (relative on NAVI), angles in degrees. "
    "Published numbers are those of SigLIP 2, arXiv 2502.14786; photos that do not decode count as "
    "wrong; data wait is the share of time in which the device waited for photos."
)
_NAMES_SHOWN = 20

_PAGE = Template("""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>$title</title>
<style>
 body { font: 14px/1.4 system-ui, sans-serif; margin: 2rem; color: #222; background: #fff; }
 p, ul, details { max-width: 60rem; }
 h2 { margin: 2.2rem 0 0.2rem; }
 table { border-collapse: collapse; margin: 1rem 0; }
 th, td { padding: 3px 14px 3px 0; text-align: right; vertical-align: top;
   font-variant-numeric: tabular-nums; }
 th { font-weight: normal; color: #666; font-size: 12px; }
 tbody { border-top: 1px solid #ddd; }
 td.name, th.name { text-align: left; }
 td.protocol { text-align: left; font-size: 12px; color: #666; max-width: 24rem; }
 td.missing { text-align: left; color: #666; font-style: italic; }
 td.near { color: #666; } td.worse { color: #b3261e; } td.better { color: #1b6e3c; }
 h3 { font-size: 14px; margin: 1rem 0 0; }
 ul { margin: 0.2rem 0 1rem; padding-left: 1.2rem; }
 section { display: flex; flex-wrap: wrap; gap: 1.5rem; }
 svg.plot text { font: 11px system-ui, sans-serif; fill: #444; }
 svg.plot text.title { font-weight: 600; font-size: 13px; fill: #222; }
 svg.plot .end { text-anchor: end; } svg.plot .mid { text-anchor: middle; }
 svg.plot .grid { stroke: #e6e6e6; }
 small { color: #666; }
</style>
<h1>$title</h1>
<p>$summary</p>
$body
</html>
""")

_HEAD = (
    '<thead><tr><th class="name">data set</th><th class="name">setting</th>'
    '<th class="name">metric</th><th>ours</th><th>published</th><th>difference</th><th>images</th>'
    '<th>failed</th><th>images/s</th><th>data wait</th><th class="name">protocol</th></tr></thead>'
)


def report_page(results: Sequence[Result]) -> str:
    """Draws the page.

    Args:
      results: at least one, in the order to show.

    Returns:
      HTML that refers to no other file.
    """
    models = by_model(results)
    body = [_model(*key, own) for key, own in models.items()]
    if plots := report_plots(results):
        body.append("<h2>Against the tokens of an image</h2>\n<section>")
        body.extend((*plots, "</section>"))
    names = ", ".join(dict.fromkeys(model for model, _ in models))
    return _PAGE.substitute(
        title=html.escape(f"Evaluation of {names}"), summary=SUMMARY, body="\n".join(body)
    )


def _model(model: str, pretrained: str, own: Sequence[Result]) -> str:
    bodies = "\n".join(_missing(x) if x.missing is not None else _table_body(x) for x in own)
    notes = [_advice(name, sentences) for name, sentences in advice(own).items()]
    notes += [part for result in own for part in _notes(result)]
    return (
        f"<h2>{html.escape(model)}</h2>\n<small>{html.escape(pretrained)}</small>\n"
        f"<table>{_HEAD}\n{bodies}</table>\n" + "\n".join(notes)
    )


def _advice(name: str, sentences: Sequence[str]) -> str:
    items = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in sentences)
    return f"<h3>{html.escape(name)}</h3><ul>{items}</ul>"


def _names(result: Result, span: int) -> str:
    over = f' rowspan="{span}"'
    return (
        f'<td class="name"{over}>{html.escape(dataset_name(result))}</td>'
        f'<td class="name"{over}>{html.escape(setting(result))}</td>'
    )


def _missing(result: Result) -> str:
    sentence = html.escape(f"No data. {result.missing}")
    cell = f'<td class="missing" colspan="9">{sentence}</td>'
    return f"<tbody><tr>{_names(result, 1)}{cell}</tr></tbody>"


def _table_body(result: Result) -> str:
    """The rows of a result; what holds for all its numbers is in one cell beside them."""
    own = rows(result)
    over = f' rowspan="{len(own)}"'
    speed = (
        f"<td{over}>{result.images:,}</td><td{over}>{len(result.failed)}</td>"
        f"<td{over}>{result.images_per_s:.1f}</td><td{over}>{result.data_wait:.0%}</td>"
        f'<td class="protocol"{over}>{html.escape(protocol(result))}</td>'
    )
    lines = [
        f"<tr>{_names(result, len(own)) if not i else ''}{_cells(row)}{speed if not i else ''}</tr>"
        for i, row in enumerate(own)
    ]
    return f"<tbody>{''.join(lines)}</tbody>"


def _cells(row: Row) -> str:
    ours, theirs, difference = row.texts()
    source = ""
    kind = "near"
    if row.theirs is not None and row.difference is not None:
        note = f"; {row.theirs.note}" if row.theirs.note else ""
        source = f' title="{html.escape(row.theirs.source + note)}"'
        if not row.agrees:
            better = (row.difference < 0) == (row.metric in LOWER_IS_BETTER)
            kind = "better" if better else "worse"
    return (
        f'<td class="name">{html.escape(row.metric)}</td><td>{ours}</td>'
        f'<td{source}>{theirs}</td><td class="{kind}">{difference}</td>'
    )


def _notes(result: Result) -> Iterator[str]:
    """Notes under a table: images that failed, numbers of parts."""
    if result.failed:
        names = "<br>".join(html.escape(name) for name in result.failed[:_NAMES_SHOWN])
        more = len(result.failed) - _NAMES_SHOWN
        rest = f"<br>and {more} more, all in report.json" if more > 0 else ""
        yield _details(f"Photos of {place(result)} that did not decode", f"<p>{names}{rest}</p>")
    metrics, each = parts(result)
    if each:
        heads = "".join(f"<th>{html.escape(metric)}</th>" for metric in metrics)
        lines = "".join(
            f'<tr><td class="name">{html.escape(part)}</td>'
            f"{''.join(f'<td>{text}</td>' for text in texts)}</tr>"
            for part, texts in each.items()
        )
        table = f"<table><thead><tr><th></th>{heads}</tr></thead><tbody>{lines}</tbody></table>"
        yield _details(f"Parts of {place(result)}", table)


def _details(summary: str, inside: str) -> str:
    return f"<details><summary>{html.escape(summary)}</summary>{inside}</details>"
