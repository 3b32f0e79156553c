"""Converted models beside the originals: logits as transformers computes them, ids as tokenizers
and sentencepiece give them, and how much memory a large tensor takes on its way."""

import io
import json
import shutil
import subprocess
import sys
import tracemalloc
import unicodedata

import numpy as np
import pytest
from hugging_face import (
    FAMILIES,
    IDS,
    N_CTX,
    N_VOCAB,
    logits_of,
    make_folder,
    make_model,
    save_tokenizer,
)
from llama_server import log_softmax, next_logprobs, start_server
from test_convert_bad import tensors_of, write_folder
from test_sentencepiece import NASTY_SPM, USER
from test_tokenizer import ENGLISH, NASTY

import llm
from llm.convert import convert
from llm.convert_tokenizer import tokenizer_entries
from llm.parameter_file import write_parameter_file
from llm.quantize import quantize
from llm.safetensors_file import write_safetensors
from llm.tokenizer import Tokenizer

EXACT = 1e-4  # float32 sums in another order
MIXED = "<|begin|>a<tool> b<|turn|>\n<|endoftext|> <tool><|begin|"


def engine_logits(path) -> np.ndarray:
    with llm.Model(path, kv_type="f32") as model:
        return model.logits(IDS)


@pytest.mark.peer
@pytest.mark.parametrize("name", FAMILIES)
def test_logits_as_transformers(tmp_path, name):
    folder = tmp_path / "model"
    folder.mkdir()
    make_folder(name, folder)
    convert(folder, tmp_path / "model.gguf")
    expected = logits_of(folder)
    assert np.ptp(expected) > 5  # far from uniform, so that agreement means something
    assert np.abs(engine_logits(tmp_path / "model.gguf") - expected).max() < EXACT


# Those whose most likely next token is whole characters: the server holds others back.
@pytest.mark.peer
@pytest.mark.parametrize("name", ["llama 3 scaling", "llama biases", "qwen2", "qwen3"])
def test_logits_as_llama_cpp(tmp_path, name):
    (tmp_path / "model").mkdir()
    convert(make_folder(name, tmp_path / "model"), tmp_path / "m.gguf")
    server = start_server(tmp_path / "m.gguf", N_CTX)
    ours = log_softmax(engine_logits(tmp_path / "m.gguf")[-1])
    assert np.abs(ours - next_logprobs(server, IDS, N_VOCAB)).max() < EXACT


@pytest.mark.peer
def test_shards_give_the_same_file(tmp_path):
    one, many = tmp_path / "one" / "model", tmp_path / "many" / "model"
    for folder, options in ((one, {}), (many, {"max_shard_size": "60KB"})):
        folder.mkdir(parents=True)
        make_folder("llama 3 scaling", folder, **options)
        convert(folder, folder.with_suffix(".gguf"))
    assert len(list(many.glob("model-*.safetensors"))) > 2
    assert one.with_suffix(".gguf").read_bytes() == many.with_suffix(".gguf").read_bytes()


@pytest.mark.peer
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_stays_as_it_is_stored(tmp_path, dtype):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    model = make_model("llama").to(getattr(torch, dtype))
    model.save_pretrained(tmp_path / "model")
    save_tokenizer(tmp_path / "model", "llama-bpe")
    convert(tmp_path / "model", tmp_path / "same.gguf")
    convert(tmp_path / "model", tmp_path / "wide.gguf", "F32")
    kind = {"bfloat16": "BF16", "float16": "F16"}[dtype]
    with llm.Model(tmp_path / "same.gguf") as same, llm.Model(tmp_path / "wide.gguf") as wide:
        assert {same.tensors.type_name(name) for name in same.tensors} == {kind, "F32"}
        assert {wide.tensors.type_name(name) for name in wide.tensors} == {"F32"}
        for name in wide.tensors:
            np.testing.assert_array_equal(same.tensors[name], wide.tensors[name])
        embedding = wide.tensors["token_embd.weight"]
        stored = model.model.embed_tokens.weight.detach().float().numpy()
        np.testing.assert_array_equal(embedding, stored)
    assert (
        np.abs(engine_logits(tmp_path / "wide.gguf") - logits_of(tmp_path / "model")).max() < 1e-4
    )


INSTEAD = {
    "Q4_K": ["Q5_0 for Q4_K: 1 tensor whose width is no multiple of 256"],
    "Q4_K_M": ["Q8_0 for Q6_K: 1 tensor whose width is no multiple of 256"],
}


# Two rows of a matrix are not whole super-blocks: Q4_K becomes Q5_0 there, as in llama.cpp.
@pytest.mark.parametrize(
    ("wanted", "embedding", "up", "down"),
    [
        ("Q8_0", "Q8_0", "Q8_0", "Q8_0"),
        ("Q4_0", "Q6_K", "Q4_0", "Q4_0"),
        ("Q4_K", "Q6_K", "Q4_K", "Q5_0"),
        ("Q4_K_M", "Q6_K", "Q4_K", "Q8_0"),
        ("BF16", "BF16", "BF16", "BF16"),
    ],
)
def test_quantized_on_the_way(tmp_path, wanted, embedding, up, down):
    source = write_folder(tmp_path / "model", n_embd=256, n_ff=96)
    convert(source, tmp_path / "wide.gguf")
    notes = convert(source, tmp_path / "small.gguf", wanted)
    assert [n for n in notes if "width" in n] == INSTEAD.get(wanted, [])
    with llm.Model(tmp_path / "wide.gguf") as wide, llm.Model(tmp_path / "small.gguf") as small:
        kinds = {"token_embd": embedding, "blk.0.ffn_up": up, "blk.0.ffn_down": down}
        for name in (f"{part}.weight" for part in kinds):
            assert small.tensors.type_name(name) == kinds[name.removesuffix(".weight")]
            expected = quantize(small.tensors.type_name(name), wide.tensors[name])
            assert bytes(small.tensors.raw(name)) == expected.tobytes()
        assert small.tensors.type_name("output_norm.weight") == "F32"


# ---- tokenizers ----


def vocabulary_of(folder, n_vocab: int, path) -> Tokenizer:
    entries, _ = tokenizer_entries(folder, n_vocab)
    write_parameter_file(path, entries, [])
    return Tokenizer.open(path)


@pytest.mark.peer
@pytest.mark.parametrize("name", sorted({pre for _, _, pre in FAMILIES.values()} | {"split gpt-2"}))
def test_byte_level_ids(tmp_path, name):
    peers = pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    save_tokenizer(tmp_path, name)
    ours = vocabulary_of(tmp_path, 520, tmp_path / "v.gguf")
    peer = peers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in [*NASTY, ENGLISH[:50_000], MIXED]:
        text = unicodedata.normalize("NFC", text) if name == "qwen2" else text
        expected = peer.encode(text, add_special_tokens=False).ids
        assert ours.encode(text, parse_special=True) == expected, text[:60]
    assert (ours.bos, ours.eos, ours.n_vocab) == (500, 501, 520)
    assert ours.add_bos == (peer.encode("a").ids[0] == 500) == (name == "llama-bpe")
    kinds = [ours.token_type(id) for id in (0, 500, 502, 503, 504, 519)]
    assert kinds == [1, 3, 3, 4, 5, 5]  # normal, control, user-defined, unused


def learned_sentencepiece(**options) -> bytes:
    peer = pytest.importorskip("sentencepiece", reason="sentencepiece is not installed")
    out = io.BytesIO()
    peer.SentencePieceTrainer.train(
        sentence_iterator=iter(ENGLISH.splitlines()[:2000]),
        model_writer=out,
        model_type="bpe",
        vocab_size=1000,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        byte_fallback=True,
        minloglevel=2,
        **options,
    )
    return out.getvalue()


@pytest.mark.peer
@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_ids(tmp_path, prefix):
    raw = learned_sentencepiece(add_dummy_prefix=prefix, user_defined_symbols=USER)
    peer = __import__("sentencepiece").SentencePieceProcessor(model_proto=raw)
    (tmp_path / "tokenizer.model").write_bytes(raw)
    added = {"1000": {"content": "<|im_end|>", "special": True}, "1001": {"content": "<more>"}}
    settings = {"added_tokens_decoder": added, "bos_token": "<s>", "eos_token": "</s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    ours = vocabulary_of(tmp_path, 1010, tmp_path / "v.gguf")
    for text in [*NASTY_SPM, ENGLISH[:50_000]]:
        assert ours.encode(text) == peer.encode(text), text[:60]
    assert (ours.bos, ours.eos, ours.add_bos, ours.adds_space) == (1, 2, True, prefix)
    assert ours.encode("a<more>")[-1] == 1001 and ours.find("<|im_end|>") == 1000
    assert ours.is_eog(1000) and [ours.token_type(id) for id in (1000, 1001, 1002)] == [3, 4, 5]


# ---- memory ----


def test_memory_is_for_pieces_not_tensors(tmp_path):
    """Three tensors of 34 million weights each, 134 MB in float32."""
    source = write_folder(tmp_path / "model", n_embd=1024, n_ff=1 << 15, dtype="BF16")
    tracemalloc.start()
    try:
        convert(source, tmp_path / "out.gguf", "F16")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 100e6
    with llm.Model(tmp_path / "out.gguf") as model:
        assert model.tensors.type_name("blk.0.ffn_down.weight") == "F16"


# getrusage would count the process before exec.
PEAK = """
import sys
from llm.cli import main
code = main(sys.argv[1:])
print(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
raise SystemExit(code)
"""


@pytest.mark.parametrize("type_name", ["BF16", "Q4_0"])
def test_a_model_passes_through_memory_tensor_by_tensor(tmp_path, type_name):
    """225 million weights, 450 MB as they are stored; the largest tensor has 34 MB in float32."""
    shape, n_layer = {"n_embd": 1024, "n_ff": 1 << 13, "dtype": "BF16"}, 8
    source = write_folder(tmp_path / "model", {"num_hidden_layers": n_layer}, **shape)
    tensors = tensors_of(**shape)
    layers = [
        tensor._replace(name=tensor.name.replace(".0.", f".{layer}."))
        for layer in range(1, n_layer)
        for tensor in tensors
        if ".0." in tensor.name
    ]
    write_safetensors(source / "model.safetensors", tensors + layers)
    assert (source / "model.safetensors").stat().st_size > 450e6
    arguments = ["convert", str(source), str(tmp_path / "m.gguf"), "--type", type_name]
    command = [sys.executable, "-c", PEAK, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    shutil.rmtree(source)
    assert int(done.stdout) << 10 < (4 << 23) + (256 << 20)
    with llm.Model(tmp_path / "m.gguf") as model:
        assert model.n_params > 225e6
    (tmp_path / "m.gguf").unlink()
