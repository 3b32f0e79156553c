"""What does not convert: each fault of a folder or a checkpoint is one clear line, and nothing is
written. The folders are made here, without peers. Past 500 lines: most of
it is the list of faults, a few lines each, over one set of helpers."""

import copy
import errno
import json
import os
import random
import resource
import shutil
import struct

import numpy as np
import pytest

import llm
from llm.cli import main
from llm.convert import convert
from llm.parameter_file import byte_alphabet
from llm.safetensors_file import NewTensor, read_header, write_safetensors

CONFIG = {
    "model_type": "llama",
    "vocab_size": 260,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 32,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
}
TOKENIZER = {
    "model": {
        "type": "BPE",
        "vocab": {token: id for id, token in enumerate([*byte_alphabet(), "th", "the"])},
        "merges": ["t h", "th e"],
    },
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
    "added_tokens": [{"id": 258, "content": "<|endoftext|>", "special": True}],
}
ITEMS = {"F32": np.dtype("<f4"), "BF16": np.dtype("<u2"), "F64": np.dtype("<f8")}


def tensors_of(n_embd: int = 16, n_ff: int = 24, dtype: str = "F32") -> list[NewTensor]:
    """Random weights of CONFIG, zeros in large tensors."""
    rng = np.random.default_rng(4)
    layer = "model.layers.0."
    shapes = {
        "model.embed_tokens": (260, n_embd),
        layer + "input_layernorm": (n_embd,),
        layer + "self_attn.q_proj": (n_embd, n_embd),
        layer + "self_attn.k_proj": (n_embd // 2, n_embd),
        layer + "self_attn.v_proj": (n_embd // 2, n_embd),
        layer + "self_attn.o_proj": (n_embd, n_embd),
        layer + "post_attention_layernorm": (n_embd,),
        layer + "mlp.gate_proj": (n_ff, n_embd),
        layer + "mlp.up_proj": (n_ff, n_embd),
        layer + "mlp.down_proj": (n_embd, n_ff),
        "model.norm": (n_embd,),
    }
    return [
        NewTensor(f"{name}.weight", dtype, shape, [values(rng, shape, dtype)])
        for name, shape in shapes.items()
    ]


def values(rng, shape, dtype: str) -> np.ndarray:
    if np.prod(shape) > 1 << 20:
        return np.zeros(shape, ITEMS[dtype])
    floats = rng.standard_normal(shape, np.float32)
    if dtype == "BF16":
        return (floats.view(np.uint32) >> 16).astype("<u2")
    return floats.astype(ITEMS[dtype])


def write_folder(folder, config=(), tokenizer=TOKENIZER, **shape):
    """A folder that converts; the arguments change it."""
    folder.mkdir()
    sizes = {"hidden_size": shape.get("n_embd", 16), "intermediate_size": shape.get("n_ff", 24)}
    write_json(folder / "config.json", CONFIG | sizes | dict(config))
    write_json(folder / "tokenizer.json", tokenizer)
    write_json(folder / "tokenizer_config.json", {"eos_token": "<|endoftext|>"})
    write_safetensors(folder / "model.safetensors", tensors_of(**shape))
    return folder


def write_json(path, value) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "model")


def refused(folder, out, capsys, *fragments: str) -> str:
    """The one line that the command says; nothing was written."""
    capsys.readouterr()
    assert main(["convert", str(folder), str(out)]) == 1
    said = capsys.readouterr().err
    assert said.startswith("llm: ") and said.count("\n") == 1, said
    for fragment in fragments:
        assert fragment in said
    assert not out.exists()
    assert not list(out.parent.glob("*.tmp"))
    return said


def test_folders_of_out_are_made(folder, tmp_path):
    out = tmp_path / "new" / "folder" / "out.gguf"
    assert main(["convert", str(folder), str(out)]) == 0
    assert out.is_file()


def test_the_folder_itself_converts(folder, tmp_path):
    assert main(["convert", str(folder), str(tmp_path / "m.gguf"), "--type", "BF16"]) == 0
    with llm.Model(tmp_path / "m.gguf") as model:
        assert model.tensors.type_name("token_embd.weight") == "BF16"
        assert model.metadata["general.name"] == "model"
        assert model.tokenize("the<|endoftext|>", special=True) == [257, 258]
        assert not model.verify()["has_proof"] and model.verify()["has_hash"]


# ---- config.json ----

BAD_CONFIGS = {
    "another family": ({"model_type": "mixtral"}, "model_type is 'mixtral'"),
    "unknown key": ({"use_moon_phase": True}, "key use_moon_phase is not one"),
    "activation": ({"hidden_act": "relu"}, "hidden_act is 'relu'"),
    "code of its own": ({"auto_map": {"AutoModel": "x.Y"}}, "auto_map is"),
    "quantized there": ({"quantization_config": {"bits": 4}}, "quantization_config is"),
    "yarn": ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rope_type 'yarn'"),
    "two kinds": (
        {"rope_scaling": {"rope_type": "linear", "type": "dynamic", "factor": 2.0}},
        "rope_type 'linear' and type 'dynamic'",
    ),
    "two thetas": (
        {"rope_theta": 5e5, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
        "rope_theta is 500000.0 and 10000.0",
    ),
    "two scalings": (
        {"rope_scaling": {"rope_type": "default"}, "rope_parameters": {"rope_type": "linear"}},
        "contradict each other",
    ),
    "no factor": ({"rope_scaling": {"rope_type": "linear"}}, "factor is None"),
    "unknown rope key": (
        {"rope_scaling": {"rope_type": "linear", "factor": 2.0, "beta": 1}},
        "key beta is not one",
    ),
    "llama3 in qwen2": (
        {"model_type": "qwen2", "rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
        "rope_type 'llama3' does not run in a qwen2",
    ),
    "partly turned": ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    "a layer type": ({"layer_types": ["chunked_attention"]}, "layer_types"),
    "a window of none": ({"layer_types": ["sliding_attention"]}, "sliding_window is missing"),
    "heads": ({"num_key_value_heads": 3}, "2 heads cannot share 3"),
    "odd heads": ({"head_dim": 7}, "head_dim 7 is odd"),
    "not a multiple": ({"num_attention_heads": 3}, "not a multiple of 3"),
    "a size": ({"hidden_size": -16}, "hidden_size is -16"),
    "many layers": ({"num_hidden_layers": 1 << 30}, "num_hidden_layers is 1073741824"),
    "a huge size": ({"vocab_size": 1 << 31}, "vocab_size is 2147483648"),
    "a bool": ({"num_hidden_layers": True}, "num_hidden_layers is True"),
    "a number": ({"rms_norm_eps": "1e-5"}, "rms_norm_eps is '1e-5'"),
    "missing": ({"vocab_size": None}, "vocab_size is None"),
    "a flag": ({"tie_word_embeddings": "yes"}, "tie_word_embeddings is 'yes'"),
    "biases": ({"model_type": "qwen3", "attention_bias": True}, "attention_bias is true"),
    "gemma's scale": (
        {"model_type": "gemma3_text", "hidden_act": None, "query_pre_attn_scalar": 100},
        "query_pre_attn_scalar is 100",
    ),
    "capped logits": (
        {"model_type": "gemma3_text", "query_pre_attn_scalar": 8, "final_logit_softcapping": 30.0},
        "final_logit_softcapping",
    ),
    "other rows": ({"vocab_size": 261}, "shape [260, 16], expected [261, 16]"),
}


@pytest.mark.parametrize("name", BAD_CONFIGS)
def test_a_bad_config(tmp_path, capsys, name):
    changes, fragment = BAD_CONFIGS[name]
    source = write_folder(tmp_path / "model", changes)
    refused(source, tmp_path / "out.gguf", capsys, fragment)


@pytest.mark.parametrize(
    "text", ["", "[1]", "{", '{"a": 1, "a": 2}', "\xff", "[" * 100_000, '{"a": ' + "9" * 5000 + "}"]
)
def test_a_config_that_is_no_object(folder, tmp_path, capsys, text):
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    refused(folder, tmp_path / "out.gguf", capsys, "config.json: ")


def test_a_context_ends_at_the_window(tmp_path, capsys):
    """Within it every layer sees all, so the result is exact."""
    changes = {"model_type": "mistral", "sliding_window": 8}
    source = write_folder(tmp_path / "model", changes)
    assert main(["convert", str(source), str(tmp_path / "m.gguf")]) == 0
    assert "layers see 8 positions only" in capsys.readouterr().err
    with llm.Model(tmp_path / "m.gguf") as model:
        assert model.config.n_ctx_train == 8


# ---- tensors ----


def change_tensors(folder, change) -> None:
    tensors = {tensor.name: tensor for tensor in tensors_of()}
    change(tensors)
    write_safetensors(folder / "model.safetensors", list(tensors.values()))


def test_a_missing_tensor(folder, tmp_path, capsys):
    change_tensors(folder, lambda t: t.pop("model.layers.0.mlp.up_proj.weight"))
    refused(folder, tmp_path / "o", capsys, "tensor model.layers.0.mlp.up_proj.weight is missing")


def test_no_output_where_it_is_not_tied(tmp_path, capsys):
    source = write_folder(tmp_path / "model", {"tie_word_embeddings": False})
    refused(source, tmp_path / "o", capsys, "tensor lm_head.weight is missing")


@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj.weight", "score.weight", "x.bias"])
def test_a_surplus_tensor(folder, tmp_path, capsys, name):
    new = NewTensor(name, "F32", (2,), [np.zeros(2, "<f4")])
    change_tensors(folder, lambda t: t.update({name: new}))
    refused(folder, tmp_path / "o", capsys, f"tensor {name} has no place")


@pytest.mark.parametrize("kind", ["F64", "I8", "F8_E4M3", "Q9"])
def test_a_dtype_of_a_vector(folder, tmp_path, capsys, kind):
    raw = (folder / "model.safetensors").read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + length])
    entry = header["model.norm.weight"]
    size = {"F64": 128}.get(kind, 16)
    entry["dtype"], entry["data_offsets"][1] = kind, entry["data_offsets"][0] + size
    rest = raw[8 + length :][: entry["data_offsets"][0]] + bytes(size)
    write_raw(folder, header, rest)
    refused(folder, tmp_path / "o", capsys, f"tensor model.norm.weight has dtype {kind}")


def test_a_dtype_of_every_tensor(folder, tmp_path, capsys):
    write_safetensors(folder / "model.safetensors", tensors_of(dtype="F64"))
    refused(folder, tmp_path / "o", capsys, "tensor model.embed_tokens.weight has dtype F64")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_a_folder_of_pickles(folder, tmp_path, capsys, name):
    os.rename(folder / "model.safetensors", folder / name)
    refused(folder, tmp_path / "o", capsys, name, "a pickle", "never loaded", "safetensors")


PICKLE_STARTS = [b"PK\x03\x04\x14\0\0\0\x08\x08", b"\x80\x02}q\0(X\x05"]


@pytest.mark.parametrize("start", PICKLE_STARTS)
def test_a_pickle(tmp_path, capsys, start):
    (tmp_path / "model.bin").write_bytes(start + bytes(100))
    refused(tmp_path / "model.bin", tmp_path / "o", capsys, "a pickle")


@pytest.mark.parametrize("start", PICKLE_STARTS)
def test_a_pickle_under_another_name(folder, tmp_path, capsys, start):
    (folder / "model.safetensors").write_bytes(start + bytes(100))
    refused(folder, tmp_path / "o", capsys, "model.safetensors: a pickle", "never loaded")


def test_a_header_that_begins_like_a_pickle(tmp_path):
    """A length of 0x280, 0x480 ...: its first byte is that of a pickle."""
    source = write_folder(tmp_path / "model")
    path = source / "model.safetensors"
    raw = path.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    longer = -(-length // 256) * 256 + 128
    text = raw[8 : 8 + length] + b" " * (longer - length)
    path.write_bytes(struct.pack("<Q", longer) + text + raw[8 + length :])
    convert(source, tmp_path / "m.gguf")


def test_no_weights_at_all(folder, tmp_path, capsys):
    (folder / "model.safetensors").unlink()
    refused(folder, tmp_path / "o", capsys, "neither model.safetensors nor")
    (folder / "config.json").unlink()
    refused(folder, tmp_path / "o", capsys, "config.json is missing")
    shutil.rmtree(folder)
    refused(folder, tmp_path / "o", capsys, "No such file or directory")


# ---- hostile safetensors ----


def write_raw(folder, header, data: bytes) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)


def entry(dtype="F32", shape=(2,), span=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(span)}


BAD_HEADERS = {
    "not JSON": (b"{]", 0, "not JSON"),
    "a list": (b"[]", 0, "expected a JSON object"),
    "deep": (b"[" * 200_000, 0, "not JSON"),
    "twice": (b'{"a": {}, "a": {}}', 0, "a name appears twice"),
    "no entry": ({"a": 3}, 0, "expected dtype, shape and data_offsets"),
    "no offsets": ({"a": {"dtype": "F32", "shape": [2]}}, 8, "expected dtype, shape"),
    "negative": ({"a": entry(span=(-8, 0))}, 8, "expected dtype, shape"),
    "a float": ({"a": entry(shape=(2.0,))}, 8, "expected dtype, shape"),
    "65 bits": ({"a": entry(shape=(1 << 64,), span=(0, 1 << 66))}, 8, "expected dtype, shape"),
    "overflow": ({"a": entry(shape=(1 << 62, 4), span=(0, 0))}, 0, "takes 0 bytes"),
    "overlap": ({"a": entry(), "b": entry(span=(4, 12))}, 12, "tensor b at byte", "overlaps"),
    "gap": ({"a": entry(), "b": entry(span=(12, 20))}, 20, "leaves a gap"),
    "too short": ({"a": entry(shape=(4,), span=(0, 16))}, 8, "the tensors end at byte"),
    "too long": ({"a": entry()}, 9, "the tensors end at byte"),
    "many dimensions": ({"a": entry(shape=(1,) * 9 + (2,))}, 8, "expected dtype, shape"),
}


@pytest.mark.parametrize("name", BAD_HEADERS)
def test_a_hostile_header(folder, tmp_path, capsys, name):
    header, n_bytes, *fragments = BAD_HEADERS[name]
    write_raw(folder, header, bytes(n_bytes))
    refused(folder, tmp_path / "o", capsys, "model.safetensors", *fragments)


@pytest.mark.parametrize("length", [0, 1, 1 << 20, 1 << 63, (1 << 64) - 1])
def test_a_hostile_header_length(folder, tmp_path, capsys, length):
    raw = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", length) + raw[8:])
    refused(folder, tmp_path / "o", capsys, f"a header of {length} bytes")


@pytest.mark.parametrize("keep", [0, 7, 8, 100, 2000, -1])
def test_a_truncated_file(folder, tmp_path, capsys, keep):
    raw = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(raw[:keep])
    refused(folder, tmp_path / "o", capsys, "model.safetensors")


# ---- shards ----


@pytest.fixture
def shards(folder):
    """The same folder in two shards."""
    tensors, index = tensors_of(), {}
    for part, some in (("a", tensors[:5]), ("b", tensors[5:])):
        write_safetensors(folder / f"{part}.safetensors", some)
        index |= {tensor.name: f"{part}.safetensors" for tensor in some}
    (folder / "model.safetensors").unlink()
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": index})
    return folder


def change_index(folder, change) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index["weight_map"])
    write_json(path, index)


def test_shards_convert(shards, tmp_path):
    convert(shards, tmp_path / "shards.gguf")
    (tmp_path / "whole").mkdir()
    convert(write_folder(tmp_path / "whole" / "model"), tmp_path / "whole.gguf")
    assert (tmp_path / "shards.gguf").read_bytes() == (tmp_path / "whole.gguf").read_bytes()


def test_bad_shards(shards, tmp_path, capsys):
    out, name = tmp_path / "o", "model.norm.weight"

    def with_index(value, *fragments):
        path = shards / "model.safetensors.index.json"
        before = path.read_text()
        change_index(shards, lambda m: m.pop(name) if value is None else m.update({name: value}))
        refused(shards, out, capsys, *fragments)
        path.write_text(before)

    with_index("c.safetensors", "the shard c.safetensors is missing")
    with_index("a.safetensors", f"tensor {name} is not in its shard a.safetensors")
    with_index("../b.safetensors", "expected a file name")
    with_index(str(shards / "b.safetensors"), "expected a file name")
    with_index(7, "expected a file name")
    (shards / "p.bin").write_bytes(PICKLE_STARTS[0] + bytes(100))
    with_index("p.bin", "p.bin: a pickle")
    with_index(None, f"tensor {name} of b.safetensors is not in the index")
    (shards / "b.safetensors").unlink()
    refused(shards, out, capsys, "the shard b.safetensors is missing")
    write_json(shards / "model.safetensors.index.json", {"metadata": {}})
    refused(shards, out, capsys, "weight_map is missing")


# ---- tokenizers ----


def changed_tokenizer(**changes) -> dict:
    return TOKENIZER | changes


def model_with(**changes) -> dict:
    return changed_tokenizer(model=TOKENIZER["model"] | changes)


def split(regex: str) -> dict:
    steps = [{"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated"}]
    steps.append({"type": "ByteLevel", "add_prefix_space": False, "use_regex": False})
    return {"type": "Sequence", "pretokenizers": steps}


BYTE_LEVEL = TOKENIZER["pre_tokenizer"]
BAD_TOKENIZERS = {
    "another kind": (model_with(type="Unigram"), "a Unigram tokenizer"),
    "no vocabulary": (model_with(vocab=None), "model.vocab is missing"),
    "a suffix": (model_with(end_of_word_suffix="</w>"), "end_of_word_suffix is '</w>'"),
    "a regex": (changed_tokenizer(pre_tokenizer=split(r"\d+|\D+")), r"'\\d+|\\D+'"),
    "ignore_merges": (model_with(ignore_merges=True), "with ignore_merges true"),
    "a prefix": (
        changed_tokenizer(pre_tokenizer=BYTE_LEVEL | {"add_prefix_space": True}),
        "'add_prefix_space': True",
    ),
    "a normalizer": (changed_tokenizer(normalizer={"type": "NFKC"}), "normalizer 'NFKC'"),
    "a post-processor": (
        changed_tokenizer(post_processor={"type": "RobertaProcessing"}),
        "post-processor 'RobertaProcessing'",
    ),
    "a template": (
        changed_tokenizer(
            post_processor={
                "type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "<|endoftext|>"}}] * 2
                + [{"Sequence": {"id": "A"}}],
            }
        ),
        "not a BOS and an EOS",
    ),
    "a merge": (model_with(merges=["t h e"]), "merge 0 is 't h e'"),
    "a merge of no token": (model_with(merges=["x y"]), "tokenizer", "makes no token"),
    "the same id": (model_with(vocab=TOKENIZER["model"]["vocab"] | {"x!": 7}), "both have id 7"),
    "an id": (model_with(vocab=TOKENIZER["model"]["vocab"] | {"x!": 1 << 40}), "has id"),
    "more than rows": (model_with(vocab=TOKENIZER["model"]["vocab"] | {"x!": 300}), "260 rows"),
    "an added token": (changed_tokenizer(added_tokens=[{"id": 258}]), "258 has no content"),
    "an eos of none": (changed_tokenizer(added_tokens=[]), "eos_token is '<|endoftext|>'"),
}


@pytest.mark.parametrize("name", BAD_TOKENIZERS)
def test_a_bad_tokenizer(tmp_path, capsys, name):
    tokenizer, *fragments = BAD_TOKENIZERS[name]
    source = write_folder(tmp_path / "model", tokenizer=tokenizer)
    refused(source, tmp_path / "out.gguf", capsys, *fragments)


def test_no_tokenizer(folder, tmp_path, capsys):
    (folder / "tokenizer.json").unlink()
    refused(folder, tmp_path / "o", capsys, "neither tokenizer.json nor tokenizer.model")


@pytest.mark.parametrize("raw", [b"", b"\x0a", b"\x0a\xff\xff\xff\xff\x0f", b"\xff" * 20, b"hello"])
def test_a_bad_sentencepiece_model(folder, tmp_path, capsys, raw):
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_bytes(raw)
    refused(folder, tmp_path / "o", capsys, "tokenizer.model: not a SentencePiece model")


# ---- llama2.c ----


def checkpoint(*sizes: int, n_floats: int) -> bytes:
    return struct.pack("<7i", *sizes) + bytes(4 * n_floats)


BAD_CHECKPOINTS = {
    "empty": (b"", "0 bytes, too short"),
    "sizes": (checkpoint(8, 8, 1, 3, 1, 259, 8, n_floats=0), "whose sizes these would be"),
    "zero": (checkpoint(8, 8, 0, 2, 1, 259, 8, n_floats=0), "whose sizes these would be"),
    "too short": (checkpoint(8, 8, 1, 2, 1, 259, 8, n_floats=10), "its sizes need"),
    "huge": (checkpoint(*[1 << 30] * 3, 1 << 10, 1, 259, 8, n_floats=10), "its sizes need"),
    "version 1": (struct.pack("<Ii", 0x616B3432, 1) + bytes(300), "llama2.c version 1"),
}


@pytest.mark.parametrize("name", BAD_CHECKPOINTS)
def test_a_bad_checkpoint(tmp_path, capsys, name):
    raw, fragment = BAD_CHECKPOINTS[name]
    (tmp_path / "m.bin").write_bytes(raw)
    refused(tmp_path / "m.bin", tmp_path / "out", capsys, fragment)


# ---- the output ----


def test_the_output_is_a_file_of_the_input(folder, tmp_path, capsys):
    before = (folder / "model.safetensors").read_bytes()
    link, hard = tmp_path / "link.gguf", tmp_path / "hard.gguf"
    link.symlink_to(folder / "model.safetensors")
    hard.hardlink_to(folder / "model.safetensors")
    for out in (folder / "model.safetensors", folder / "config.json", link, hard):
        assert main(["convert", str(folder), str(out)]) == 1
        assert "the output is a file of the input" in capsys.readouterr().err
    assert main(["convert", str(folder), str(folder)]) == 1
    assert "Is a directory" in capsys.readouterr().err
    assert (folder / "model.safetensors").read_bytes() == before


def test_the_output_is_a_file_of_a_checkpoint(tmp_path, capsys):
    for name in ("m.bin", "tokenizer.bin", "other.bin"):
        (tmp_path / name).write_bytes(b"stays")
    source, other = str(tmp_path / "m.bin"), str(tmp_path / "other.bin")
    for out, *more in (
        (source,),
        (str(tmp_path / "tokenizer.bin"),),
        (other, "--tokenizer", other),
    ):
        assert main(["convert", source, out, *more]) == 1
        assert "the output is a file of the input" in capsys.readouterr().err
        assert (tmp_path / out).read_bytes() == b"stays"


def test_a_type_that_is_not_written(folder, tmp_path, capsys):
    assert main(["convert", str(folder), str(tmp_path / "o"), "--type", "Q9_9"]) == 1
    assert "type 'Q9_9'" in capsys.readouterr().err and not (tmp_path / "o").exists()


def test_a_weight_that_half_precision_cannot_hold(folder, tmp_path, capsys):
    def large(tensors):
        name = "model.layers.0.mlp.up_proj.weight"
        tensors[name] = tensors[name]._replace(pieces=[np.full((24, 16), 1e5, "<f4")])

    change_tensors(folder, large)
    assert main(["convert", str(folder), str(tmp_path / "o"), "--type", "F16"]) == 1
    assert "a weight over 65504 does not fit F16" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_a_full_disk(folder, tmp_path, capsys):
    out = tmp_path / "out.gguf"
    out.write_bytes(b"GGUF, old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))  # a write past it fails
    try:
        assert main(["convert", str(folder), str(out)]) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert f"{out}: {os.strerror(errno.EFBIG)}" in capsys.readouterr().err
    assert out.read_bytes() == b"GGUF, old" and not list(tmp_path.glob("*.tmp"))


def test_written_headers_are_read_back(folder):
    found = read_header(folder / "model.safetensors")
    for tensor in tensors_of():
        stored = found[tensor.name]
        assert stored.shape == tensor.shape
        np.testing.assert_array_equal(
            np.concatenate(list(stored.pieces())).reshape(tensor.shape), tensor.pieces[0]
        )


# ---- any value anywhere ----

ODD = [None, True, 0, -1, 3.5, 1e308, float("nan"), "", "x", "\ud800", [], {}, [None], [[1]]]
ODD += [{"a": 1}, 2**40, 10**30, "default", "linear", "llama3"]
SEQUENCES = {
    "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}]},
    "post_processor": {
        "type": "Sequence",
        "processors": [
            {"type": "ByteLevel"},
            {
                "type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "<|endoftext|>"}}, {"Sequence": {"id": "A"}}],
            },
        ],
    },
}
SCALING = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0)
SCALING["original_max_position_embeddings"] = 16
FILES = {
    "config.json": {
        "rope_scaling": SCALING,
        "layer_types": ["full_attention"],
        "eos_token_id": [1],
    },
    "tokenizer.json": TOKENIZER | SEQUENCES,
    "tokenizer_config.json": {
        "eos_token": {"content": "<|endoftext|>"},
        "added_tokens_decoder": {"258": {"content": "<|endoftext|>"}},
        "chat_template": [{"name": "default", "template": "x"}],
    },
}


def places(value, place=()):
    """The way to every part of a JSON value, the first forty of an object."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, part in list(items)[:40]:
        yield (*place, key)
        if isinstance(part, dict | list):
            yield from places(part, (*place, key))


@pytest.mark.parametrize("name", FILES)
def test_odd_values_convert_or_are_refused(folder, tmp_path, name):
    base = CONFIG | FILES[name] if name == "config.json" else FILES[name]
    write_json(folder / name, base)
    convert(folder, tmp_path / "m.gguf")
    rng, ways = random.Random(11), list(places(base))
    for _ in range(80):
        changed = copy.deepcopy(base)
        *way, last = rng.choice(ways)
        part = changed
        for key in way:
            part = part[key]
        part[last] = rng.choice(ODD)
        write_json(folder / name, changed)
        try:
            convert(folder, tmp_path / "m.gguf")
        except (llm.LlmError, ValueError) as error:
            assert "\n" not in str(error)
