"""Rounding of weights and of whole files, against the public gguf package and llama.cpp."""

import ctypes

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from rounding import SUPER_BLOCKS

import llm
from llm._llm import ffi, lib
from llm.binding import call, pointer_to
from llm.quantize import TYPES, quantize

BLOCKS_OF_32 = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1")


def expanded(type_name: str, raw: np.ndarray, shape) -> np.ndarray:
    out = np.empty(shape, np.float32)
    call(
        lib.llm_dequantize,
        TYPES[type_name],
        pointer_to("void", raw),
        out.size,
        pointer_to("float", out),
    )
    return out.astype(np.float64)


def rms_error(type_name: str, raw: np.ndarray, x: np.ndarray) -> float:
    return float(np.sqrt(np.mean((expanded(type_name, raw, x.shape) - x) ** 2)))


def random_weights(seed: int, shape=(96, 512)) -> np.ndarray:
    """Normal, of another size in each row, with some outliers."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=shape) * np.exp(rng.normal(size=(shape[0], 1)))
    x[rng.random(shape) < 0.003] *= 8
    return (0.02 * x).astype(np.float32)


# ---- against the gguf package ----


@pytest.mark.parametrize("type_name", [*BLOCKS_OF_32, "F16", "BF16"])
def test_bits_are_the_gguf_packages(type_name):
    gguf = pytest.importorskip("gguf", reason="the public gguf package is not installed")
    number = gguf.GGMLQuantizationType[type_name]

    def same(x):
        theirs = gguf.quants.quantize(x, number)
        return np.array_equal(quantize(type_name, x), theirs.reshape(-1).view(np.uint8))

    @given(
        arrays(np.int16, (1, 64), elements=st.integers(-9, 9)),
        st.floats(2.0**-20, 512, width=32),
    )
    def with_ties(x, scale):
        assert same(x.astype(np.float32) * np.float32(scale))

    @given(arrays(np.float32, (2, 32), elements=st.floats(-6e4, 6e4, width=32)))
    def any_values(x):
        x[np.abs(x) < 1e-30] = 0  # there the package's 1 / d is infinity, and 0 times that no number
        assert same(x)

    with_ties()
    any_values()
    assert same(random_weights(1))


# ---- against llama.cpp ----


def llama_cpp_quantize(type_name: str, x: np.ndarray) -> np.ndarray:
    """By the C function in the wheel's compiled module."""
    module = pytest.importorskip("xllamacpp.xllamacpp", reason="xllamacpp is not installed")
    library = ctypes.CDLL(module.__file__)
    if not hasattr(library, "ggml_quantize_chunk"):
        pytest.skip("this xllamacpp does not export ggml_quantize_chunk")
    function, size = library.ggml_quantize_chunk, ctypes.c_int64
    function.restype = ctypes.c_size_t
    function.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[size] * 3, ctypes.c_void_p]
    out = np.empty_like(quantize(type_name, x))
    n = function(TYPES[type_name], x.ctypes.data, out.ctypes.data, 0, *x.shape, None)
    assert n == out.size
    return out


@pytest.mark.peer
@pytest.mark.parametrize("type_name", SUPER_BLOCKS)
def test_super_blocks_are_closer_than_llama_cpps(type_name):
    x = random_weights(2)
    theirs = rms_error(type_name, llama_cpp_quantize(type_name, x), x)
    assert rms_error(type_name, quantize(type_name, x), x) <= theirs


@pytest.mark.peer
@pytest.mark.parametrize("type_name", SUPER_BLOCKS)
def test_super_blocks_of_real_weights_are_closer(type_name, smollm2):
    """Rows of 1536, six super-blocks; the ratio of the errors is 0.62 to 0.94."""
    with llm.Model(smollm2) as model:
        x = np.ascontiguousarray(model.tensors["blk.3.ffn_down.weight"][:64])
    theirs = rms_error(type_name, llama_cpp_quantize(type_name, x), x)
    assert rms_error(type_name, quantize(type_name, x), x) <= theirs


# ---- the call ----


def test_types_are_those_of_the_engine():
    assert set(TYPES) == {*BLOCKS_OF_32, *SUPER_BLOCKS, "F32", "F16", "BF16"}
    assert all(lib.llm_type_describe(n).n_per_block for n in TYPES.values())
    assert len(TYPES) == len(ffi.typeof("llm_type").elements)


@pytest.mark.parametrize("type_name", TYPES)
def test_one_row_or_many(type_name):
    x = random_weights(3, (5, 256))
    parts = [quantize(type_name, row) for row in x]
    assert np.array_equal(np.concatenate(parts), quantize(type_name, x, threads=3))
    assert quantize(type_name, x[:0]).size == 0


def test_wrong_arguments():
    x = random_weights(4, (2, 64))
    with pytest.raises(ValueError, match="Q3_K is none of"):
        quantize("Q3_K", x)
    with pytest.raises(ValueError, match="64 elements, but Q4_K has blocks of 256"):
        quantize("Q4_K", x)
    with pytest.raises(ValueError, match="rows of 64"):
        quantize("Q4_0", x, importance=np.ones(63))
    with pytest.raises(ValueError, match="row 1 holds infinity or NaN"):
        x[1, 5] = np.nan
        quantize("Q4_0", x)
