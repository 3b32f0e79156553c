"""What a run is asked for, and the sizes that follow. Layer 2.

Settings is one dataclass: a TOML file and the command line fill it, the checkpoint keeps it. A
field that is None is chosen when the run starts (budget.py) and stored, so that a resumed run
chooses nothing again. FREE fields may change on resume: they cannot change a bit of the weights at
a step (of the text, the hash counts).
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from .config import FUSED_HEADS, LIMITS, ModelConfig, check_fused
from .errors import LlmError, counted

FREE = {
    *("text", "data", "chat", "init", "threads", "device", "attention", "out", "run_dir"),
    *("save_seconds", "keep", "weights"),
}
OWN_VOCABULARY = ("init", "data")  # with these none is learned: n_vocab is not asked
BUDGETS = ("minutes", "tokens", "steps", "epochs")  # at most one is given

DEFAULT_MINUTES = 5.0
MAX_STEPS = 1 << 40
DEFAULT_LR = {"adamw": 1.5e-3, "muon": 0.02}
HEAD_WIDTH = 48  # about; a block for each 48 of width, too
DEFAULT_WIDTH = 224  # about; of a run whose budget is in steps


@dataclass(frozen=True)
class Settings:
    """Sizes as in ModelConfig; the rest is said where the command line describes it (cli.py)."""

    text: tuple[str, ...] = ()
    data: str | None = None  # a shard set, instead
    holdout: str = "hash"
    minutes: float | None = None  # DEFAULT_MINUTES where nothing else says how long
    tokens: int | None = None
    steps: int | None = None
    depth: int | None = None  # n_layer, the width and, without a budget, the tokens that go with it
    tokens_per_param: float = 2.5  # budget.py says why

    n_embd: int | None = None
    n_layer: int | None = None
    n_head: int | None = None
    n_kv_head: int | None = None
    n_ff: int | None = None
    n_vocab: int = 4096
    n_ctx: int = 256
    tied: bool = False
    precision: str | None = None  # of products: "fp32" or "bf16"
    device: str = "cpu"
    attention: str = "batched"  # of a GPU

    batch: int | None = None
    slot_sequences: int | None = None
    optimizer: str = "muon"
    lr: float | None = None
    schedule: str = "linear"
    warmup: int | None = None
    weight_decay: float = 0.1
    clip: float = 1.0
    seed: int = 1

    init: str | None = None  # the parameter file to go on from; what follows goes with it
    chat: tuple[str, ...] = ()  # conversations instead of text
    epochs: float | None = None  # instead of minutes or steps
    isolate: bool = False  # no document sees another; conversations never do
    recompute: bool = False
    lora_rank: int | None = None
    lora_alpha: float | None = None
    lora_targets: tuple[str, ...] = ()  # all

    threads: int = 0
    out: str = "weights/weights.bin"
    run_dir: str = "runs/default"
    save_seconds: float = 30.0
    keep: int = 1
    weights: str = "best"  # which are exported
    prompt: str | None = None

    def __post_init__(self):
        for name, low, high in (
            ("minutes", 0.01, 1e6),
            ("tokens", 1, 1 << 50),
            ("steps", 1, MAX_STEPS),
            ("depth", 1, LIMITS["n_layer"]),
            ("tokens_per_param", 1e-3, 1e6),
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
            ("epochs", 1e-3, 1e6),
            ("lora_rank", 1, 1 << 14),
            ("lora_alpha", 1e-6, 1e6),
            ("threads", 0, 1024),
            ("save_seconds", 0.0, 1e9),
            ("keep", 1, 1 << 20),
        ):
            value = getattr(self, name)
            if value is not None and not low <= value <= high:  # NaN fails too
                raise ValueError(f"{name} is {value}, expected {low} to {high}")
        for name, choices in (
            ("precision", (None, "fp32", "bf16")),
            ("device", ("cpu", "cuda")),
            ("attention", ("batched", "fused")),
            ("holdout", ("hash", "last")),
            ("weights", ("best", "last")),
            ("optimizer", tuple(DEFAULT_LR)),
            ("schedule", ("cosine", "linear")),
        ):
            value = getattr(self, name)
            if value not in choices:
                expected = " or ".join(repr(c) for c in choices if c)
                raise ValueError(f"{name} is {value!r}, expected {expected}")
        if self.attention == "fused" and self.device == "cpu":
            raise ValueError("--attention fused is for --device cuda")
        if self.attention == "fused" and not self.init:  # else the file has the heads
            width = self.n_embd or (self.depth or 0) * HEAD_WIDTH or self.default_width
            n_head = self.n_head or self._head_count(width)
            if width % n_head == 0:  # else ModelConfig refuses it
                check_fused(width // n_head)
        if self.data is not None and self.text:
            raise ValueError("give --text or --data, not both")
        slots, rest = self.n_slots, (self.batch or 0) % (self.slot_sequences or 1)
        if rest or slots & (slots - 1) or not slots:
            raise ValueError(
                f"batch {self.batch} is not a power of two times slot_sequences "
                f"{self.slot_sequences}"
            )

    @property
    def n_slots(self) -> int:
        return self.batch // self.slot_sequences if self.batch and self.slot_sequences else 1

    @property
    def step_tokens(self) -> int:
        return self.batch * self.n_ctx

    @property
    def head_widths(self) -> range:
        """From which that of a head is chosen."""
        return FUSED_HEADS if self.attention == "fused" else range(2, LIMITS["n_embd"] + 1, 2)

    @property
    def default_width(self) -> int:
        """The nearest to DEFAULT_WIDTH that fits the given number of heads."""
        widths = [w * self.n_head for w in reversed(self.head_widths)] if self.n_head else []
        near = [width for width in widths if width <= 4 * DEFAULT_WIDTH]
        return min(near, key=lambda width: abs(width - DEFAULT_WIDTH), default=DEFAULT_WIDTH)

    def _head_count(self, n_embd: int) -> int:
        """Heads of about HEAD_WIDTH."""
        divisors = (h for h in range(1, n_embd + 1) if n_embd % h == 0)
        counts = [h for h in divisors if n_embd // h in self.head_widths]
        return min(counts, key=lambda h: abs(n_embd / h - HEAD_WIDTH), default=1)

    def with_width(self, n_embd: int) -> Settings:
        """The sizes that are not given, filled in from a width."""
        n_head = self.n_head or self._head_count(n_embd)
        sizes = {
            "n_embd": n_embd,
            "n_layer": self.n_layer or -(-n_embd // HEAD_WIDTH),
            "n_head": n_head,
            "n_kv_head": self.n_kv_head or n_head,
            "n_ff": self.n_ff or max(16, round(n_embd * 8 / 3 / 16) * 16),
        }
        return replace(self, **sizes)

    def with_slots(self, n_ranks: int) -> Settings:
        """slot_sequences, where it is not given, so that each rank has a slot of a step. ValueError
        where the ranks cannot share its slots."""
        if n_ranks & (n_ranks - 1):
            raise ValueError(f"{n_ranks} ranks: expected a power of two")
        s = self
        if s.slot_sequences is None:
            s = replace(s, slot_sequences=max(1, s.batch // n_ranks))
        if s.n_slots < n_ranks:
            raise ValueError(
                f"{n_ranks} ranks cannot share a step of {counted(s.n_slots, 'slot')} "
                f"(batch {s.batch}, slot_sequences {s.slot_sequences}): start at most {s.n_slots}, "
                "or a new run with a larger --batch or a smaller --slot-sequences"
            )
        return s

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


def check_given(given: dict) -> None:
    """Refuses what contradicts itself, in a new run."""
    budgets = [_flag(name) for name in BUDGETS if given.get(name) is not None]
    if len(budgets) > 1:
        raise ValueError(f"{' and '.join(budgets)} contradict each other: give one of them")
    depth, n_layer = given.get("depth"), given.get("n_layer")
    if None not in (depth, n_layer) and depth != n_layer:
        raise ValueError(f"--depth is {depth} and --n-layer {n_layer}: they are the same, give one")
    brings = next((name for name in OWN_VOCABULARY if given.get(name)), None)
    if brings and given.get("n_vocab") is not None:
        asked = given["n_vocab"]
        raise ValueError(f"--n-vocab is {asked}, but --{brings} has its own: leave it out")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def merge_resumed(saved: Settings, given: dict) -> Settings:
    """The checkpoint's settings with the FREE ones of the command line; another value for any
    other field is refused."""
    for field in fields(Settings):
        if field.name in given and field.name not in FREE:
            asked, kept = given[field.name], getattr(saved, field.name)
            if asked != kept:
                begun = "no such limit" if kept is None else kept
                hint = ""
                if field.name in BUDGETS:
                    hint = ", and its length stays; --init FILE goes on from its parameter file"
                raise LlmError(
                    f"{_flag(field.name)} is {asked}, but the run to resume was begun with "
                    f"{begun}{hint}"
                )
    return replace(saved, **{name: value for name, value in given.items() if name in FREE})
