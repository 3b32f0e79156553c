"""Makes the seed corpus of fuzz_gguf.c: small parameter files that exercise every branch of the
reader. Run from the repository: python -m tests.fuzz.make_gguf_seeds"""

from pathlib import Path

import numpy as np

from llm.config import ModelConfig, layout
from llm.parameter_file import (
    Entry,
    TensorData,
    ValueType,
    Vocabulary,
    write_parameter_file,
)

FOLDER = Path(__file__).parent / "corpus" / "gguf"
BYTES_EACH = {"F32": 4, "Q4_1": 20 / 32}


def every_value() -> list[Entry]:
    numbers = [t for t in ValueType if t not in (ValueType.STRING, ValueType.ARRAY)]
    scalars = [Entry(f"one.{t.name.lower()}", 1, t) for t in numbers]
    arrays = [Entry(f"many.{t.name.lower()}", [0, 1], ValueType.ARRAY, t) for t in numbers]
    strings = [
        Entry("one.string", "text", ValueType.STRING),
        Entry("many.string", ["a", "", "bc"], ValueType.ARRAY, ValueType.STRING),
        Entry("many.none", [], ValueType.ARRAY, ValueType.STRING),
    ]
    return scalars + arrays + strings


def tiny_model(matrix_type: str, width: int) -> tuple[list[Entry], list[TensorData]]:
    config = ModelConfig(
        n_vocab=4, n_ctx=8, n_embd=width, n_layer=1, n_head=2, n_kv_head=1, n_ff=width
    )
    vocabulary = Vocabulary([b"a", b"b", b"ab", b"<|end|>"], np.array([[0, 1]]), "gpt-2", eos=3)
    types = {int: ValueType.UINT32, float: ValueType.FLOAT32, str: ValueType.STRING}
    metadata = [Entry(key, value, types[type(value)]) for key, value in config.to_gguf().items()]
    tensors = []
    for entry in layout(config):
        kind = matrix_type if len(entry.shape) == 2 else "F32"
        n_bytes = int(entry.size * BYTES_EACH[kind])
        tensors.append(TensorData(entry.gguf_name, entry.shape, kind, bytes(n_bytes)))
    return metadata + vocabulary.entries(), tensors


def sentencepiece() -> list[Entry]:
    words = ["<unk>", "<s>", "▁", "a", "b", "▁a", "ab", "<|end|>"]
    pieces = words + [f"<0x{byte:02X}>" for byte in range(256)]
    types = [2, 3, 1, 1, 1, 1, 5, 4] + [6] * 256
    scores = [-float(id) for id in range(len(pieces))]
    array = ValueType.ARRAY
    return [
        Entry("tokenizer.ggml.model", "llama", ValueType.STRING),
        Entry("tokenizer.ggml.tokens", pieces, array, ValueType.STRING),
        Entry("tokenizer.ggml.scores", scores, array, ValueType.FLOAT32),
        Entry("tokenizer.ggml.token_type", types, array, ValueType.INT32),
        Entry("tokenizer.ggml.bos_token_id", 1, ValueType.UINT32),
        Entry("tokenizer.ggml.add_space_prefix", True, ValueType.BOOL),
    ]


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    one = TensorData("t", (3, 2), "F32", bytes(24))
    write_parameter_file(FOLDER / "values.gguf", every_value(), [one])
    write_parameter_file(FOLDER / "nothing.gguf", [], [], alignment=32)
    write_parameter_file(FOLDER / "sentencepiece.gguf", sentencepiece(), [])
    write_parameter_file(FOLDER / "model_f32.gguf", *tiny_model("F32", 4))
    write_parameter_file(FOLDER / "model_q4_1.gguf", *tiny_model("Q4_1", 32))


if __name__ == "__main__":
    main()
