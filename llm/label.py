"""What a parameter file says about itself, as facts and as a label of one screen. Layer 7.

Works for every file that the engine opens: what a file does not say is absent. Nothing in it is
believed or run: a value of another type than its key has is left out, text is escaped.
"""

from __future__ import annotations

import math
import textwrap
from collections import Counter
from pathlib import Path

from .errors import counted
from .report import escape, human, human_bytes

WIDTH = 78
_TOLD = (
    "two_file.version",
    "two_file.train.settings",
    "two_file.proof.",
    "two_file.ratio",
)  # in other words, or of no use


def facts(path: str) -> dict:
    """Plain values by name, as for JSON; SI units (bytes, seconds, bits per byte, shares of 1)."""
    from .engine import Model

    with Model(path) as model:
        keys, c = _Keys(model.metadata), model.config
        sizes = Counter()
        for name in model.tensors:
            sizes[model.tensors.type_name(name)] += math.prod(model.tensors.shape(name))
        out = {
            "file": str(path),
            "file_bytes": Path(path).stat().st_size,
            "name": keys.text("general.name"),
            "license": keys.text("general.license"),
            "author": keys.text("general.author") or keys.text("general.organization"),
            "architecture": c.architecture,
            "parameters": model.n_params,
            "types": {name: n / sizes.total() for name, n in sizes.most_common()},
            "n_layer": c.n_layer,
            "n_embd": c.n_embd,
            "n_head": c.n_head,
            "n_kv_head": c.n_kv_head,
            "n_ff": c.n_ff,
            "context": c.n_ctx_train,
            "vocabulary": c.n_vocab,
            "tokenizer": keys.text("tokenizer.ggml.model"),
            "pre_tokenizer": keys.text("tokenizer.ggml.pre"),
            "needs": model.needs(),
        }
        own = {key[9:]: keys.plain(key) for key in keys if key.startswith("two_file.")}
    out["provenance"] = {key: value for key, value in own.items() if value is not None}
    return {name: value for name, value in out.items() if value is not None}


class _Keys:
    """Metadata whose values have the type that is asked for, or are None."""

    def __init__(self, metadata):
        self._metadata = metadata

    def __iter__(self):
        return iter(self._metadata)

    def text(self, key: str) -> str | None:
        value = self._metadata.get(key)
        return value if isinstance(value, str) else None

    def plain(self, key: str) -> str | int | float | None:
        """A string or a finite number."""
        value = self._metadata.get(key)
        if isinstance(value, str):
            return value
        return value if isinstance(value, int | float) and math.isfinite(value) else None


# ---- the label ----


def label(path: str) -> str:
    """The facts as lines of text: name, amount and what it is an amount of."""
    told = facts(path)
    title = told.get("name") or Path(path).name
    lines = [_line(title, WIDTH), "=" * WIDTH]
    for section in sections(told):
        for name, amount, detail in section:
            lines += _rows(name, amount, detail)
        lines.append("-" * WIDTH)
    return "\n".join(lines[:-1])


def _line(text: str, limit: int) -> str:
    """Escaped, on one line."""
    text = escape(text).replace("\n", "\\n").replace("\t", "\\t")
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _rows(name: str, amount: str, detail: str) -> list[str]:
    name = f"{_line(name, 40):<13}"
    amount = _line(amount, 16 if detail else WIDTH - len(name) - 1)
    first = f"{name} {amount:>13}"
    if not detail:
        return [first]
    indent = len(first) + 2
    wrapped = textwrap.wrap(_line(detail, 400), WIDTH - indent)
    return [f"{first}  {wrapped[0]}", *(" " * indent + more for more in wrapped[1:])]


def sections(told: dict) -> list[list[tuple[str, str, str]]]:
    """The label's rows (name, amount, detail), as groups; from `facts`, not yet escaped."""
    own = _Own(told["provenance"])
    groups = [_file_rows(told), _origin_rows(own, told["file_bytes"]), _hash_rows(own)]
    rest = [(key, _amount(own.values[key]), "") for key in own.rest()]
    return [group for group in (*groups, rest) if group]


class _Own:
    """The two_file keys; remembers which were asked for, so that the others can be listed."""

    def __init__(self, values: dict):
        self.values, self._told = values, set()

    def number(self, key: str) -> float | int | None:
        value = self.values.get(key)
        self._told.add(key)
        return value if not isinstance(value, str) else None

    def text(self, key: str) -> str:
        value = self.values.get(key)
        self._told.add(key)
        return value if isinstance(value, str) else ""

    def rest(self) -> list[str]:
        def is_told(key):
            return key in self._told or f"two_file.{key}".startswith(_TOLD)

        return [key for key in self.values if not is_told(key)]


def _amount(value: str | int | float) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return f"{value:,}" if isinstance(value, int) else value


def _file_rows(told: dict) -> list[tuple[str, str, str]]:
    types = ", ".join(f"{name} {100 * share:.3g}%" for name, share in told["types"].items())
    sizes = ", ".join(
        f"{name} {told[name]}" for name in ("n_layer", "n_embd", "n_head", "n_kv_head", "n_ff")
    )
    kind = ", ".join(told[key] for key in ("tokenizer", "pre_tokenizer") if key in told)
    bits = 8 * told["file_bytes"] / told["parameters"]
    rows = [
        ("File", _amount(told["file_bytes"]), f"bytes, {told['file']}"),
        ("Parameters", _amount(told["parameters"]), f"{told['architecture']}: {sizes}"),
        ("Bits each", f"{bits:.3g}", f"of the file; parameters by type: {types}"),
        ("Context", _amount(told["context"]), "tokens"),
        ("Vocabulary", _amount(told["vocabulary"]), f"tokens ({kind})"),
        *_needs_rows(told["needs"]),
    ]
    for name, key in (("Author", "author"), ("Licence", "license")):
        if key in told:
            rows.append((name, told[key], ""))
    return rows


def _needs_rows(needs: dict) -> list[tuple[str, str, str]]:
    rate = f"{human_bytes(needs['token_bytes'])} at {human_bytes(needs['bytes_per_second'])}/s"
    rate += f" by {counted(needs['n_threads'], 'thread')}, from a cache where they fit it"
    fits = needs["total_bytes"] <= (needs["machine_bytes"] or needs["total_bytes"])
    rest = "" if fits else f", more than the {human_bytes(needs['machine_bytes'])} here: from disk"
    return [
        ("Memory", human_bytes(needs["total_bytes"]), f"with {needs['n_ctx']} tokens held{rest}"),
        ("Speed", f"{needs['seconds_per_token']:.3g}", f"s a token or more: {rate}"),
    ]


def _origin_rows(own: _Own, file_bytes: int) -> list[tuple[str, str, str]]:
    rows = []

    def row(name, value, amount, *details):
        if value is not None:
            rows.append((name, amount(value), ", ".join(detail for detail in details if detail)))

    n_bytes, tokens = own.number("corpus.bytes"), own.number("train.tokens")
    row("Text read", n_bytes, _amount, "bytes", own.text("corpus.name"))
    if n_bytes:
        became = f"{human_bytes(n_bytes)} of text became {human_bytes(file_bytes)}"
        row("Text : file", n_bytes / file_bytes, "{:.3g}".format, became)
    n_tokens = own.number("corpus.tokens")
    epochs = f"{tokens / n_tokens:.3g} times the text" if n_tokens and tokens else ""
    steps, seed = own.number("train.steps"), own.number("train.seed")
    row(
        "Tokens seen",
        tokens,
        _amount,
        epochs,
        "" if steps is None else f"{_amount(steps)} steps",
        "" if seed is None else f"seed {seed}",
    )
    flops, seconds = own.number("train.flops"), own.number("run.seconds")
    peak = own.number("run.peak_flops") or 0
    known = flops is not None and (seconds or 0) > 0 and peak > 0
    share = f"{flops / seconds / peak:.1%} of the peak here" if known else ""
    row("Arithmetic", flops, "{:.3g}".format, "FLOPs", share)
    speed, threads = own.number("run.tokens_per_second"), own.number("run.threads")
    row(
        "Time",
        seconds,
        lambda seconds: f"{seconds / 3600:.3g}",
        "hours of training",
        "" if speed is None else f"{human(speed)} tokens/s",
        "" if threads is None else f"{_amount(threads)} threads",
        own.text("run.kernels"),
        own.text("run.precision"),
    )
    row("Bits per byte", own.number("validation.bits_per_byte"), "{:.4g}".format, "held-out text")
    _zip_rows(own, row)
    _memorisation_row(own, row)
    change, kind = own.number("quantization.bits_per_byte_change"), own.text("quantization.type")
    if kind:
        what = "bits per byte by rounding" if change is not None else "cost not measured"
        row("Quantized", kind, str, "" if change is None else f"{change:+.4g}", what)
    if not own.values:
        rows.append(("Origin", "unknown", "the file does not say where it comes from"))
    return rows


def _zip_rows(own: _Own, row) -> None:
    """The held-out text beside what xz and the model before rounding make of it: what the training
    was worth, as `python -m llm zip` would find but for the archive's frame."""
    n_bytes, xz = own.number("validation.bytes"), own.number("run.xz_bytes")
    bits = own.number("validation.bits_per_byte")
    if not n_bytes or xz is None or bits is None:
        return
    row("Unseen text", n_bytes, _amount, "bytes of validation")
    row("  xz -9e", xz, _amount, f"bytes, {8 * xz / n_bytes:.4g} bits per byte")
    model, part = bits * n_bytes / 8, f", {bits * n_bytes / 8 / xz:.3g} of xz" if xz > 0 else ""
    row("  this model", model, "{:,.0f}".format, f"bytes{part}")


def _memorisation_row(own: _Own, row) -> None:
    keys = ("training", "held_out", "training_run", "held_out_run", "tokens", "windows")
    shares = {key: own.number(f"memorisation.{key}") for key in keys}
    own.number("memorisation.prompt_tokens")
    if None in shares.values():
        return
    row(
        "Memorised",
        shares["training"],
        "{:.1%}".format,
        "of {windows} trained windows repeated for {tokens} tokens; unseen {held_out:.1%}; "
        "mean run {training_run:.3g} tokens, unseen {held_out_run:.3g}".format(**shares),
    )


def _hash_rows(own: _Own) -> list[tuple[str, str, str]]:
    keys = {
        "Text hash": "corpus.sha256",
        "Data hash": "tensor_sha256",
        "Measured on": "quantization.text_sha256",
        "Calibrated on": "quantization.calibration_sha256",
    }
    return [(name, own.text(key), "") for name, key in keys.items() if own.text(key)]
