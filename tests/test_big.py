"""LLaMA 2 70B in F16: a parameter file of 138 GB, sparse on the disk, read where it is furthest.

`make test-big` runs a whole token of it and of the 7B and 13B shapes, which reads every hole.
"""

import json
import os
import resource
import struct
import subprocess
import time

import numpy as np
import pytest
from big_models import (
    IDS,
    SHAPES,
    forget_pages,
    n_file_bytes,
    plant,
    reference_logits,
    sparse_file,
    write_big,
)

import llm
from llm._llm import lib
from llm.cli import main
from llm.quantize import plan, quantize
from llm.safetensors_file import read_header


def resident_bytes(kind: str = "VmRSS") -> int:
    with open("/proc/self/status", encoding="ascii") as file:
        fields = dict(line.split(":", 1) for line in file)
    return int(fields[kind].split()[0]) * 1024


@pytest.fixture(scope="module")
def big():
    """(path, where each tensor begins, what is planted) of the 70B shape."""
    config, planted = SHAPES["70B"], plant(SHAPES["70B"])
    with sparse_file(n_file_bytes(config)) as path:
        yield path, write_big(path, config, planted), planted


def test_opening_reads_the_header_alone(big):
    path, _, _ = big
    assert path.stat().st_size > 2**37
    before = resident_bytes()
    with llm.Model(path) as model:
        assert resident_bytes() - before < 100e6
        assert model.n_params == 68_976_648_192  # as published


def test_every_tensor_lies_where_it_should(big):
    path, begins, planted = big
    with llm.Model(path) as model:
        assert set(model.tensors) == set(begins)
        base = model.tensors.address("token_embd.weight") - begins["token_embd.weight"]
        for name, begin in begins.items():
            assert model.tensors.address(name) - base == begin
            view, values = model.tensors[name], planted[name]
            if view.ndim == 2:
                view, values = view[values.rows], values.values
            np.testing.assert_array_equal(view, values)


def evaluate(path, begins, planted, config, n_layer: int) -> np.ndarray:
    """Logits of the first n_layer layers beside those of the specification in float64."""
    with llm.Model(path) as model:
        base = model.tensors.address("output.weight") - begins["output.weight"]
        # What the engine runs follows from its config, which only a test may change.
        lib.llm_model_config(model._handle.use()).n_layer = n_layer
        context = llm.Context(model, n_ctx=len(IDS), kv_type="f32")
        with context.observed(lambda weight, x: forget_pages(path, base)):  # before each product
            logits = context.eval(IDS, n_rows=len(IDS))
    expected = reference_logits(config, planted, IDS, n_layer)
    assert np.ptp(expected) > 4
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    return expected


def test_two_layers_and_the_output(big):
    path, begins, planted = big
    assert begins["blk.0.attn_norm.weight"] > 133e9
    two = evaluate(path, begins, planted, SHAPES["70B"], 2)
    one = reference_logits(SHAPES["70B"], planted, IDS, 1)
    assert np.abs(two - one).max() > 0.1  # the second layer's share is seen


def test_it_can_be_quantized(big):
    """Its plan and its far end; the whole would take minutes."""
    with llm.Model(big[0]) as model:
        kinds = plan(model, "Q4_K_M")
        assert len(kinds) == len(model.tensors) and kinds["output.weight"] == "Q6_K"
        rows = model.tensors["output.weight"][-2:].astype(np.float32)
    raw = quantize("Q8_0", rows).view(np.dtype([("d", "<f2"), ("q", "i1", 32)]))
    back = (raw["d"][..., None].astype(np.float32) * raw["q"]).reshape(rows.shape)
    assert np.abs(back - rows).max() <= np.abs(rows).max() / 100


def test_it_is_described(big, run_binary, capsys):
    path, _, _ = big
    done = subprocess.run([run_binary, path, "--info"], capture_output=True, text=True, check=True)
    assert f"68976648192 (68976.6 M), file of {path.stat().st_size} bytes" in done.stdout
    assert "GB: the file, 1.34 GB of keys and values of 4096 tokens (F16)" in done.stdout
    assert "s a token or more: 137.43 GB of weights" in done.stdout
    assert main(["inspect", str(path)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"{path.stat().st_size:,} bytes" in shown
    assert "Memory 140 GB with 4096 tokens held" in shown
    assert "s a token or more: 137 GB at" in shown


def test_safetensors_of_its_size():
    """Three shards would be usual; one file takes the offsets furthest."""
    shape, n = [32000, 8192], 264
    n_bytes = 2 * 32000 * 8192
    entries = {
        str(i): {"dtype": "F16", "shape": shape, "data_offsets": [i * n_bytes, (i + 1) * n_bytes]}
        for i in range(n)
    }
    head = json.dumps(entries).encode()
    with sparse_file(n * n_bytes) as path:
        with open(path, "xb") as file:
            file.write(struct.pack("<Q", len(head)) + head)
            file.truncate(8 + len(head) + n * n_bytes)
            file.seek(-4, os.SEEK_END)
            file.write(np.array([1.5, -2.5], "<f2"))
        last = read_header(path)[str(n - 1)]
        assert last.offset == 8 + len(head) + (n - 1) * n_bytes > 2**37
        assert last.read(32000 * 8192 - 3, 3).tolist() == [0, 1.5, -2.5]


@pytest.mark.skipif("LLM_TEST_BIG" not in os.environ, reason="minutes: make test-big")
@pytest.mark.parametrize("name", SHAPES)
def test_a_whole_token(name):
    config, planted = SHAPES[name], plant(SHAPES[name])
    with sparse_file(n_file_bytes(config)) as path:
        begins = write_big(path, config, planted)
        start, faults = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        evaluate(path, begins, planted, config, config.n_layer)
        seconds = time.perf_counter() - start
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
        touched = path.stat().st_size - begins["blk.2.attn_norm.weight"]
        print(
            f"\n{name}: {len(IDS)} tokens in {seconds:.1f} s, {touched:,} bytes of weights read "
            f"({touched / seconds / 1e9:.2f} GB/s of holes), {faults:,} page faults, "
            f"{resident_bytes('RssAnon') / 1e6:.0f} MB of own memory"
        )
