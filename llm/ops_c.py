"""The trainer's operations in C, float32, on a pool of threads. Layer 2.

`ops_numpy` describes every method. The same inputs and kernel set give the same bits whatever the
number of threads. C trusts its arguments, so types, shapes and contiguity are checked here.
"""

from __future__ import annotations

import math

import numpy as np

from llm._train import ffi, lib

from .ops_numpy import N_NEWTON_SCHULZ, NEWTON_SCHULZ, HostArrays

_CHUNK, _COLUMNS = 4096, 16  # of a row of a kernel: csrc/train.h
_DTYPES = {
    "float": np.float32,
    "int32_t": np.int32,
    "int64_t": np.int64,
    "uint16_t": np.uint16,
    "uint8_t": np.uint8,
}


def _fields(kind: str) -> dict:
    """Name -> (ctype of an array, dtype), or None for a plain number, of an args struct."""
    out = {}
    for name, field in ffi.typeof(kind).fields:
        if field.type.kind != "pointer":
            out[name] = None
            continue
        item = field.type.item.cname
        out[name] = (f"{item}[]", np.dtype(_DTYPES[item]))
    return out


def _raise(err) -> None:
    message = ffi.string(err.message).decode("utf-8", "replace")
    if err.status == lib.LLM_ERR_IO:
        raise OSError(err.sys_errno, message)
    raise {lib.LLM_ERR_ARG: ValueError, lib.LLM_ERR_NOMEM: MemoryError}[err.status](message)


def _expect(name: str, array, *shape: int) -> None:
    if array.shape != shape:
        raise ValueError(f"{name} has shape {array.shape}, expected {shape}")


def best_precision() -> str:
    """ "bf16" where this machine has its products, else "fp32"."""
    return "bf16" if lib.llm_ops_can_round() else "fp32"


class OpsC(HostArrays):
    """n_threads None: every core this process may use. kernels None: the best set there is.
    precision "bf16": products round their operands, sums stay float32."""

    name = "c"
    dtype = np.dtype(np.float32)
    embed_columns, embed_classes = _COLUMNS, 1  # of a row of embed_backward
    norm_rows = 64  # of a row of rmsnorm_backward

    def __init__(
        self, n_threads: int | None = None, kernels: str | None = None, precision: str = "fp32"
    ):
        self.n_threads = lib.llm_ops_threads_available() if n_threads is None else n_threads
        out, self._err = ffi.new("llm_ops **"), ffi.new("llm_error *")
        kernel_set = ffi.NULL if kernels is None else kernels.encode()
        self.precision = precision
        rounds = {"fp32": False, "bf16": True}[precision]
        if lib.llm_ops_new(out, self.n_threads, kernel_set, rounds, self._err):
            _raise(self._err)
        self._ops = ffi.gc(out[0], lib.llm_ops_free)
        self.kernels = ffi.string(lib.llm_ops_kernels(self._ops)).decode()
        self._structs = {}

    def empty(self, *shape: int) -> np.ndarray:
        """Starts on a cache line, so that no vector straddles two."""
        n = math.prod(shape)
        raw = np.empty(n + 16, np.float32)
        skip = -raw.ctypes.data % 64 // 4
        return raw[skip : skip + n].reshape(shape)

    # ---- calling C ----

    def _args(self, kind: str, values: dict):
        """The args struct and what must outlive the call."""
        if kind not in self._structs:
            self._structs[kind] = _fields(kind)
        out, keep = ffi.new(f"{kind} *"), []
        for name, pointer in self._structs[kind].items():
            value = values[name]
            if pointer is not None and value is not None:
                expected = self._dtype(kind, name, pointer[1])
                if value.dtype != expected:
                    raise ValueError(f"{name} is {value.dtype}, expected {expected}")
                value = self._pointer(name, pointer[0], value)
                keep.append(value)
            if value is not None:
                setattr(out, name, value)
        return out, keep

    def _dtype(self, kind: str, name: str, declared: np.dtype) -> np.dtype:
        return declared

    def _pointer(self, name: str, kind: str, array):
        return ffi.from_buffer(kind, array)  # refuses what is not contiguous

    def _rows(self, name: str, n_rows: int, **values) -> None:
        args, keep = self._args(f"llm_{name}_args", values)
        getattr(lib, f"llm_ops_{name}")(self._ops, args, n_rows)

    def _call(self, function, kind: str, **values) -> None:
        args, keep = self._args(kind, values)
        if function(self._ops, args, self._err):
            _raise(self._err)

    # ---- operations ----

    def gemm(self, c, a, b, trans_a=False, trans_b=False, add=None):
        m, n = c.shape
        k = a.shape[0] if trans_a else a.shape[1]
        _expect("a", a, *((k, m) if trans_a else (m, k)))
        _expect("b", b, *((n, k) if trans_b else (k, n)))
        if add is not None:
            _expect("add", add, *((m, n) if add.ndim == 2 else (n,)))
        if not m * n * k:
            raise ValueError(f"an empty product: {m} x {k} times {k} x {n}")
        self._call(
            lib.llm_ops_gemm, "llm_gemm_args",
            m=m, n=n, k=k, a=a, b=b, c=c, add=add,
            lda=a.shape[1], ldb=b.shape[1], ldc=n, ld_add=n if np.ndim(add) == 2 else 0,
            a_trans=trans_a, b_trans=trans_b,
        )  # fmt: skip

    def combine(self, out, a: float, x, b: float, y):
        for name, array in (("x", x), ("y", y)):
            _expect(name, array, *out.shape)
        self._rows("combine", -(-out.size // _CHUNK), out=out, x=x, y=y, n=out.size, a=a, b=b)

    def sum_rows(self, total, x):
        n_parts, n = x.shape
        _expect("total", total, n)
        self._rows(
            "sum_rows", -(-n // _COLUMNS),
            sum=total, parts=x, act_parts=None,
            n_parts=n_parts, n=n, n_columns=_COLUMNS, n_group=n_parts,
        )  # fmt: skip

    def embed(self, x, table, tokens):
        _expect("x", x, len(tokens), table.shape[1])
        self._rows("embed", len(tokens), x=x, table=table, tokens=tokens, n_embd=table.shape[1])

    def embed_backward(self, dtable, dx, tokens):
        n = dtable.shape[1]
        _expect("dx", dx, len(tokens), n)
        self._rows(
            "embed_backward", -(-n // self.embed_columns) * self.embed_classes,
            dtable=dtable, dx=dx, tokens=tokens, n_tokens=len(tokens), n_embd=n,
            n_columns=self.embed_columns, n_classes=self.embed_classes,
        )  # fmt: skip

    def rmsnorm(self, y, rstd, x, w, eps):
        n_rows, n = x.shape
        _expect("y", y, n_rows, n)
        _expect("rstd", rstd, n_rows)
        _expect("w", w, n)
        self._rows("rmsnorm", n_rows, y=y, rstd=rstd, x=x, w=w, n=n, eps=eps)

    def rmsnorm_backward(self, dx, dw, dy, x, w, rstd):
        n_rows, n = x.shape
        for name, array in (("dx", dx), ("dy", dy)):
            _expect(name, array, n_rows, n)
        for name, array in (("w", w), ("dw", dw)):
            _expect(name, array, n)
        _expect("rstd", rstd, n_rows)
        n_parts = -(-n_rows // self.norm_rows)
        parts = self.empty(n_parts, n)
        self._rows(
            "rmsnorm_backward", n_parts,
            dx=dx, dw_parts=parts, dy=dy, x=x, w=w, rstd=rstd,
            n_total=n_rows, n=n, n_chunk=self.norm_rows,
        )  # fmt: skip
        self.sum_rows(dw, parts)

    def rope(self, x, cos, sin, halves=False, starts=None, direction=1.0):
        B, T, H, D = x.shape
        for name, array in (("cos", cos), ("sin", sin)):
            _expect(name, array[:T], T, D // 2)
        if starts is not None:
            _expect("starts", starts, B, T)
        self._rows(
            "rope", B * T,
            x=x, cos=cos, sin=sin, starts=starts, n_time=T, n_head=H, head_dim=D,
            direction=direction, halves=halves,
        )  # fmt: skip

    def rope_backward(self, dx, cos, sin, halves=False, starts=None):
        self.rope(dx, cos, sin, halves, starts, -1.0)

    def attention(self, o, lse, q, k, v, starts=None):
        self._attention(lib.llm_ops_attention, o, lse, q, k, v, starts)

    def attention_backward(self, dq, dk, dv, do, o, q, k, v, lse, starts=None):
        _expect("do", do, *q.shape)
        _expect("dq", dq, *q.shape)
        _expect("dk", dk, *k.shape)
        _expect("dv", dv, *k.shape)
        self._attention(lib.llm_ops_attention_backward, o, lse, q, k, v, starts, do, dq, dk, dv)

    def _attention(self, function, o, lse, q, k, v, starts, do=None, dq=None, dk=None, dv=None):
        B, T, H, D = q.shape
        K = k.shape[2]
        _expect("o", o, *q.shape)
        _expect("lse", lse, B, H, T)
        _expect("k", k, B, T, K, D)
        _expect("v", v, B, T, K, D)
        if starts is not None:
            _expect("starts", starts, B, T)
        if H % K:
            raise ValueError(f"{H} heads are not a multiple of {K} key/value heads")
        self._call(
            function, "llm_attention_args",
            n_batch=B, n_time=T, n_head=H, n_kv_head=K, head_dim=D,
            starts=starts, q=q, k=k, v=v, o=o, lse=lse, d_o=do, dq=dq, dk=dk, dv=dv,
        )  # fmt: skip

    def swiglu(self, h, gate, up):
        for name, array in (("h", h), ("up", up)):
            _expect(name, array, *gate.shape)
        n = gate.shape[-1]
        self._rows("swiglu", gate.size // n, h=h, gate=gate, up=up, n=n)

    def swiglu_backward(self, gate, up, dh):
        for name, array in (("dh", dh), ("up", up)):
            _expect(name, array, *gate.shape)
        n = gate.shape[-1]
        self._rows("swiglu_backward", gate.size // n, gate=gate, up=up, dh=dh, n=n)

    def cross_entropy(self, losses, logits, targets, scale=None):
        n_rows, n_vocab = logits.shape
        _expect("losses", losses, n_rows)
        _expect("targets", targets, n_rows)
        self._rows(
            "cross_entropy", n_rows,
            losses=losses, logits=logits, targets=targets, n_vocab=n_vocab,
            scale=scale or 0.0, with_gradient=scale is not None,
        )  # fmt: skip

    def sum_squares(self, x) -> float:
        """Chunks of 4096 in float32, their sums exactly."""
        n_parts = -(-x.size // _CHUNK)
        parts = self.empty(n_parts)
        self._rows("sum_squares", n_parts, parts=parts, x=x, n=x.size)
        return math.fsum(self.to_host(parts))

    def adamw(self, p, g, m, v, decay, lr, beta1, beta2, eps, weight_decay, step, grad_scale):
        for name, array in (("g", g), ("m", m), ("v", v), ("decay", decay)):
            _expect(name, array, p.size)
        self._rows(
            "adamw", -(-p.size // _CHUNK),
            p=p, m=m, v=v, g=g, decay=decay, n=p.size, grad_scale=grad_scale,
            beta1=beta1, beta2=beta2, new1=1 - beta1, new2=1 - beta2, eps=eps,
            rate=lr / (1 - beta1**step), shrink=lr * weight_decay,
            root=1 / math.sqrt(1 - beta2**step),
        )  # fmt: skip

    def muon(self, p, g, m, matrices, lr, momentum, grad_scale):
        _expect("g", g, p.size)
        _expect("matrices", matrices, len(matrices), 4)
        sizes = matrices[:, 1] * matrices[:, 2]
        for offsets, size in ((matrices[:, 0], p.size), (matrices[:, 3], m.size)):
            end = (offsets + sizes).max(initial=0)
            if matrices.min(initial=1) < 0 or end > size:
                raise ValueError(f"matrices end at {end} of {size} elements")
        a, b, c = NEWTON_SCHULZ
        self._call(
            lib.llm_ops_muon, "llm_muon_args",
            p=p, m=m, g=g, matrices=matrices, n_matrices=len(matrices),
            n_iterations=N_NEWTON_SCHULZ, rate=lr, momentum=momentum, grad_scale=grad_scale,
            coefficient_a=a, coefficient_b=b, coefficient_c=c,
        )  # fmt: skip
