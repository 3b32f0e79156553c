"""Rounding of weights: speed by processor time, and error beside llama.cpp's on real weights.

.venv/bin/python bench/bench_quantize.py weights/SmolLM2-135M-Instruct.Q4_1.gguf
"""

import ctypes
import sys
import time

import numpy as np

import llm
from llm._llm import lib
from llm.binding import call, pointer_to
from llm.quantize import TYPES, quantize

N_ROWS, N_PER_ROW = 4096, 4096  # 64 MiB of F32


def gigabytes_per_second(round_rows, x: np.ndarray) -> float:
    """Of float32 input, one thread, best of three."""
    seconds = []
    for _ in range(3):
        start = time.process_time()
        round_rows()
        seconds.append(time.process_time() - start)
    return x.nbytes / min(seconds) / 1e9


def rms_error(type_name: str, raw: np.ndarray, x: np.ndarray) -> float:
    out = np.empty(x.shape, np.float32)
    source, target = pointer_to("void", raw), pointer_to("float", out)
    call(lib.llm_dequantize, TYPES[type_name], source, out.size, target)
    return float(np.sqrt(np.mean((out.astype(np.float64) - x) ** 2)))


def llama_cpp():
    """Its quantizer out of the wheel's compiled module, or None."""
    try:
        import xllamacpp.xllamacpp as module
    except ImportError:
        return None
    function, size = ctypes.CDLL(module.__file__).ggml_quantize_chunk, ctypes.c_int64
    pointer = ctypes.c_void_p
    function.argtypes = [ctypes.c_int, pointer, pointer, size, size, size, pointer]
    return function


def main() -> None:
    speed = np.random.default_rng(1).normal(size=(N_ROWS, N_PER_ROW)).astype(np.float32)
    theirs = llama_cpp()
    with llm.Model(sys.argv[1]) as model:
        names = [n for n in model.tensors if n.startswith("blk.") and "ffn_down" in n]
        weights = [np.ascontiguousarray(model.tensors[n], np.float32) for n in names[::6]]
    for name in TYPES:
        if name == "F32":
            continue
        some = speed[: 256 if "_K" in name else None]
        own = gigabytes_per_second(lambda: quantize(name, some, threads=1), some)  # noqa: B023
        line = f"{name:5} {own:6.3f}"
        if theirs is not None and "_K" in name:
            ours = other = 0.0
            for x in weights:
                raw = quantize(name, x)
                ours += rms_error(name, raw, x) ** 2
                theirs(TYPES[name], x.ctypes.data, raw.ctypes.data, 0, *x.shape, None)
                other += rms_error(name, raw, x) ** 2
            raw = quantize(name, some)
            a = (TYPES[name], some.ctypes.data, raw.ctypes.data, 0, *some.shape, None)
            peer = gigabytes_per_second(lambda: theirs(*a), some)  # noqa: B023
            line += f" GB/s, {own / peer:.2f} times llama.cpp's {peer:.3f}"
            line += f", error {np.sqrt(ours / other):.3f} of its"
        else:
            line += " GB/s"
        print(line, flush=True)


if __name__ == "__main__":
    main()
