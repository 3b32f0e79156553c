"""What a run is asked for, and the sizes that follow. Layer 1.

Settings is one dataclass: the command line fills it, the checkpoint keeps it. A field that is None
is chosen when the run starts and stored, so that a resumed run chooses nothing again. FREE fields
may change on resume: they cannot change a bit of the parameter file (of the text, the hash counts).
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from .config import LIMITS, ModelConfig
from .errors import LlmError

FREE = {"text", "minutes", "threads", "out", "run_dir", "save_seconds"}

# The widest model that is affordable sees this many tokens for each parameter. Trials with equal
# arithmetic on the default corpus, in bits per byte: with 1e13 operations, widths 64, 96, 128, 160
# and 192 reached 1.384, 1.396, 1.466, 1.535 and 1.568 (12, 4.1, 1.2, 0.4, 0.2 tokens for each
# parameter); with 3.75e13, widths 128 and 160 reached 1.240 and 1.280 (4.7, 1.6).
TOKENS_PER_PARAM = 4.0
WIDTHS = range(64, 1025, 32)
DEFAULT_LR = {"adamw": 1.5e-3, "muon": 0.02}
DEFAULT_WIDTH = 224  # of a run whose budget is in steps


@dataclass(frozen=True)
class Settings:
    """Sizes as in ModelConfig; the rest is said where the command line describes it (cli.py)."""

    text: tuple[str, ...] = ()
    holdout: str = "hash"
    minutes: float = 5.0
    steps: int | None = None  # given: minutes count for nothing

    n_embd: int | None = None
    n_layer: int | None = None
    n_head: int | None = None
    n_kv_head: int | None = None
    n_ff: int | None = None
    n_vocab: int = 4096
    n_ctx: int = 256
    tied: bool = True
    precision: str | None = None  # of products: "fp32" or "bf16"

    batch: int = 4
    slot_sequences: int | None = None
    optimizer: str = "adamw"
    lr: float | None = None
    schedule: str = "cosine"
    warmup: int | None = None
    weight_decay: float = 0.1
    clip: float = 1.0
    seed: int = 1

    threads: int = 0
    out: str = "weights/weights.bin"
    run_dir: str = "runs/default"
    save_seconds: float = 30.0
    prompt: str | None = None

    def __post_init__(self):
        for name, low, high in (
            ("minutes", 0.01, 1e6),
            ("steps", 1, 1 << 40),
            *((name, 1, limit) for name, limit in LIMITS.items()),
            ("n_vocab", 257, 1 << 16),
            ("n_ctx", 2, LIMITS["n_ctx"]),  # a prompt and what follows it
            ("batch", 1, 1 << 20),
            ("slot_sequences", 1, 1 << 20),
            ("lr", 1e-9, 1e3),
            ("warmup", 0, 1 << 40),
            ("weight_decay", 0.0, 10.0),
            ("clip", 1e-9, 1e9),
            ("seed", 0, 2**63 - 1),
            ("threads", 0, 1024),
            ("save_seconds", 0.0, 1e9),
        ):
            value = getattr(self, name)
            if value is not None and not low <= value <= high:  # NaN fails too
                raise ValueError(f"{name} is {value}, expected {low} to {high}")
        for name, choices in (
            ("precision", (None, "fp32", "bf16")),
            ("holdout", ("hash", "last")),
            ("optimizer", tuple(DEFAULT_LR)),
            ("schedule", ("cosine", "linear")),
        ):
            value = getattr(self, name)
            if value not in choices:
                expected = " or ".join(repr(c) for c in choices if c)
                raise ValueError(f"{name} is {value!r}, expected {expected}")
        slots, rest = divmod(self.batch, self.slot_sequences or self.batch)
        if rest or slots & (slots - 1) or not slots:
            raise ValueError(
                f"batch {self.batch} is not a power of two times slot_sequences "
                f"{self.slot_sequences}"
            )

    @property
    def n_slots(self) -> int:
        return self.batch // (self.slot_sequences or self.batch)

    @classmethod
    def from_dict(cls, values: dict) -> Settings:
        """Of a checkpoint; one without a precision is from before there was a choice."""
        return cls(**{"precision": "fp32", **values, "text": tuple(values["text"])})

    def with_width(self, n_embd: int) -> Settings:
        """The sizes that are not given, filled in from a width."""
        n_head = self.n_head or _head_count(n_embd)
        sizes = {
            "n_embd": n_embd,
            "n_layer": self.n_layer or -(-n_embd // 48),
            "n_head": n_head,
            "n_kv_head": self.n_kv_head or n_head,
            "n_ff": self.n_ff or max(16, round(n_embd * 8 / 3 / 16) * 16),
        }
        return replace(self, **sizes)

    def model_config(self, n_vocab: int) -> ModelConfig:
        return ModelConfig(
            n_vocab=n_vocab,
            n_ctx=self.n_ctx,
            n_embd=self.n_embd,
            n_layer=self.n_layer,
            n_head=self.n_head,
            n_kv_head=self.n_kv_head,
            n_ff=self.n_ff,
            tied_output=self.tied,
        )


def _head_count(n_embd: int) -> int:
    """Heads of about 48, an even width each."""
    counts = [h for h in range(1, n_embd + 1) if n_embd % h == 0 and (n_embd // h) % 2 == 0]
    return min(counts, key=lambda h: abs(n_embd / h - 48), default=1)


def choose_width(settings: Settings, n_vocab: int, flops_per_second: float) -> int:
    """The widest model that sees TOKENS_PER_PARAM tokens for each parameter in the minutes."""

    def is_affordable(n_embd: int) -> bool:
        config = settings.with_width(n_embd).model_config(n_vocab)
        n_tokens = 60 * settings.minutes * flops_per_second / config.flops_per_token
        return n_tokens >= TOKENS_PER_PARAM * config.n_params

    widths = [w for w in WIDTHS if not settings.n_head or w % (2 * settings.n_head) == 0]
    if not widths:
        raise ValueError(f"n_head is {settings.n_head}: give --n-embd too")
    return max(filter(is_affordable, widths), default=widths[0])


def merge_resumed(saved: Settings, given: dict) -> Settings:
    """The checkpoint's settings with the FREE ones of the command line; another value for any
    other field is refused."""
    for field in fields(Settings):
        if field.name in given and field.name not in FREE:
            asked, kept = given[field.name], getattr(saved, field.name)
            if asked != kept:
                flag = "--" + field.name.replace("_", "-")
                raise LlmError(f"{flag} is {asked}, but the run to resume was begun with {kept}")
    return replace(saved, **{name: value for name, value in given.items() if name in FREE})
