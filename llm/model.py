"""The model that is trained: a Llama-shaped decoder, forward and backward by hand. Layer 3.

Parameters and gradients are one flat buffer each (`config.layout`), seen through named views. All
arithmetic goes through an `ops` back end; the methods of each are described in `ops_numpy`. Buffers
of a step are allocated once per size and used again. Per layer a step keeps the residual stream
before each norm, q, k, v, the attention's output and its log-sum-exp, gate and up; normed inputs
and the SwiGLU's output are recomputed, and with `recompute` all but each layer's input. With `lora`
the parameters are frozen, and low-rank adapters beside the blocks' matrices are trained. A gradient
is taken of a few sequences at a time, which share the buffers, and the head works on chunks of
tokens, so that neither the activations nor the logits of a whole batch ever exist.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np

from .config import (
    ROPE_HALVES,
    ModelConfig,
    TensorSpec,
    blocks_of,
    entries_size,
    layout,
    layout_size,
)
from .lora import Lora


def init_params(config: ModelConfig, seed: int, zero_output: bool = False) -> np.ndarray:
    """A fresh flat float32 buffer: gains one, matrices normal with deviation 0.02.

    The matrices that write to the residual stream (wo, w_down) get 0.02 / sqrt(2 n_layer), or zero
    with `zero_output`.
    """
    rng = np.random.default_rng(seed)
    params = np.zeros(layout_size(config), np.float32)
    for entry, view in _entries(layout(config), params):
        if len(entry.shape) == 1:
            view[...] = entry.name.endswith("norm")  # biases start at zero
            continue
        deviation = 0.02
        if entry.name.endswith((".wo", ".w_down")):
            deviation = 0 if zero_output else 0.02 / math.sqrt(2 * config.n_layer)
        view[...] = rng.standard_normal(entry.shape, np.float32) * np.float32(deviation)
    return params


def _entries(entries: list[TensorSpec], flat: np.ndarray):
    for entry in entries:
        yield entry, flat[entry.offset : entry.offset + entry.size].reshape(entry.shape)


def piece_sequences(ops, n_sequences: int, n_time: int, recompute: bool) -> int:
    """Of a batch, how many at a time: a divisor, so that all pieces fit the same buffers; fewer for
    who recomputes to save memory."""
    rows = ops.piece_rows // 4 if recompute else ops.piece_rows
    most = max(1, min(n_sequences, rows // n_time))
    return next(n for n in range(most, 0, -1) if n_sequences % n == 0)


def chunk_rows(ops, config: ModelConfig, n_rows: int) -> int:
    """Of n_rows tokens, those whose logits exist at a time."""
    return min(n_rows, max(ops.chunk_rows, ops.chunk_floats // config.n_vocab))


class _Views:
    """Named views of a flat buffer: `.blocks[3].wq`, `.tok_embd`, `.out_norm`, `.output`."""

    def __init__(self, config: ModelConfig, entries: list[TensorSpec], flat: np.ndarray):
        self.by_name = {entry.name: view for entry, view in _entries(entries, flat)}
        self.blocks = [SimpleNamespace() for _ in range(config.n_layer)]
        for name, view in self.by_name.items():
            if name.startswith("blk."):
                _, layer, weight = name.split(".")
                setattr(self.blocks[int(layer)], weight, view)
        self.tok_embd = self.by_name.get("tok_embd")
        self.out_norm = self.by_name.get("out_norm")
        self.output = self.by_name.get("output", self.tok_embd)


class _Buffers:
    """Activations of a pass over (B, T) tokens; N = B * T rows. `keep` holds every layer's for a
    backward, or with `recompute` the input of every layer; otherwise all layers share one."""

    def __init__(self, config: ModelConfig, ops, B: int, T: int, keep: bool, recompute: bool):
        c, N = config, B * T
        C, F, D = c.n_embd, c.n_ff, c.head_dim
        n_q, n_kv, act = c.n_head * D, c.n_kv_head * D, ops.empty_act
        self.shape = (B, T)
        self.keep = keep
        self.starts = None  # of the documents, (B, T) int32

        def heads(buffer):  # (N, heads * D) seen as (B, T, heads, D)
            return buffer.reshape(B, T, -1, D)

        def rows(buffer):  # and as (N * heads, D)
            return buffer.reshape(-1, D)

        def layer():
            b = SimpleNamespace(
                x=act(N, C),  # residual stream before the attention norm
                x_mid=act(N, C),  # and before the feed-forward norm
                rstd_attn=ops.empty(N),
                rstd_ffn=ops.empty(N),
                q=act(N, n_q),
                k=act(N, n_kv),
                v=act(N, n_kv),
                att=act(N, n_q),
                lse=ops.empty(B, c.n_head, T),
                gate=act(N, F),
                up=act(N, F),
            )
            b.q4, b.k4, b.v4, b.att4 = map(heads, (b.q, b.k, b.v, b.att))
            b.q_raw, b.k_raw = b.q, b.k
            if c.qk_norm:  # before their norms
                b.q_raw, b.k_raw = act(N, n_q), act(N, n_kv)
                b.rstd_q, b.rstd_k = ops.empty(N * c.n_head), ops.empty(N * c.n_kv_head)
                b.q2, b.k2, b.q_raw2, b.k_raw2 = map(rows, (b.q, b.k, b.q_raw, b.k_raw))
            return b

        if keep and not recompute:
            self.layers = [layer() for _ in range(c.n_layer)]
        else:
            self.layers = [layer()] * c.n_layer
        if keep and recompute:
            shared = vars(self.layers[0])
            own = [shared["x"], *(act(N, C) for _ in range(1, c.n_layer))]
            self.layers = [SimpleNamespace(**shared | {"x": x}) for x in own]
        self.x_last = act(N, C) if keep else self.layers[0].x
        self.rstd_last = ops.empty(N)
        self.xn = act(N, C)
        self.h = act(N, F)
        self.chunk = chunk_rows(ops, c, N)
        self.logits = act(self.chunk, c.n_vocab)
        self.losses = ops.empty(N)
        if keep:
            self.dx = act(N, C)
            self.dq, self.dk, self.dv = act(N, n_q), act(N, n_kv), act(N, n_kv)
            self.dq4, self.dk4, self.dv4 = map(heads, (self.dq, self.dk, self.dv))
            self.dq_raw, self.dk_raw = self.dq, self.dk
            if c.qk_norm:
                self.dq_raw, self.dk_raw = act(N, n_q), act(N, n_kv)
                self.dq2, self.dk2 = rows(self.dq), rows(self.dk)
                self.dq_raw2, self.dk_raw2 = rows(self.dq_raw), rows(self.dk_raw)
            # xn is free while attention runs backward
            self.datt = self.xn if n_q == C else act(N, n_q)
            self.datt4 = heads(self.datt)

    def chunks(self):
        """Slices of the rows; their number depends on the shape alone."""
        n = len(self.losses)
        return [slice(i, min(i + self.chunk, n)) for i in range(0, n, self.chunk)]


class Transformer:
    """`params` (flat, in the back end's dtype) is used as it is, not copied; by default seed 0.

    `trained` is what an optimizer changes, laid out by `entries`: params, or with `lora` the
    adapters. `grads` is the flat gradient of the last loss_and_grad; its padding stays zero.
    `views` maps our tensor names to views of params, `trained_views` and `grad_views` those of
    entries to views of trained and grads.
    """

    def __init__(
        self,
        config: ModelConfig,
        ops,
        params: np.ndarray | None = None,
        recompute: bool = False,
        lora: Lora | None = None,
    ):
        self.config, self.ops, self.recompute, self.lora = config, ops, recompute, lora
        if params is None:
            params = init_params(config, 0).astype(ops.dtype, copy=False)
        if params.shape != (layout_size(config),) or params.dtype != ops.dtype:
            raise ValueError(
                f"params is {params.dtype} {params.shape}, "
                f"expected {ops.dtype} ({layout_size(config)},)"
            )
        self.params = self.trained = params = ops.from_host(params)
        ops.keep_rounded(params)
        self.entries = layout(config)
        self._w = _Views(config, self.entries, params)
        if lora:
            self.entries = lora.layout(config)
            self.trained = ops.empty(entries_size(self.entries))
            self.begin_adapters(seed=0)
        self.grads = ops.empty(self.trained.size)
        ops.zero(self.grads)
        self._dw = _Views(config, self.entries, self.grads)
        self._grad_blocks, self._grad_rest = blocks_of(self.entries, config.n_layer)
        self.views, self.grad_views = self._w.by_name, self._dw.by_name
        self.trained_views = _Views(config, self.entries, self.trained).by_name
        if lora:
            self._attach_adapters()
        pair = np.arange(0, config.head_dim, 2) / config.head_dim
        angles = np.outer(np.arange(config.n_ctx), config.rope_theta**-pair)
        tables = np.cos(angles).astype(ops.dtype), np.sin(angles).astype(ops.dtype)
        self._cos, self._sin = map(ops.from_host, tables)
        self._halves = ROPE_HALVES[config.architecture]
        self._buffers = {True: None, False: None}
        self._adds = False  # whether grads holds the gradient of earlier pieces

    def begin_adapters(self, seed: int) -> None:
        adapters = np.empty(self.trained.shape, self.ops.dtype)
        self.lora.begin(self.entries, adapters, seed)
        self.ops.write(self.trained, adapters)

    def _attach_adapters(self) -> None:
        """Beside the matrices; the gradients of gains go where nobody reads."""
        for name, view in self.trained_views.items():
            _, layer, weight = name.split(".")
            setattr(self._w.blocks[int(layer)], weight, view)
        unused = self.ops.empty(self.config.n_embd)
        of_head = self.ops.empty(self.config.head_dim)
        self._dw.out_norm = unused
        for block in self._dw.blocks:
            block.attn_norm = block.ffn_norm = unused
            block.q_norm = block.k_norm = of_head

    def merged(self) -> np.ndarray:
        """The host's flat parameters of the model without adapters; a copy where there are any."""
        params = self.ops.to_host(self.params)
        if self.lora is None:
            return params
        out, adapters = params.copy(), self.ops.to_host(self.trained)
        views = _Views(self.config, layout(self.config), out).by_name
        self.lora.merge(views, _Views(self.config, self.entries, adapters).by_name)
        return out

    # ---- what others call ----

    def loss_and_grad(
        self,
        tokens,
        targets,
        starts=None,
        scale: float = 1.0,
        ready: Callable[[slice], None] = lambda part: None,
    ) -> float:
        """Mean loss in nats per token of (B, T) int32; targets < 0 are not counted. starts (B, T):
        where the document of each position begins; no position sees another document.

        Overwrites `grads` with the gradient of scale * mean loss. ready: is told each part of it as
        soon as it is final, the last block's first.
        """
        tokens, targets = self._check_pair(tokens, targets)
        starts = self._check_starts(starts, tokens.shape)
        n_used = max(1, int(np.count_nonzero(targets >= 0)))
        n_sequences, n_time = tokens.shape
        size = piece_sequences(self.ops, n_sequences, n_time, self.recompute)
        losses = []
        for first in range(0, n_sequences, size):
            piece = slice(first, first + size)
            b = self._get_buffers((size, n_time), True, None if starts is None else starts[piece])
            ids, wanted = (self.ops.from_host(x[piece].reshape(-1)) for x in (tokens, targets))
            self._adds = first > 0
            self._forward(b, ids)
            self._head_backward(b, wanted, scale / n_used)
            self._backward(b, ids, ready if first + size == n_sequences else lambda part: None)
            losses.append(math.fsum(self.ops.to_host(b.losses)))
        return math.fsum(losses) / n_used

    def loss(self, tokens, targets, starts=None) -> tuple[float, int]:
        """(sum of nats, tokens counted), without gradients and with one layer's memory."""
        tokens, targets = self._check_pair(tokens, targets)
        b = self._get_buffers(tokens.shape, False, self._check_starts(starts, tokens.shape))
        n_used = int(np.count_nonzero(targets >= 0))
        tokens, targets = (self.ops.from_host(ids.reshape(-1)) for ids in (tokens, targets))
        self._forward(b, tokens)
        for rows in b.chunks():
            logits = self._chunk_logits(b, rows)
            self.ops.cross_entropy(b.losses[rows], logits, targets[rows])
        return math.fsum(self.ops.to_host(b.losses)), n_used

    def logits(self, tokens, starts=None) -> np.ndarray:
        """(B, T, V), a new array."""
        tokens = self._check(tokens)
        b = self._get_buffers(tokens.shape, False, self._check_starts(starts, tokens.shape))
        self._forward(b, self.ops.from_host(tokens.reshape(-1)))
        out = np.empty((tokens.size, self.config.n_vocab), self.ops.dtype)
        for rows in b.chunks():
            out[rows] = self.ops.to_host(self._chunk_logits(b, rows))
        return out.reshape(*tokens.shape, -1)

    # ---- forward ----

    def _forward(self, b: _Buffers, tokens):
        """Leaves the normed output of the last layer in b.xn."""
        ops, w = self.ops, self._w
        ops.embed(b.layers[0].x, w.tok_embd, tokens)
        outputs = [layer.x for layer in b.layers[1:]] + [b.x_last]
        for a, p, x_out in zip(b.layers, w.blocks, outputs, strict=True):
            self._block_forward(b, a, p)
            ops.swiglu(b.h, a.gate, a.up)
            self._linear(x_out, b.h, p, "w_down", add=a.x_mid)
        ops.rmsnorm(b.xn, b.rstd_last, b.x_last, w.out_norm, self.config.norm_eps)

    def _block_forward(self, b: _Buffers, a, p):
        """From a.x to a.gate and a.up, with all that a backward needs."""
        ops, eps = self.ops, self.config.norm_eps
        ops.rmsnorm(b.xn, a.rstd_attn, a.x, p.attn_norm, eps)
        biases = (p.bq, p.bk, p.bv) if self.config.qkv_bias else (None, None, None)
        for y, name, bias in zip((a.q_raw, a.k_raw, a.v), ("wq", "wk", "wv"), biases, strict=True):
            self._linear(y, b.xn, p, name, add=bias)
        if self.config.qk_norm:
            ops.rmsnorm(a.q2, a.rstd_q, a.q_raw2, p.q_norm, eps)
            ops.rmsnorm(a.k2, a.rstd_k, a.k_raw2, p.k_norm, eps)
        ops.rope(a.q4, self._cos, self._sin, self._halves, b.starts)
        ops.rope(a.k4, self._cos, self._sin, self._halves, b.starts)
        ops.attention(a.att4, a.lse, a.q4, a.k4, a.v4, b.starts)
        self._linear(a.x_mid, a.att, p, "wo", add=a.x)

        ops.rmsnorm(b.xn, a.rstd_ffn, a.x_mid, p.ffn_norm, eps)
        self._linear(a.gate, b.xn, p, "w_gate")
        self._linear(a.up, b.xn, p, "w_up")

    def _chunk_logits(self, b: _Buffers, rows: slice):
        logits = b.logits[: rows.stop - rows.start]
        self.ops.gemm(logits, b.xn[rows], self._w.output, trans_b=True)
        return logits

    # ---- backward ----

    def _head_backward(self, b: _Buffers, targets, scale: float):
        """Losses and the gradients of the output matrix and the last norm; fills b.dx."""
        ops, w, dw = self.ops, self._w, self._dw
        for rows in b.chunks():
            dlogits = self._chunk_logits(b, rows)
            ops.cross_entropy(b.losses[rows], dlogits, targets[rows], scale)
            before = dw.output if rows.start or self._adds else None
            if not self.lora:
                ops.gemm(dw.output, dlogits, b.xn[rows], trans_a=True, add=before)
            ops.gemm(b.xn[rows], dlogits, w.output)  # xn becomes dxn
        ops.zero(b.dx)
        self._norm_backward(b.dx, dw.out_norm, b.xn, b.x_last, w.out_norm, b.rstd_last)

    def _backward(self, b: _Buffers, tokens, ready):
        ops, w, dw, dx, starts = self.ops, self._w, self._dw, b.dx, b.starts
        for layer in reversed(range(self.config.n_layer)):
            a, p, dp = b.layers[layer], w.blocks[layer], dw.blocks[layer]
            if self.recompute:
                self._block_forward(b, a, p)
            # Feed-forward: dh becomes h, gate and up become their gradients, dxn becomes xn.
            self._input_gradient(b.h, dx, p, "w_down")
            ops.swiglu_backward(a.gate, a.up, b.h)
            self._weight_gradient(dx, b.h, p, dp, "w_down")
            self._input_gradient(b.xn, a.gate, p, "w_gate")
            self._input_gradient(b.xn, a.up, p, "w_up", add=b.xn)
            self._norm_backward(dx, dp.ffn_norm, b.xn, a.x_mid, p.ffn_norm, a.rstd_ffn)
            self._weight_gradient(a.gate, b.xn, p, dp, "w_gate")
            self._weight_gradient(a.up, b.xn, p, dp, "w_up")

            # Attention. b.xn brings dxn, which becomes xn.
            self._input_gradient(b.datt, dx, p, "wo")
            self._weight_gradient(dx, a.att, p, dp, "wo")
            ops.attention_backward(
                b.dq4, b.dk4, b.dv4, b.datt4, a.att4, a.q4, a.k4, a.v4, a.lse, starts
            )
            ops.rope_backward(b.dq4, self._cos, self._sin, self._halves, starts)
            ops.rope_backward(b.dk4, self._cos, self._sin, self._halves, starts)
            if self.config.qk_norm:
                ops.zero(b.dq_raw)
                ops.zero(b.dk_raw)
                self._norm_backward(b.dq_raw2, dp.q_norm, b.dq2, a.q_raw2, p.q_norm, a.rstd_q)
                self._norm_backward(b.dk_raw2, dp.k_norm, b.dk2, a.k_raw2, p.k_norm, a.rstd_k)
            self._input_gradient(b.xn, b.dq_raw, p, "wq")
            self._input_gradient(b.xn, b.dk_raw, p, "wk", add=b.xn)
            self._input_gradient(b.xn, b.dv, p, "wv", add=b.xn)
            self._norm_backward(dx, dp.attn_norm, b.xn, a.x, p.attn_norm, a.rstd_attn)
            self._weight_gradient(b.dq_raw, b.xn, p, dp, "wq")
            self._weight_gradient(b.dk_raw, b.xn, p, dp, "wk")
            self._weight_gradient(b.dv, b.xn, p, dp, "wv")
            if self.config.qkv_bias and not self.lora:
                for db, dy in ((dp.bq, b.dq), (dp.bk, b.dk), (dp.bv, b.dv)):
                    self._into(db, lambda total, dy=dy: ops.sum_rows(total, dy))
            ready(self._grad_blocks[layer])
        if not self.lora:
            if not self.config.tied_output and not self._adds:
                ops.zero(dw.tok_embd)
            ops.embed_backward(dw.tok_embd, dx, tokens)
        for part in self._grad_rest:
            ready(part)

    # ---- gradients of vectors ----

    def _into(self, dv, write: Callable) -> None:
        """write(array) into dv, or beside it and added."""
        if not self._adds:
            write(dv)
            return
        more = self.ops.empty(*dv.shape)
        write(more)
        self.ops.combine(dv, 1.0, dv, 1.0, more)

    def _norm_backward(self, dx, dw, dy, x, w, rstd) -> None:
        self._into(dw, lambda total: self.ops.rmsnorm_backward(dx, total, dy, x, w, rstd))

    # ---- a matrix of a block, and its adapter ----

    def _linear(self, y, x, p, name: str, add=None):
        """y = x W^T + add, and scale x A^T B^T where W has an adapter."""
        self.ops.gemm(y, x, getattr(p, name), trans_b=True, add=add)
        if hasattr(p, name + "_a"):
            self.ops.gemm(y, self._low(x, p, name), getattr(p, name + "_b"), trans_b=True, add=y)

    def _low(self, x, p, name: str):
        """scale x A^T, (N, rank)."""
        low = self.ops.empty(len(x), self.lora.rank)
        self.ops.gemm(low, x, getattr(p, name + "_a"), trans_b=True)
        self.ops.combine(low, self.lora.scale, low, 0.0, low)
        return low

    def _low_gradient(self, dy, p, name: str):
        """scale dy B, (N, rank)."""
        dlow = self.ops.empty(len(dy), self.lora.rank)
        self.ops.gemm(dlow, dy, getattr(p, name + "_b"))
        self.ops.combine(dlow, self.lora.scale, dlow, 0.0, dlow)
        return dlow

    def _input_gradient(self, dx, dy, p, name: str, add=None):
        """dx = dy W + add, and scale dy B A."""
        self.ops.gemm(dx, dy, getattr(p, name), add=add)
        if hasattr(p, name + "_a"):
            self.ops.gemm(dx, self._low_gradient(dy, p, name), getattr(p, name + "_a"), add=dx)

    def _weight_gradient(self, dy, x, p, dp, name: str):
        """dW = dy^T x; of an adapter dB = dy^T (scale x A^T) and dA = (scale dy B)^T x."""
        if not self.lora:
            self._add_product(getattr(dp, name), dy, x)
        elif hasattr(p, name + "_a"):
            self._add_product(getattr(dp, name + "_b"), dy, self._low(x, p, name))
            self._add_product(getattr(dp, name + "_a"), self._low_gradient(dy, p, name), x)

    def _add_product(self, dw, dy, x):
        self.ops.gemm(dw, dy, x, trans_a=True, add=dw if self._adds else None)

    # ---- checks and buffers ----

    def _check_pair(self, tokens, targets) -> tuple[np.ndarray, np.ndarray]:
        tokens, targets = self._check(tokens), self._check(targets, lowest=None)
        if tokens.shape != targets.shape:
            raise ValueError(f"tokens have shape {tokens.shape}, targets {targets.shape}")
        return tokens, targets

    def _check(self, ids, lowest: int | None = 0) -> np.ndarray:
        """(B, T) as contiguous int32; refuses what is no token of this model."""
        ids = np.ascontiguousarray(ids, np.int32)
        c = self.config
        if ids.ndim != 2 or ids.size == 0 or ids.shape[1] > c.n_ctx:
            raise ValueError(f"tokens have shape {ids.shape}, expected (B, T), 1 <= T <= {c.n_ctx}")
        if ids.max() >= c.n_vocab or (lowest is not None and ids.min() < lowest):
            raise ValueError(
                f"token ids run from {ids.min()} to {ids.max()}, expected 0 to {c.n_vocab - 1}"
            )
        return ids

    def _check_starts(self, starts, shape) -> np.ndarray | None:
        if starts is None:
            return None
        starts = np.ascontiguousarray(starts, np.int32)
        if starts.shape != shape:
            raise ValueError(f"tokens have shape {shape}, starts {starts.shape}")
        if starts.min() < 0 or (starts > np.arange(shape[1])).any() or (np.diff(starts) < 0).any():
            raise ValueError("starts must rise along a row, from 0 to a position's own")
        return starts

    def _get_buffers(self, shape, keep: bool, starts) -> _Buffers:
        if self._buffers[keep] is None or self._buffers[keep].shape != shape:
            self._buffers[keep] = None  # free before allocating the next
            self._buffers[keep] = _Buffers(self.config, self.ops, *shape, keep, self.recompute)
        self._buffers[keep].starts = None if starts is None else self.ops.from_host(starts)
        return self._buffers[keep]
