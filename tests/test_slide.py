"""A window that slides, against a slow and obvious twin: float64 NumPy, one token at a time, keys
kept unrotated in a list from which the oldest behind the sinks is taken."""

import json
import subprocess

import numpy as np
import pytest
from gguf_models import N_VOCAB, write_model
from llama_server import log_softmax
from models import EOT, write_trained
from reference_forward import Decoder, read_gguf, softmax

import llm
from llm.context import Context
from llm.sampler import Sampler

IDS = [(11 * i * i + 5 * i + 3) % (N_VOCAB - 1) for i in range(50)]


class SlidingDecoder(Decoder):
    def __init__(self, path, n_ctx: int, n_sink: int):
        super().__init__(*read_gguf(path))
        self.n_ctx, self.n_sink, self.held = n_ctx, n_sink, []
        self.cache = [([], []) for _ in range(self.keys["block_count"])]

    def step(self, id: int) -> np.ndarray:
        if len(self.held) == self.n_ctx:
            for dropped in self.held, *(part for layer in self.cache for part in layer):
                del dropped[self.n_sink]
        self.held.append(id)
        return self.logits([id])[0]

    def attention(self, layer, x):
        name, (keys, values) = f"blk.{layer}.", self.cache[layer]
        q, k, v = self.qkv(layer, x)
        if name + "attn_q_norm.weight" in self.tensors:
            q, k = self.norm(q, name + "attn_q_norm"), self.norm(k, name + "attn_k_norm")
        keys.append(k[0])
        values.append(v[0])
        places = self.turn(layer, np.repeat(q, len(keys), axis=0))
        q, k, v = places[-1], self.turn(layer, np.array(keys)), np.array(values)
        first = int(max(0, len(keys) - self.window(layer)))
        shared = np.arange(self.n_head) // (self.n_head // self.n_kv_head)
        scores = np.einsum("hd,phd->hp", q, k[first:, shared]) / np.sqrt(self.head_dim)
        out = np.einsum("hp,phd->hd", softmax(scores), v[first:, shared])
        out = self.linear(out.reshape(1, -1), name + "attn_output")
        return self.post_norm(out, name + "post_attention_norm")


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma3"])
@pytest.mark.parametrize("n_ctx, n_sink", [(12, 4), (13, 0), (12, 11)])
def test_sliding_agrees_with_float64_numpy(tmp_path, architecture, n_ctx, n_sink):
    path = tmp_path / "model.gguf"
    write_model(path, architecture)
    twin = SlidingDecoder(path, n_ctx, n_sink)
    with llm.Model(path) as model:
        context = Context(model, n_ctx=n_ctx, n_sink=n_sink, on_full="slide", kv_type="f32")
        for id in IDS:
            expected, got = twin.step(id), context.eval([id])[0]
            assert np.abs(log_softmax(expected) - log_softmax(got)).max() < 1e-4
        assert context.ids == twin.held and context.n_past == n_ctx


@pytest.mark.parametrize("kv_type", ["f32", "f16", "q8_0"])
def test_sliding_gives_the_same_bits_for_any_threads_and_cut(tmp_path, kv_type):
    path = tmp_path / "model.gguf"
    write_model(path, "gemma3")
    with llm.Model(path) as model:
        rows = []
        for n_threads, cut in [(1, 50), (2, 1), (3, 7)]:
            options = {"n_ctx": 12, "on_full": "slide", "kv_type": kv_type}
            context = Context(model, n_threads=n_threads, **options)
            parts = [IDS[i : i + cut] for i in range(0, len(IDS), cut)]
            rows.append(np.concatenate([context.eval(part, len(part)) for part in parts]))
        assert np.array_equal(rows[0], rows[1]) and np.array_equal(rows[0], rows[2])


def test_a_sliding_window_can_be_cut_and_emptied(tmp_path):
    path = tmp_path / "model.gguf"
    write_model(path, "llama")
    twin = SlidingDecoder(path, 12, 4)
    with llm.Model(path) as model:
        context = Context(model, n_ctx=12, on_full="slide", kv_type="f32")
        first = context.eval(IDS, len(IDS))
        assert context.ids == IDS[:4] + IDS[-8:]
        for id in IDS:
            twin.step(id)
        context.truncate(7)
        for kept in twin.held, *(part for layer in twin.cache for part in layer):
            del kept[7:]
        assert context.ids == twin.held == IDS[:4] + IDS[-8:-5]
        for id in IDS[:20]:
            difference = log_softmax(twin.step(id)) - log_softmax(context.eval([id])[0])
            assert np.abs(difference).max() < 1e-4
        context.truncate(0)
        assert np.array_equal(context.eval(IDS, len(IDS)), first)


def test_learned_positions_cannot_slide(tmp_path):
    path = tmp_path / "model.gguf"
    write_model(path, "gpt2")
    with llm.Model(path) as model, pytest.raises(llm.UnsupportedError, match="learned positions"):
        Context(model, on_full="slide")
    write_model(path, "llama")
    with llm.Model(path) as model:
        for n_sink in -1, 12:
            with pytest.raises(ValueError, match="n_sink"):
                Context(model, n_ctx=12, on_full="slide", n_sink=n_sink)


def test_a_text_is_endless_where_its_end_is_banned(tmp_path, run_binary):
    """As README.md says; 1,000 tokens stand for no end."""
    path = tmp_path / "model.gguf"
    write_trained(path)
    command = [run_binary, path, "the", "--on-full", "slide", "--seed", "1", "-n", "1000", "--json"]
    for more, finish in ([], "stop"), (["--logit-bias", f"{EOT}=-inf"], "length"):
        done = subprocess.run([*command, *more], capture_output=True, check=True)
        said = json.loads(done.stdout)
        assert said["n_ctx"] == 64 and said["finish_reason"] == finish
        assert finish == "stop" or len(said["ids"]) == 1000


def resident_kib() -> int:
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))


@pytest.mark.parametrize("on_full", ["forget", "slide"])
def test_endless_text_takes_no_more_memory(tmp_path, on_full):
    path = tmp_path / "model.gguf"
    write_trained(path)
    with llm.Model(path) as model:
        context = Context(model, n_ctx=256, on_full=on_full, allow_long_context=True, n_threads=1)
        sampler = Sampler(model.config.n_vocab, temperature=1, seed=1)
        n, early = 0, 0
        while n < 100_000:
            for step in context.stream([65], sampler, max_tokens=100_000 - n):
                n += step.id is not None
                if n == 10_000:
                    early = resident_kib()
        assert context.n_past <= 256
        assert resident_kib() - early < 2048
