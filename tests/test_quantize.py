"""Rounding of weights and of whole files, against the public gguf package and llama.cpp. Past 500
lines: the call, the file and its faults share one set of files."""

import ctypes
import errno
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from gguf_models import N_CTX, N_VOCAB, write_model
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from llama_server import log_softmax, next_logprobs, start_server
from models import WIDE, write_trained
from rounding import SUPER_BLOCKS

import llm
from conftest import ROOT
from llm._llm import ffi, lib
from llm.binding import call, pointer_to
from llm.calibrate import DAMPING, collect, feedback_of
from llm.cli import main
from llm.context import Context
from llm.parameter_file import TensorData, write_parameter_file
from llm.quantize import (
    RECIPES,
    TYPES,
    bits_per_byte,
    fitting,
    kept_entries,
    plan,
    quantize,
    quantize_file,
    recipe_type,
)

RUN = Path(__file__).parent.parent / "run"
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
        x[np.abs(x) < 1e-30] = (
            0  # there the package's 1 / d is infinity, and 0 times that no number
        )
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
    function.argtypes = [
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_void_p,
        *[size] * 3,
        ctypes.c_void_p,
    ]
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


# ---- files ----


@pytest.fixture
def tiny(tmp_path):
    """A small F32 model with a proof block."""
    path = tmp_path / "tiny.gguf"
    write_trained(path, WIDE, probes=[[72, 101]])
    return path


TEXT = b"In the beginning there was a text of which nothing was known, and then it was read. " * 4


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_file_keeps_its_keys_and_proves_itself(tiny, tmp_path, recipe):
    done = quantize_file(tiny, tmp_path / "out.gguf", recipe)
    with llm.Model(tiny) as before, llm.Model(tmp_path / "out.gguf") as after:
        for key in before.metadata:
            if not key.startswith("two_file.") and key != "general.file_type":
                assert after.metadata.raw(key) == before.metadata.raw(key), key
                assert after.metadata.value_type(key) == before.metadata.value_type(key), key
        assert after.metadata["general.file_type"] == RECIPES[recipe]
        assert after.metadata["two_file.quantization.type"] == recipe
        assert after.metadata["two_file.corpus.bytes"] == before.metadata["two_file.corpus.bytes"]
        assert "two_file.quantization.bits_per_byte_change" not in after.metadata
        report = after.verify()
        assert report["has_hash"] and report["has_proof"] and report["n_probes"] == 1
        for name, kind in done.types.items():
            assert after.tensors.type_name(name) == kind
            x, y = before.tensors[name], after.tensors[name]
            if x.ndim == 1:
                assert kind == "F32" and np.array_equal(x, y)
            else:
                assert np.abs(x - y).max() <= np.abs(x).max() * 0.15
    assert done.bytes_after == (tmp_path / "out.gguf").stat().st_size
    assert done.bytes_before == tiny.stat().st_size


def test_recipes(tiny):
    with llm.Model(tiny) as model:
        types = plan(model, "Q4_0")
        assert types["token_embd.weight"] == "Q6_K"  # finer
        assert types["blk.0.attn_q.weight"] == "Q4_0"
        assert types["blk.0.attn_norm.weight"] == "F32"
        assert plan(model, "Q4_0", embedding="Q4_0")["token_embd.weight"] == "Q4_0"
        assert plan(model, "Q4_0", output="F16")["token_embd.weight"] == "F16"  # tied
        assert plan(model, "Q8_0")["token_embd.weight"] == "Q8_0"
        with pytest.raises(ValueError, match="'Q3_K' is none of"):
            plan(model, "Q3_K")


def test_mixtures_are_llama_cpps():
    """Of 30 layers: the first 3, the last 4, and every third between."""
    finer = {0, 1, 2, 5, 8, 11, 14, 17, 20, 23, 26, 27, 28, 29}
    for layer in range(30):
        expected = "Q6_K" if layer in finer else "Q4_K"
        for part in ("attn_v", "ffn_down"):
            assert recipe_type("Q4_K_M", f"blk.{layer}.{part}.weight", 30) == expected
        assert recipe_type("Q4_K_M", f"blk.{layer}.attn_k.weight", 30) == "Q4_K"
    assert recipe_type("Q4_K_S", "blk.3.attn_v.weight", 30) == "Q5_K"
    assert recipe_type("Q4_K_S", "blk.4.attn_v.weight", 30) == "Q4_K"
    assert recipe_type("Q4_K_S", "blk.2.ffn_down.weight", 30) == "Q5_K"
    assert recipe_type("Q5_K_M", "blk.0.attn_qkv.weight", 30) == "Q6_K"


@pytest.mark.parametrize(
    ("type_name", "n_per_row", "expected"),
    [
        ("Q4_K", 512, "Q4_K"),
        ("Q4_K", 576, "Q5_0"),
        ("Q5_K", 576, "Q5_1"),
        ("Q6_K", 576, "Q8_0"),
        ("Q6_K", 48, "F16"),
        ("Q4_0", 48, "F16"),
        ("F32", 7, "F32"),
    ],
)
def test_rows_that_are_no_blocks_fall_back(type_name, n_per_row, expected):
    assert fitting(type_name, n_per_row) == expected


def test_what_is_in_the_type_already_is_copied(tiny, tmp_path):
    quantize_file(tiny, tmp_path / "once.gguf", "Q4_K_M")
    quantize_file(tmp_path / "once.gguf", tmp_path / "twice.gguf", "Q4_K_M")
    assert (tmp_path / "once.gguf").read_bytes() == (tmp_path / "twice.gguf").read_bytes()


def test_the_cost_is_measured_and_stated(tiny, tmp_path):
    out = tmp_path / "out.gguf"
    done = quantize_file(tiny, out, "Q4_0", text=TEXT)
    before, after = done.bits_per_byte
    assert before == pytest.approx(bits_per_byte(tiny, TEXT)) and before > 0
    assert after == pytest.approx(bits_per_byte(out, TEXT)) and after != before
    with llm.Model(out) as model:
        stated = model.metadata["two_file.quantization.bits_per_byte_change"]
        assert stated == pytest.approx(after - before, abs=1e-6)
        assert len(model.metadata["two_file.quantization.text_sha256"]) == 64
    again = quantize_file(out, tmp_path / "again.gguf", "Q5_0", text=TEXT)
    with llm.Model(tmp_path / "again.gguf") as model:  # of both roundings
        stated = model.metadata["two_file.quantization.bits_per_byte_change"]
        assert stated == pytest.approx(again.bits_per_byte[1] - before, abs=1e-5)


# ---- calibration ----


@pytest.mark.parametrize("type_name", ["Q4_0", "Q4_K"])
def test_feedback_lowers_the_error_of_the_output(type_name):
    """On inputs that go together, as those of real layers do: by at least a third."""
    rng = np.random.default_rng(5)
    mix = rng.normal(size=(256, 256)) * np.exp(-np.arange(256) / 40)
    x = rng.normal(size=(4000, 256)) @ mix.T
    w = random_weights(6, (64, 256))
    importance, feedback = feedback_of((x.T @ x / len(x)).astype(np.float32))
    assert (np.tril(feedback, -1) == 0).all() and (np.diag(feedback) == 1).all()

    def error(raw):
        return np.linalg.norm(x @ (expanded(type_name, raw, w.shape) - w).T)

    plain = error(quantize(type_name, w, np.ones(256)))
    assert error(quantize(type_name, w, importance, feedback)) < plain / 1.5


def test_feedback_is_that_of_the_inverse():
    rng = np.random.default_rng(7)
    a = rng.normal(size=(40, 24))
    h = a.T @ a / 40
    importance, feedback = feedback_of(h.astype(np.float32))
    damped = h + DAMPING * np.mean(np.diag(h)) * np.eye(24)
    u = np.linalg.cholesky(np.linalg.inv(damped)).T
    assert np.allclose(feedback, u / np.diag(u)[:, None], atol=1e-4)
    expected = np.diag(u) ** -2
    assert np.allclose(importance, expected / expected.mean(), rtol=1e-4)


def test_moments_are_of_the_inputs(tiny):
    ids = list(TEXT[:100])
    with llm.Model(tiny) as model:
        moments = collect(model, ids, ["blk.0.attn_q.weight", "blk.1.ffn_down.weight"])
        assert moments["blk.1.ffn_down.weight"].shape == (256, 256)
        x = model.tensors["token_embd.weight"][ids[:64]].astype(np.float64)  # one window of n_ctx
        x /= np.sqrt((x**2).mean(axis=1, keepdims=True) + 1e-5)
        x *= model.tensors["blk.0.attn_norm.weight"]
        expected = x.T @ x / len(x)
        assert np.allclose(moments["blk.0.attn_q.weight"], expected, atol=1e-3 * expected.max())


def test_calibrated_files(tiny, tmp_path):
    for recipe in ("Q4_0", "Q4_K"):
        plain = quantize_file(tiny, tmp_path / "plain.gguf", recipe)
        done = quantize_file(tiny, tmp_path / "out.gguf", recipe, calibration=TEXT)
        assert done.types == plain.types
        with llm.Model(tmp_path / "out.gguf") as model, llm.Model(tmp_path / "plain.gguf") as other:
            assert model.verify()["has_proof"]
            assert len(model.metadata["two_file.quantization.calibration_sha256"]) == 64
            name = "blk.0.ffn_up.weight"
            assert bytes(model.tensors.raw(name)) != bytes(other.tensors.raw(name))


def test_an_observer_that_raises_ends_the_evaluation(tiny):
    def observer(address, x):
        raise RuntimeError("enough")

    with llm.Model(tiny) as model:
        context = Context(model)
        with pytest.raises(RuntimeError, match="enough"), context.observed(observer):
            context.eval([1, 2, 3], n_rows=0)
        context.truncate(0)
        assert context.eval([1, 2, 3]).shape == (1, WIDE.n_vocab)  # and is gone


# ---- what goes wrong ----


def test_in_equal_to_out_is_refused(tiny, tmp_path):
    (tmp_path / "link.gguf").symlink_to(tiny)
    (tmp_path / "hard.gguf").hardlink_to(tiny)
    content = tiny.read_bytes()
    for out in (tiny, tmp_path / "link.gguf", tmp_path / "hard.gguf"):
        with pytest.raises(ValueError, match="is the file to read"):
            quantize_file(tiny, out, "Q4_0")
    assert tiny.read_bytes() == content


def test_a_pipe_is_refused_and_not_waited_for(tiny, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="is there and is no regular file"):
        quantize_file(tiny, tmp_path / "pipe", "Q4_0")


STOPPED = """
import os, runpy, sys
import llm.quantize
llm.quantize.proof_entries = lambda *_: os.kill(os.getpid(), int(sys.argv[0]))
runpy.run_module("llm", run_name="__main__")
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_no_temporary_file(tiny, tmp_path, number):
    code = STOPPED.replace("int(sys.argv[0])", str(int(number)))
    command = [sys.executable, "-c", code, "quantize", tiny, tmp_path / "out", "--type", "Q8_0"]
    done = subprocess.run(command, capture_output=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (128 + number, b"stopped\n")
    assert list(tmp_path.iterdir()) == [tiny]


def test_what_is_no_parameter_file_is_refused_before_the_work(tiny, tmp_path):
    out = tmp_path / "notes"
    out.write_text("mine")
    with pytest.raises(FileExistsError, match="is there and is no parameter file"):
        quantize_file(tiny, out, "Q4_0", progress=lambda *_: pytest.fail("it had begun"))
    assert out.read_text() == "mine"


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_a_failure_leaves_out_as_it_was(tiny, tmp_path, error):
    out = tmp_path / "out.gguf"
    out.write_bytes(b"GGUF of before")
    there = sorted(tmp_path.iterdir())

    def progress(name, n_bytes):
        if name == "blk.1.ffn_up.weight":
            raise error

    with pytest.raises(KeyboardInterrupt if error is KeyboardInterrupt else OSError):
        quantize_file(tiny, out, "Q4_0", progress=progress)
    assert out.read_bytes() == b"GGUF of before" and sorted(tmp_path.iterdir()) == there


def test_a_full_disk(tiny, tmp_path, capsys):
    out = tmp_path / "out.gguf"
    out.write_bytes(b"GGUF of before")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))  # a write past it fails
    try:
        assert main(["quantize", str(tiny), str(out), "--type", "Q8_0"]) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert f"{out}: {os.strerror(errno.EFBIG)}" in capsys.readouterr().err
    assert out.read_bytes() == b"GGUF of before" and not list(tmp_path.glob("*.tmp"))


def test_a_file_without_a_tokenizer(tiny, tmp_path, capsys):
    with llm.Model(tiny) as model:
        tensors = [TensorData(n, t.shape, "F32", t.copy()) for n, t in model.tensors.items()]
        entries = [e for e in kept_entries(model) if not e.key.startswith("tokenizer.")]
    write_parameter_file(tmp_path / "none.gguf", entries, tensors)
    assert (
        main(["quantize", str(tmp_path / "none.gguf"), str(tmp_path / "o"), "--type", "F16"]) == 1
    )
    assert "none.gguf: key tokenizer.ggml.model is missing" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_weights_that_are_no_numbers_are_named(tiny, tmp_path):
    raw = bytearray(tiny.read_bytes())
    with llm.Model(tiny) as model:
        at = raw.index(bytes(model.tensors.raw("blk.1.ffn_up.weight")))
    raw[at : at + 4] = b"\0\0\xc0\x7f"
    (tmp_path / "nan.gguf").write_bytes(raw)
    with pytest.raises(ValueError, match="tensor blk.1.ffn_up.weight: row 0 holds infinity or NaN"):
        quantize_file(tmp_path / "nan.gguf", tmp_path / "out.gguf", "Q4_0")


def test_command(tiny, tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_bytes(TEXT)
    out = str(tmp_path / "out.gguf")
    assert main(["quantize", str(tiny), out, "--type", "Q4_K_M", "--text", str(text)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("tensors    ") and "Q4_K" in lines[0]
    assert lines[1].startswith("size       ") and lines[2].startswith("cost       ")
    assert main(["quantize", str(tiny), out, "--type", "Q4_0"]) == 0
    assert "not measured" in capsys.readouterr().out
    assert main(["quantize", str(tiny), str(tiny), "--type", "Q4_0"]) == 1
    assert "is the file to read" in capsys.readouterr().err
    before = text.read_bytes()
    for option in ("--text", "--calibrate"):
        assert main(["quantize", str(tiny), str(text), "--type", "Q4_0", option, str(text)]) == 1
        assert f"{text} is the file to read" in capsys.readouterr().err
    assert text.read_bytes() == before
    assert main(["quantize", str(tiny), out, "--type", "Q2_K"]) == 1
    assert "none of" in capsys.readouterr().err


def test_fallbacks_are_counted_and_explained(tiny, tmp_path, capsys):
    narrow, out = tmp_path / "narrow.gguf", str(tmp_path / "out.gguf")
    write_trained(narrow)
    assert main(["quantize", str(narrow), out, "--type", "Q4_K"]) == 0
    said = "instead    Q5_0 for Q4_K, Q8_0 for Q6_K: 15 tensors whose width is no multiple of 256"
    assert said in capsys.readouterr().out.splitlines()
    assert main(["quantize", str(narrow), out, "--type", "Q8_0"]) == 0
    assert main(["quantize", str(tiny), out, "--type", "Q4_K"]) == 0
    assert "instead" not in capsys.readouterr().out


def test_folders_of_out_are_made(tiny, tmp_path, capsys):
    out = tmp_path / "new" / "folder" / "out.gguf"
    assert main(["quantize", str(tiny), str(out), "--type", "Q2_K"]) == 1
    assert not (tmp_path / "new").exists()
    assert main(["quantize", str(tiny), str(out), "--type", "Q8_0"]) == 0
    assert out.is_file()
    assert main(["quantize", str(tiny), str(out / "out.gguf"), "--type", "Q8_0"]) == 1
    assert f"llm: {out}: Not a directory\n" in capsys.readouterr().err


def test_the_program_and_the_label_tell_the_cost(tiny, tmp_path, capsys):
    out = tmp_path / "out.gguf"
    before, after = quantize_file(tiny, out, "Q4_0", text=TEXT).bits_per_byte
    info, plain = (
        subprocess.run([RUN, path, "--info"], capture_output=True, check=True).stdout
        for path in (out, tiny)
    )
    assert f"quantized      Q4_0\n{'':15}{after - before:+.4f} bits per byte".encode() in info
    assert main(["inspect", str(out)]) == 0
    label = " ".join(capsys.readouterr().out.replace(",", "").split())
    assert f"Quantized Q4_0 {after - before:+.4g} bits per byte by rounding" in label
    assert b"quantized" not in plain


@pytest.mark.peer
@pytest.mark.parametrize("recipe", ["Q4_0", "Q4_K_M", "Q6_K", "BF16"])
def test_llama_cpp_reads_the_file(tmp_path, recipe):
    path, out = tmp_path / "f32.gguf", tmp_path / "out.gguf"
    write_model(path, "llama", n_embd=256, n_ff=256)
    quantize_file(path, out, recipe, calibration=TEXT if recipe == "Q4_0" else None)
    server, ids = start_server(out, N_CTX), [72, 101, 108, 108, 111]
    with llm.Model(out, kv_type="f32") as model:
        ours = log_softmax(model.logits(ids)[-1])
    theirs = next_logprobs(server, ids, N_VOCAB)
    divergence = np.sum(np.exp(ours) * (ours - theirs))
    assert divergence < 0.03  # nats: each rounds activations its own way
    assert np.sum(np.exp(ours) * (ours + np.log(N_VOCAB))) > 1  # of the uniform distribution
