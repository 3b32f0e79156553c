"""Real weights in no time: Karpathy's stories260K, a llama2.c checkpoint with a SentencePiece
vocabulary, converted to a parameter file here, tells the 256 tokens that llama2.c documents."""

import json
import struct
from collections.abc import Iterator

import numpy as np
import pytest

import llm
from llm.parameter_file import Entry, TensorData, ValueType, write_parameter_file

U32, F32, STRING = ValueType.UINT32, ValueType.FLOAT32, ValueType.STRING


def llama2c_tensors(raw: bytes) -> Iterator[TensorData]:
    """The tensors of a v0 checkpoint, each stacked over the layers there, one per layer here."""
    C, F, L, H, K, V, _ = struct.unpack_from("<7i", raw)
    kv, at = C // H * K, 28

    def take(*shape: int) -> np.ndarray:
        nonlocal at
        part = np.frombuffer(raw, "<f4", int(np.prod(shape)), at).reshape(shape)
        at += part.nbytes
        return part

    yield TensorData("token_embd.weight", (V, C), "F32", take(V, C))
    stacks = {
        "attn_norm": (C,),
        "attn_q": (C, C),
        "attn_k": (kv, C),
        "attn_v": (kv, C),
        "attn_output": (C, C),
        "ffn_norm": (C,),
        "ffn_gate": (F, C),
        "ffn_down": (C, F),
        "ffn_up": (F, C),
    }
    for name, shape in stacks.items():
        for layer, part in enumerate(take(L, *shape)):
            yield TensorData(f"blk.{layer}.{name}.weight", shape, "F32", part)
    yield TensorData("output_norm.weight", (C,), "F32", take(C))


def llama2c_tokens(raw: bytes, n_vocab: int) -> tuple[list[str], list[float]]:
    """Spellings as SentencePiece has them, a mark for a space, and scores."""
    pieces, scores, at = [], [], 4
    for _ in range(n_vocab):
        score, n = struct.unpack_from("<fi", raw, at)
        pieces.append(raw[at + 8 : at + 8 + n].decode().replace(" ", "\u2581"))
        scores.append(score)
        at += 8 + n
    return ["<unk>", "<s>", "</s>", *pieces[3:]], scores


def convert(checkpoint: bytes, vocabulary: bytes, path) -> None:
    C, F, L, H, K, V, n_ctx = struct.unpack_from("<7i", checkpoint)
    pieces, scores = llama2c_tokens(vocabulary, V)
    normal, unknown, control, byte = 1, 2, 3, 6
    types = [unknown, control, control] + [byte] * 256 + [normal] * (V - 259)
    numbers = {
        "llama.context_length": n_ctx,
        "llama.embedding_length": C,
        "llama.block_count": L,
        "llama.feed_forward_length": F,
        "llama.attention.head_count": H,
        "llama.attention.head_count_kv": K,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }
    metadata = [
        Entry("general.architecture", "llama", STRING),
        *(Entry(key, value, U32) for key, value in numbers.items()),
        Entry("llama.attention.layer_norm_rms_epsilon", 1e-5, F32),
        Entry("tokenizer.ggml.model", "llama", STRING),
        Entry("tokenizer.ggml.tokens", pieces, ValueType.ARRAY, STRING),
        Entry("tokenizer.ggml.scores", scores, ValueType.ARRAY, F32),
        Entry("tokenizer.ggml.token_type", types, ValueType.ARRAY, ValueType.INT32),
    ]
    write_parameter_file(path, metadata, llama2c_tensors(checkpoint))


@pytest.fixture(scope="module")
def stories(test_data, tmp_path_factory):
    path = tmp_path_factory.mktemp("stories") / "stories260K.gguf"
    files = test_data / "stories260K.bin", test_data / "tok512.bin"
    if not all(file.exists() for file in files):
        pytest.skip("LLM_TEST_DATA has no stories260K.bin and tok512.bin")
    convert(*(file.read_bytes() for file in files), path)
    return path


@pytest.mark.parametrize("kv_type", ["f32", "f16"])
def test_the_documented_story(stories, test_data, kv_type):
    golden = json.loads((test_data / "stories260K.golden.json").read_text(encoding="utf-8"))
    with llm.Model(stories, kv_type=kv_type) as model:
        assert model.tokenize("") == [golden["bos"]]
        steps = list(model.steps([golden["bos"]], max_tokens=256, temperature=0))
        assert [step.id for step in steps if step.id is not None] == golden["ids"]
        # llama2.c drops the space of a first word
        assert b"".join(step.text for step in steps).decode() == " " + golden["text"]
