"""Tokens a second of ./run beside llama.cpp and the machine's read bandwidth.

One round measures every contender once, one after the other, so that a machine that slows down
slows all of them; figures are medians over the rounds, with the least and the most. The prefill is
one prompt of about 500 tokens, the decode follows a short prompt. Decoding reads the whole
parameter file once a token, so the limit is bandwidth over file size. The bandwidth is measured on
a buffer of that size, which the last cache may hold in part, and on one that no cache holds. Writes
nothing.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "weights" / "SmolLM2-135M-Instruct.Q4_1.gguf"
PEER = ROOT / "bench" / "peer_llama.py"
PEER_PYTHONS = (ROOT / "build" / "bench-venv" / "bin" / "python", Path(sys.executable))
N_CTX = 1024


def run_ours(options, prompt: str, n_tokens: int) -> dict:
    command = [ROOT / "run", options.model, "-", "-n", n_tokens, "--temp", 0, "--json"]
    command += ["--threads", options.threads, "--ctx", N_CTX]
    done = subprocess.run(
        [str(part) for part in command], input=prompt.encode(), stdout=subprocess.PIPE, check=True
    )
    return json.loads(done.stdout)


def run_peer(python: Path, options, ids: list[int], n_tokens: int) -> dict:
    job = {
        "model": str(options.model),
        "ids": ids,
        "n_tokens": n_tokens,
        "n_ctx": N_CTX,
        "threads": options.threads,
    }
    done = subprocess.run(
        [python, PEER], input=json.dumps(job), capture_output=True, text=True, check=True
    )
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


def bandwidth(options, mib: int) -> float:
    """GB/s of reading a buffer again and again."""
    command = [ROOT / "build" / "bandwidth", str(mib), str(options.threads), "0.5"]
    return float(subprocess.run(command, capture_output=True, check=True).stdout)


def measure(options) -> dict:
    """{name: {"prefill": [tok/s, ...], "decode": [...]}}, and what was measured."""
    text = (ROOT / "csrc" / "llm.h").read_text(encoding="utf-8")
    long_prompt, short_prompt = text[:1750], text[:60]
    peer, n_bytes, figures = find_peer(), options.model.stat().st_size, {}

    def note(name: str, kind: str, value: float) -> None:
        figures.setdefault(name, {}).setdefault(kind, []).append(value)

    for _ in range(options.rounds):
        prefill = run_ours(options, long_prompt, 1)
        decode = run_ours(options, short_prompt, options.n)
        ours = f"./run ({decode['kernels']})"
        note(ours, "prefill", prefill["prefill_tok_s"])
        note(ours, "decode", decode["decode_tok_s"])
        if peer:
            theirs = run_peer(peer, options, prefill["prompt_ids"], 1)
            note(theirs["name"], "prefill", theirs["prefill_tok_s"])
            theirs = run_peer(peer, options, decode["prompt_ids"], options.n)
            note(theirs["name"], "decode", theirs["decode_tok_s"])
        for name, mib in (("file's size", n_bytes >> 20), ("1 GiB", 1024)):
            gigabytes = bandwidth(options, max(1, mib))
            note(f"limit by reading {name}", "GB/s", gigabytes)
            note(f"limit by reading {name}", "decode", gigabytes * 1e9 / n_bytes)
    return {
        "model": options.model.name,
        "file_bytes": n_bytes,
        "threads": options.threads,
        "rounds": options.rounds,
        "n_prefill": len(prefill["prompt_ids"]),
        "n_decode": len(decode["ids"]),
        "peer": "present" if peer else "absent: make test-peers or make bench-peers",
        "figures": figures,
    }


def spread(values: list[float] | None) -> str:
    if not values:
        return "-"
    return f"{statistics.median(values):.1f} ({min(values):.1f} - {max(values):.1f})"


def print_table(result: dict) -> None:
    print(
        f"{result['model']}, {result['file_bytes'] / 1e6:.1f} MB, {result['threads']} threads, "
        f"tokens/s: median of {result['rounds']} interleaved rounds (least - most)\n"
    )
    columns = f"prefill of {result['n_prefill']}", f"decode of {result['n_decode']}"
    print(f"{'':52} {columns[0]:>24} {columns[1]:>24}")
    figures = result["figures"]
    for name, of in figures.items():
        label = name
        if "GB/s" in of:
            label = f"{name}, {statistics.median(of['GB/s']):.1f} GB/s"
        print(f"{label:52} {spread(of.get('prefill')):>24} {spread(of.get('decode')):>24}")
    if result["peer"] != "present":
        print(f"llama.cpp: peer {result['peer']}")
    ours, *others = figures
    for other in others:
        for kind in ("prefill", "decode"):
            if kind in figures[other]:
                ratio = statistics.median(figures[ours][kind]) / statistics.median(
                    figures[other][kind]
                )
                print(f"{kind}: ours is {ratio:.2f} of {other}")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("-n", type=int, default=64, help="tokens to decode")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if not options.model.exists():
        print(f"bench: no {options.model}: make model", file=sys.stderr)
        return 1
    result = measure(options)
    print(json.dumps(result)) if options.json else print_table(result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
