"""report.html: one page about a run that needs nothing else, no network and no script. Layer 7.

What comes from a text, a file or a model is escaped twice: report.escape for what acts on a
terminal or turns the direction of writing, then for HTML.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path

from . import curves
from .atomic import atomic_file
from .label import facts, sections
from .report import escape, human, human_bytes
from .tokenizer_report import tokenizer_report

CSS = """
:root { color: #1d1d1f; background: #fbfbf9; font: 16px/1.5 system-ui, "Segoe UI", sans-serif }
* { box-sizing: border-box }
body { max-width: 1120px; margin: 0 auto; padding: 28px 20px 60px }
h1 { font-size: 28px; line-height: 1.2; margin: 0 0 6px; overflow-wrap: anywhere }
h2 { font-size: 20px; margin: 44px 0 10px; padding-bottom: 4px; border-bottom: 1px solid #ccc }
p { max-width: 72ch; margin: 8px 0 }
.lead { font-size: 18px; color: #444 }
.grid { display: grid; gap: 18px; align-items: start;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr)) }
figure { margin: 0; padding: 10px; background: #fff; border: 1px solid #ddd; border-radius: 6px }
figure svg { display: block; width: 100%; height: auto }
svg text { font-family: system-ui, "Segoe UI", sans-serif !important }
table { border-collapse: collapse; width: 100%; font-size: 14.5px }
td, th { padding: 3px 10px 3px 0; text-align: left; vertical-align: top; overflow-wrap: anywhere;
  border-bottom: 1px solid #e4e4e0 }
th { font-weight: 600 }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
.label { background: #fff; border: 3px solid #111; padding: 10px 14px 12px }
.label b.title { display: block; font-size: 30px; line-height: 1.1; border-bottom: 1px solid #111 }
.label table + table { border-top: 8px solid #111; margin-top: 2px }
.label td { padding: 3px 8px 3px 0; font-size: 13.5px; line-height: 1.35; border-color: #bbb }
.label td:first-child { font-weight: 700; width: 7.5em; white-space: nowrap }
.label td.long { font: 11px/1.4 ui-monospace, monospace; overflow-wrap: anywhere }
pre, code { font: 13.5px/1.5 ui-monospace, "DejaVu Sans Mono", monospace }
.sample { display: grid; grid-template-columns: 8.5em 1fr; gap: 14px; margin: 12px 0;
  padding-top: 10px; border-top: 1px solid #e4e4e0 }
.sample pre { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere }
.sample small { color: #666; display: block }
.use { display: inline-block; margin-right: 14px }
code { background: #efefea; padding: 0 4px; border-radius: 3px; margin: 0 6px 4px 0;
  display: inline-block; white-space: pre-wrap; overflow-wrap: anywhere }
.note { background: #fff6e0; border-left: 4px solid #e0a800; padding: 6px 12px }
@media (max-width: 600px) {
  body { padding: 18px 12px 40px } h1 { font-size: 23px } .lead { font-size: 16px }
  .sample { grid-template-columns: 1fr; gap: 4px }
  .label { padding: 8px 10px } .label td:first-child { width: auto }
}
"""


def is_report(path: Path) -> bool:
    """Whether write_report made the file. Its pages are told by the first line of their style: a
    new style keeps that line, or reports of before count as somebody's own pages. OSError."""
    with open(path, "rb") as file:
        return CSS.split("\n")[1].encode() in file.read(1 << 16)


def write_report(run, out: Path, path: Path, pictures: bool) -> None:
    """The page about a run whose parameter file is `out`; without its curves where pictures (and
    with them matplotlib) are not to be had."""
    told = facts(str(out))
    title = _text(told.get("name", out.name))
    parts = [
        f"<header><h1>{title}</h1>{_lead(run, told)}</header>",
        f'<div class="grid">{_label(told)}<div class="grid">{_loss(run, pictures)}</div></div>',
        _curves(run, pictures),
        _memorisation(run, pictures),
        _samples(run),
        _tokenizer(run),
        _settings(run),
    ]
    page = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{CSS}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )
    with atomic_file(path) as file:
        file.write(page.encode("utf-8", "backslashreplace"))


def _text(text: object) -> str:
    """What is safe to show; newlines stay."""
    return html.escape(escape(str(text)))


def _table(head: Iterable[str], rows: Iterable[Iterable[tuple[str, str]]]) -> str:
    """rows of (class, escaped text)."""
    top = "".join(f"<th>{_text(name)}</th>" for name in head)
    lines = "".join(
        "<tr>" + "".join(f'<td class="{kind}">{text}</td>' for kind, text in row) + "</tr>\n"
        for row in rows
    )
    return f"<table><tr>{top}</tr>\n{lines}</table>"


# ---- the parts ----


def _lead(run, told: dict) -> str:
    ended = "" if run.is_done else f" It was stopped at step {run.step:,} of {run.n_steps:,}."
    own = told["provenance"]
    if own["train.steps"] != run.step:
        ended += (
            f" It has the weights of step {own['train.steps']:,}: step {run.step:,} was worse on "
            f"that text, {run.bits_per_byte:.3f} bits."
        )
    return (
        f'<p class="lead">{human_bytes(own["corpus.bytes"])} of text became a file of '
        f"{human_bytes(told['file_bytes'])} with {human(told['parameters'])} parameters. It needs "
        f"{own['validation.bits_per_byte']:.3f} bits for a byte of text that it has not seen."
        f"{ended}</p>"
    )


def _label(told: dict) -> str:
    tables = []
    for section in sections(told):
        rows = []
        for name, amount, detail in section:
            if detail:
                cells = f'<td class="n">{_text(amount)}</td><td>{_text(detail)}</td>'
            else:
                kind = "long" if len(amount) > 40 else ""
                cells = f'<td class="{kind}" colspan="2">{_text(amount)}</td>'
            rows.append(f"<tr><td>{_text(name)}</td>{cells}</tr>\n")
        tables.append(f"<table>{''.join(rows)}</table>")
    return f'<section class="label"><b class="title">Model facts</b>{"".join(tables)}</section>'


def _figure(run, panel) -> str:
    name = panel.__name__.replace("_", " ")
    svg = curves.draw_svg(run, panel).replace("<svg", f'<svg role="img" aria-label="{name}"', 1)
    return f"<figure>{svg}</figure>"


def _figures(run, panels) -> str:
    return "".join(_figure(run, panel) for panel in panels)


def _loss(run, pictures: bool) -> str:
    if not pictures:
        return '<p class="note">No curves: matplotlib is not installed.</p>'
    return _figures(run, (curves.loss_by_step, curves.loss_by_second))


def _curves(run, pictures: bool) -> str:
    if not pictures:
        return ""
    figures = _figures(run, (curves.learning_rate, curves.gradient_norm, curves.speed))
    peak = ""
    if run.peak > 0:
        peak = (
            f"<p>Peak is {human(run.peak)}FLOP/s, which this machine's matrix product ("
            f"{_text(run.model.ops.precision)}, {run.model.ops.n_threads} threads) reached "
            "alone.</p>"
        )
    notes = (
        "<div><p>Lines are means; pale bands reach from the lowest to the highest of the steps in "
        "each mean. Speed is that of the steps alone, without validation, samples and saving. All "
        f"of it took {run.seconds:,.0f} s.</p>{peak}</div>"
    )
    return f'<h2>How it went</h2><div class="grid">{figures}{notes}</div>'


def _memorisation(run, pictures: bool) -> str:
    found = run.memorisation
    if not found:
        return ""
    figure = _figure(run, curves.memorisation) if pictures else ""
    rows = [
        [
            ("", name),
            ("n", f"{len(runs)}"),
            ("n", f"{found.verbatim(runs):.1%}"),
            ("n", f"{runs.mean():.2f}"),
        ]
        for name, runs in (("training", found.training), ("held out", found.held_out))
    ]
    head = ("text", "windows", "repeated to the end", "tokens repeated, mean")
    return (
        "<h2>Memorisation</h2><div class='grid'><div>"
        f"<p>The model is given {found.n_prompt} tokens of the text and goes on with the likeliest "
        f"token each time. Counted is how many of the next {found.n_tokens} tokens are the text's "
        "own before the first that is not. Where the text it was trained on does better than text "
        "it never saw, it recites.</p>"
        f"{_table(head, rows)}</div>{figure}</div>"
    )


def _samples(run) -> str:
    at = {step: bits for step, _, bits in run.validations}
    parts = []
    for i, (step, text) in enumerate(run.samples, 1):
        held = f"<small>{at[step]:.3f} bits per byte</small>" if step in at else ""
        name = f"step {step:,}" if i < len(run.samples) else f"the file, step {step:,}"
        parts.append(f'<div class="sample"><div>{name}{held}</div><pre>{_text(text)}</pre></div>')
    return f"<h2>Samples as it learned</h2>{''.join(parts)}" if parts else ""


def _tokenizer(run) -> str:
    vocabulary = run.vocabulary
    if vocabulary is None:  # of the file that the run went on from
        return ""
    control = {vocabulary.eos} | vocabulary.control
    found = tokenizer_report(vocabulary.tokens, control, run.examples.tokens)
    n_bytes = sum(size for size, _ in found.scripts.values())
    n_tokens = sum(n for _, n in found.scripts.values())
    rows = [
        [
            ("", _text(script)),
            ("n", f"{size / n_bytes:.1%}"),
            ("n", f"{n:,}"),
            ("n", f"{size / n:.2f}"),
        ]
        for script, (size, n) in found.scripts.items()
    ]
    longest = "".join(
        f'<span class="use"><code>{_token(token)}</code>{n:,}</span>' for token, n in found.longest
    )
    unused = "".join(f"<code>{_token(token)}</code>" for token in found.unused[:40])
    more = f" and {len(found.unused) - 40} more" if len(found.unused) > 40 else ""
    return (
        f"<h2>Tokenizer</h2><p>{len(vocabulary.tokens):,} tokens, "
        f"{n_bytes / max(1, n_tokens):.2f} bytes each in the text that was learned, "
        f"{run.validation.bytes_per_token:.2f} held out.</p><div class='grid'><div>"
        + _table(("script", "share of bytes", "tokens", "bytes per token"), rows)
        + f"<p>Of the first {n_tokens:,} tokens of the text.</p></div><div>"
        f"<p><b>Longest tokens</b>, and how often the text has them</p><p>{longest}</p>"
        f"<p><b>Unused</b> in {found.n_tokens:,} tokens of the text: {len(found.unused)} that were "
        f"learned, {found.n_unused_bytes} single bytes</p><p>{unused}{more}</p></div></div>"
    )


def _token(token: bytes) -> str:
    return _text(repr(token.decode("utf-8", "backslashreplace"))[1:-1])


def _settings(run) -> str:
    shown = {field.name: getattr(run.settings, field.name) for field in fields(run.settings)}
    shown |= {"steps": run.n_steps, "kernels": run.model.ops.kernels}
    rows = [
        [("", _text(name)), ("", _text(_setting(value)))]
        for name, value in shown.items()
        if value not in (None, ())
    ]
    half = math.ceil(len(rows) / 2)
    tables = "".join(_table(("setting", "value"), part) for part in (rows[:half], rows[half:]))
    return f'<h2>Settings</h2><div class="grid">{tables}</div>'


def _setting(value) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
