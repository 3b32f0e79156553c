"""Small seeded parameter files for the tests, written by our one writer in under a second, and
in the types that rounding.py knows."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from rounding import pack

import llm
from llm.config import ModelConfig, layout
from llm.model import init_params
from llm.parameter_file import (
    Provenance,
    TensorData,
    Vocabulary,
    trained_model_metadata,
    write_parameter_file,
    write_proved,
)

TINY = ModelConfig(
    n_vocab=259, n_ctx=64, n_embd=64, n_layer=2, n_head=4, n_kv_head=2, n_ff=96, tied_output=True
)
WIDE = dataclasses.replace(TINY, n_embd=256, n_ff=256)  # whole super-blocks
EOT = 258  # the control token of byte_vocabulary()


def byte_vocabulary() -> Vocabulary:
    """All 256 bytes, two merges ("th", "the") and an end-of-text token: 259 ids."""
    tokens = [bytes([b]) for b in range(256)] + [b"th", b"the", b"<|endoftext|>"]
    merges = np.array([[ord("t"), ord("h")], [256, ord("e")]])
    return Vocabulary(tokens, merges, "gpt-2", bos=EOT, eos=EOT)


def provenance(**changes) -> Provenance:
    values = {
        "name": "tiny",
        "corpus_name": "none",
        "corpus_bytes": 1000,
        "corpus_sha256": "0" * 64,
        "train_tokens": 0,
        "train_steps": 0,
        "train_seed": 1,
        "train_flops": 0.0,
        "validation_bytes": 500,
        "validation_bits_per_byte": 8.0,
    }
    return Provenance(**(values | changes))


def random_params(config: ModelConfig, seed: int = 1) -> np.ndarray:
    """Like fresh weights but larger, so that attention and the logits are far from uniform."""
    flat, scale = init_params(config, seed), 64 / config.n_embd**0.5
    for entry in layout(config):
        if len(entry.shape) == 2:
            flat[entry.offset : entry.offset + entry.size] *= scale
    return flat


def write_trained(
    path,
    config: ModelConfig = TINY,
    seed: int = 1,
    flat=None,
    vocabulary=None,
    probes=((116, 104), (72,)),
    **changes,
) -> None:
    """A file as the trainer exports it: F32, with provenance and a proof block of 4 new ids."""
    flat = random_params(config, seed) if flat is None else flat
    origin = provenance(**changes)
    metadata = trained_model_metadata(config, vocabulary or byte_vocabulary(), origin)
    write_proved(path, config, flat, metadata, origin, probes, n_new=4)


NO_BOS_EOS = ("tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id")


def write_typed(
    path, type_names: str, config: ModelConfig = TINY, seed: int = 1, drop=(), **changes
) -> np.ndarray:
    """A file whose matrices are of one type, or of several that take turns ("Q4_K Q6_K"), without
    the keys of `drop`, with changes to the provenance. Returns the parameter buffer that it expands
    to."""
    flat, tensors = random_params(config, seed), []
    kinds = itertools.cycle(type_names.split())
    for entry in layout(config):
        part = flat[entry.offset : entry.offset + entry.size].reshape(entry.shape)
        kind = next(kinds) if len(entry.shape) == 2 else "F32"
        raw, expanded = pack(part, kind)
        part[...] = expanded
        tensors.append(TensorData(entry.gguf_name, entry.shape, kind, raw))
    metadata = trained_model_metadata(config, byte_vocabulary(), provenance(**changes))
    write_parameter_file(path, [entry for entry in metadata if entry.key not in drop], tensors)
    return flat


# ---- fixtures of a module: path = file_fixture(write_trained), model = model_fixture() ----


def file_fixture(write):
    """The path of a file that write(path) makes once."""

    @pytest.fixture(scope="module")
    def path(tmp_path_factory):
        path = tmp_path_factory.mktemp("file") / "tiny.bin"
        write(path)
        return path

    return path


def model_fixture(**options):
    """The file at the module's `path`, open."""

    @pytest.fixture
    def model(path):
        with llm.Model(path, **options) as model:
            yield model

    return model
