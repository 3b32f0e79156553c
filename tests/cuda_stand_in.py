"""A host that plays the GPU for llm/ops_cuda.py: what it calls of CuPy and cuBLAS.

Kernels are csrc/train_kernels.cu built by the C compiler; they get the struct's bytes as a launch
would pass them, and run their rows, and the elements of a row, in rising or in falling order.
Memory is the host's, but arrays are no NumPy arrays and refuse to become one by themselves, as
CuPy's do. Fresh memory is full of NaN and has guard bytes around it. Products check leading
dimensions and types, read bfloat16 as such, and count columns first. THREADS runs port.h's CUDA
half instead, a block's threads one by one. What all this cannot show is speed.
"""

import ctypes
import shutil
import subprocess
import weakref
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from conftest import ROOT
from llm.ops_numpy import round_bf16

GUARD = 64
KERNELS = """
#include "port.h"
#undef ROW_KERNEL
#undef EACH
#define EACH(i, n) \\
  for (int64_t i = falling_ ? (n) - 1 : 0; falling_ ? i >= 0 : i < (n); i += falling_ ? -1 : 1)
#define LLM_TRAIN_OPS_H /* the handle of the CPU's back end */
#ifdef __cplusplus
#define EXPORT extern "C"
#else
#define EXPORT
#endif
static int32_t falling_;
#define ROW_KERNEL(name)                                                                    \\
  PORT_INLINE void name##_row(const llm_##name##_args *a, int64_t row);                     \\
  static const port_rows name##_builds[1] = {0};                                            \\
  EXPORT int64_t name##_bytes(void) { return sizeof(llm_##name##_args); }                   \\
  EXPORT void name##_kernel(const llm_##name##_args *a, int64_t n_rows, int32_t falling) {  \\
    (void)name##_builds;                                                                    \\
    falling_ = falling;                                                                     \\
    for (int64_t row = 0; row < n_rows; row++)                                              \\
      name##_row(a, falling ? n_rows - 1 - row : row);                                      \\
  }                                                                                         \\
  PORT_INLINE void name##_row(const llm_##name##_args *a, int64_t row)
#include "train_kernels.cu"
"""


THREADS = """
#include "cuda_threads.h"
#include "port.h"
#undef ROW_KERNEL
#define ROW_KERNEL(name)                                                                         \\
  static void name##_row(const llm_##name##_args *a, int64_t row);                               \\
  extern "C" int64_t name##_bytes(void) { return sizeof(llm_##name##_args); }                    \\
  extern "C" void name##_kernel(const llm_##name##_args *a, int64_t n_rows, int32_t falling) {   \\
    run_grid(falling, 64, [=] {                                                                  \\
      for (int64_t row = blockIdx.x; row < n_rows; row += gridDim.x) name##_row(a, row);         \\
    });                                                                                          \\
  }                                                                                              \\
  static void name##_row(const llm_##name##_args *a, int64_t row)
#define TENSOR_KERNEL(name, n_threads)                                                           \\
  static void name##_block(const llm_flash_args *a, int64_t block);                              \\
  extern "C" int64_t name##_bytes(void) { return sizeof(llm_flash_args); }                       \\
  extern "C" void name##_kernel(const llm_flash_args *a, int64_t n_blocks, int32_t falling) {    \\
    run_grid(falling, n_threads, [=] {                                                           \\
      for (int64_t i = blockIdx.x; i < n_blocks; i += gridDim.x) name##_block(a, i);             \\
    });                                                                                          \\
  }                                                                                              \\
  static void name##_block(const llm_flash_args *a, int64_t block)
static inline uint32_t port_pair(float low, float high) {
  return port_bf16(low) | (uint32_t)port_bf16(high) << 16;
}
static inline float port_exp2(float x) { return port_exp(x * 0.693147181f); }
#include "train_kernels.cu"
"""
NO_FEATURES = "unsigned cpu_features(void) { return 0; }  // numeric.c asks; none here calls\n"
C, CPP = ("cc", "-x", "c", "-std=c11"), ("c++", "-x", "c++", "-std=c++17")


def build_kernels(folder, threads=False):
    """The kernels as functions NAME_kernel: for float32, and for activations in bfloat16, which are
    a class of C++; and those on tensor cores. None without that compiler. threads: port.h's CUDA
    half (cuda_threads.h), which those on tensor cores are in any case."""
    return [
        build(folder / "fp32", CPP if threads else C, THREADS if threads else KERNELS),
        build(folder / "bf16", (*CPP, "-DPORT_BF16"), THREADS if threads else KERNELS),
        build(folder / "tensor", (*CPP, "-DPORT_BF16"), THREADS),
    ]


def build(folder, compiler, text):
    if not shutil.which(compiler[0]):
        return None
    folder.mkdir()
    source, library = folder / "kernels.txt", folder / "kernels.so"
    source.write_text(text + NO_FEATURES)
    flags = "-O1 -ffp-contract=off -Wall -Wextra -Werror -shared -fPIC".split()
    flags += [f"-I{ROOT}/csrc", f"-I{ROOT}/tests", "-o", library]
    subprocess.run([*compiler, *flags, source, ROOT / "csrc/numeric.c", "-lm"], check=True)
    return ctypes.CDLL(str(library))


def from_bf16(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)


def to_bf16(x):
    return (round_bf16(np.ascontiguousarray(x, np.float32)).view(np.uint32) >> 16).astype(np.uint16)


class Memory:
    """Of one array, between guard bytes, and full of NaN at first. The machine hears of a fault
    when it goes."""

    def __init__(self, n_bytes, machine):
        self.raw, self.machine = np.full(n_bytes + 2 * GUARD, 0xFF, np.uint8), machine
        self.raw[:GUARD] = self.raw[-GUARD:] = 0xA5
        machine.taken += n_bytes
        machine.most_taken = max(machine.most_taken, machine.taken)

    def check(self):
        if (self.raw[:GUARD] != 0xA5).any() or (self.raw[-GUARD:] != 0xA5).any():
            self.machine.faults.append("written past an array's end")

    def __del__(self):
        self.check()
        self.machine.taken -= self.raw.size - 2 * GUARD


class Pointer:
    """Of the device's memory; `memory` keeps it alive."""

    def __init__(self, memory, ptr):
        self.memory, self.ptr = memory, ptr

    def __add__(self, n_bytes):
        return Pointer(self.memory, self.ptr + n_bytes)

    def memset_async(self, value, n_bytes):
        ctypes.memset(self.ptr, value, n_bytes)

    def copy_from_device_async(self, source, n_bytes):
        assert isinstance(source, Pointer)
        ctypes.memmove(self.ptr, source.ptr, n_bytes)

    def copy_from_host_async(self, address, n_bytes):
        assert isinstance(address, int)
        ctypes.memmove(self.ptr, address, n_bytes)


class Array:
    """Of the device: what ops_cuda and the model use of cupy.ndarray."""

    def __init__(self, values, memory):
        self._values, self._memory = values, memory
        self.shape, self.dtype, self.ndim = values.shape, values.dtype, values.ndim
        self.size, self.nbytes, self.flags = values.size, values.nbytes, values.flags
        self.strides = values.strides
        self.data = Pointer(memory, values.ctypes.data)

    def __len__(self):
        return len(self._values)

    def __getitem__(self, index):
        view = self._values[index]
        assert isinstance(view, np.ndarray), "an element of a GPU's array"
        return Array(view, self._memory)

    def reshape(self, *shape):
        view = self._values.reshape(*shape)
        assert np.shares_memory(view, self._values)
        return Array(view, self._memory)

    def copy(self):
        raw = self._values.copy()
        return Array(raw, raw)

    def get(self):
        return self._values.copy()

    def __array__(self, *_, **__):
        raise TypeError("Implicit conversion to a NumPy array is not allowed.")

    def __iter__(self):
        raise TypeError("a loop over a GPU's array")


class StandIn:
    """`modules` stand for cupy and cuBLAS; `launches` lists (kernel, grid, block)."""

    def __init__(self, kernels, falling=False, free=1 << 33, compute_capability="90"):
        self.kernels, self.falling, self.free = kernels, falling, free
        self.launches, self.products = [], []
        self.faults, self.memories = [], weakref.WeakSet()
        self.held = 0  # bytes of reserved chunks
        self.taken = self.most_taken = 0  # by arrays
        runtime = SimpleNamespace(
            CUDA_R_32F=0,
            CUDA_R_16BF=14,
            CUDARuntimeError=RuntimeError,
            getDeviceCount=lambda: 1,
            deviceGetPCIBusId=lambda i: f"0000:{i:02x}:00.0",
            memGetInfo=lambda: (self.free, self.free),
        )
        self.cupy, self.cublas = ModuleType("cupy"), ModuleType("cublas")
        self.cupy.empty = self.empty
        self.cupy.RawModule = self.module
        self.cupy.cuda = SimpleNamespace(
            runtime=runtime,
            MemoryPool=lambda: self,
            set_allocator=lambda allocate: None,
            get_cublas_handle=lambda: 77,
            get_current_stream=lambda: SimpleNamespace(synchronize=self.synchronize),
            alloc_pinned_memory=self.pinned,
            Event=lambda disable_timing: SimpleNamespace(
                record=lambda: None, synchronize=lambda: None
            ),
            Device=lambda: SimpleNamespace(compute_capability=compute_capability),
        )
        self.modules = self.cupy, self.cublas
        self.cublas.CUBLAS_OP_N, self.cublas.CUBLAS_OP_T = 0, 1
        self.cublas.CUBLAS_COMPUTE_32F, self.cublas.CUBLAS_GEMM_DEFAULT = 68, -1
        self.cublas.gemmEx = self.gemm
        self.cublas.gemmStridedBatchedEx = self.gemm_batched

    # ---- memory; this object is the pool too ----

    def malloc(self, n_bytes):
        self.held += n_bytes

    def free_all_blocks(self):
        self.held = 0

    def free_bytes(self):
        return self.held

    total_bytes = free_bytes

    def pinned(self, n_bytes):
        class Buffer(ctypes.c_char * n_bytes):
            ptr = property(ctypes.addressof)

        return Buffer()

    def empty(self, shape, dtype):
        dtype = np.dtype(dtype)
        memory = Memory(int(np.prod(shape)) * dtype.itemsize, self)
        self.memories.add(memory)
        return Array(memory.raw[GUARD:-GUARD].view(dtype).reshape(shape), memory)

    def check_guards(self):
        for memory in self.memories:
            memory.check()
        self.synchronize()

    def synchronize(self):
        assert not self.faults, self.faults[0]

    # ---- kernels ----

    def module(self, code, options):
        assert "-default-device" in options
        assert "#include <" not in code.split("#else")[0]  # of port.h: what NVRTC would look for

        def get_function(name):
            is_tensor = f"TENSOR_KERNEL({name.removesuffix('_kernel')}, " in code
            assert is_tensor or f"ROW_KERNEL({name.removesuffix('_kernel')})" in code
            kernels = self.kernels[2 if is_tensor else "-DPORT_BF16" in options]
            if kernels is None:
                pytest.skip("there is no C++ compiler")
            function = getattr(kernels, name)
            count = getattr(kernels, name.replace("_kernel", "_bytes"))
            count.restype = ctypes.c_int64
            size = count()

            def launch(grid, block, arguments):
                args, n_rows = arguments
                assert isinstance(args, np.ndarray) and args.size == 1 and args.nbytes == size
                assert type(n_rows) is np.int64 and n_rows >= 1
                assert block[0] % 32 == 0 and block[0] <= 1024 and 1 <= grid[0] <= n_rows
                self.launches.append((name, grid, block))
                pointer = ctypes.c_void_p(args.ctypes.data)
                function(pointer, ctypes.c_int64(n_rows), ctypes.c_int32(self.falling))

            return launch

        return SimpleNamespace(get_function=get_function)

    # ---- cuBLAS ----

    def matrix(self, address, kind, ld, rows, columns):
        """(rows, columns) stored column by column, ld elements from one to the next."""
        assert ld >= rows, f"a leading dimension of {ld} for {rows} rows"
        element, dtype = {0: (ctypes.c_float, np.float32), 14: (ctypes.c_uint16, np.uint16)}[kind]
        n = ld * (columns - 1) + rows
        flat = np.ctypeslib.as_array(ctypes.cast(address, ctypes.POINTER(element)), (n,))
        strides = (dtype().itemsize, ld * dtype().itemsize)
        return np.lib.stride_tricks.as_strided(flat, (rows, columns), strides)

    def gemm(self, handle, op_a, op_b, m, n, k, alpha, a, a_kind, lda, b, b_kind, ldb, beta, c,
             c_kind, ldc, compute, algorithm):  # fmt: skip
        assert (handle, compute, algorithm) == (77, 68, -1) and a_kind == b_kind >= c_kind
        self.products.append((m, n, k, a_kind))
        alpha, beta = (ctypes.c_float.from_address(x).value for x in (alpha, beta))
        a = self.matrix(a, a_kind, lda, *((k, m) if op_a else (m, k)))
        b = self.matrix(b, b_kind, ldb, *((n, k) if op_b else (k, n)))
        if a_kind == 14:
            a, b = from_bf16(a), from_bf16(b)
        product = alpha * ((a.T if op_a else a) @ (b.T if op_b else b))
        c = self.matrix(c, c_kind, ldc, m, n)
        if beta:  # else c is not read
            product += np.float32(beta) * (from_bf16(c) if c_kind == 14 else c)
        c[...] = to_bf16(product) if c_kind == 14 else product

    def gemm_batched(self, handle, op_a, op_b, m, n, k, alpha, a, a_kind, lda, a_step, b, b_kind,
                     ldb, b_step, beta, c, c_kind, ldc, c_step, batch, *how):  # fmt: skip
        size = {0: 4, 14: 2}
        for i in range(batch):
            self.gemm(
                *(handle, op_a, op_b, m, n, k, alpha, a + i * a_step * size[a_kind], a_kind, lda),
                *(b + i * b_step * size[b_kind], b_kind, ldb, beta),
                *(c + i * c_step * size[c_kind], c_kind, ldc, *how),
            )


ACTIVATIONS = {  # the arguments that are, by position
    "embed": (0,), "embed_backward": (1,), "rmsnorm": (0, 2), "rmsnorm_backward": (0, 2, 3),
    "rope": (0,), "rope_backward": (0,), "swiglu": (0, 1, 2), "swiglu_backward": (0, 1, 2),
    "cross_entropy": (1,), "attention": (0, 2, 3, 4), "attention_backward": tuple(range(8)),
}  # fmt: skip


class OnHost:
    """OpsCuda for NumPy arrays, which go to the device and come back; activations are rounded on
    the way where the back end keeps them so."""

    def __init__(self, ops):
        self._ops = ops

    def __getattr__(self, name):
        method = getattr(self._ops, name)

        def call(*args, **options):
            moved = {}

            def move(x, is_activation=False):
                if not isinstance(x, np.ndarray) or x.dtype == np.int64:  # a list of matrices
                    return x
                if id(x) not in moved:
                    rounds = is_activation and self._ops.act_bytes == 2
                    moved[id(x)] = x, self._ops.from_host(to_bf16(x) if rounds else x)
                return moved[id(x)][1]

            which = ACTIVATIONS.get(name, ())
            args = [move(x, i in which) for i, x in enumerate(args)]
            result = method(*args, **{k: move(v) for k, v in options.items()})
            for array, device in moved.values():
                array[...] = self._ops.to_host(device)
            self._ops.wait()
            return result

        return call
