"""The state of a run, and the files that it leaves: settings, checkpoints, parameter file. Layer 8.

Run is all that a step needs; save() and restore() are a checkpoint's two ends. Nothing here decides
what a run does next: that is train.py.
"""

from __future__ import annotations

import errno
import lzma
import math
import os
import secrets
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from glob import escape
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np

from .atomic import atomic_file, make_folder_of, refuse_device
from .checkpoint import (
    RANKS,
    checkpoints,
    keep_last,
    link_file,
    load_checkpoint,
    locked,
    save_checkpoint,
)
from .data import Examples
from .distributed import Group, world
from .documents import format_of
from .engine import Model
from .evaluate import Validation
from .material import Material
from .memorisation import Memorisation, measure_memorisation
from .model import Transformer
from .optim import AdamW
from .parameter_file import (
    Entry,
    Provenance,
    Vocabulary,
    float_tensors,
    refuse_foreign,
    trained_model_metadata,
    write_parameter_file,
    write_proved,
)
from .report import PAGES, Report
from .report_html import is_report
from .settings import MAX_STEPS, Settings
from .settings_file import to_toml
from .shards import shard_files
from .tokenizer import Tokenizer
from .vocabulary import vocabulary_to_arrays

# Names in the run's folder, of everything that is written there.
RUN_FILES = ("*.npz", "*.tmp", "lock", RANKS, "pulse-*", "settings.toml")
CURVES = ("losses", "rates", "norms", "step_seconds")  # of Run: a number for each step


@dataclass
class Run:
    """Everything that a step needs, and what a checkpoint keeps of it."""

    settings: Settings
    material: Material
    vocabulary: Vocabulary
    tokenizer: Tokenizer
    examples: Examples
    validation: Validation
    model: Transformer
    optimizer: AdamW
    group: Group = field(default_factory=world)
    step: int = 0
    step_begun: int | None = None  # the step that is being taken
    n_steps: int | None = None
    n_validations: int = 10  # after the one before the first step
    seconds: float = 0.0  # of training, over all sittings
    began: float = field(default_factory=time.perf_counter)  # this sitting: the minutes count on
    peak: float = math.nan  # FLOP/s of large products on this machine
    skipped: list[int] = field(default_factory=list)  # steps that were not taken
    rollbacks: list[int] = field(default_factory=list)  # steps before which the state was restored
    losses: list[float] = field(default_factory=list)  # nats per token, of each step
    rates: list[float] = field(default_factory=list)  # of learning
    norms: list[float] = field(default_factory=list)  # of the gradient before clipping
    step_seconds: list[float] = field(default_factory=list)  # without validations and saving
    validations: list[list[float]] = field(default_factory=list)  # [step, seconds, bits per byte]
    samples: list[list] = field(default_factory=list)  # [step, text]
    memorisation: Memorisation | None = None  # when the training has ended
    memorises = True  # is measured for it

    @property
    def n_tokens(self) -> int:
        """Trained so far."""
        return self.step * self.settings.step_tokens

    @property
    def since(self) -> int:
        """The first step after the last rollback."""
        return self.rollbacks[-1] if self.rollbacks else 0

    @property
    def bits_per_byte(self) -> float:
        return self.validations[-1][2]

    @property
    def is_done(self) -> bool:
        return self.step == self.n_steps

    @property
    def prompt(self) -> str:
        """What samples go on from: by default the first three words of the text, where they do not
        fill more than half a context (some scripts have no spaces)."""
        if self.settings.prompt is not None:
            return self.settings.prompt
        words = self.material.first_words.decode("utf-8", "ignore").split()[:3]
        ids = self.tokenizer.encode(" ".join(words))[: max(1, self.settings.n_ctx // 2)]
        return self.tokenizer.decode_bytes(ids).decode("utf-8", "ignore")

    def metadata(self) -> list[Entry]:
        """Of the parameter file."""
        return trained_model_metadata(self.model.config, self.vocabulary, provenance(self))

    def kept_arrays(self) -> dict[str, np.ndarray]:
        """What else a checkpoint keeps."""
        return vocabulary_to_arrays(self.vocabulary)

    def sample(self, model: Model) -> str:
        """What the weights of this moment say."""
        return self.prompt + model.generate(self.prompt, max_tokens=60, temperature=0.7, seed=1)


def milestones(n_steps: int, count: int) -> set[int]:
    return {n_steps * i // count for i in range(1, count + 1)} - {0}


# ---- before the first step ----


def check_apart(out: Path, settings: Settings) -> None:
    """Refuses to write over what the run reads: --resume needs it, and it may be the only copy. Or
    over what it keeps in its own folder, or where its report will lie."""
    in_run = out.parent.resolve() == Path(settings.run_dir).resolve()
    if out.name in PAGES or (in_run and any(map(Path(out.name).match, RUN_FILES))):
        raise ValueError(f"{out} is a name that the run itself uses: choose another --out")
    reads = [*settings.text, *settings.chat, *filter(None, [settings.init])]
    if settings.data is not None:
        reads += shard_files(Path(settings.data))
    for written in (out, *(out.with_name(name) for name in PAGES)):
        for read in reads:
            if not (written.exists() and os.path.exists(read)):
                continue
            inside = (
                format_of(written.name)[0] and Path(read).resolve() in written.resolve().parents
            )
            if inside or os.path.samefile(written, read):
                raise ValueError(f"{written} is what this run reads: choose another --out")


def check_page(out: Path) -> None:
    """Refuses a folder where the report would replace a page that no run made."""
    page = out.with_name(PAGES[0])
    if page.is_file() and not is_report(page):
        raise ValueError(
            f"{page} is there and is no report of a run, which would replace it: move it, or "
            "choose another folder for --out"
        )


def check_writable(out: Path) -> None:
    """Makes the folder of the parameter file; what would only fail after the training fails now."""
    try:
        make_folder_of(out)
        with TemporaryFile(dir=out.parent):
            pass
    except OSError as error:
        reason = os.strerror(error.errno)
        reason = f"no parameter file can be written here ({reason}): choose another --out"
        raise OSError(error.errno, reason, str(out.parent)) from error
    if out.is_dir():
        raise IsADirectoryError(errno.EISDIR, "Is a directory: --out names a file", str(out))
    refuse_device(out)


@contextmanager
def place_for(out: Path, run: Run, report: Report):
    """Held until the parameter file is written: a lock."""
    check_writable(out)
    check_apart(out, run.settings)
    check_page(out)
    refuse_foreign(out)
    lock = out.with_name(f".{out.name}.lock")
    with locked(lock, f"{out}: process", "writing this file", "--out"):
        for leftover in out.parent.glob(f"{escape(out.name)}.????????.*tmp"):
            leftover.unlink()  # of a run that was killed while it wrote
        if out.exists():
            report.say(f"note       {out} is there: it stays until the new one, whole, replaces it")
        yield


def set_aside(path: Path, report: Report) -> None:
    """Keeps the checkpoint of an earlier run, which this one would overwrite."""
    for name in ("checkpoint-*.npz", "good.npz", "best.npz"):
        for other in path.parent.glob(name):
            other.unlink()
    if path.exists():
        kept = path.with_name("previous-checkpoint.npz")
        os.replace(path, kept)
        report.say(
            f"note       an earlier run's checkpoint is kept as {kept}; "
            f"under the name {path.name} --resume goes on from it"
        )


def write_settings(run: Run, folder: Path, report: Report) -> None:
    """Prints every setting, and keeps them for --config."""
    text = to_toml(run.settings)
    with atomic_file(folder / "settings.toml") as file:
        file.write(text.encode("utf-8", "backslashreplace"))
    report.settings(text, folder / "settings.toml")


# ---- checkpoints ----


def save(run: Run, path: Path) -> None:
    state = {
        "settings": asdict(run.settings),
        "corpus_name": run.material.name,
        "corpus_sha256": run.material.sha256,
        "kernels": run.model.ops.kernels,
        "step": run.step,
        "n_updates": run.optimizer.state["step"],
        "skipped": run.skipped,
        "rollbacks": run.rollbacks,
        "n_steps": run.n_steps,
        "n_validations": run.n_validations,
        "seconds": run.seconds,
        "validations": run.validations,
        "samples": run.samples,
    }
    owned, optimizer = run.optimizer.owned, run.optimizer.state
    trained = run.model.ops.to_host(run.model.trained)
    params = [trained[part] for part in owned]
    flat = {
        "params": params[0] if len(params) == 1 else np.concatenate(params),
        "m": optimizer["m"],
        "v": optimizer["v"],
    }
    arrays = {
        **{name: np.array(getattr(run, name), np.float32) for name in CURVES},
        **run.kept_arrays(),
    }
    try:
        save_checkpoint(path, state, arrays, flat, owned, run.group)
    except OSError as error:
        hint = "no checkpoint is there yet: make room and begin again"
        if checkpoints(path.parent):
            hint = "the checkpoint before is whole: make room and --resume"
        raise OSError(error.errno, f"{error.strerror}; {hint}", error.filename) from error
    if run.group.rank == 0:
        keep_last(path, run.settings.keep, run.step)


def check_state(state: dict) -> None:
    """A step beyond the last one would never end, nor would more steps than --steps takes."""
    step, n_steps = state["step"], state["n_steps"]
    if type(step) is not int or type(n_steps) not in (int, type(None)):
        raise TypeError(f"step {step!r} of {n_steps!r}")
    if not 0 <= step <= (step if n_steps is None else n_steps) <= MAX_STEPS:
        raise TypeError(f"step {step} of {n_steps}")
    for name, kind in (("seconds", (int, float)), ("kernels", str)):
        if not isinstance(state[name], kind):
            raise TypeError(f"{name} is {state[name]!r}")
    for name, low, high in (("n_updates", 0, step), ("n_validations", 1, 1 << 16)):
        if type(state[name]) is not int or not low <= state[name] <= high:
            raise TypeError(f"{name} is {state[name]!r}")
    for name in ("validations", "samples", "skipped", "rollbacks"):
        if not isinstance(state[name], list):
            raise TypeError(f"{name} is {state[name]!r}")


def restore(run: Run, state: dict, arrays: dict) -> None:
    """The run as it was when the checkpoint was saved. TypeError for what save() never writes."""
    check_state(state)
    if run.n_steps and state["n_steps"] != run.n_steps:
        raise TypeError(f"n_steps is {state['n_steps']}, expected {run.n_steps}")
    check_arrays(state, arrays, run.model.trained.size)
    restore_weights(run, state, arrays)
    run.skipped, run.rollbacks = state["skipped"], state["rollbacks"]
    for name in CURVES:
        setattr(run, name, arrays[name].tolist())
    run.samples = state["samples"]
    run.step, run.n_steps = state["step"], state["n_steps"]
    run.n_validations = state["n_validations"]
    # Where it was stopped between milestones it looked once more; one that never stopped did not.
    kept = {0} | milestones(run.n_steps or 0, run.n_validations)
    run.validations = [point for point in state["validations"] if point[0] in kept]
    run.seconds = state["seconds"]


def check_arrays(state: dict, arrays: dict, n_trained: int) -> None:
    lengths = dict.fromkeys(("params", "m", "v"), n_trained)
    for name, n in {**lengths, **dict.fromkeys(CURVES, state["step"])}.items():
        if name in arrays and (arrays[name].shape, arrays[name].dtype) != ((n,), np.float32):
            shape, kind = arrays[name].shape, arrays[name].dtype
            raise TypeError(f"{name} is an array {shape} of {kind}, expected ({n},) of float32")


def restore_weights(run: Run, state: dict, arrays: dict) -> None:
    """Each rank reads what it owns; the weights travel from there."""
    trained = run.model.trained
    for part in run.optimizer.owned:
        run.model.ops.write(trained[part], arrays["params"][part])
    run.group.all_gather(trained, run.optimizer.shards)
    run.optimizer.load_state({"m": arrays["m"], "v": arrays["v"], "step": state["n_updates"]})


def mark_good(run: Run, folder: Path) -> None:
    """Keeps the checkpoint just written as good.npz, which faults go back to, and as best.npz. Only
    at milestones, so that no clock decides; the checkpoint comes first, so that neither file is
    ever ahead of it."""
    last_step, _, bits = run.validations[-1]
    if run.step not in milestones(run.n_steps, run.n_validations) or last_step != run.step:
        return
    link_file(folder / "checkpoint.npz", folder / "good.npz")
    if run.step and bits == min(point[2] for point in run.validations if point[0]):
        link_file(folder / "checkpoint.npz", folder / "best.npz")


def best_run(run: Run, folder: Path, report: Report) -> Run:
    """The run as it was where it predicted held-out text best, if the settings ask for that; its
    model now has the weights of that step."""
    points = run.validations
    trained = [i for i, point in enumerate(points) if point[0]]  # what step 0 had is no result
    best = min(trained, key=lambda i: points[i][2], default=0)
    saved = folder / "best.npz"
    if run.settings.weights == "last" or points[best][0] == run.step or not saved.exists():
        return run
    state, arrays = load_checkpoint(saved)
    if state["step"] != points[best][0]:
        return run
    run.model.ops.write(run.model.trained, arrays["params"][:])
    report.say(
        f"best       the file gets the weights of step {state['step']:,}: {points[best][2]:.3f} "
        f"held-out bits per byte, {run.bits_per_byte:.3f} at step {run.step:,} (--weights last)"
    )
    kept = points[: best + 1]
    return replace(run, step=state["step"], seconds=kept[-1][1], validations=kept)


# ---- the parameter file ----


def export(run: Run, path: Path) -> None:
    """The parameter file, with provenance and proof."""
    n_new = min(16, run.settings.n_ctx // 2)
    longest = run.settings.n_ctx - n_new
    held = run.validation.inputs[0, :32].tolist()
    prompt = run.tokenizer.encode(run.prompt) or held[:1]
    probes = [prompt[:longest], held[:longest]]
    model = run.model
    write_proved(path, model.config, model.merged(), run.metadata(), provenance(run), probes, n_new)


def provenance(run: Run) -> Provenance:
    config = run.model.config
    memorised = run.memorisation.figures() if run.memorisation else {}
    return Provenance(
        name=f"{run.material.name}, {config.n_params / 1e6:.1f} M parameters",
        corpus_name=run.material.name,
        corpus_bytes=run.material.n_bytes,
        corpus_sha256=run.material.sha256,
        train_tokens=run.n_tokens,
        train_steps=run.step,
        train_seed=run.settings.seed,
        train_flops=float(run.n_tokens * config.flops_per_token),
        validation_bytes=run.validation.n_bytes,
        validation_bits_per_byte=run.bits_per_byte,
        figures={
            "corpus.tokens": len(run.examples.tokens),
            "train.settings": to_toml(run.settings, run.n_steps, all_fields=False),
            **memorised,
        },
        run={
            "xz_bytes": xz_bytes(run),
            "seconds": run.seconds,
            "tokens_per_second": run.n_tokens / max(run.seconds, 1e-9),
            "threads": run.model.ops.n_threads,
            "kernels": run.model.ops.kernels,
            "precision": run.model.ops.precision,
            "peak_flops": run.peak,
        },
    )


def memorisation(run: Run) -> Memorisation | None:
    if not run.memorises:
        return None
    last_step = max(1, run.step)
    return measure_memorisation(run.model, run.examples, last_step, run.validation.windows)


def xz_bytes(run: Run) -> int:
    """What xz -9e makes of the held-out text that the bits per byte are of: the model's rival."""
    scored = run.validation.targets[run.validation.targets >= 0]
    text = run.tokenizer.decode_bytes(scored, render_special=False)
    return len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME))


def sample(run: Run, folder: Path) -> str:
    """What the weights of this moment say, through the engine."""
    path = folder / f"sample-{secrets.token_hex(4)}.tmp"
    tensors = float_tensors(run.model.config, run.model.merged())
    try:
        write_parameter_file(path, run.metadata(), tensors)
        with Model(path) as model:
            return run.sample(model)
    finally:
        path.unlink(missing_ok=True)
