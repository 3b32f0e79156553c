"""What a run tells: plain lines or a progress bar, samples, and where its report lies. Layer 7.

Text from files and models is printed with its control characters escaped. The bar appears only
where standard output is a terminal.
"""

from __future__ import annotations

import math
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path

from .atomic import atomic_file
from .errors import counted

WRAP = {"subsequent_indent": " " * 11, "break_on_hyphens": False}
PROGRAM = Path(__file__).resolve().parent.parent / "run"


def escape(text: str) -> str:
    """Control characters but newline and tab, and what turns the direction of writing, as \\x1b."""
    unsafe = r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]"
    return re.sub(unsafe, lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def human(n: float) -> str:
    """1234567 as "1.23 M"."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if n >= size:
            return f"{n / size:.3g} {unit}"
    return f"{n:.3g}"


def human_bytes(n: float) -> str:
    """1234567 as "1.23 MB"."""
    return f"{human(n)}B" if n >= 1000 else f"{n:.0f} B"


def wrapped(text: str, width: int) -> str:
    """Lines of at most `width`, broken at spaces; what goes on stands below what it belongs to."""
    lines = (textwrap.wrap(line, width, **WRAP) or [""] for line in text.split("\n"))
    return "\n".join(line for parts in lines for line in parts)


PAGES = ("report.html", "loss.png", "curves.png")  # beside the parameter file


class Report:
    """speaks: of several ranks only one does."""

    def __init__(self, speaks: bool = True):
        self._speaks = speaks
        self._bar = None
        self._loss = math.nan  # nats per token, smoothed
        self._shown = None  # what the bar says
        self._start = (0, 0.0)  # step and time of this sitting

    def say(self, text: str) -> None:
        if not self._speaks:
            return
        if sys.stdout.isatty():
            text = wrapped(text, shutil.get_terminal_size().columns - 1)
        if self._bar is None:
            print(text, flush=True)
        else:
            self._bar.write(text, file=sys.stdout)

    # ---- before the first step ----

    def material(self, corpus) -> None:
        documents = counted(corpus.n_documents, "document")
        self.say(f"text       {escape(corpus.name)}: {corpus.n_bytes:,} bytes in {documents}")
        for line in corpus.skipped[:5]:
            self.say(f"skipped    {escape(line)}")
        if len(corpus.skipped) > 5:
            self.say(f"skipped    {counted(len(corpus.skipped) - 5, 'more file')}")

    def plan(self, run) -> None:
        s, config, tokens = run.settings, run.model.config, run.examples.tokens
        output = "tied" if s.tied else "untied"
        self.say(
            f"tokens     {len(tokens):,} to train on, validation on {run.validation.n_tokens:,} "
            f"held out by {'hash' if s.holdout == 'hash' else 'position'}; vocabulary "
            f"{config.n_vocab}, {run.validation.bytes_per_token:.2f} bytes a token held out"
        )
        self.say(
            f"model      {human(config.n_params)} parameters: n_embd {s.n_embd}, "
            f"n_layer {s.n_layer}, n_head {s.n_head}, n_kv_head {s.n_kv_head}, n_ff {s.n_ff}, "
            f"n_ctx {s.n_ctx}, {output} output"
        )
        self.say(
            f"recipe     {s.optimizer}, batch {s.batch} in {counted(s.n_slots, 'slot')}, "
            f"lr {s.lr:g}, warm-up {counted(s.warmup, 'step')}, {s.schedule}, "
            f"weight decay {s.weight_decay:g}, clip {s.clip:g}, seed {s.seed}"
        )
        minutes = "1 minute" if s.minutes == 1 else f"{s.minutes or 0:g} minutes"
        budget = minutes if run.n_steps is None else counted(run.n_steps, "step")
        ops, n_ranks = run.model.ops, run.group.size
        threads = f"{n_ranks} ranks of " * (n_ranks > 1) + counted(ops.n_threads, "thread")
        self.say(
            f"budget     {budget}, {threads}, {ops.kernels} kernels, "
            f"{ops.precision} products, in {s.run_dir}"
        )

    def settings(self, toml: str, path: Path) -> None:
        shown = textwrap.wrap("; ".join(escape(toml).splitlines()), 68, break_on_hyphens=False)
        self.say("settings   " + "\n           ".join([*shown, f"(kept as {path}: --config)"]))

    def profile(self, run, seconds: float, parts: dict[str, float], peak: float) -> None:
        """seconds: of a step; parts: of it, by operation; peak: FLOP/s of large products."""
        c, n_tokens = run.model.config, run.settings.step_tokens
        flops = n_tokens * c.flops_per_token
        products = flops - n_tokens * 6 * c.n_layer * c.n_embd * c.n_ctx
        self.say(
            f"profile    a step of {n_tokens:,} tokens takes {seconds * 1e3:.1f} ms: "
            f"{human(n_tokens / seconds)} tok/s, {flops / seconds / peak:.0%} of the peak of "
            f"{human(peak)}FLOP/s that a large product reaches here"
        )
        parts = parts | {"Python": seconds - sum(parts.values())}
        for part, part_seconds in sorted(parts.items(), key=lambda p: -p[1]):
            share = f" at {products / part_seconds / peak:.0%} of the peak"
            self.say(
                f"           {part:20} {part_seconds * 1e3:8.2f} ms {part_seconds / seconds:6.1%}"
                + (share if part == "products" else "")
            )

    # ---- while it runs ----

    def begin(self, run) -> None:
        self._start = (run.step, time.perf_counter())
        if run.step:
            self.say(f"resuming   at step {run.step:,} of {run.n_steps:,}")
        if self._speaks and sys.stdout.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                total=run.n_steps,
                initial=run.step,
                file=sys.stdout,
                bar_format="{percentage:3.0f}% |{bar:8}| {elapsed}<{remaining}{postfix}",
                leave=False,
            )

    def tokens_per_second(self, run) -> float:
        step, start = self._start
        n_tokens = (run.step - step) * run.settings.batch * run.settings.n_ctx
        return n_tokens / max(time.perf_counter() - start, 1e-9)

    def share_of_peak(self, run) -> float:
        return self.tokens_per_second(run) * run.model.config.flops_per_token / run.peak

    def step(self, run) -> None:
        loss = run.losses[-1]
        self._loss = loss if math.isnan(self._loss) else 0.98 * self._loss + 0.02 * loss
        if self._bar is not None:
            self._bar.total = run.n_steps
            self._bar.set_postfix_str(self._figures(run), refresh=False)
            self._bar.update()

    def _figures(self, run) -> str:
        return f"loss {self._loss:.3f} nats/token, held-out {run.bits_per_byte:.3f} bits/byte"

    def validated(self, run) -> None:
        done = f"{run.step:,} of {run.n_steps:,}"
        step, start = self._start
        seconds = (time.perf_counter() - start) / max(1, run.step - step)
        left = f"{seconds * (run.n_steps - run.step):.0f} s left"
        speed = f"{human(self.tokens_per_second(run))} tok/s, {self.share_of_peak(run):.0%} of peak"
        self.say(f"step       {done}: {self._figures(run)}, {speed}, {left}")

    def sample(self, text: str) -> None:
        self.say("sample     " + escape(text).replace("\n", "\n           "))

    def end(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    # ---- after the last step ----

    def finish(self, run, out: Path) -> None:
        n_epochs = run.n_tokens / len(run.examples.tokens)
        self.say(
            f"trained    {counted(run.step, 'step')}, {run.n_tokens:,} tokens "
            f"({n_epochs:.1f} times the text) in {run.seconds:.0f} s: "
            f"{run.bits_per_byte:.3f} held-out bits per byte at the end"
        )
        best_step, _, best = min(run.validations, key=lambda point: point[2])
        kept = run.settings.weights == "best" and best_step  # said where the file was written
        if run.bits_per_byte > 1.02 * best and not kept:
            self.say(
                f"note       step {best_step:,} was better on held-out text ({best:.3f} bits per "
                "byte): the text is small for so many steps"
            )
        if run.memorisation:
            self._memorised(run.memorisation)
        size = f"{out.stat().st_size:,} bytes"
        step, _ = run.samples[-1]  # which the file itself has said
        self.say(f"written    {out} ({size}), the weights of step {step:,}")
        self._write_pages(run, out)
        raw = run.prompt.encode("utf-8", "surrogateescape")  # whatever the locale
        command = [PROGRAM, "--max-tokens", "80", "--seed", "1", "--", out, "-"]
        if not run.is_done:
            self.say(
                f"stopped    at step {run.step:,} of {run.n_steps:,}; to go on, the same "
                "command with --resume (make: with ARGS=--resume)"
            )
        if PROGRAM.exists() and not run.settings.chat:  # which has shown answers on the way
            said = subprocess.run(command, input=raw, capture_output=True, check=False)
            self.sample(said.stdout.decode("utf-8", "replace").rstrip())
        prompt, out_quoted = shlex.quote(escape(run.prompt)), shlex.quote(str(out))
        dashes = "-- " if run.prompt.startswith("-") else ""
        how = f"{out_quoted} --chat" if run.settings.chat else f"{dashes}{out_quoted} {prompt}"
        self.say(f"try        ./run {how}")

    def _memorised(self, found) -> None:
        self.say(
            f"memorised  {found.verbatim(found.training):.1%} of {len(found.training)} windows it "
            f"trained on go on word for word for {found.n_tokens} tokens, "
            f"{found.verbatim(found.held_out):.1%} of {len(found.held_out)} it never saw"
        )

    def _write_pages(self, run, out: Path) -> None:
        """loss.png, curves.png and report.html beside the file; nothing here fails the run."""
        from . import curves, report_html

        pictures = {"loss.png": (curves.loss_by_step,), "curves.png": curves.PANELS}
        try:
            import matplotlib  # noqa: F401
        except ImportError:
            pictures = {}
            self.say("note       no curves: matplotlib is missing; pip install matplotlib")
        page, paths = out.with_name("report.html"), [out.with_name(name) for name in pictures]
        try:
            for path, panels in zip(paths, pictures.values(), strict=True):
                with atomic_file(path) as file:
                    curves.draw_png(run, file, panels)
            report_html.write_report(run, out, page, bool(pictures))
        except OSError as error:
            self.say(f"note       no report: {escape(str(error))}")
            return
        self.say(f"report     {', '.join(map(str, [page, *paths]))}")
