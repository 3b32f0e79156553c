"""What a training takes of memory, counted before it begins. Layer 4."""

from __future__ import annotations

from .config import ModelConfig, TensorSpec, blocks_of, entries_size, layout, layout_size
from .distributed import Group
from .evaluate import BATCH
from .lora import Lora
from .model import chunk_rows, piece_sequences
from .optim import OPTIMIZERS
from .settings import Settings


def check_memory(
    ops,
    group: Group,
    config: ModelConfig,
    settings: Settings,
    n_sequences: int,
    lora: Lora | None = None,
) -> None:
    """Refuses what cannot fit, before the system ends this process, or another one, for it.
    n_sequences: of a slot."""
    n_slots, recompute = max(1, settings.n_slots // group.size), settings.recompute
    entries = lora.layout(config) if lora else layout(config)
    scratch = scratch_bytes(settings.optimizer, entries, ops.n_threads, group.size)
    n_held_rows = BATCH * config.n_ctx  # of a validation, whose buffers stay beside a step's
    validation = validation_bytes(config, n_held_rows, ops.act_bytes)
    validation += logits_bytes(ops, config, n_held_rows)
    received = received_bytes(group, entries, config.n_layer, settings)

    def rows_of(n_sequences: int, recompute: bool) -> int:
        return config.n_ctx * piece_sequences(ops, n_sequences, config.n_ctx, recompute)

    def bytes_of(n_sequences: int, n_slots: int, recompute: bool) -> int:
        n_rows = rows_of(n_sequences, recompute)
        how = (recompute, lora, ops.act_bytes, n_slots, group.size)
        step = training_bytes(config, n_rows, *how) + logits_bytes(ops, config, n_rows) + scratch
        return step + received + validation + ops.workspace_bytes(config, n_rows, n_held_rows)

    needed = bytes_of(n_sequences, n_slots, recompute)
    room, whose = ops.memory()
    n_ranks = group.n_here if ops.shares_memory else 1
    if needed * n_ranks > room:
        others = {
            "--recompute": (n_sequences, n_slots, True),
            "a larger --slot-sequences": (2 * n_sequences, max(1, n_slots // 2), recompute),
            "a smaller --slot-sequences": (max(1, n_sequences // 2), 2 * n_slots, recompute),
        }
        helps = [name for name, other in others.items() if bytes_of(*other) < needed]
        each = f" in each of {n_ranks} ranks" if n_ranks > 1 else ""
        raise ValueError(
            f"{config.n_params:,} parameters and {rows_of(n_sequences, recompute):,} tokens at a "
            f"time take {needed / 1e9:.1f} GB of memory{each}, {whose}: lower --batch, --n-ctx or "
            f"the sizes{', or give ' * bool(helps)}{' or '.join(helps)}"
        )
    ops.reserve(needed)


def training_bytes(
    config: ModelConfig,
    n_rows: int,
    recompute: bool = False,
    lora: Lora | None = None,
    act_bytes: int = 4,
    n_slots: int = 1,
    n_ranks: int = 1,
) -> int:
    """Memory that a rank takes at least: parameters, what is trained of them with gradients, those
    of its n_slots slots that wait for their neighbours, its share of the optimizer's two moments,
    and the activations of n_rows tokens."""
    c, inner = config, _inner_width(config)
    layers = c.n_layer * c.n_embd + (1 if recompute else c.n_layer) * inner
    n_trained = entries_size(lora.layout(c)) if lora else layout_size(c)
    n_params = layout_size(c) + (2 * n_trained if lora else n_trained)
    n_params += n_trained * (n_slots.bit_length() - 1) + 2 * n_trained // n_ranks
    n_bytes = 4 * n_params + n_trained // n_ranks  # and a byte: whether it decays
    return n_bytes + act_bytes * n_rows * (layers + 5 * c.n_embd + c.n_ff)


def validation_bytes(config: ModelConfig, n_rows: int, act_bytes: int = 4) -> int:
    """Of a pass over n_rows tokens without gradients: one layer, what is between layers, and the
    vectors of norms, losses and heads; the logits come to it."""
    c = config
    width = 2 * c.n_embd + _inner_width(c) + c.n_ff
    n_vectors = 4 + c.n_head + (c.n_head + c.n_kv_head if c.qk_norm else 0)
    return n_rows * (act_bytes * width + 4 * n_vectors)


def logits_bytes(ops, config: ModelConfig, n_rows: int) -> int:
    """Of the chunk of tokens that the head works on."""
    return ops.act_bytes * config.n_vocab * chunk_rows(ops, config, n_rows)


def _inner_width(c: ModelConfig) -> int:
    """What a layer keeps of a token beside its input."""
    q, kv = c.n_head * c.head_dim, c.n_kv_head * c.head_dim
    return c.n_embd + (2 + c.qk_norm) * (q + kv) + 2 * c.n_ff


def received_bytes(
    group: Group, entries: list[TensorSpec], n_layer: int, settings: Settings
) -> int:
    """What comes in of other ranks' gradients before it is added (step.py)."""
    n_slots = max(settings.n_slots, group.size)
    shares = OPTIMIZERS[settings.optimizer].shares(entries, n_layer, n_slots, group.size)
    blocks, rest = blocks_of(entries, n_layer)
    return 4 * group.received(shares, [*reversed(blocks), *rest])


def scratch_bytes(optimizer: str, entries: list[TensorSpec], n_threads: int, n_ranks: int) -> int:
    """What a step takes beside state and gradient: of Muon for each matrix that is in work its
    direction, the next one and two squares (csrc/train_muon.c)."""
    matrices = [e for e in entries if OPTIMIZERS[optimizer].takes_whole(e)]
    most = max((2 * (e.size + min(e.shape) ** 2) for e in matrices), default=0)
    return 4 * most * min(n_threads, -(-len(matrices) // n_ranks))
