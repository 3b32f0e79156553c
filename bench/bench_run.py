"""./run beside llama.cpp, the machine's read bandwidth and its arithmetic: one table.

A row is a parameter file: SmolLM2 in Q4_1 as it comes and in Q8_0, Q4_0 and F16 written from that;
with --large a shape of 1.1 thousand million weights in six types with random ones; or the files
given. One round measures every contender once, one after the other, so that a machine that slows
down slows all of them; figures are medians over the rounds, with the least and the most. The
prefill is one prompt of about 500 tokens, the decode follows a short prompt. Decoding reads the
whole file once a token: its share is of the bandwidth of reading a buffer of that size, which the
last cache may hold in part. Prefill's share is of the arithmetic of the layers' matrices, two
operations a weight and token, in what peaks.c finds for their type. A second table is made by
`python -m llm bench`: what more threads bring, and what of the bytes a second remains behind a long
context. Files are written into build/bench, one at a time, and deleted.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # bench/ is no package

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "weights" / "SmolLM2-135M-Instruct.Q4_1.gguf"
PEER = ROOT / "bench" / "peer_llama.py"
PEER_PYTHONS = (ROOT / "build" / "bench-venv" / "bin" / "python", Path(sys.executable))
SMALL_TYPES = ("Q8_0", "Q4_0", "F16")
LARGE_TYPES = ("Q8_0", "Q4_0", "F16", "BF16", "Q4_K", "Q6_K")
PEAKS = {"F32": "fma", "F16": "fma", "BF16": "bf16"}  # the others: int8; fma where it is absent
N_CTX = 1024
N_FIRST = 5  # starts of ./run in a round
LONG = 4096 - 32  # tokens before those that are decoded; the large shape, which is slow, has none


def run_ours(options, path: Path, prompt: str, n_tokens: int) -> dict:
    command = [ROOT / "run", path, "-", "-n", n_tokens, "--temp", 0, "--json"]
    command += ["--threads", options.threads, "--ctx", N_CTX]
    done = subprocess.run(
        [str(part) for part in command], input=prompt.encode(), stdout=subprocess.PIPE, check=True
    )
    return json.loads(done.stdout)


def run_peer(python: Path, options, path: Path, ids: list[int], n_tokens: int) -> dict:
    job = {
        "model": str(path),
        "ids": ids,
        "n_tokens": n_tokens,
        "n_ctx": N_CTX,
        "threads": options.threads,
    }
    done = subprocess.run([python, PEER], input=json.dumps(job), capture_output=True, text=True)
    if done.returncode == -signal.SIGILL:
        raise SystemExit(
            "llama.cpp, as built here, ends by an illegal instruction: gcc 12 forgets the shape of "
            "AMX's tiles. rm -r build/bench-venv; make bench-peers CC=clang CXX=clang++"
        )
    if done.returncode:
        raise SystemExit(f"{PEER.name} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def find_peer() -> Path | None:
    """The Python that has llama.cpp, the build for this machine first."""
    for python in PEER_PYTHONS:
        for module in ("llama_cpp", "xllamacpp"):
            if python.exists():
                probe = subprocess.run([python, "-c", f"import {module}"], capture_output=True)
                if probe.returncode == 0:
                    return python
    return None


def bandwidth(options, n_bytes: int) -> float:
    """GB/s of reading a buffer again and again."""
    mib = max(1, n_bytes >> 20)
    command = [ROOT / "build" / "bandwidth", str(mib), str(options.threads), "0.5"]
    return float(subprocess.run(command, capture_output=True, check=True).stdout)


def peaks(options) -> dict[str, float]:
    """Operations a second of one kind each."""
    command = [ROOT / "build" / "peaks", str(options.threads)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return {name: 1e9 * float(gops) for name, gops in map(str.split, lines)}


def first_token(options, path: Path) -> tuple[float, int]:
    """Milliseconds from the start of ./run to its end with one token, and its resident bytes."""
    command = [str(ROOT / "run"), str(path), "a", "-n", "1", "--threads", str(options.threads)]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        raise RuntimeError(f"{' '.join(command)} failed")
    return 1e3 * seconds, 1024 * usage.ru_maxrss


def bench(path: Path, *arguments: object) -> dict:
    """Medians of the rows of `python -m llm bench`, by (threads, what, n), and of their bytes."""
    command = [sys.executable, "-m", "llm", "bench", path, "--json", *arguments]
    done = subprocess.run(list(map(str, command)), cwd=ROOT, stdout=subprocess.PIPE, check=True)
    rows = json.loads(done.stdout)[0]["rows"]
    return {(r["threads"], r["what"], r["n"]): (statistics.median(r["tok_s"]), r) for r in rows}


def scaling(options, path: Path) -> dict[str, float]:
    """Ratios of tokens a second between numbers of threads, and of bytes a second at contexts."""
    n, rounds = options.threads, ("--rounds", options.rounds)
    rows = bench(path, "--threads", 1, n, 2 * n, *rounds)
    found = {}
    for what in ("prefill", "decode"):
        rate = {threads: tok_s for (threads, kind, _), (tok_s, _) in rows.items() if kind == what}
        found[f"{what}_threads"] = rate[n] / rate[1]
        found[f"{what}_oversubscribed"] = rate[2 * n] / rate[n]
    for kv in () if options.large else ("f16", "q8_0"):
        rows = bench(path, "--threads", n, "--kv", kv, "--context", LONG, *rounds)
        short, long = sorted(at for _, what, at in rows if what == "decode")
        for name, at in (("short", short), ("long", long)):
            found[f"{kv}_{name}"], row = rows[n, "decode", at]
            found[f"{kv}_{name}_bytes"] = found[f"{kv}_{name}"] * row["bytes"]
        found[f"{kv}_kept"] = found[f"{kv}_long_bytes"] / found[f"{kv}_short_bytes"]
    return found


def layer_weights(path: Path) -> tuple[int, str]:
    """How many weights the layers' matrices have, and the type of most."""
    from llm.engine import Model

    sizes: dict[str, int] = {}
    with Model(str(path)) as model:
        for name in model.tensors:
            shape = model.tensors.shape(name)
            if name.startswith("blk.") and len(shape) == 2:
                kind = model.tensors.type_name(name)
                sizes[kind] = sizes.get(kind, 0) + shape[0] * shape[1]
    return sum(sizes.values()), max(sizes, key=sizes.__getitem__)


def measure(options, path: Path) -> dict:
    """One file's figures, one value a round in each list."""
    text = (ROOT / "csrc" / "llm.h").read_text(encoding="utf-8")
    n_bytes, peer = path.stat().st_size, find_peer()
    n_weights, kind = layer_weights(path)
    found: dict[str, list[float]] = {}

    def note(**values: float) -> None:
        for name, value in values.items():
            found.setdefault(name, []).append(value)

    name = None
    long_prompt = text[: 512 if options.large else 1750]  # bytes are its tokens
    first_token(options, path)  # reads what settle dropped: no figure below has the disk in it
    for _ in range(options.rounds):
        prefill = run_ours(options, path, long_prompt, 1)
        decode = run_ours(options, path, text[:60], options.n)
        note(prefill=prefill["prefill_tok_s"], decode=decode["decode_tok_s"])
        if peer:
            theirs = run_peer(peer, options, path, prefill["prompt_ids"], 1)
            note(peer_prefill=theirs["prefill_tok_s"])
            theirs = run_peer(peer, options, path, decode["prompt_ids"], options.n)
            note(peer_decode=theirs["decode_tok_s"])
            name = theirs["name"]
        starts = [first_token(options, path) for _ in range(N_FIRST)]
        note(first_ms=statistics.median(ms for ms, _ in starts))
        note(resident_over_file=starts[0][1] - n_bytes)
        read, limits = bandwidth(options, n_bytes), peaks(options)
        peak = limits.get(PEAKS.get(kind, "int8"), limits.get("fma"))
        note(bytes_per_second=1e9 * read)
        note(decode_share=decode["decode_tok_s"] * n_bytes / 1e9 / read)
        if peer:
            note(peer_decode_share=theirs["decode_tok_s"] * n_bytes / 1e9 / read)
        if peak:
            note(prefill_share=2 * n_weights * prefill["prefill_tok_s"] / peak)
    return {
        "file": path.name,
        "file_bytes": n_bytes,
        "type": kind,
        "kernels": decode["kernels"],
        "n_prefill": len(prefill["prompt_ids"]),
        "n_decode": options.n,
        "peer": name or "absent: make test-peers or make bench-peers",
        "figures": found,
        "scaling": scaling(options, path),
    }


def settle(path: Path) -> Path:
    """Out of the page cache: what was just written lies there in small pages, a file of another day
    comes from the disk in large ones, for whoever maps it."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return path


def files(options) -> Iterator[Path]:
    """Those to measure; what is written here is deleted when the next one is asked for."""
    if options.files:
        yield from map(settle, options.files)
        return
    if not options.large and "Q4_1" in (options.types or ["Q4_1"]):
        yield settle(MODEL)
    folder = ROOT / "build" / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    for kind in options.types or (LARGE_TYPES if options.large else SMALL_TYPES):
        if kind == "Q4_1" and not options.large:
            continue
        path = folder / f"{'1.1B' if options.large else 'SmolLM2-135M'}.{kind}.gguf"
        command = [ROOT / "bench" / "random_file.py", path, kind]
        if not options.large:
            command = ["-m", "llm", "quantize", MODEL, path, "--type", kind]
            command += ["--embedding-type", "Q8_0"] if kind == "Q4_0" else []
        try:  # elsewhere: the memory used here would count as that of programs started from here
            subprocess.run(
                [sys.executable, *map(str, command)],
                cwd=ROOT,
                stdout=subprocess.DEVNULL,
                check=True,
            )
            yield settle(path)
        finally:
            path.unlink(missing_ok=True)


def spread(figures: dict[str, list[float]], name: str, digits: int = 0) -> str:
    values = figures.get(name)
    if not values:
        return "-"
    middle, least, most = statistics.median(values), min(values), max(values)
    return f"{middle:.{digits}f} ({least:.{digits}f} - {most:.{digits}f})"


def ratio(figures: dict[str, list[float]], what: str) -> str:
    if f"peer_{what}" not in figures:
        return "-"
    return f"{statistics.median(figures[what]) / statistics.median(figures['peer_' + what]):.2f}"


def table_row(result: dict) -> str:
    f = result["figures"]
    cells = [result["file"], f"{result['file_bytes'] / 1e6:.1f}"]
    for what in ("prefill", "decode"):
        cells += [spread(f, what), spread(f, f"peer_{what}"), ratio(f, what)]
        cells.append(spread(f, f"{what}_share", 2))
    cells += [spread(f, "peer_decode_share", 2), spread(f, "first_ms", 1)]
    cells.append(f"{statistics.median(f['resident_over_file']) / 1e6:+.1f}")
    return "| " + " | ".join(cells) + " |"


HEADINGS = ["file", "MB", "prefill, tok/s", "llama.cpp", "ratio", "of the peak"]
HEADINGS += ["decode, tok/s", "llama.cpp", "ratio", "of the bandwidth"]
HEADINGS += ["llama.cpp of it", "first token, ms", "resident over the file, MB"]


SCALING = ["file", "decode: {n} threads over 1", "{m} over {n}"]
SCALING += ["prefill: {n} threads over 1", "{m} over {n}"]
SCALING_LONG = ["{kv}: decode at 64", f"at {LONG:,}", "bytes/s kept"]


def scaling_table(options, results: list[dict]) -> str:
    kinds = [] if options.large else ["f16", "q8_0"]
    heads = SCALING + [cell.replace("{kv}", kv) for kv in kinds for cell in SCALING_LONG]
    heads = [cell.format(n=options.threads, m=2 * options.threads) for cell in heads]
    lines = [heads, ["---"] * len(heads)]
    for result in results:
        f = result["scaling"]
        cells = [result["file"]]
        for what in ("decode", "prefill"):
            cells += [f"{f[f'{what}_threads']:.2f}", f"{f[f'{what}_oversubscribed']:.2f}"]
        for kv in kinds:
            cells += [f"{f[f'{kv}_short']:.0f}", f"{f[f'{kv}_long']:.0f}", f"{f[f'{kv}_kept']:.2f}"]
        lines.append(cells)
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("files", nargs="*", type=Path, help="instead of SmolLM2 in four types")
    parser.add_argument("--large", action="store_true", help="1.1B weights in six types")
    parser.add_argument("--types", nargs="+", help="these types only")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("-n", type=int, default=64, help="tokens to decode")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if not options.files and not options.large and not MODEL.exists():
        print(f"bench: no {MODEL}: make model", file=sys.stderr)
        return 1
    results = []
    for path in files(options):
        results.append(measure(options, path))
        if options.json:
            continue
        if len(results) == 1:
            print(f"{options.threads} threads, medians of {options.rounds} rounds (least - most);")
            print(f"peer: {results[0]['peer']}")
            print("| " + " | ".join(HEADINGS) + " |\n" + "|---" * len(HEADINGS) + "|")
        print(table_row(results[-1]), flush=True)
    if options.json:
        print(json.dumps(results))
    else:
        print("\n" + scaling_table(options, results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
