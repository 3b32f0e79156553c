"""A run from text to parameter file. Layer 9.

train() is the story: prepare or resume, step until the schedule ends or someone says stop, write
the parameter file. What decides the file's bits is in the checkpoint (run_files.py); clocks only
decide when to save and, once, how many steps there are (measure).
"""

from __future__ import annotations

import hashlib
import signal
import time
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from . import __version__, guard
from .budget import BATCH, Costs, choose, split
from .checkpoint import checkpoints, load_checkpoint, load_newest, run_folder
from .data import Examples
from .distributed import ENDINGS, LOST, Group, check_alike, cores, end_all, world
from .engine import Model
from .errors import CheckpointError, LlmError
from .evaluate import Validation
from .material import Material, gather
from .memory import check_memory
from .model import Transformer, init_params
from .ops_c import OpsC, best_precision
from .ops_clocked import Clocked, measure_peak
from .optim import OPTIMIZERS, AdamW
from .pulse import bounded, pulse
from .report import Report
from .run_files import (
    Run,
    best_run,
    check_writable,
    export,
    mark_good,
    memorisation,
    milestones,
    place_for,
    restore,
    restore_weights,
    sample,
    save,
    set_aside,
    write_settings,
)
from .settings import DEFAULT_LR, FREE, Settings, check_given, merge_resumed
from .settings_file import settings_of
from .shards import MANIFEST
from .step import take_step
from .tokenizer import Tokenizer
from .vocabulary import token_bytes, vocabulary_from_arrays

N_SAMPLES = 3
PROFILED_STEPS = 10
PROBE_SECONDS = 1.0  # of gradients that are thrown away: chooses sizes, batch and warm-up
MEASURE_SECONDS = 20.0  # of steps that count, at most the warm-up: fix their number


# ---- the story ----


def train(
    given: dict,
    resume: bool,
    profiled: bool = False,
    patience: float = 0.0,
    start=None,
    go_on=None,
) -> int:
    """Trains as asked by `given` (fields of Settings); returns the exit status: 0, or 128 + the
    signal that ended the run early, in good order. profiled: tells where the time of some steps
    goes, and writes nothing. patience: seconds in one step after which ranks end; 0: never.
    start, go_on: start_run and resume_run, or what makes another kind of Run."""
    began = time.perf_counter()
    group = world()
    folder = Path(given.get("run_dir", Settings.run_dir))
    facts = {"--resume": resume, "--profile": profiled, "--run-dir": folder}
    facts |= {"--device": given.get("device"), **asked(given)}
    check_alike(group, {**facts, **program()})
    report = Report(speaks=group.rank == 0)
    if resume and not folder.is_dir():
        raise CheckpointError(f"{folder}: no such run to resume")
    run = None

    def at() -> str | None:
        if run and run.step_begun is not None:
            return f"step-{run.step_begun}"
        exchange = (run.group if run else group).exchange
        return exchange and f"exchange-{exchange}"

    bound = bounded(at, patience * (group.size > 1), hang)
    with run_folder(folder, group), pulse(folder, group.rank, at), bound:
        saved = folder / "checkpoint.npz"
        goes_on = resume and bool(checkpoints(folder, group))
        if goes_on:
            run = (go_on or resume_run)(saved, given, report)
        else:
            if resume:
                report.say(f"{folder} holds no checkpoint yet: starting from the beginning")
            check_given(given)
            if group.rank == 0 and not profiled:
                check_writable(Path(given.get("out", Settings.out)))  # before the text is read
            run = (start or start_run)(Settings(**given), report)
        run.began = began
        if profiled:
            profile(run, report)
            return 0
        out = Path(run.settings.out)
        with Interrupt() as interrupt, ExitStack() as stack:
            if group.rank == 0:
                stack.enter_context(place_for(out, run, report))
            if group.rank == 0 and not goes_on:  # only now: a mistake costs no checkpoint
                set_aside(saved, report)
                write_settings(run, folder, report)
            step_until_done(run, folder, interrupt, report)
            save(run, saved)
            if group.rank == 0:
                publish(run, folder, out, report)
        if group.rank == 0:
            report.finish(run, out)
        group.barrier()
        return 0 if run.is_done else 128 + interrupt.agreed


def publish(run: Run, folder: Path, out: Path, report: Report) -> None:
    """The parameter file, and what it says: the last of the samples."""
    mark_good(run, folder)
    chosen = best_run(run, folder, report)
    if run.step:
        run.memorisation = chosen.memorisation = memorisation(chosen)
    export(chosen, out)
    with Model(out) as model:
        run.samples.append([chosen.step, run.sample(model)])


def step_until_done(run: Run, folder: Path, interrupt: Interrupt, report: Report) -> None:
    saved, group = folder / "checkpoint.npz", run.group
    run.peak = sum(group.share(measure_peak(run.model.ops)))
    report.begin(run)
    clock_start = time.perf_counter() - run.seconds
    if not run.validations:
        validate(run)
    if not run.step:
        save(run, folder / "good.npz")
    if run.n_steps is None:
        measure(run, folder, clock_start, interrupt, report)

    def keep() -> None:
        save(run, saved)
        if group.rank == 0:
            mark_good(run, folder)

    keep()
    last_save = time.perf_counter()
    while not run.is_done and not interrupt.agreed:
        advance(run, folder, report)
        run.seconds = time.perf_counter() - clock_start
        is_milestone = run.step in milestones(run.n_steps, run.n_validations)
        if is_milestone:
            validate(run)
            report.validated(run)
        takes_sample = run.step in milestones(run.n_steps, N_SAMPLES + 1) and not run.is_done
        if takes_sample and group.rank == 0:
            run.samples.append([run.step, sample(run, folder)])
            report.sample(run.samples[-1][1])
        is_late = time.perf_counter() - last_save > run.settings.save_seconds
        if interrupt.agree(group, is_milestone or is_late):
            keep()
            last_save = time.perf_counter()
    if run.validations[-1][0] != run.step:
        validate(run)
    run.seconds = time.perf_counter() - clock_start
    report.end()


# ---- ranks ----


def program() -> dict:
    """Which program this is: ranks with another one would not do the same."""
    sources = sorted(Path(__file__).parent.glob("*.py"))
    text = b"".join(path.read_bytes() for path in sources)
    return {"version": __version__, "the program's SHA-256": hashlib.sha256(text).hexdigest()}


def asked(settings: dict) -> dict:
    """What of the settings must be alike on all ranks, by flag."""
    kept = {name: value for name, value in settings.items() if name not in FREE}
    return {"--" + name.replace("_", "-"): value for name, value in kept.items()}


def check_ranks(group: Group, settings: Settings, material: Material) -> None:
    """Refuses ranks that would not do the same."""
    check_alike(group, {"the text's SHA-256": material.sha256, **asked(asdict(settings))})


def hang(what: str) -> None:
    hint = "a rank, a host or a link hangs; --resume goes on, --patience waits longer"
    end_all(f"{what}: {hint}", LOST)


# ---- steps, and what a fault asks for ----


def advance(run: Run, folder: Path, report: Report) -> None:
    """A step, or what a fault asks for instead."""
    fault = take_step(run)
    report.step(run)
    if fault is None:
        return
    report.say(f"skipped    step {run.step:,}: {fault} ({len(run.skipped):,} skipped so far)")
    if guard.is_lost(run.step, run.skipped, run.since):
        roll_back(run, folder, fault)
        report.say(
            f"back       to the last good checkpoint, past {guard.IN_A_ROW} faults in a row; "
            f"the rate is {0.5 ** len(run.rollbacks):g} of the schedule's from here on"
        )


def roll_back(run: Run, folder: Path, fault: str) -> None:
    """The weights and the optimizer's state of good.npz; the steps and their examples go on."""
    if len(run.rollbacks) == guard.MAX_ROLLBACKS:
        halved = f"the rate was halved {guard.MAX_ROLLBACKS} times"
        raise LlmError(f"step {run.step}: {fault}, though {halved}; try a lower --lr")
    state, arrays = load_checkpoint(folder / "good.npz", run.group)
    restore_weights(run, state, arrays)
    run.rollbacks.append(run.step)


def validate(run: Run) -> None:
    bits = run.validation.bits_per_byte(run.model, run.group)
    run.validations.append([run.step, round(run.seconds, 3), bits])


def profile(run: Run, report: Report) -> None:
    group = run.group
    peak = sum(group.share(measure_peak(run.model.ops)))
    ops = run.model.ops = run.optimizer.ops = Clocked(run.model.ops, time.perf_counter)
    for _ in range(2):  # first touches of memory
        take_step(run)
    ops.parts.clear()
    start, exchanged = time.perf_counter(), group.seconds
    for _ in range(PROFILED_STEPS):
        take_step(run)
    seconds = (time.perf_counter() - start) / PROFILED_STEPS
    parts = {part: total / PROFILED_STEPS for part, total in ops.parts.items()}
    if group.size > 1:
        parts["ranks (waiting, too)"] = (group.seconds - exchanged) / PROFILED_STEPS
    report.profile(run, seconds, parts, peak)


# ---- how many steps ----


def measure(run: Run, folder: Path, clock_start: float, interrupt: Interrupt, report: Report):
    """Takes the first steps of the warm-up, whose rates do not depend on the number of steps, and
    fixes that number by their speed and by what else the minutes must hold."""
    costs = rehearse(run, folder)
    marks, is_over = [time.perf_counter()], False
    while not is_over and not interrupt.agreed:
        advance(run, folder, report)
        marks.append(time.perf_counter())
        has_enough = run.step >= run.settings.warmup or marks[-1] - marks[0] > MEASURE_SECONDS
        is_over = interrupt.agree(run.group, has_enough)
    run.seconds = marks[-1] - clock_start
    seconds = np.diff(marks)[1:] if len(marks) > 2 else np.diff(marks)  # the first touches memory
    spent = marks[-1] - run.began
    found = split(run.settings, spent, float(seconds.mean()), N_SAMPLES, costs)
    n_steps, run.n_validations = run.group.broadcast(found)
    run.n_steps = run.step + n_steps


def rehearse(run: Run, folder: Path) -> Costs:
    """Does once what a run does now and then; what cannot be written fails before the training."""

    def seconds(action, *arguments) -> float:
        start = time.perf_counter()
        action(*arguments)
        return time.perf_counter() - start

    trial, file = folder / "rehearsal.tmp", folder / "rehearsal.bin.tmp"
    is_first = run.group.rank == 0
    try:
        return Costs(
            validation=seconds(run.validation.bits_per_byte, run.model, run.group),
            save=seconds(save, run, trial),
            sample=seconds(sample, run, folder) if is_first else 0.0,
            export=seconds(export, run, file) + seconds(memorisation, run) if is_first else 0.0,
        )
    finally:
        if is_first:
            trial.unlink(missing_ok=True)
            file.unlink(missing_ok=True)


def flops_per_second(model, examples: Examples) -> float:
    """Of gradients that are thrown away."""
    batch = examples.slot(0, 0)
    model.loss_and_grad(*batch)  # first touches of memory
    n, start = 0, time.perf_counter()
    while time.perf_counter() - start < PROBE_SECONDS:
        model.loss_and_grad(*batch)
        n += 1
    return n * batch[0].size * model.config.flops_per_token / (time.perf_counter() - start)


# ---- beginning and going on ----


def start_run(settings: Settings, report: Report) -> Run:
    machine = back_end(settings)  # what it cannot do is refused before the text is read
    material = gather(settings)
    report.material(material)
    run = prepare(settings, material, *machine)
    report.plan(run)
    return run


def resume_run(path: Path, given: dict, report: Report, prepare_again=None) -> Run:
    """The run of a checkpoint. prepare_again (settings, state, arrays, report): it at step 0."""
    path, state, arrays = load_newest(path, report.say, world())
    try:
        settings = merge_resumed(settings_of(state["settings"]), given)
        if settings.init and not prepare_again:
            raise CheckpointError(f"{path}: begun with --init {settings.init}: give it again")
        run = (prepare_again or prepare_from_text)(settings, state, arrays, report)
        restore(run, state, arrays)
        check_alike(run.group, {"the step to go on from": run.step})
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: not a checkpoint of this program ({error})") from error
    report.plan(run)
    note_kernels(run, state, report)
    return run


def prepare_from_text(settings: Settings, state: dict, arrays: dict, report: Report) -> Run:
    # The vocabulary of shards comes with them, and so changes with their hash.
    vocabulary = None if settings.data else vocabulary_from_arrays(arrays)
    machine = back_end(settings)
    material = gather(settings, vocabulary)
    check_same(material, settings, state)
    report.material(material)
    return prepare(settings, material, *machine)


def check_same(material: Material, settings: Settings, state: dict) -> None:
    if material.sha256 != state["corpus_sha256"]:
        where = ", ".join(settings.chat or settings.text) or material.name
        if settings.data:
            where = Path(settings.data) / MANIFEST
        raise CheckpointError(
            f"{where}: the text has changed since the run began (SHA-256 {material.sha256}, "
            f"expected {state['corpus_sha256']})"
        )
    material.name = state["corpus_name"]


def note_kernels(run: Run, state: dict, report: Report) -> None:
    begun_with = state["kernels"]
    if begun_with != run.model.ops.kernels:
        report.say(f"note       begun with {begun_with} kernels: the last bits will differ")


def prepare(settings: Settings, material: Material, ops, group: Group) -> Run:
    """A run at step 0."""
    vocabulary, tokenizer, tokens = material.vocabulary, material.tokenizer, material.tokens
    n_vocab = len(vocabulary.tokens)
    boundary = material.eot if settings.isolate else None
    lr = settings.lr or DEFAULT_LR[settings.optimizer]
    settings = replace(settings, precision=ops.precision, lr=lr)
    check_prompt(settings, tokenizer)

    def sequences(settings: Settings) -> int:  # at a time
        batch = settings.batch or BATCH[settings.optimizer]
        return settings.slot_sequences or max(1, batch // group.size)

    def model_of(settings: Settings) -> Transformer:
        config = settings.model_config(n_vocab)
        check_memory(ops, group, config, settings, sequences(settings))
        params = init_params(config, settings.seed)
        return Transformer(config, ops, params, settings.recompute)

    def examples_of(settings: Settings) -> Examples:
        slots = (settings.n_slots, sequences(settings))
        return Examples(tokens, settings.n_ctx, settings.seed, *slots, boundary)

    def speed(settings: Settings) -> float:
        """Of all ranks together."""
        return sum(group.share(flops_per_second(model_of(settings), examples_of(settings))))

    settings = choose(settings, n_vocab, speed, group.size)
    check_ranks(group, settings, material)
    model = model_of(settings)
    return Run(
        settings=settings,
        material=material,
        vocabulary=vocabulary,
        tokenizer=tokenizer,
        examples=examples_of(settings),
        validation=Validation(
            material.held_tokens, token_bytes(vocabulary), settings.n_ctx, boundary
        ),
        model=model,
        optimizer=optimizer_of(settings, model, group),
        group=group,
        n_steps=settings.steps,
    )


def optimizer_of(settings: Settings, model: Transformer, group: Group) -> AdamW:
    """With the state of what this rank owns."""
    return OPTIMIZERS[settings.optimizer](
        model.config,
        weight_decay=settings.weight_decay,
        ops=model.ops,
        entries=model.entries,
        n_slots=settings.n_slots,
        rank=group.rank,
        n_ranks=group.size,
    )


def check_prompt(settings: Settings, tokenizer: Tokenizer) -> None:
    prompt = settings.prompt or ""
    try:
        prompt.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"--prompt is not UTF-8 (at character {error.start})") from error
    n_ids = len(tokenizer.encode(prompt))
    if n_ids > settings.n_ctx:
        raise ValueError(f"--prompt has {n_ids} tokens, more than the context of {settings.n_ctx}")


def back_end(settings: Settings) -> tuple:
    """(ops, group): what the settings ask to compute on, and the ranks that do. All ranks call
    this: those of a machine share it."""
    group = world()
    own_cores = cores(group)
    if settings.device == "cpu":
        precision = settings.precision or best_precision()
        return OpsC(settings.threads or own_cores, precision=precision), group
    from .ops_cuda import OpsCuda, libraries

    cupy, _ = libraries()
    how = {"precision": settings.precision or "bf16", "attention": settings.attention}
    if group.size == 1:
        return OpsCuda(**how), group
    from .nccl import NcclGroup, choose_gpu, library

    nccl = library()
    choose_gpu(group, cupy)
    ops = OpsCuda(**how)
    return ops, NcclGroup(group, ops, cupy, nccl)


# ---- stopping in good order ----


class Interrupt:
    """Notes the first of ENDINGS in `signal`; a second one ends the program at once. All ranks
    stop where `agreed` says so."""

    def __init__(self):
        self.signal = self.agreed = 0

    def agree(self, group: Group, flag: bool) -> bool:
        """Tells all ranks what any was signalled; returns rank 0's flag."""
        shared = group.share((self.signal, flag))
        self.agreed = max(signal for signal, _ in shared)
        return shared[0][1]

    def __enter__(self) -> Interrupt:
        heard = (s for s in ENDINGS if signal.getsignal(s) is not signal.SIG_IGN)
        self._before = {s: signal.signal(s, self._note) for s in heard}
        return self

    def _note(self, number, frame) -> None:
        if self.signal:
            raise KeyboardInterrupt
        self.signal = number

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
