"""The model that is trained: a Llama-shaped decoder, forward and backward by hand. Layer 2.

Parameters and gradients are one flat buffer each (`config.layout`), seen through named views. All
arithmetic goes through an `ops` back end; the methods of each are described in `ops_numpy`. Buffers
of a step are allocated once per size and used again. Per layer a step keeps the residual stream
before each norm, q, k, v, the attention's output and its log-sum-exp, gate and up; normed inputs
and the SwiGLU's output are recomputed. The head works on chunks of tokens, so that the logits of a
whole batch never exist.
"""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np

from .config import ModelConfig, layout, layout_size

_CHUNK_FLOATS = 1 << 21  # logits in flight: a chunk that stays in a shared cache


def init_params(config: ModelConfig, seed: int, zero_output: bool = False) -> np.ndarray:
    """A fresh flat float32 buffer: gains one, matrices normal with deviation 0.02.

    The matrices that write to the residual stream (wo, w_down) get 0.02 / sqrt(2 n_layer), or zero
    with `zero_output`.
    """
    rng = np.random.default_rng(seed)
    params = np.zeros(layout_size(config), np.float32)
    for entry, view in _entries(config, params):
        if len(entry.shape) == 1:
            view[...] = 1
            continue
        deviation = 0.02
        if entry.name.endswith((".wo", ".w_down")):
            deviation = 0 if zero_output else 0.02 / math.sqrt(2 * config.n_layer)
        view[...] = rng.standard_normal(entry.shape, np.float32) * np.float32(deviation)
    return params


def _entries(config: ModelConfig, flat: np.ndarray):
    for entry in layout(config):
        yield entry, flat[entry.offset : entry.offset + entry.size].reshape(entry.shape)


def training_bytes(config: ModelConfig, n_rows: int) -> int:
    """Memory that training takes at least: parameters, gradients, the optimizer's two moments, and
    the activations of n_rows tokens."""
    c = config
    layer = 4 * c.n_embd + 2 * c.n_kv_head * c.head_dim + 2 * c.n_ff
    return 4 * (4 * layout_size(c) + n_rows * (c.n_layer * layer + 5 * c.n_embd + c.n_ff))


class _Views:
    """Named views of a flat buffer: `.blocks[3].wq`, `.tok_embd`, `.out_norm`, `.output`."""

    def __init__(self, config: ModelConfig, flat: np.ndarray):
        self.by_name = {entry.name: view for entry, view in _entries(config, flat)}
        self.blocks = [SimpleNamespace() for _ in range(config.n_layer)]
        for name, view in self.by_name.items():
            if name.startswith("blk."):
                _, layer, weight = name.split(".")
                setattr(self.blocks[int(layer)], weight, view)
        self.tok_embd = self.by_name["tok_embd"]
        self.out_norm = self.by_name["out_norm"]
        self.output = self.by_name.get("output", self.tok_embd)


class _Buffers:
    """Activations of a pass over (B, T) tokens; N = B * T rows. `keep` holds every layer's for a
    backward, otherwise all layers share one."""

    def __init__(self, config: ModelConfig, ops, B: int, T: int, keep: bool):
        c, N = config, B * T
        C, F, kv = c.n_embd, c.n_ff, c.n_kv_head * c.head_dim
        self.shape = (B, T)
        self.keep = keep

        def heads(n_head, buffer):  # (N, n_head * D) seen as (B, T, n_head, D)
            return buffer.reshape(B, T, n_head, c.head_dim)

        def layer():
            b = SimpleNamespace(
                x=ops.empty(N, C),  # residual stream before the attention norm
                x_mid=ops.empty(N, C),  # and before the feed-forward norm
                rstd_attn=ops.empty(N),
                rstd_ffn=ops.empty(N),
                q=ops.empty(N, C),
                k=ops.empty(N, kv),
                v=ops.empty(N, kv),
                att=ops.empty(N, C),
                lse=ops.empty(B, c.n_head, T),
                gate=ops.empty(N, F),
                up=ops.empty(N, F),
            )
            b.q4, b.att4 = heads(c.n_head, b.q), heads(c.n_head, b.att)
            b.k4, b.v4 = heads(c.n_kv_head, b.k), heads(c.n_kv_head, b.v)
            return b

        self.layers = [layer() for _ in range(c.n_layer)] if keep else [layer()] * c.n_layer
        self.x_last = ops.empty(N, C) if keep else self.layers[0].x
        self.rstd_last = ops.empty(N)
        self.xn = ops.empty(N, C)
        self.h = ops.empty(N, F)
        self.chunk = min(N, max(64, _CHUNK_FLOATS // c.n_vocab))
        self.logits = ops.empty(self.chunk, c.n_vocab)
        self.losses = ops.empty(N)
        if keep:
            self.dx = ops.empty(N, C)
            self.dq, self.dk, self.dv = ops.empty(N, C), ops.empty(N, kv), ops.empty(N, kv)
            self.dq4 = heads(c.n_head, self.dq)
            self.dk4, self.dv4 = heads(c.n_kv_head, self.dk), heads(c.n_kv_head, self.dv)
            self.datt4 = heads(c.n_head, self.xn)  # xn is free while attention runs backward

    def chunks(self):
        """Slices of the rows; their number depends on the shape alone."""
        n = len(self.losses)
        return [slice(i, min(i + self.chunk, n)) for i in range(0, n, self.chunk)]


class Transformer:
    """`params` (flat, in the back end's dtype) is used as it is, not copied; by default seed 0.

    `grads` is the flat gradient of the last loss_and_grad; its padding stays zero.
    `views` maps our tensor names to views of params, `grad_views` to views of grads.
    """

    def __init__(self, config: ModelConfig, ops, params: np.ndarray | None = None):
        self.config, self.ops = config, ops
        if params is None:
            params = init_params(config, 0).astype(ops.dtype, copy=False)
        if params.shape != (layout_size(config),) or params.dtype != ops.dtype:
            raise ValueError(
                f"params is {params.dtype} {params.shape}, "
                f"expected {ops.dtype} ({layout_size(config)},)"
            )
        self.params = params
        self.grads = ops.empty(params.size)
        self.grads[...] = 0
        self._w, self._dw = _Views(config, self.params), _Views(config, self.grads)
        self.views, self.grad_views = self._w.by_name, self._dw.by_name
        pair = np.arange(0, config.head_dim, 2) / config.head_dim
        angles = np.outer(np.arange(config.n_ctx), config.rope_theta**-pair)
        self._cos, self._sin = np.cos(angles).astype(ops.dtype), np.sin(angles).astype(ops.dtype)
        self._buffers = {True: None, False: None}

    # ---- what others call ----

    def loss_and_grad(self, tokens, targets, scale: float = 1.0) -> float:
        """Mean loss in nats per token of (B, T) int32; targets < 0 are not counted.

        Overwrites `grads` with the gradient of scale * mean loss.
        """
        tokens, targets = self._check_pair(tokens, targets)
        b = self._get_buffers(tokens.shape, keep=True)
        n_used = max(1, int(np.count_nonzero(targets >= 0)))
        self._forward(b, tokens.reshape(-1))
        self._head_backward(b, targets.reshape(-1), scale / n_used)
        self._backward(b, tokens.reshape(-1))
        return math.fsum(b.losses) / n_used

    def loss(self, tokens, targets) -> tuple[float, int]:
        """(sum of nats, tokens counted), without gradients and with one layer's memory."""
        tokens, targets = self._check_pair(tokens, targets)
        b = self._get_buffers(tokens.shape, keep=False)
        self._forward(b, tokens.reshape(-1))
        flat = targets.reshape(-1)
        for rows in b.chunks():
            logits = self._chunk_logits(b, rows)
            self.ops.cross_entropy(b.losses[rows], logits, flat[rows])
        return math.fsum(b.losses), int(np.count_nonzero(flat >= 0))

    def logits(self, tokens) -> np.ndarray:
        """(B, T, V), a new array."""
        tokens = self._check(tokens)
        b = self._get_buffers(tokens.shape, keep=False)
        self._forward(b, tokens.reshape(-1))
        out = np.empty((tokens.size, self.config.n_vocab), self.ops.dtype)
        for rows in b.chunks():
            out[rows] = self._chunk_logits(b, rows)
        return out.reshape(*tokens.shape, -1)

    # ---- forward ----

    def _forward(self, b: _Buffers, tokens):
        """Leaves the normed output of the last layer in b.xn."""
        ops, w, eps = self.ops, self._w, self.config.norm_eps
        ops.embed(b.layers[0].x, w.tok_embd, tokens)
        outputs = [layer.x for layer in b.layers[1:]] + [b.x_last]
        for a, p, x_out in zip(b.layers, w.blocks, outputs, strict=True):
            ops.rmsnorm(b.xn, a.rstd_attn, a.x, p.attn_norm, eps)
            ops.gemm(a.q, b.xn, p.wq, trans_b=True)
            ops.gemm(a.k, b.xn, p.wk, trans_b=True)
            ops.gemm(a.v, b.xn, p.wv, trans_b=True)
            ops.rope(a.q4, self._cos, self._sin)
            ops.rope(a.k4, self._cos, self._sin)
            ops.attention(a.att4, a.lse, a.q4, a.k4, a.v4)
            ops.gemm(a.x_mid, a.att, p.wo, trans_b=True, add=a.x)

            ops.rmsnorm(b.xn, a.rstd_ffn, a.x_mid, p.ffn_norm, eps)
            ops.gemm(a.gate, b.xn, p.w_gate, trans_b=True)
            ops.gemm(a.up, b.xn, p.w_up, trans_b=True)
            ops.swiglu(b.h, a.gate, a.up)
            ops.gemm(x_out, b.h, p.w_down, trans_b=True, add=a.x_mid)
        ops.rmsnorm(b.xn, b.rstd_last, b.x_last, w.out_norm, eps)

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
            before = dw.output if rows.start else None
            ops.gemm(dw.output, dlogits, b.xn[rows], trans_a=True, add=before)
            ops.gemm(b.xn[rows], dlogits, w.output)  # xn becomes dxn
        b.dx[...] = 0
        ops.rmsnorm_backward(b.dx, dw.out_norm, b.xn, b.x_last, w.out_norm, b.rstd_last)

    def _backward(self, b: _Buffers, tokens):
        ops, w, dw, dx = self.ops, self._w, self._dw, b.dx
        for layer in reversed(range(self.config.n_layer)):
            a, p, dp = b.layers[layer], w.blocks[layer], dw.blocks[layer]
            # Feed-forward: dh becomes h, gate and up become their gradients, dxn becomes xn.
            ops.gemm(b.h, dx, p.w_down)
            ops.swiglu_backward(a.gate, a.up, b.h)
            ops.gemm(dp.w_down, dx, b.h, trans_a=True)
            ops.gemm(b.xn, a.gate, p.w_gate)
            ops.gemm(b.xn, a.up, p.w_up, add=b.xn)
            ops.rmsnorm_backward(dx, dp.ffn_norm, b.xn, a.x_mid, p.ffn_norm, a.rstd_ffn)
            ops.gemm(dp.w_gate, a.gate, b.xn, trans_a=True)
            ops.gemm(dp.w_up, a.up, b.xn, trans_a=True)

            # Attention. b.xn first brings datt, then dxn, which becomes xn.
            ops.gemm(b.xn, dx, p.wo)
            ops.gemm(dp.wo, dx, a.att, trans_a=True)
            ops.attention_backward(b.dq4, b.dk4, b.dv4, b.datt4, a.att4, a.q4, a.k4, a.v4, a.lse)
            ops.rope_backward(b.dq4, self._cos, self._sin)
            ops.rope_backward(b.dk4, self._cos, self._sin)
            ops.gemm(b.xn, b.dq, p.wq)
            ops.gemm(b.xn, b.dk, p.wk, add=b.xn)
            ops.gemm(b.xn, b.dv, p.wv, add=b.xn)
            ops.rmsnorm_backward(dx, dp.attn_norm, b.xn, a.x, p.attn_norm, a.rstd_attn)
            ops.gemm(dp.wq, b.dq, b.xn, trans_a=True)
            ops.gemm(dp.wk, b.dk, b.xn, trans_a=True)
            ops.gemm(dp.wv, b.dv, b.xn, trans_a=True)
        if not self.config.tied_output:
            dw.tok_embd[...] = 0
        ops.embed_backward(dw.tok_embd, dx, tokens)

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

    def _get_buffers(self, shape, keep: bool) -> _Buffers:
        if self._buffers[keep] is None or self._buffers[keep].shape != shape:
            self._buffers[keep] = None  # free before allocating the next
            self._buffers[keep] = _Buffers(self.config, self.ops, *shape, keep)
        return self._buffers[keep]
