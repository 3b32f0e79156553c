"""Bits per byte of held-out text by the clock: our trainer, and PyTorch beside it.

    .venv/bin/python bench/bench_quality.py ours|torch|plot [--seconds 60 120] [--seeds 1 2 3]

Text: the King James Bible (Debian package bible-kjv), or --text FILE. Both contenders have our
vocabulary of 4,096 tokens, the ids of the first 95 % to learn from, and the first 32,768 tokens of
the rest to be judged by. The clock counts everything of a step (its data, the gradient, the
optimizer), neither validation nor what comes before the first step: compilation, or the probe that
chooses sizes. Ours has the default recipe, and all of its time goes to steps: the length fixes one
schedule. In quality.json a run takes the place of one of the same contender, text, threads, length
and seed, so all may be measured one by one; table and quality.png are of one text and --threads.
"""

import argparse
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from llm.atomic import atomic_file  # noqa: E402
from llm.evaluate import Validation  # noqa: E402
from llm.material import gather  # noqa: E402
from llm.settings import Settings  # noqa: E402
from llm.settings_file import to_toml  # noqa: E402
from llm.step import take_step  # noqa: E402
from llm.train import prepare  # noqa: E402
from llm.vocabulary import token_bytes  # noqa: E402

HELD_TOKENS = 32_768
POINTS = 24  # validations of a run: 10, 15, 22.5, 30 and 45 of 60 seconds are among them
MARGIN = 0.01  # of the seconds, for steps that get slower
KEYS = ("who", "text", "threads", "seconds", "seed")  # of a run
KING_JAMES = "b5c4940bcfeee072c0935b5200d0f9d88a00a0199cb0961d16133458fcdfae5d"  # SHA-256 of it
# PyTorch, compiled, bf16, AdamW, on two cores of Zen 5, King James: seconds and bits per byte.
MARKS = ((20, 2.24), (30, 2.15), (45, 2.07), (60, 2.01), (90, 1.95), (120, 1.93))


def king_james() -> Path:
    path = HERE.parent / "build" / "king_james.txt"
    if not path.exists():
        try:
            command = ["bible", "-f", "gen1:1-rev22:21"]
            quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE}
            text = subprocess.run(command, check=True, **quiet).stdout
        except FileNotFoundError:
            hint = "apt-get install bible-kjv, or give --text FILE"
            raise SystemExit(f"no program `bible`: {hint}") from None
        path.parent.mkdir(exist_ok=True)
        with atomic_file(path) as file:
            file.write(re.sub(rb"(?m)^[A-Za-z0-9]*:[0-9]* ", b"", text))
    return path


def validation_of(material, n_ctx: int) -> Validation:
    held = material.held_tokens[: HELD_TOKENS + 1]
    return Validation(held, token_bytes(material.vocabulary), n_ctx)


def our_run(settings: Settings, material) -> dict:
    run = prepare(settings, material)
    run.validation = validation_of(material, settings.n_ctx)
    seconds, points = 60 * settings.minutes, []
    while not run.is_done:
        take_step(run)
        spent, step = sum(run.step_seconds), np.mean(run.step_seconds[1:] or run.step_seconds)
        if run.step == run.settings.warmup:  # as train.measure does: its rates ask for no length
            run.n_steps = run.step + max(1, int((seconds * (1 - MARGIN) - spent) / step))
        # Just before the moment: a point never has more time than it says.
        if run.is_done or spent + step > seconds * (len(points) + 1) / POINTS:
            points.append((round(spent, 3), round(run.validation.bits_per_byte(run.model), 4)))
    sizes = replace(run.settings, text=())
    return {
        "parameters": run.model.config.n_params,
        "tokens": run.n_tokens,
        "skipped": len(run.skipped),
        "points": points,
        "settings": to_toml(sizes, run.n_steps, all_fields=False),
    }


def torch_run(settings: Settings, material) -> dict:
    from bench_train import SIZES
    from peer_torch import learn

    sizes, batch = SIZES["S"]
    validation = validation_of(material, sizes["n_ctx"])
    seconds = 60 * settings.minutes
    moments = [seconds * (i + 1) / POINTS for i in range(POINTS)]
    n_tokens, nats = learn(
        sizes, batch, settings.threads, settings.seed, material.tokens, validation.windows, moments
    )
    to_bits = 1 / (np.log(2) * validation.bytes_per_token)
    points = [(round(clock, 3), round(loss * to_bits, 4)) for clock, loss in nats]
    return {"tokens": n_tokens, "points": points}


def cell(run: dict, seconds: float, mark: float) -> str:
    """Of ours the last point that had no more than this time, of PyTorch's the first that had."""
    points = run["points"]
    if run["who"] == "ours":
        bits = [bits for clock, bits in points if clock <= seconds][-1:]
    else:
        bits = [bits for clock, bits in points if clock >= seconds][:1]
    return "".join(f"  {b:.3f}{'*' if b <= mark else ' '}" for b in bits) or "       -"


def length(run: dict) -> str:
    return f"{'PyTorch compile bf16' if run['who'] == 'torch' else 'ours'}, {run['seconds']:g} s"


def table(runs: list[dict]) -> None:
    for run in runs:
        clock, bits = run["points"][-1]
        print(
            f"{length(run)}, seed {run['seed']}: {bits:.3f} bits per byte "
            f"after {clock:.1f} s and {run['tokens']:,} tokens"
        )
    if runs[0]["text"] != KING_JAMES:
        return
    peers = [run for run in runs if run["who"] == "torch"]
    ours = [run for run in runs if run["who"] == "ours" and run["seconds"] == 60]
    columns = ", ".join(["mark of PyTorch", *(f"here {length(run)}" for run in peers)])
    print(f"{columns}; ours of 60 s at half of that time; * at or under the mark")
    for seconds, mark in MARKS:
        theirs = "".join(cell(run, seconds, mark) for run in peers)
        cells = "".join(cell(run, seconds / 2, mark) for run in ours)
        print(f"{seconds:4} s  {mark:.2f}{theirs}  | {seconds / 2:4g} s{cells}")


def draw(runs: list[dict], picture: Path) -> None:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    from llm.curves import BLUE, GREY, RED, STYLE

    with rc_context(STYLE):
        figure = Figure(figsize=(7.2, 4.2), layout="constrained")
        axes = figure.add_subplot()
        lengths = sorted({run["seconds"] for run in runs})
        labels = {length(run): length(run) for run in runs}
        for run in runs:
            style = ("-", "--", ":", "-.")[lengths.index(run["seconds"]) % 4]
            color, label = RED if run["who"] == "torch" else BLUE, labels.pop(length(run), None)
            line = {"color": color, "linestyle": style, "linewidth": 1.3, "label": label}
            axes.plot(*zip(*run["points"], strict=True), **line)
        if runs[0]["text"] == KING_JAMES:
            seconds, marks = zip(*MARKS, strict=True)
            axes.plot(seconds, marks, "x", color=GREY, label="PyTorch on Zen 5: the marks")
            half = [s / 2 for s in seconds]
            axes.plot(half, marks, "v", color=GREY, label="the marks at half their time: the goal")
        low = min(bits for run in runs for _, bits in run["points"])
        axes.set_ylim(low - 0.05, 2.8)
        axes.set_xlim(0)
        axes.set_xlabel(f"seconds of training, {runs[0]['threads']} threads")
        axes.set_ylabel("held-out bits per byte")
        name = "King James Bible" if runs[0]["text"] == KING_JAMES else runs[0]["text"][:8]
        axes.set_title(f"{name}: bits per byte by the clock")
        axes.legend()
        figure.savefig(picture, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("who", choices=("ours", "torch", "plot"))
    parser.add_argument("--text", type=Path, help="instead of the King James Bible")
    parser.add_argument("--seconds", type=float, nargs="+", default=[60.0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path, default=HERE / "quality.json")
    options = parser.parse_args()
    runs = json.loads(options.out.read_text()) if options.out.exists() else []
    text = KING_JAMES
    if options.who != "plot" or options.text:
        path = options.text or king_james()
        settings = Settings(text=(str(path),), holdout="last", threads=options.threads)
        material = gather(settings)
        text = material.sha256
    for seconds, seed in product(options.seconds, options.seeds) if options.who != "plot" else ():
        contender = {"ours": our_run, "torch": torch_run}[options.who]
        done = contender(replace(settings, minutes=seconds / 60, seed=seed), material)
        key = dict(zip(KEYS, (options.who, text, options.threads, seconds, seed), strict=True))
        runs = [run for run in runs if not key.items() <= run.items()]
        runs = sorted([*runs, {**key, **done}], key=lambda run: [run[name] for name in KEYS])
        lines = ",\n".join(json.dumps(run) for run in runs)
        with atomic_file(options.out) as file:
            file.write(f"[\n{lines}\n]\n".encode())
    shown = [run for run in runs if (run["text"], run["threads"]) == (text, options.threads)]
    if not shown:
        raise SystemExit(
            f"{options.out} holds no run of this text with {options.threads} threads yet: "
            "bench_quality.py ours"
        )
    table(shown)
    draw(shown, options.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
