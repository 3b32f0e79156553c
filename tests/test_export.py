"""Exported folders: transformers loads them with the same logits, tokenizers and sentencepiece give
the same ids, and converting them again gives the same file. What no folder can say is refused."""

import errno
import json
import os
import resource

import numpy as np
import pytest
from gguf_models import write_model
from hugging_face import FAMILIES, IDS, N_CTX, logits_of, make_folder
from models import TINY, write_trained, write_typed
from test_convert import learned_sentencepiece, vocabulary_of
from test_convert_bad import write_folder
from test_sentencepiece import NASTY_SPM, USER
from test_tokenizer import ENGLISH, NASTY
from vocabulary_files import SpmModel, read_spm, write_spm

import llm
from llm.cli import main
from llm.compare import compare_files
from llm.convert import convert
from llm.export import export
from llm.export_tokenizer import merges_of, write_tokenizer
from llm.tokenizer import Tokenizer

EXACT = 1e-4  # float32 sums in another order


def differences(one, two) -> list[str]:
    """But for the name, which is the folder's, and what a folder cannot hold."""
    ours = ("key general.name", "key two_file.", "key general.alignment")
    return [line for line in compare_files(one, two) if not line.startswith(ours)]


def engine_logits(path, ids=IDS) -> np.ndarray:
    with llm.Model(path, kv_type="f32") as model:
        return model.logits(ids)


@pytest.mark.peer
@pytest.mark.parametrize("name", FAMILIES)
def test_there_and_back(tmp_path, name):
    (tmp_path / "model").mkdir()
    convert(make_folder(name, tmp_path / "model"), tmp_path / "m.gguf")
    export(tmp_path / "m.gguf", tmp_path / "back")
    assert np.abs(engine_logits(tmp_path / "m.gguf") - logits_of(tmp_path / "back")).max() < EXACT
    convert(tmp_path / "back", tmp_path / "back.gguf")
    assert differences(tmp_path / "m.gguf", tmp_path / "back.gguf") == []


@pytest.mark.peer
@pytest.mark.parametrize("name", ["llama", "smollm", "mistral", "gpt2"])
def test_ids_as_transformers(tmp_path, name):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    (tmp_path / "model").mkdir()
    convert(make_folder(name, tmp_path / "model"), tmp_path / "m.gguf")
    export(tmp_path / "m.gguf", tmp_path / "back")
    peer = transformers.AutoTokenizer.from_pretrained(tmp_path / "back")
    with llm.Model(tmp_path / "m.gguf") as model:
        for text in [*NASTY, "<|begin|>x<tool> y<|endoftext|>"]:
            assert model.tokenize(text, special=True) == peer.encode(text), text[:60]
        assert peer.chat_template == model.metadata["tokenizer.chat_template"]
        assert (peer.bos_token_id, peer.eos_token_id) == (500, 501)


# ---- trained here ----


def test_a_trained_model_comes_back(tmp_path):
    write_trained(tmp_path / "m.gguf")
    export(tmp_path / "m.gguf", tmp_path / "folder")
    convert(tmp_path / "folder", tmp_path / "back.gguf")
    with llm.Model(tmp_path / "m.gguf") as one, llm.Model(tmp_path / "back.gguf") as two:
        assert list(one.tensors) == list(two.tensors)
        for name in one.tensors:
            assert bytes(one.tensors.raw(name)) == bytes(two.tensors.raw(name))
        assert one.tokenize("the other<|endoftext|>", True) == two.tokenize(
            "the other<|endoftext|>", True
        )
        assert (one.config, one.tokenizer.eos) == (two.config, two.tokenizer.eos)


@pytest.mark.peer
def test_a_trained_model_in_transformers(tmp_path):
    write_trained(tmp_path / "m.gguf")
    assert main(["export", str(tmp_path / "m.gguf"), str(tmp_path / "folder")]) == 0
    ids = [id % TINY.n_vocab for id in IDS]
    expected = logits_of(tmp_path / "folder", ids)
    assert np.ptp(expected) > 1
    assert np.abs(engine_logits(tmp_path / "m.gguf", ids) - expected).max() < EXACT


@pytest.mark.peer
def test_rounded_weights_become_float32(tmp_path):
    write_typed(tmp_path / "m.gguf", "Q4_0 F16 Q8_0")
    assert export(tmp_path / "m.gguf", tmp_path / "folder") == [
        "Q4_0, Q8_0 became F32, without a change"
    ]
    convert(tmp_path / "folder", tmp_path / "back.gguf")
    with llm.Model(tmp_path / "m.gguf") as one, llm.Model(tmp_path / "back.gguf") as two:
        for name in one.tensors:
            np.testing.assert_array_equal(one.tensors[name], two.tensors[name])
            kept = one.tensors.type_name(name) == "F16"
            assert two.tensors.type_name(name) == ("F16" if kept else "F32")
    ids = [id % TINY.n_vocab for id in IDS]
    expected = logits_of(tmp_path / "folder", ids)
    assert np.abs(engine_logits(tmp_path / "back.gguf", ids) - expected).max() < EXACT


# ---- SentencePiece ----


@pytest.mark.peer
def test_stories_in_transformers(tmp_path, test_data):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    path = tmp_path / "stories.gguf"
    convert(test_data / "stories260K.bin", path, tokenizer=test_data / "tok512.bin")
    export(path, tmp_path / "folder")
    golden = json.loads((test_data / "stories260K.golden.json").read_text(encoding="utf-8"))
    ids = [golden["bos"], *golden["ids"]][:100]
    expected = logits_of(tmp_path / "folder", ids)
    assert expected.argmax(axis=1)[:-1].tolist() == ids[1:]
    assert np.abs(engine_logits(path, ids) - expected).max() < EXACT
    peer = transformers.AutoTokenizer.from_pretrained(tmp_path / "folder")
    assert peer.encode(golden["text"][:200]) == Tokenizer.open(path).encode("<s>", True) + [
        *Tokenizer.open(path).encode(golden["text"][:200])
    ]
    convert(tmp_path / "folder", tmp_path / "back.gguf")
    assert differences(path, tmp_path / "back.gguf") == []


@pytest.mark.peer
@pytest.mark.parametrize("prefix", [True, False])
def test_learned_pieces(tmp_path, prefix):
    """tokenizer.json in tokenizers, tokenizer.model in sentencepiece, and both read again."""
    peers = pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    sentencepiece = pytest.importorskip("sentencepiece", reason="sentencepiece is not installed")
    more = {} if prefix else {"user_defined_symbols": USER}
    raw = learned_sentencepiece(add_dummy_prefix=prefix, **more)
    path = write_spm(tmp_path / "v.gguf", read_spm(raw), bos_token_id=1, eos_token_id=2)
    write_vocabulary(path, read_spm(raw), tmp_path)
    first = sentencepiece.SentencePieceProcessor(model_proto=raw)
    json_file = peers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    written = sentencepiece.SentencePieceProcessor(str(tmp_path / "tokenizer.model"))
    again = vocabulary_of(tmp_path, 1000, tmp_path / "again.gguf")
    (tmp_path / "tokenizer.model").unlink()
    merged = vocabulary_of(tmp_path, 1000, tmp_path / "merged.gguf")
    for text in [*NASTY_SPM, ENGLISH[:50_000]]:
        expected = first.encode(text)
        assert written.encode(text) == again.encode(text) == merged.encode(text) == expected
        if "<s>" not in text:  # which tokenizers takes for the token
            found = json_file.encode(text, add_special_tokens=False).ids
            assert found == expected, text[:60]


def write_vocabulary(path, model: SpmModel, folder) -> None:
    keys = {
        "tokenizer.ggml.tokens": [piece.text for piece in model.pieces],
        "tokenizer.ggml.scores": [piece.score for piece in model.pieces],
    }
    write_tokenizer(folder, keys, Tokenizer.open(path))


@pytest.mark.peer
@pytest.mark.parametrize("name", ["Llama", "Gemma"])
def test_sentencepiece_as_transformers_saves_it(tmp_path, name):
    """transformers 5 holds these as merges."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    pieces = read_spm(learned_sentencepiece(add_dummy_prefix=False)).pieces
    columns = [list(column) for column in zip(*pieces, strict=True)]
    merges = merges_of(columns[0], columns[2], columns[1], [])
    vocabulary = {piece.text: id for id, piece in enumerate(pieces)}
    marks = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<unk>", "mask_token": "<unk>"}
    peer = getattr(transformers, f"{name}Tokenizer")(vocab=vocabulary, merges=merges, **marks)
    peer.save_pretrained(tmp_path)
    ours = vocabulary_of(tmp_path, 1000, tmp_path / "v.gguf")
    assert ours.adds_space == (name == "Llama")
    for text in [*NASTY_SPM, ENGLISH[:50_000]]:
        if name == "Llama" and (text[:1] in (" ", "\u2581") or "<s>" in text):
            continue  # there such a text gets no space of its own, nor what follows a token
        expected = peer.encode(text, add_special_tokens=False)
        assert ours.encode(text, parse_special=True) == expected, text[:60]


def test_merges_of_scores():
    notes = []
    tokens = ["a", "b", "ab", "abb"]
    assert merges_of(tokens, [1] * 4, [0, 0, -2, -1], notes) == [("ab", "b"), ("a", "b")]
    assert notes == []
    merges_of(["a", "b", "ab", "ba"], [1] * 4, [0, 0, -1, -1], notes)
    assert len(notes) == 1 and "1 tokens, 'ba' for one" in notes[0]
    unused = merges_of(["a", "b", "ab", "abb"], [1, 5, 1, 1], [0, 0, -1, -2], [])
    assert unused == [("a", "b"), ("ab", "b")]  # an unused token may be a part
    with pytest.raises(llm.UnsupportedError, match="'ab' is unused but merges"):
        merges_of(["a", "b", "ab"], [1, 1, 5], [0, 0, -1], notes)


# ---- what is refused ----


def refused(path, out, capsys, *fragments: str) -> None:
    assert main(["export", str(path), str(out)]) == 1
    said = capsys.readouterr().err
    assert said.startswith("llm: ") and said.count("\n") == 1, said
    for fragment in fragments:
        assert fragment in said
    assert not list(out.parent.glob("*.tmp"))


@pytest.fixture
def trained(tmp_path):
    write_trained(tmp_path / "m.gguf")
    return tmp_path / "m.gguf"


def test_a_folder_that_is_not_empty(trained, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").touch()
    refused(trained, tmp_path / "out", capsys, "the folder is not empty")
    refused(trained, trained, capsys, "m.gguf: Not a directory")
    refused(tmp_path / "none", tmp_path / "new", capsys, "none: cannot open the file: No such file")
    refused(trained, trained / "x", capsys, "m.gguf/x: Not a directory")
    assert os.listdir(tmp_path / "out") == ["file"] and not (tmp_path / "new").exists()


def test_a_folder_in_folders_that_are_not_there(trained, tmp_path):
    assert main(["export", str(trained), str(tmp_path / "x" / "y")]) == 0
    assert (tmp_path / "x" / "y" / "config.json").exists()
    assert os.listdir(tmp_path / "x") == ["y"]


def test_a_full_disk(trained, tmp_path, capsys):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))  # a write past it fails
    try:
        refused(trained, tmp_path / "out", capsys, f"out: {os.strerror(errno.EFBIG)}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not (tmp_path / "out").exists()


REFUSED = {
    "some biases": (
        "llama",
        {"tensors": {"blk.0.attn_q.bias": np.ones(64, np.float32)}},
        "tensor blk.0.attn_k.bias is missing",
    ),
    "partly turned": ("llama", {"keys": {"rope.dimension_count": 8}}, "turns a part only"),
    "other factors": (
        "llama",
        {"tensors": {"rope_freqs.weight": np.linspace(1, 3, 8, dtype=np.float32)}},
        "rope_freqs.weight is not Llama 3's",
    ),
    "a norm": (
        "gemma3",
        {"tensors": {"output_norm.weight": np.full(48, 1e-9, np.float32)}, "tied": True},
        "output_norm.weight: 1 less is no float32",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_folder_can_say(tmp_path, capsys, name):
    architecture, options, fragment = REFUSED[name]
    write_model(tmp_path / "m.gguf", architecture, **options)
    refused(tmp_path / "m.gguf", tmp_path / "out", capsys, "m.gguf: ", fragment)
    assert not (tmp_path / "out").exists()


def test_a_context_of_any_length_fits(tmp_path):
    """The config's numbers come back, whatever float32 makes of them."""
    source = write_folder(tmp_path / "model", {"rms_norm_eps": 1e-6, "rope_theta": 123456.7})
    convert(source, tmp_path / "m.gguf")
    export(tmp_path / "m.gguf", tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["rms_norm_eps"], config["rope_theta"]) == (1e-6, 123456.7)
    assert config["max_position_embeddings"] == 32 and N_CTX != 32


@pytest.mark.peer
def test_llama_2(tmp_path, test_data):
    """Its runs of spaces share one score; ids agree all the same."""
    peers = pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    raw = (test_data / "llama2_tokenizer.model").read_bytes()
    path = write_spm(tmp_path / "v.gguf", read_spm(raw), bos_token_id=1, eos_token_id=2)
    write_vocabulary(path, read_spm(raw), tmp_path)
    ours = Tokenizer.open(path)
    json_file = peers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    again = vocabulary_of(tmp_path, 32000, tmp_path / "again.gguf")
    (tmp_path / "tokenizer.model").unlink()
    merged = vocabulary_of(tmp_path, 32000, tmp_path / "merged.gguf")
    for text in [*NASTY_SPM, ENGLISH[:20_000]]:
        expected = ours.encode(text)
        assert again.encode(text) == merged.encode(text) == expected, text[:60]
        if "<s>" not in text:
            assert json_file.encode(text, add_special_tokens=False).ids == expected, text[:60]
