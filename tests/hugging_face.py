"""Seeded small models of every family that converts, made and saved by transformers, with
tokenizers made by tokenizers: folders as people publish them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from test_tokenizer import ENGLISH, NASTY

from llm.convert_tokenizer import GPT2_REGEX, LLAMA3_REGEX, O200K_REGEX, QWEN2_REGEX, TEKKEN_REGEX

N_VOCAB = 600
N_CTX = 48
IDS = [(i * 37 + i // 5) % 500 for i in range(N_CTX - 2)]
COMMON = {
    "vocab_size": N_VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": N_CTX,
    "bos_token_id": 500,
    "eos_token_id": 501,
    "pad_token_id": None,
    "initializer_range": 0.2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
GEMMA = {"head_dim": 32, "num_hidden_layers": 7, "sliding_window": 8, "query_pre_attn_scalar": 32}
GPT2 = {"n_positions": N_CTX, "n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": N_VOCAB}
GPT2 |= {"bos_token_id": 501, "eos_token_id": 501, "initializer_range": 0.2}

# Name: class, changes to COMMON, name of a tokenizer below.
FAMILIES = {
    "llama": ("Llama", {}, "llama-bpe"),
    "llama 3 scaling": ("Llama", {"rope_parameters": LLAMA3}, "llama-bpe"),
    "llama linear": (
        "Llama",
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}},
        "dbrx",
    ),
    "llama biases": ("Llama", {"attention_bias": True, "mlp_bias": True}, "gpt-4o"),
    "smollm": ("Llama", {"tie_word_embeddings": True}, "smollm"),
    "mistral": ("Mistral", {"sliding_window": None, "head_dim": 24}, "tekken"),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}, "qwen2"),
    "qwen3": ("Qwen3", {"head_dim": 24}, "qwen2"),
    "gemma3": ("Gemma3Text", GEMMA, "gpt-2"),
    "gpt2": ("GPT2", None, "gpt-2"),
}
CLASSES = {"Gemma3Text": "Gemma3ForCausalLM", "GPT2": "GPT2LMHeadModel"}

SPLITS = {
    "llama-bpe": (LLAMA3_REGEX, True),
    "dbrx": (LLAMA3_REGEX, False),
    "qwen2": (QWEN2_REGEX, False),
    "tekken": (TEKKEN_REGEX, True),
    "gpt-4o": (O200K_REGEX, False),
    "split gpt-2": (GPT2_REGEX, False),
}


def make_model(name: str):
    """The model in float32, with weights that are far from those of a fresh one."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    kind, changes, _ = FAMILIES[name]
    model_class = getattr(transformers, CLASSES.get(kind, f"{kind}ForCausalLM"))
    options = GPT2 if changes is None else COMMON | changes
    torch.manual_seed(5)
    model = model_class(model_class.config_class(**options, attn_implementation="eager")).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # norms and biases, which begin as ones and zeros
                parameter += torch.empty_like(parameter).uniform_(-0.4, 0.4)
    return model


def make_folder(name: str, folder: Path, **save) -> Path:
    make_model(name).save_pretrained(folder, **save)
    save_tokenizer(folder, FAMILIES[name][2])
    return folder


def logits_of(folder: Path, ids=IDS) -> np.ndarray:
    """Of the model that transformers loads from a folder."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32
    )
    with torch.no_grad():
        return model.eval()(torch.tensor([list(ids)])).logits[0].numpy()


def save_tokenizer(folder: Path, name: str) -> None:
    """A byte-level BPE of 500 learned tokens, special tokens 500 to 502, and a user's, 503."""
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    pre, models = tokenizers.pre_tokenizers, tokenizers.models
    pattern, ignore_merges = SPLITS.get(name, (None, False))
    steps = [pre.ByteLevel(add_prefix_space=False, use_regex=pattern is None)]
    if name == "smollm":
        steps.insert(0, pre.Digits(individual_digits=True))
    if pattern:
        steps.insert(0, pre.Split(tokenizers.Regex(pattern), "isolated"))
    tokenizer = tokenizers.Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre.Sequence(steps)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    if name == "qwen2":
        tokenizer.normalizer = tokenizers.normalizers.NFC()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=500, initial_alphabet=pre.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([ENGLISH[:100_000], *NASTY * 3], trainer)
    tokenizer.model.ignore_merges = ignore_merges
    assert tokenizer.get_vocab_size() == 500
    tokenizer.add_special_tokens(["<|begin|>", "<|endoftext|>", "<|turn|>"])
    tokenizer.add_tokens([tokenizers.AddedToken("<tool>", normalized=False)])
    if name == "llama-bpe":
        tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
            single="<|begin|> $A", special_tokens=[("<|begin|>", 500)]
        )
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|begin|>",
        "eos_token": {"content": "<|endoftext|>"},
        "chat_template": "{{ messages }}",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
