"""The trainer's operations in NumPy: the specification. Layer 2.

Each back end (`ops_c`, later `ops_cuda`) has the same methods and is tested against this one; each
backward here is tested against central differences in float64. Conventions:

- Outputs come first and are allocated by the caller with `empty`; nothing is returned but scalars.
- Arrays are C-contiguous in the back end's dtype, tokens and targets int32. A backward takes the
  gradient of its output under the output's name with a `d` in front.
- A cheap forward is not kept for the backward: `rmsnorm_backward` and `swiglu_backward` leave the
  recomputed output in the array that brought its gradient: the next weight product needs it.
- Shapes: N rows (tokens), C = n_embd, V vocabulary, B batch, T time, H heads, K key/value heads,
  D head_dim.

Sources: Zhang and Sennrich 2019 (RMSNorm), Su et al. 2021 (RoPE), Shazeer 2020 (SwiGLU), Dao et al.
2022 (attention backward from the log-sum-exp), Loshchilov and Hutter 2019 (AdamW), Jordan et al.
2024 (Muon).
"""

from __future__ import annotations

import math
import os

import numpy as np

from .config import ModelConfig

# Muon: the quintic whose steps bring singular values from (0, 1] to about (0.7, 1.2).
NEWTON_SCHULZ, N_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315), 5


def round_bf16(x: np.ndarray) -> np.ndarray:
    """To the nearest bfloat16, ties to even, in x's dtype by way of float32."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    bits = bits + 0x7FFF + (bits >> 16 & 1) & np.uint32(0xFFFF0000)
    return bits.view(np.float32).astype(x.dtype)


class HostArrays:
    """Of back ends whose arrays are NumPy's: what goes to the host and back stays where it is."""

    chunk_floats = 1 << 21  # of logits in flight: a chunk that stays in a shared cache, but
    chunk_rows = 512  # at least: each chunk packs the output matrix three times
    piece_rows = 2048  # of a gradient's batch at a time: enough for products to run at full speed

    shares_memory = True  # with other ranks of the machine
    act_bytes = 4  # of an element of empty_act

    def empty_act(self, *shape: int):
        """For activations, which some back ends keep in fewer bits."""
        return self.empty(*shape)

    def from_host(self, array: np.ndarray):
        """The back end's array of the same type and values."""
        return array

    def to_host(self, array) -> np.ndarray:
        """A NumPy array, to be read only."""
        return array

    def memory(self) -> tuple[int, str]:
        """Bytes that arrays can take, and how to say so."""
        n_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return n_bytes, f"this machine has {n_bytes / 1e9:.1f} GB"

    def workspace_bytes(self, config: ModelConfig, n_rows: int, n_held_rows: int) -> int:
        """What a gradient of n_rows tokens, or a validation of n_held_rows, takes beside its
        arrays, where that is much."""
        return 0

    def reserve(self, n_bytes: int) -> None:
        """Arrays of so many bytes are going to be asked for."""

    def keep_rounded(self, weights) -> None:
        """Products may keep a rounded copy of a flat array till adamw, muon or write changes it."""

    def square_sums(self, x, pieces: list[slice]) -> list[float]:
        """sum_squares of each piece of a flat array."""
        return [self.sum_squares(x[piece]) for piece in pieces]

    def wait(self) -> None:
        """Returns when all that was asked for is done."""

    def zero(self, x):
        x[...] = 0

    def write(self, x, values: np.ndarray):
        """x = values, a NumPy array of the same shape."""
        x[...] = values


class OpsNumpy(HostArrays):
    """float64 for gradient checks, float32 to compare with the fast back ends.

    precision "bf16": the operands of every product are rounded to bfloat16, its sum is not.
    """

    name = "numpy"

    def __init__(self, dtype=np.float64, precision: str = "fp32"):
        self.dtype, self.precision = np.dtype(dtype), precision
        self._round = {"fp32": lambda x: x, "bf16": round_bf16}[precision]

    def empty(self, *shape: int) -> np.ndarray:
        return np.empty(shape, self.dtype)

    def combine(self, out, a: float, x, b: float, y):
        """out = a x + b y, any shape; x or y may be out."""
        out[...] = out.dtype.type(a) * x + out.dtype.type(b) * y

    # ---- matrix product ----

    def gemm(self, c, a, b, trans_a=False, trans_b=False, add=None):
        """c = op(a) op(b), plus `add`: (M, N), which may be c, or (N), a bias for every row. c
        (M, N), op(a) (M, K), op(b) (K, N).

        Gradients are products too: for y = x w^T, dx = dy w and dw = dy^T x.
        """
        a, b = self._round(a), self._round(b)
        product = (a.T if trans_a else a) @ (b.T if trans_b else b)
        np.add(product, 0 if add is None else add, out=c)

    def sum_rows(self, total, x):
        """total (N) = sum over the rows of x (M, N): the gradient of a bias."""
        np.sum(x, axis=0, out=total)

    # ---- token embedding ----

    def embed(self, x, table, tokens):
        """x (N, C) = rows of table (V, C)."""
        x[...] = table[tokens]

    def embed_backward(self, dtable, dx, tokens):
        """dtable[token] += dx, tokens in rising order. dtable holds a gradient already."""
        np.add.at(dtable, tokens, dx)

    # ---- RMSNorm ----

    def rmsnorm(self, y, rstd, x, w, eps):
        """y = x * rstd * w with rstd (N) = 1 / sqrt(mean(x^2) + eps); x, y (N, C), w (C)."""
        rstd[...] = 1 / np.sqrt(np.mean(x * x, axis=1) + x.dtype.type(eps))
        y[...] = x * rstd[:, None] * w

    def rmsnorm_backward(self, dx, dw, dy, x, w, rstd):
        """dx += rstd * (g - xhat * mean(g * xhat)), g = dy * w, xhat = x * rstd;
        dw = sum over rows of dy * xhat; dy then holds y."""
        xhat = x * rstd[:, None]
        g = dy * w
        dw[...] = np.sum(dy * xhat, axis=0)
        dx += rstd[:, None] * (g - xhat * np.mean(g * xhat, axis=1, keepdims=True))
        dy[...] = xhat * w

    # ---- RoPE ----

    def rope(self, x, cos, sin, halves=False, starts=None):
        """Turns the pairs of x (B, T, H, D) in place by the angle of (position, i): adjacent ones,
        (2i, 2i+1), or, with halves, (i, i + D / 2). cos, sin (at least T, D / 2). A row's position
        is its t, or counts from its document's first, starts (B, T) int32."""
        B, T, _, D = x.shape
        position = np.arange(T) - (0 if starts is None else starts)  # (T) or (B, T)
        c, s = (np.broadcast_to(a[position][..., None, :], (B, T, 1, D // 2)) for a in (cos, sin))
        first, second = slice(0, D, 2), slice(1, D, 2)
        if halves:
            first, second = slice(0, D // 2), slice(D // 2, D)
        a, b = x[..., first].copy(), x[..., second].copy()
        x[..., first] = a * c - b * s
        x[..., second] = a * s + b * c

    def rope_backward(self, dx, cos, sin, halves=False, starts=None):
        """A rotation's transpose: the same by minus the angle, in place."""
        self.rope(dx, cos, -sin, halves, starts)

    # ---- causal attention ----

    def attention(self, o, lse, q, k, v, starts=None):
        """o = softmax(q k^T / sqrt(D)) v over positions up to the query's own; where starts (B, T)
        int32 is given, from the first of its document on: 0 <= starts[b, t] <= t, rising with t.

        q, o (B, T, H, D), k, v (B, T, K, D), K divides H; lse (B, H, T) = log of the sum of exp.
        """
        for batch, head, kv_head, scores in self._scores(q, k, starts):
            top = scores.max(axis=1)
            p = np.exp(scores - top[:, None])
            total = p.sum(axis=1)
            lse[batch, head] = top + np.log(total)
            o[batch, :, head] = self._round(p) @ self._round(v[batch, :, kv_head])
            o[batch, :, head] /= total[:, None]

    def attention_backward(self, dq, dk, dv, do, o, q, k, v, lse, starts=None):
        """p = exp(s - lse); ds = p * (do v^T - rowsum(do * o)) / sqrt(D);
        dq = ds k, dk = ds^T q, dv = p^T do, the last two summed over a group's heads."""
        dk[...] = 0
        dv[...] = 0
        scale = 1 / math.sqrt(q.shape[3])
        for batch, head, kv_head, scores in self._scores(q, k, starts):
            do_h = do[batch, :, head]
            q_h, k_h, v_h, do_r = map(
                self._round, (q[batch, :, head], k[batch, :, kv_head], v[batch, :, kv_head], do_h)
            )
            p = np.exp(scores - lse[batch, head][:, None])
            delta = np.sum(do_h * o[batch, :, head], axis=1)
            ds = self._round(p * (do_r @ v_h.T - delta[:, None]) * scale)
            dq[batch, :, head] = ds @ k_h
            dk[batch, :, kv_head] += ds.T @ q_h
            dv[batch, :, kv_head] += self._round(p).T @ do_r

    def _scores(self, q, k, starts):
        """(batch, head, its key/value head, masked scores (T, T)) of every head."""
        B, T, H, D = q.shape
        group = H // k.shape[2]
        future = np.triu(np.ones((T, T), bool), 1)
        for batch in range(B):
            hidden = future
            if starts is not None:
                hidden = future | (np.arange(T) < starts[batch][:, None])
            for head in range(H):
                q_h, k_h = self._round(q[batch, :, head]), self._round(k[batch, :, head // group])
                scores = q_h @ k_h.T / math.sqrt(D)
                scores[hidden] = -np.inf
                yield batch, head, head // group, scores

    # ---- SwiGLU ----

    def swiglu(self, h, gate, up):
        """h = gate * sigmoid(gate) * up, any shape."""
        h[...] = gate / (1 + np.exp(-gate)) * up

    def swiglu_backward(self, gate, up, dh):
        """With s = sigmoid(gate): gate becomes dgate = dh * up * s * (1 + gate * (1 - s)),
        up becomes dup = dh * gate * s, dh becomes h."""
        s = 1 / (1 + np.exp(-gate))
        dgate = dh * up * s * (1 + gate * (1 - s))
        dup = dh * gate * s
        dh[...] = gate * s * up
        gate[...] = dgate
        up[...] = dup

    # ---- softmax cross-entropy ----

    def cross_entropy(self, losses, logits, targets, scale=None):
        """losses (N) = -log softmax(logits)[target] in nats, 0 where the target is negative.

        With a scale, logits (N, V) become the gradient of scale * sum(losses):
        scale * (softmax - onehot), zero in ignored rows. Otherwise they are used up.
        """
        used = np.flatnonzero(targets >= 0)
        logits -= logits.max(axis=1, keepdims=True)
        losses[...] = 0
        losses[used] = -logits[used, targets[used]]
        np.exp(logits, out=logits)
        total = logits.sum(axis=1, keepdims=True)
        losses[used] += np.log(total[used, 0])
        if scale is not None:
            logits /= total
            logits[used, targets[used]] -= 1
            logits *= np.where(targets >= 0, scale, 0)[:, None].astype(self.dtype)

    # ---- optimizer ----

    def sum_squares(self, x) -> float:
        """Sum of x^2 of a flat array, accumulated in at least float64 between chunks."""
        return float(np.sum(np.square(x, dtype=np.float64)))

    def adamw(self, p, g, m, v, decay, lr, beta1, beta2, eps, weight_decay, step, grad_scale):
        """One step (counted from 1) on flat buffers; decay (uint8) is 1 where weight decay acts.

        g *= grad_scale (not stored); m, v are the moving means of g and g^2, corrected by
        1 - beta^step; p -= lr * (mhat / (sqrt(vhat) + eps) + weight_decay * decay * p).
        """
        g = g * self.dtype.type(grad_scale)
        m[...] = beta1 * m + (1 - beta1) * g
        v[...] = beta2 * v + (1 - beta2) * g * g
        mhat = m / (1 - beta1**step)
        vhat = v / (1 - beta2**step)
        p -= lr * mhat / (np.sqrt(vhat) + eps) + lr * weight_decay * decay * p

    def muon(self, p, g, m, matrices, lr, momentum, grad_scale):
        """One step for matrices within flat buffers: rows (offset, n_rows, n_columns, offset in m)
        of an int64 array; nothing else is touched, and no matrix depends on another.

        g *= grad_scale (not stored); m = momentum * m + g; x = momentum * m + g (Nesterov: the
        momentum as it will be); p -= lr * sqrt(max(1, n_rows / n_columns)) * orthogonalized x.
        """
        for offset, rows, columns, offset_m in matrices:
            part = slice(offset, offset + rows * columns)
            m_part = m[offset_m : offset_m + rows * columns]
            g_part = g[part] * self.dtype.type(grad_scale)
            m_part[...] = momentum * m_part + g_part
            x = momentum * m_part + g_part
            x = self._orthogonalize(x.reshape(rows, columns))
            p[part] -= lr * math.sqrt(max(1.0, rows / columns)) * x.reshape(-1)

    def _orthogonalize(self, x):
        """U V^T, nearly, of x = U S V^T: x = a x + (b gram + c gram gram) x with gram = x x^T, on
        the shorter side. The operands of the products are rounded where self.precision says so."""
        a, b, c = NEWTON_SCHULZ
        round_, tall = self._round, x.shape[0] > x.shape[1]
        x = (x.T if tall else x) / (np.linalg.norm(x) + 1e-7)
        for _ in range(N_NEWTON_SCHULZ):
            gram = round_(x) @ round_(x).T
            square = b * gram + c * (round_(gram) @ round_(gram))
            x = a * x + round_(square) @ round_(x)
        return x.T if tall else x
