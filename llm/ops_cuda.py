"""The trainer's operations on one NVIDIA GPU, through CuPy. Layer 2.

OpsCuda is OpsC with other arrays: the same checks, the same argument structs and the same row
kernels (csrc/train_kernels.cu), compiled by NVRTC and launched with one block per row. Products go
to cuBLAS through one function, `_multiply`; attention is batched products around a fused causal
softmax, or three kernels that keep the scores on the chip (csrc/train_flash.h). Weights, gradients,
moments and sums are float32; with precision "bf16" activations are kept in bfloat16, and weights
are rounded once a step. Tested without a GPU on tests/cuda_stand_in.py.
"""

from __future__ import annotations

import math
import re
from functools import cache
from pathlib import Path

import numpy as np

from llm._train import ffi, lib

from .config import ModelConfig, check_fused, layout_size
from .errors import LlmError
from .ops_c import _CHUNK, OpsC
from .ops_numpy import N_NEWTON_SCHULZ, NEWTON_SCHULZ

BLOCK = 256  # threads of a row; a multiple of 32, as ROW_REDUCE wants (port.h)
LENGTHS = {  # (its name, most threads): a row of logits is read again from the cache by few blocks
    "rmsnorm": ("n", BLOCK),
    "rmsnorm_backward": ("n", BLOCK),
    "cross_entropy": ("n_vocab", 1024),
}
SUMMED = 32  # rows that a thread adds up one after the other
MOST_BLOCKS = 1 << 20  # blocks stride over the rows beyond
ATTENTION_BYTES = 1 << 30  # of scores at a time, where a sequence's are not more
QUERIES = 256  # of a block of attention
PINNED_BYTES = 1 << 22
CUBLAS_BYTES = 32 << 20  # its pool from sm_90 on, as cublasSetWorkspace's page says; before, 4 MiB
HEADERS = ("numeric.h", "port.h", "port_tensor.h", "train.h", "train_flash.h")
FLASH_ROWS, FLASH_THREADS, FLASH_HEADS = 64, 128, (64, 128)  # csrc/train_flash.h
# No contraction: the arithmetic of a row is the CPU's; CuPy adds that subnormals are zero, as they
# are there (train_ops.h). Functions without a mark are the GPU's.
OPTIONS = ("-default-device", "--fmad=false")
ROUNDING = ("-DPORT_BF16",)  # activations are bfloat16


def kernel_source() -> str:
    """csrc/train_kernels.cu with its headers put in: one text, since NVRTC reads no files, and
    CuPy's cache of compiled kernels sees every change. In a package csrc lies inside llm."""
    here = Path(__file__).resolve().parent
    folder = next((f for f in (here / "csrc", here.parent / "csrc") if f.is_dir()), None)
    if folder is None:
        raise LlmError(f"{here}/csrc is missing: install the package anew")

    def text(name: str) -> str:
        lines = (folder / name).read_text(encoding="utf-8")
        include = rf'^#include "({"|".join(map(re.escape, HEADERS))})"$'
        return re.sub(include, lambda found: text(found[1]), lines, flags=re.M)

    return text("train_kernels.cu")


def activations(source: str) -> set[tuple[str, str]]:
    """(struct, field) of the pointers to activations, which are no floats in a rounding build."""
    return {
        (kind, name)
        for kind, body in re.findall(r"typedef struct (llm_\w+_args) {(.*?)^}", source, re.S | re.M)
        for names in re.findall(r"llm_act ([^;]*);", body)
        for name in re.findall(r"\*(\w+)", names)
    }


@cache
def libraries():
    """(cupy, cuBLAS), or LlmError in one line: no CuPy, no driver, no GPU."""
    try:
        import cupy
        from cupy_backends.cuda.libs import cublas
    except ImportError as error:
        reason = str(error).splitlines()[0]
        install = "pip install 'two-file-llm[cuda]'"
        raise LlmError(f"--device cuda needs CuPy and cuBLAS ({reason}): {install}") from error
    try:
        cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise LlmError(f"--device cuda: no GPU that CUDA can use ({error})") from error
    return cupy, cublas


class OpsCuda(OpsC):
    """Arrays are CuPy's, on the current device; bfloat16 ones are uint16. Everything is asked for
    on one stream and done in that order; only to_host and wait wait for it."""

    name = "cuda"
    n_threads = 1  # of the host
    shares_memory = False  # a rank has a GPU of its own
    embed_columns, embed_classes = BLOCK, 64
    norm_rows = 16  # so that a batch has rows for all processors of the GPU
    _fuses = False
    chunk_floats = 1 << 28  # half a gigabyte of logits as bfloat16: large products
    piece_rows = 1 << 20  # for the same reason whole batches

    def __init__(self, precision: str = "bf16", modules=None, attention: str = "batched"):
        """modules: (cupy, cuBLAS), or what stands for them; by default libraries(). attention:
        "batched" products, or "fused", whose scores never leave the chip."""
        self.precision = precision
        self._rounds = {"fp32": False, "bf16": True}[precision]
        self.act_bytes = 2 if self._rounds else 4
        self._score_bytes = 12 if self._rounds else 8  # scores and their gradient, both forms
        self._cupy, self._cublas = modules or libraries()
        self._pool = self._cupy.cuda.MemoryPool()
        self._cupy.cuda.set_allocator(self._pool.malloc)
        source, options = kernel_source(), OPTIONS + ROUNDING * self._rounds
        self._module = self._cupy.RawModule(code=source, options=options)
        self._activations = activations(source) if self._rounds else set()
        self._launches = {}
        self._handle = self._cupy.cuda.get_cublas_handle()
        self._types = {
            np.dtype(np.float32): self._cupy.cuda.runtime.CUDA_R_32F,
            np.dtype(np.uint16): self._cupy.cuda.runtime.CUDA_R_16BF,
        }
        self._pinned = Pinned(self._cupy)
        self._weights = self._weights_16 = None  # and the same rounded, unless it is stale
        self._is_stale = True
        self._structs = {}
        major_minor = self._cupy.cuda.Device().compute_capability
        self.kernels = f"cuda sm_{major_minor}"
        self._fuses = {"batched": False, "fused": True}[attention]
        if self._fuses:
            self.kernels += " fused"
            if not self._rounds or int(major_minor) < 80:
                raise ValueError(
                    "--attention fused takes bf16 and a GPU of sm_80 or later, this is "
                    f"{precision} and sm_{major_minor}: leave it out"
                )
        self._calls = self.calls()

    # ---- memory: one arena, cut by CuPy's pool ----

    def memory(self) -> tuple[int, str]:
        """Bytes that arrays can still take, and whose they are."""
        free = self._cupy.cuda.runtime.memGetInfo()[0] + self._pool.free_bytes()
        return free - CUBLAS_BYTES, f"the GPU has {free / 1e9:.1f} GB free"

    def workspace_bytes(self, config: ModelConfig, n_rows: int, n_held_rows: int) -> int:
        """Scores and the heads apart, and the weights as bfloat16."""
        c = config

        def attention(n_rows: int, scores: int, heads: int) -> int:
            part = self._parts(n_rows // c.n_ctx, c.n_head, c.n_ctx)[0]
            of_one = min(c.n_ctx, QUERIES) * scores + c.head_dim * heads
            return (part.stop - part.start) * c.n_head * c.n_ctx * of_one

        n, act = self._score_bytes, self.act_bytes
        backward = attention(n_rows, n, 4 * act + 3 * 4)  # q, k, v, do; dq, dk, dv
        forward = attention(n_held_rows, n // 2, 3 * act + 4)  # q, k, v; o
        most = 4 * n_rows * c.n_head if self._fuses else max(backward, forward)
        return most + (2 * layout_size(c) if self._rounds else 0)

    def reserve(self, n_bytes: int) -> None:
        """Takes so much from the GPU at once: the pool cuts later arrays out of it."""
        if n_bytes > self._pool.total_bytes():
            self._pool.free_all_blocks()
            self._pool.malloc(n_bytes - self._pool.total_bytes())

    def empty(self, *shape: int):
        return self._cupy.empty(shape, self.dtype)

    def empty_act(self, *shape: int):
        return (self._empty_16 if self._rounds else self.empty)(*shape)

    def _empty_16(self, *shape: int):
        return self._cupy.empty(shape, np.uint16)

    def from_host(self, array: np.ndarray):
        out = self._cupy.empty(array.shape, array.dtype)
        self.write(out, array)
        return out

    def write(self, x, values: np.ndarray):
        if x.shape != values.shape:
            raise ValueError(f"an array of shape {x.shape} cannot take one of {values.shape}")
        self._pinned.copy(x, np.ascontiguousarray(values, x.dtype))
        self.changed(x)

    def to_host(self, array) -> np.ndarray:
        values = array.get()
        if values.dtype == np.uint16:  # activations
            values = (values.astype(np.uint32) << 16).view(np.float32)
        return values

    def zero(self, x):
        _contiguous("x", x).data.memset_async(0, x.nbytes)

    def _copy(self, x, source):
        _contiguous("x", x).data.copy_from_device_async(_contiguous("y", source).data, x.nbytes)

    def wait(self) -> None:
        self._cupy.cuda.get_current_stream().synchronize()

    # ---- launching the rows of csrc/train_kernels.cu ----

    def _args(self, kind: str, values: dict) -> np.ndarray:
        """The struct's bytes, as an array of one element: CuPy passes that by value."""
        out = super()._args(kind, values)[0]
        return np.frombuffer(bytes(ffi.buffer(out)), np.dtype((np.void, ffi.sizeof(kind))))

    def _dtype(self, kind: str, name: str, declared: np.dtype) -> np.dtype:
        return np.dtype(np.uint16) if (kind, name) in self._activations else declared

    def _pointer(self, name: str, kind: str, array):
        return ffi.cast("void *", _contiguous(name, array).data.ptr)

    def _rows(self, name: str, n_rows: int, **values) -> None:
        length, most = LENGTHS.get(name, (None, BLOCK))
        n_threads = min(most, -(-values[length] // 32) * 32) if length else most
        self._launch(name, n_rows, n_threads, self._args(f"llm_{name}_args", values))
        self._is_stale |= name in ("adamw", "muon_update")

    def _launch(self, name: str, n_blocks: int, n_threads: int, args: np.ndarray) -> None:
        if name not in self._launches:
            self._launches[name] = self._module.get_function(f"{name}_kernel")
        grid = (min(n_blocks, MOST_BLOCKS),)
        self._launches[name](grid, (n_threads,), (args, np.int64(n_blocks)))

    def calls(self) -> dict:
        """What runs in the place of each function of C."""
        return {
            lib.llm_ops_gemm: self._gemm,
            lib.llm_ops_attention: self._attention_forward,
            lib.llm_ops_attention_backward: self._attention_backward,
            lib.llm_ops_muon: self._muon,
        }

    def _call(self, function, kind: str, **values) -> None:
        self._calls[function](**values)

    # ---- products ----

    def _multiply(self, c, a, b, trans_a=False, trans_b=False, alpha=1.0, beta=0.0):
        """c = alpha op(a) op(b) + beta c for c (M, N), or (batch, M, N) for batches, summed in
        float32; a and b are both float32 or both bfloat16, in which case c may be either. Rows are
        contiguous; what lies between rows, or matrices, is skipped."""
        # cuBLAS counts columns first: to it each of ours is transposed, and c^T = op(b)^T op(a)^T.
        m, n = c.shape[-2:]
        k = a.shape[-2] if trans_a else a.shape[-1]
        transposed = {False: self._cublas.CUBLAS_OP_N, True: self._cublas.CUBLAS_OP_T}

        def matrix(x):
            step, *apart = (n // x.dtype.itemsize for n in reversed(x.strides[:-1]))
            return [x.data.ptr, self._types[x.dtype], step, *apart]

        alpha, beta = (np.array([x], np.float32) for x in (alpha, beta))  # read during the call
        arguments = (
            *(self._handle, transposed[bool(trans_b)], transposed[bool(trans_a)], n, m, k),
            *(alpha.ctypes.data, *matrix(b), *matrix(a), beta.ctypes.data, *matrix(c)),
        )
        how = self._cublas.CUBLAS_COMPUTE_32F, self._cublas.CUBLAS_GEMM_DEFAULT
        if c.ndim == 2:
            self._cublas.gemmEx(*arguments, *how)
        else:
            self._cublas.gemmStridedBatchedEx(*arguments, len(c), *how)

    def _rounded(self, x):
        """x as products read it."""
        if not self._rounds or x.dtype == np.uint16:
            return x
        start = self._place(x)
        if start is None:
            out = self._empty_16(*x.shape)
            self._round(out, x)
            return out
        if self._is_stale:
            self._round(self._weights_16, self._weights)
            self._is_stale = False
        return self._weights_16[start : start + x.size].reshape(x.shape)

    def changed(self, x) -> None:
        """For who writes to arrays past these operations: other ranks' weights."""
        self._is_stale |= self._place(x) is not None

    def _place(self, x) -> int | None:
        """Where x begins in the weights, if it is theirs."""
        if self._weights is None:
            return None
        start = (x.data.ptr - self._weights.data.ptr) // self.dtype.itemsize
        return start if 0 <= start < self._weights.size else None

    def _round(self, out, x):
        self._rows("round", -(-x.size // _CHUNK), out_16=out, x=x, n=x.size)

    def keep_rounded(self, weights):
        if self._rounds:
            self._weights, self._weights_16 = weights, self._empty_16(weights.size)
            self._is_stale = True

    def sum_rows(self, total, x):
        n_parts, n = x.shape
        n_groups = -(-n_parts // SUMMED)
        out = total if n_groups == 1 else self.empty(n_groups, n)
        parts, act_parts = (None, x) if x.dtype == np.uint16 else (x, None)
        sizes = {"n_parts": n_parts, "n": n, "n_columns": BLOCK, "n_group": SUMMED}
        n_rows = n_groups * -(-n // BLOCK)
        self._rows("sum_rows", n_rows, sum=out, parts=parts, act_parts=act_parts, **sizes)
        if n_groups > 1:
            self.sum_rows(total, out)

    def square_sums(self, x, pieces):
        """The host waits for the GPU once."""
        counts = [-(-(piece.stop - piece.start) // _CHUNK) for piece in pieces]
        ends = np.cumsum(counts).tolist()
        parts = self.empty(ends[-1] if ends else 0)
        for piece, n_rows, end in zip(pieces, counts, ends, strict=True):
            n = piece.stop - piece.start
            self._rows("sum_squares", n_rows, parts=parts[end - n_rows : end], x=x[piece], n=n)
        found = self.to_host(parts)
        return [math.fsum(found[end - n : end]) for n, end in zip(counts, ends, strict=True)]

    def _gemm(self, m, n, c, a, b, add, a_trans, b_trans, **_):
        for name, array in (("a", a), ("b", b), ("c", c)):
            _contiguous(name, array)
        if add is not None and add.ndim == 1:
            self._rows("repeat", m, out=c, x=add, n=n)
        elif add is not None and add.data.ptr != c.data.ptr:
            self._copy(c, add)
        beta = 0.0 if add is None else 1.0
        self._multiply(c, self._rounded(a), self._rounded(b), a_trans, b_trans, beta=beta)

    # ---- attention ----

    def _parts(self, n_batch: int, n_head: int, n_time: int) -> list[slice]:
        """Of a batch: the scores of each fit in ATTENTION_BYTES, if those of one sequence do."""
        of_one = n_head * min(n_time, QUERIES) * n_time * self._score_bytes
        n = max(1, ATTENTION_BYTES // of_one)
        return [slice(i, min(i + n, n_batch)) for i in range(0, n_batch, n)]

    def _split(self, x, n_head: int):
        """(B, T, K, D) to (B * n_head, T, D)."""
        B, T, K, D = x.shape
        out = self.empty_act(B * n_head, T, D)
        sizes = {"n_time": T, "n_head": n_head, "n_kv_head": K, "head_dim": D}
        self._rows("split_heads", B * T, out=out, x=x, **sizes)
        return out

    def _join(self, out, x):
        """(B * n_head, T, D) to out (B, T, K, D)."""
        B, T, K, D = out.shape
        sizes = {"n_time": T, "n_head": len(x) // B, "n_kv_head": K, "head_dim": D}
        self._rows("join_heads", B * T, out=out, x=x, **sizes)

    def _scores(self, q, k, queries: slice):
        """q k^T of some queries with all positions up to the last of them, and where a kernel puts
        what becomes of it when it rounds."""
        scores = self.empty(len(q), queries.stop - queries.start, queries.stop)
        self._multiply(scores, q[:, queries], k[:, : queries.stop], trans_b=True)
        return scores, self._empty_16(*scores.shape) if self._rounds else None

    def _softmax(self, name: str, q, queries: slice, starts, **values):
        _, T, H, D = q.shape
        n_queries = queries.stop - queries.start
        self._rows(
            name, len(values["scores"]) * n_queries,
            starts=starts, n_head=H, n_time=T, head_dim=D, scale=D**-0.5,
            first_query=queries.start, n_queries=n_queries, **values,
        )  # fmt: skip

    def _flash(self, name: str, n_head: int, q, k, **values) -> None:
        B, T, H, D = q.shape
        check_fused(D)
        width = next(width for width in FLASH_HEADS if D <= width)
        none = dict.fromkeys(("d_o", "dq", "dk", "dv", "delta"))
        sizes = {"n_time": T, "n_head": H, "n_kv_head": k.shape[2], "head_dim": D}
        values = none | sizes | values | {"q": q, "k": k, "scale": D**-0.5}
        n_blocks = B * n_head * -(-T // FLASH_ROWS)
        args = self._args("llm_flash_args", values)
        self._launch(f"flash_{name}_{width}", n_blocks, FLASH_THREADS, args)

    def _flash_backward(self, q, k, **values) -> None:
        values |= {"q": q, "k": k, "delta": self.empty(*values["lse"].shape)}
        self._flash("backward_q", q.shape[2], **values)  # leaves delta for the others
        is_wide = q.shape[3] > FLASH_HEADS[0]
        for name in ("backward_k", "backward_v") if is_wide else ("backward_kv",):
            self._flash(name, k.shape[2], **values)

    def _attention_forward(self, q, k, v, o, lse, starts, **_):
        if self._fuses:
            self._flash("forward", q.shape[2], q, k, v=v, o=o, lse=lse, starts=starts)
            return
        B, T, H, _ = q.shape
        for part in self._parts(B, H, T):
            q_part, k_part, v_part = (self._split(x[part], H) for x in (q, k, v))
            own_starts = None if starts is None else starts[part]
            out = self.empty(*q_part.shape)
            for queries in _blocks(T):
                p, p_16 = self._scores(q_part, k_part, queries)
                values = {"scores": p, "scores_16": p_16, "lse": lse[part]}
                self._softmax("causal_softmax", q, queries, own_starts, **values)
                p = p_16 if self._rounds else p
                self._multiply(out[:, queries], p, v_part[:, : queries.stop])
                del values, p, p_16  # or the next block's stand beside them
            self._join(o[part], out)

    def _attention_backward(self, q, k, v, o, lse, starts, d_o, dq, dk, dv, **_):
        if self._fuses:
            rest = {"v": v, "o": o, "lse": lse, "starts": starts}
            self._flash_backward(q, k, d_o=d_o, dq=dq, dk=dk, dv=dv, **rest)
            return
        B, T, H, _ = q.shape
        for part in self._parts(B, H, T):
            q_part, k_part, v_part, do_part = (self._split(x[part], H) for x in (q, k, v, d_o))
            own_starts = None if starts is None else starts[part]
            dq_part, dk_part, dv_part = (self.empty(*q_part.shape) for _ in range(3))
            for queries in reversed(_blocks(T)):  # the last sees all keys: it writes, others add
                p, p_16 = self._scores(q_part, k_part, queries)
                ds, ds_16 = self._scores(do_part, v_part, queries)
                values = {"scores": p, "scores_16": p_16, "dp": ds, "dp_16": ds_16}
                values |= {"lse": lse[part], "d_o": d_o[part], "o": o[part]}
                self._softmax("causal_softmax_backward", q, queries, own_starts, **values)
                if self._rounds:
                    p, ds = p_16, ds_16
                seen, beta = slice(0, queries.stop), 0.0 if queries.stop == T else 1.0
                turned = {"trans_a": True, "beta": beta}
                self._multiply(dv_part[:, seen], p, do_part[:, queries], **turned)
                self._multiply(dk_part[:, seen], ds, q_part[:, queries], **turned)
                self._multiply(dq_part[:, queries], ds, k_part[:, seen])
                del values, p, p_16, ds, ds_16
            for gradient, x in ((dq, dq_part), (dk, dk_part), (dv, dv_part)):
                self._join(gradient[part], x)

    # ---- Muon ----

    def _muon(self, p, g, m, matrices, rate, momentum, grad_scale, **_):
        for offset, rows, columns, offset_m in matrices.tolist():
            n = rows * columns
            p_part, g_part = (flat[offset : offset + n] for flat in (p, g))
            m_part = m[offset_m : offset_m + n]
            x, squares = self.empty(rows, columns), self.empty(-(-n // _CHUNK))
            self._rows(
                "muon_momentum", len(squares),
                m=m_part, x=x, squares=squares, g=g_part, n=n,
                momentum=momentum, grad_scale=grad_scale,
            )  # fmt: skip
            norm = math.sqrt(math.fsum(self.to_host(squares))) + 1e-7
            self.combine(x, 1 / norm, x, 0.0, x)
            x = self._orthogonalize(x)
            self._rows(
                "muon_update", len(squares),
                p=p_part, x=x, n=n, rate=rate * math.sqrt(max(1.0, rows / columns)),
            )  # fmt: skip

    def _orthogonalize(self, x):
        """As in OpsNumpy, with its constants folded into the products."""
        a, b, c = NEWTON_SCHULZ
        tall, side = x.shape[0] > x.shape[1], min(x.shape)
        gram, square, other = self.empty(side, side), self.empty(side, side), self.empty(*x.shape)
        for _ in range(N_NEWTON_SCHULZ):
            x_16 = self._rounded(x)
            self._multiply(gram, x_16, x_16, trans_a=tall, trans_b=not tall)
            gram_16 = self._rounded(gram)
            self._copy(square, gram)
            self._multiply(square, gram_16, gram_16, alpha=c, beta=b)
            square_16 = self._rounded(square)
            pair = (x_16, square_16) if tall else (square_16, x_16)
            self._copy(other, x)
            self._multiply(other, *pair, beta=a)
            x, other = other, x
        return x


class Pinned:
    """Two page-locked buffers used in turn: one is filled while the other's copy is under way."""

    def __init__(self, cupy):
        self._buffers = [cupy.cuda.alloc_pinned_memory(PINNED_BYTES) for _ in range(2)]
        self._copied = [cupy.cuda.Event(disable_timing=True) for _ in range(2)]
        self._next = 0

    def copy(self, x, values: np.ndarray) -> None:
        """To x on the GPU, in the order of its stream; values may change at once."""
        source = values.reshape(-1).view(np.uint8)
        for at in range(0, source.size, PINNED_BYTES):
            piece = source[at : at + PINNED_BYTES]
            buffer, copied = self._buffers[self._next], self._copied[self._next]
            self._next = 1 - self._next
            copied.synchronize()
            np.frombuffer(buffer, np.uint8, piece.size)[...] = piece
            (x.data + at).copy_from_host_async(buffer.ptr, piece.size)
            copied.record()


def _blocks(n_time: int) -> list[slice]:
    """Of queries: a block needs no position behind its last query, so that of the masked half of
    the scores only a little is computed."""
    return [slice(i, min(i + QUERIES, n_time)) for i in range(0, n_time, QUERIES)]


def _contiguous(name: str, array):
    if not array.flags.c_contiguous:
        raise ValueError(f"{name} is not contiguous")
    return array
