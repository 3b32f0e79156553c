"""Runs that go on from a parameter file: on text or on conversations, all weights or adapters.
Layer 10.

The loop, checkpoints and export are train.py's; here stands what such a run begins with.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from .base_file import BaseFile
from .chat_data import ChatExamples, ChatValidation, hold_out_chats, pack, read_chats
from .config import check_fused
from .corpus import read_corpus
from .data import Examples, hold_out, token_stream
from .distributed import world
from .engine import Model
from .errors import CheckpointError, counted
from .evaluate import Validation
from .lora import Lora
from .material import from_corpus, from_shards, min_held_bytes
from .memory import check_memory
from .model import Transformer
from .parameter_file import Entry
from .report import Report
from .run_files import Run, provenance
from .settings import BUDGETS, Settings
from .shards import ShardSet
from .train import (
    back_end,
    check_prompt,
    check_ranks,
    check_same,
    optimizer_of,
    resume_run,
    train,
)

# What is taken where nothing is given: a file that has learned a language wants small steps.
LR = {"adamw": 2e-5, "muon": 1e-3}
LORA_LR = 2e-4
EPOCHS, CHAT_N_CTX, BATCH = 3.0, 512, 4
SAVE_SECONDS = 300.0  # a checkpoint has three times the parameters
WARMUP = 10  # steps, where their number is not known yet
SIZES = ("n_embd", "n_layer", "n_head", "n_kv_head", "n_ff")


@dataclass
class TunedRun(Run):
    base: BaseFile | None = None
    question: str = ""  # of the first conversation that is held out
    memorises = False

    @property
    def prompt(self) -> str:
        if self.settings.prompt is None and self.settings.chat:
            return self.question
        return super().prompt

    def metadata(self) -> list[Entry]:
        return self.base.entries(provenance(self))

    def kept_arrays(self) -> dict[str, np.ndarray]:
        return {"init_sha256": np.frombuffer(self.base.sha256.encode(), np.uint8)}

    def sample(self, model: Model) -> str:
        if not self.settings.chat:
            return super().sample(model)
        asked = [{"role": "user", "content": self.prompt}]
        template = None if model.chat_template else "chatml"  # which it was tuned in, unwarned
        said = model.chat(asked, max_tokens=60, temperature=0.7, seed=1, template=template)
        return f"{self.prompt}\n> {said}"


def tune(given: dict, resume: bool, profiled: bool = False, patience: float = 0.0) -> int:
    """As train.train, from the file that given["init"] names."""
    given = given if resume else with_defaults(given)
    return train(given, resume, profiled, patience, start_tuned, resume_tuned)


def with_defaults(given: dict) -> dict:
    if given.get("chat") and (given.get("text") or given.get("data")):
        raise ValueError("--chat beside --text or --data: a run learns from one of them")
    if given.get("lora_rank") is None and (given.get("lora_targets") or given.get("lora_alpha")):
        raise ValueError("--lora-targets and --lora-alpha go with --lora-rank")
    own = {"optimizer": "adamw", "schedule": "cosine", "batch": BATCH, "weight_decay": 0.0}
    own["save_seconds"] = SAVE_SECONDS
    own["lr"] = LORA_LR if given.get("lora_rank") else LR[given.get("optimizer", "adamw")]
    if given.get("n_ctx") is None:
        with Model(given["init"]) as model:
            wanted = CHAT_N_CTX if given.get("chat") else Settings.n_ctx
            own["n_ctx"] = min(wanted, model.config.n_ctx_train)
    if not any(given.get(name) for name in BUDGETS):
        own["epochs"] = EPOCHS
    return own | given


def start_tuned(settings: Settings, report: Report) -> TunedRun:
    base = open_base(settings, report)
    run = prepare_tuned(settings, base, report)
    report.plan(run)
    return run


def resume_tuned(path: Path, given: dict, report: Report) -> TunedRun:
    return resume_run(path, given, report, prepare_from_base)


def prepare_from_base(settings: Settings, state: dict, arrays: dict, report: Report) -> TunedRun:
    base = open_base(settings, report)
    if base.sha256.encode() != arrays["init_sha256"].tobytes():
        raise CheckpointError(f"{base.path}: not the file that the run began with")
    return prepare_tuned(settings, base, report, state)


def open_base(settings: Settings, report: Report) -> BaseFile:
    base = BaseFile(settings.init)
    expanded = ", ".join(base.expanded_types)
    note = f"; {expanded} expanded to F32, which is what is trained and written" if expanded else ""
    name = base.model.config.architecture
    report.say(f"init       {base.path}: {name}, {base.model.n_params:,} parameters{note}")
    return base


def prepare_tuned(
    settings: Settings, base: BaseFile, report: Report, state: dict | None = None
) -> TunedRun:
    """A run at step 0. state: of a checkpoint, whose text must be the same."""
    settings = settings.with_slots(world().size)
    lora = lora_of(settings)
    config = base.config(settings.n_ctx)
    if settings.attention == "fused":
        check_fused(config.head_dim)
    slots = (settings.n_slots, settings.batch // settings.n_slots)
    ops, group = back_end(settings)
    check_memory(ops, group, config, settings, slots[1], lora)
    check_prompt(settings, base.tokenizer)
    read = read_conversations if settings.chat else read_text
    material, examples, validation, question = read(settings, base, slots, report)
    if state:
        check_same(material, settings, state)
    report.material(material)
    settings = resolved(settings, config, examples.n_windows, ops.precision)
    check_ranks(group, settings, material)
    model = Transformer(config, ops, base.params(), settings.recompute, lora)
    if lora:
        model.begin_adapters(settings.seed)
    return TunedRun(
        settings=settings,
        material=material,
        vocabulary=None,
        tokenizer=base.tokenizer,
        examples=examples,
        validation=validation,
        model=model,
        optimizer=optimizer_of(settings, model, group),
        group=group,
        n_steps=settings.steps,
        base=base,
        question=question,
    )


def lora_of(settings: Settings) -> Lora | None:
    if settings.lora_rank is None:
        return None
    alpha = settings.lora_alpha or 2.0 * settings.lora_rank
    targets = {"targets": settings.lora_targets} if settings.lora_targets else {}
    return Lora(settings.lora_rank, alpha, **targets)


def resolved(settings: Settings, config, n_windows: int, precision: str) -> Settings:
    """What is not given, from the file and the number of windows."""
    for name in SIZES:
        asked, own = getattr(settings, name), getattr(config, name)
        if asked not in (None, own):
            flag = "--" + name.replace("_", "-")
            raise ValueError(f"{flag} is {asked}, but {settings.init} has {own}: leave it out")
    steps = settings.steps
    if settings.epochs is not None:
        steps = max(1, round(settings.epochs * n_windows / settings.batch))
    if settings.tokens is not None:
        steps = max(1, settings.tokens // settings.step_tokens)
    warmup = settings.warmup
    if warmup is None:
        warmup = WARMUP if steps is None else max(1, steps * 3 // 100)
    return replace(
        settings,
        steps=steps,
        epochs=None,
        warmup=warmup,
        precision=precision,
        slot_sequences=settings.batch // settings.n_slots,
        **{name: getattr(config, name) for name in SIZES},
        tied=config.tied_output,
    )


# ---- what is learned: material, examples, validation, a question to ask ----


def read_text(settings: Settings, base: BaseFile, slots: tuple[int, int], report: Report) -> tuple:
    if settings.data:
        material = from_shards(ShardSet(settings.data), base.tokenizer)
    else:
        corpus = read_corpus(settings.text)
        parts = hold_out(corpus.documents, settings.holdout, min_held_bytes(settings))
        streams = (token_stream(base.tokenizer, part, base.separator) for part in parts)
        material = from_corpus(corpus, base.tokenizer, base.separator, *streams)
    boundary = material.eot if settings.isolate else None
    examples = Examples(material.tokens, settings.n_ctx, settings.seed, *slots, boundary)
    validation = Validation(material.held_tokens, base.token_bytes, settings.n_ctx, boundary)
    return material, examples, validation, ""


def read_conversations(
    settings: Settings, base: BaseFile, slots: tuple[int, int], report: Report
) -> tuple:
    corpus, conversations = read_chats(settings.chat, base.model)
    training, held = hold_out_chats(conversations, corpus.documents, settings.holdout)
    windows, held_windows = (pack(c, settings.n_ctx, base.separator) for c in (training, held))
    n_cut = windows.n_cut + held_windows.n_cut
    if n_cut:
        longer = counted(n_cut, "conversation")
        report.say(f"note       longer than {settings.n_ctx} tokens: {longer}")
    examples = ChatExamples(windows, settings.seed, *slots)
    validation = ChatValidation(held_windows, base.token_bytes)
    held_tokens = held_windows.tokens.reshape(-1)
    material = from_corpus(corpus, base.tokenizer, base.separator, examples.tokens, held_tokens)
    return material, examples, validation, held[0].question
