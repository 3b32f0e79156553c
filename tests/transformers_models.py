"""The same weights in Hugging Face's transformers: a model built from the keys and tensors of a
GGUF file, in float32 and with plain attention."""

from __future__ import annotations

import numpy as np
import pytest
from reference_forward import read_gguf

# Parts of a layer: the name here, the name there.
GPT2 = {
    "attn_norm": "ln_1",
    "attn_qkv": "attn.c_attn",
    "attn_output": "attn.c_proj",
    "ffn_norm": "ln_2",
    "ffn_up": "mlp.c_fc",
    "ffn_down": "mlp.c_proj",
}
LLAMA = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
GEMMA = LLAMA | {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
CLASSES = {"gemma3": "Gemma3ForCausalLM", "gpt2": "GPT2LMHeadModel"} | {
    name: f"{name.capitalize()}ForCausalLM" for name in ("llama", "qwen2", "qwen3")
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


def transformers_logits(path, ids) -> np.ndarray:
    """Logits after every one of the ids, (T, n_vocab). RoPE factors must be llama3_factors()."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    keys, tensors = read_gguf(path)
    model_class = getattr(transformers, CLASSES[keys["general.architecture"]])
    config = model_class.config_class(**options(keys, tensors), attn_implementation="eager")
    model = model_class(config).eval()
    weights = {k: torch.tensor(v, dtype=torch.float32) for k, v in renamed(keys, tensors).items()}
    missing, surplus = model.load_state_dict(weights, strict=False)
    assert not surplus and set(missing) <= {"lm_head.weight"}  # which is there when it is not tied
    assert ("output.weight" in tensors) == ("lm_head.weight" not in missing)
    model.tie_weights()
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].numpy()


def options(keys: dict, tensors: dict) -> dict:
    n_embd, n_head = keys["embedding_length"], keys["attention.head_count"]
    out = {
        "vocab_size": len(tensors["token_embd.weight"]),
        "hidden_size": n_embd,
        "num_hidden_layers": keys["block_count"],
        "num_attention_heads": n_head,
        "max_position_embeddings": keys["context_length"],
        "tie_word_embeddings": "output.weight" not in tensors,
    }
    if keys["general.architecture"] == "gpt2":
        return out | {
            "n_inner": keys["feed_forward_length"],
            "layer_norm_epsilon": keys["attention.layer_norm_epsilon"],
        }
    out |= {
        "num_key_value_heads": keys["attention.head_count_kv"],
        "head_dim": keys["attention.key_length"],
        "intermediate_size": keys["feed_forward_length"],
        "rms_norm_eps": keys["attention.layer_norm_rms_epsilon"],
        "attention_bias": "blk.0.attn_q.bias" in tensors,
        "rope_parameters": rope(keys, tensors),
    }
    if keys["general.architecture"] == "gemma3":
        period = keys.get("attention.sliding_window_pattern", 6)
        kinds = ["sliding_attention"] * (period - 1) + ["full_attention"]
        local = {"rope_type": "default", "rope_theta": keys.get("rope.freq_base_swa", 10000.0)}
        out |= {
            "sliding_window": keys["attention.sliding_window"],
            "layer_types": [kinds[i % period] for i in range(keys["block_count"])],
            "query_pre_attn_scalar": keys["attention.key_length"],
            "rope_parameters": {"full_attention": rope(keys, tensors), "sliding_attention": local},
        }
    return out


def rope(keys: dict, tensors: dict) -> dict:
    theta = {"rope_theta": keys["rope.freq_base"]}
    factor = keys.get("rope.scaling.factor", keys.get("rope.scale_linear"))
    if factor:
        return {"rope_type": "linear", "factor": factor} | theta
    return (LLAMA3_ROPE if "rope_freqs.weight" in tensors else {"rope_type": "default"}) | theta


def renamed(keys: dict, tensors: dict) -> dict[str, np.ndarray]:
    architecture = keys["general.architecture"]
    gpt2, gemma3 = architecture == "gpt2", architecture == "gemma3"
    top, parts = ("transformer", GPT2) if gpt2 else ("model", GEMMA if gemma3 else LLAMA)
    names = {
        "token_embd": f"{top}.{'wte' if gpt2 else 'embed_tokens'}",
        "position_embd": f"{top}.wpe",
        "output_norm": f"{top}.{'ln_f' if gpt2 else 'norm'}",
        "output": "lm_head",
    }
    for i in range(keys["block_count"]):
        layer = f"{top}.{'h' if gpt2 else 'layers'}.{i}."
        names |= {f"blk.{i}.{ours}": layer + theirs for ours, theirs in parts.items()}
    out = {}
    for name, values in tensors.items():
        part, kind = name.rsplit(".", 1)
        if part == "rope_freqs":
            continue
        if architecture == "llama" and part.endswith(("attn_q", "attn_k")):
            values = pairs_to_halves(values, keys["attention.key_length"])
        if gpt2 and part.startswith("blk") and values.ndim == 2:
            values = values.T  # Conv1D
        if gemma3 and part.endswith("norm"):
            values = values - 1  # added at run time there, stored here
        out[f"{names[part]}.{kind}"] = values
    return out


def pairs_to_halves(rows: np.ndarray, head_dim: int) -> np.ndarray:
    """From rows that RoPE turns as (2i, 2i + 1) to rows that it turns as (i, i + head_dim / 2)."""
    heads = rows.reshape(-1, head_dim // 2, 2, *rows.shape[1:])
    return heads.swapaxes(1, 2).reshape(rows.shape)
