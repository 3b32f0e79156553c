"""`python -m llm bench FILE...`: tokens a second of the engine and its share of the memory's limit.
Layer 11.

Every round measures each row once, one after the other, so that a machine that slows down slows all
of them; figures are medians over the rounds with the least and the most. Decoding reads every
weight, and the keys and values before it, once a token: the share is bytes a second over the read
bandwidth measured in the same rounds (llm_needs). The ids are arbitrary, the time does not depend
on them. Other programs beside it: bench/bench_run.py.
"""

from __future__ import annotations

import json
import statistics
import time
from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .context import Context
    from .engine import Model

N_SHORT = 64  # tokens before a decode


def add_arguments(command: ArgumentParser) -> None:
    command.set_defaults(command=run)
    command.add_argument("files", nargs="+", metavar="FILE", help="parameter files")
    command.add_argument("--threads", type=int, nargs="+", help="each a row (1, cores, 2 cores)")
    command.add_argument("--rounds", type=int, default=5, help="medians over so many (5)")
    command.add_argument(
        "--prefill", type=int, default=512, metavar="N", help="tokens at once (512)"
    )
    command.add_argument("--decode", type=int, default=32, metavar="N", help="one by one (32)")
    command.add_argument(
        "--context", type=int, default=0, metavar="N", help="decode behind N tokens too"
    )
    command.add_argument("--kv", choices=["f16", "f32", "q8_0"], default="f16")
    command.add_argument("--kernels", help="scalar, avx2, avx512, amx, neon (the best there is)")
    command.add_argument("--json", action="store_true", help="every figure as JSON")


def run(options: Namespace) -> int:
    from_one = (options.rounds, options.prefill, options.decode, *(options.threads or ()))
    if min(from_one) < 1 or options.context < 0:
        names = "--rounds, --prefill, --decode and --threads"
        raise ValueError(f"bench: {names} begin at 1, --context at 0")
    results = [measure(path, options) for path in options.files]
    if options.json:
        print(json.dumps(results))
    for result in [] if options.json else results:
        print_table(result)
    return 0


def _kv_bytes(model: Model, kv: str) -> float:
    """Of one token in all layers."""
    c = model.config
    element = {"f16": 2, "f32": 4, "q8_0": 34 / 32}[kv]
    return 2 * c.n_layer * c.n_kv_head * c.head_dim * element


def _prefill(context: Context, ids: list[int]) -> float:
    """Tokens a second."""
    context.truncate(0)
    start = time.perf_counter()
    context.eval(ids)
    return len(ids) / (time.perf_counter() - start)


def _decode(context: Context, behind: list[int], ids: list[int]) -> float:
    """Tokens a second behind others, which are read where they are not there yet."""
    context.truncate(min(context.n_past, len(behind)))
    if context.n_past < len(behind):
        context.eval(behind[context.n_past :], 0)
    start = time.perf_counter()
    for i in ids:
        context.eval([i])
    return len(ids) / (time.perf_counter() - start)


def measure(path: str, options: Namespace) -> dict:
    """One file's "rows": {"threads", "what": "prefill" or "decode", "n": tokens at once, or before
    the decode, "tok_s": one of each round}; of a decode also "bytes" read for a token and the
    "share" of "bytes_per_second"[threads], medians both. Windows shorter than asked shorten n."""
    from .context import Context
    from .engine import Model

    asked = {"kv_type": options.kv, "kernels": options.kernels}
    with Model(path) as model:
        needs = model.needs()
        counts = options.threads or sorted({1, needs["n_threads"], 2 * needs["n_threads"]})
        behind = sorted({N_SHORT, options.context} - {0})
        n_ctx = min(max(options.prefill, behind[-1] + options.decode), needs["n_ctx"])
        n_decode, n_prefill = min(options.decode, n_ctx - 1), min(options.prefill, n_ctx)
        behind = sorted({min(n, n_ctx - n_decode) for n in behind})
        ids = [i * 7919 % model.config.n_vocab for i in range(n_ctx)]
        rates: dict[int, list[float]] = {n: [] for n in counts}
        rows: dict[tuple[int, str, int], list[float]] = {}
        contexts = {n: Context(model, n_ctx=n_ctx, n_threads=n, **asked) for n in counts}
        readers = {n: Model(path, n_threads=n) for n in counts}
        for _ in range(options.rounds):
            for n, context in contexts.items():
                rates[n].append(readers[n].needs()["bytes_per_second"])
                tok_s = _prefill(context, ids[:n_prefill])
                rows.setdefault((n, "prefill", n_prefill), []).append(tok_s)
                for before in behind:
                    tok_s = _decode(context, ids[:before], ids[-n_decode:])
                    rows.setdefault((n, "decode", before), []).append(tok_s)
        kernels, kv = contexts[counts[0]].kernels, _kv_bytes(model, options.kv)
    table = []
    for (n, what, at), tok_s in rows.items():
        table.append({"threads": n, "what": what, "n": at, "tok_s": tok_s})
        if what == "decode":
            n_bytes = needs["token_bytes"] + round(kv * (at + n_decode / 2))
            share = statistics.median(tok_s) * n_bytes / statistics.median(rates[n])
            table[-1] |= {"bytes": n_bytes, "share": share}
    return {
        "file": path,
        "file_bytes": needs["file_bytes"],
        "kernels": kernels,
        "kv": options.kv,
        "n_decode": n_decode,
        "bytes_per_second": rates,
        "rows": table,
    }


def print_table(result: dict) -> None:
    from .report import escape

    print(
        f"{escape(result['file'])}: {result['file_bytes'] / 1e6:.1f} MB, {result['kernels']} "
        f"kernels, {result['kv']} keys and values; tokens/s, median (least - most)"
    )
    for row in result["rows"]:
        tok_s, share = row["tok_s"], ""
        what = f"prefill of {row['n']}" if row["what"] == "prefill" else f"decode at {row['n']}"
        if "share" in row:
            rate = statistics.median(result["bytes_per_second"][row["threads"]])
            share = f"{row['share']:.2f} of {rate / 1e9:.1f} GB/s read"
        spread = f"{statistics.median(tok_s):.1f} ({min(tok_s):.1f} - {max(tok_s):.1f})"
        print(f"  {row['threads']:2} threads  {what:15} {spread:26} {share}")
