"""Teaches a published model this project's documentation and measures what it learned and lost.

    .venv/bin/python bench/bench_tune.py [--model FILE] [--threads 2] [-- OPTIONS OF llm train]

project_qa.jsonl has three questions for each fact of the documentation. Two are learned, the third,
marked held_out, is asked in other words: nats per token of its answer, before and after. What was
lost: bits per byte of 12 kB of the World English Bible. Needs `make model`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from llm import Model  # noqa: E402
from llm.chat_data import render  # noqa: E402
from llm.corpus import default_corpus  # noqa: E402
from llm.quantize import bits_per_byte  # noqa: E402

GENERAL_BYTES = 12_000
SHOWN = 6
RECIPE = "--lora-rank 16 --lr 1e-3 --epochs 4 --batch 1 --n-ctx 512 --seed 1".split()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default=ROOT / "weights/SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--threads", default="2")
    parser.add_argument("options", nargs="*", help="of llm train, instead of the recipe's")
    given = parser.parse_args()
    lines = (ROOT / "bench/project_qa.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    held = [r["messages"] for r in records if r.get("held_out")]
    general = b"\n\n".join(default_corpus().documents[:20])[:GENERAL_BYTES]
    with tempfile.TemporaryDirectory() as folder:
        talk, out = Path(folder) / "talk.jsonl", Path(folder) / "tuned.gguf"
        learned = [r for r in records if not r.get("held_out")]
        talk.write_text("\n".join(map(json.dumps, learned)), encoding="utf-8")
        before = measure(given.model, held, general)
        start = time.perf_counter()
        places = ["--out", out, "--run-dir", Path(folder) / "run", "--threads", given.threads]
        recipe = given.options or RECIPE
        command = [sys.executable, "-m", "llm", "train", "--init", given.model, "--chat", talk]
        subprocess.run([*map(str, [*command, *places]), *recipe], check=True, cwd=ROOT)
        seconds = time.perf_counter() - start
        after = measure(out, held, general)
    print(f"\n{len(learned)} questions learned in {seconds:.0f} s with {' '.join(recipe)}")
    print(f"{len(held)} held out: nats per answer token {before[0]:.3f}, then {after[0]:.3f}")
    print(f"general text: bits per byte {before[1]:.3f}, then {after[1]:.3f}")
    for messages, old, new in zip(held[:SHOWN], before[2], after[2], strict=True):
        print(f"\n? {messages[0]['content']}\n- {messages[1]['content']}\n< {old}\n> {new}")


def measure(path, held: list[list[dict]], general: bytes) -> tuple[float, float, list[str]]:
    """(nats per answer token, bits per byte of the general text, greedy answers)."""
    nats, n_tokens, answers = 0.0, 0, []
    with Model(path) as model:
        for messages in held:
            conversation = render(model, messages, "held out")
            each, _ = model.score(conversation.ids)
            nats += float(np.sum(each[conversation.said]))
            n_tokens += int(conversation.said.sum())
        for messages in held[:SHOWN]:
            answers.append(model.chat(messages[:1], max_tokens=48, temperature=0))
    return nats / n_tokens, bits_per_byte(path, general), answers


if __name__ == "__main__":
    main()
