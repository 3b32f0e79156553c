"""Hyperparameters in the words of Hugging Face's config.json and of GGUF, both ways. Layer 6.

A key of config.json is used, has the one value that the engine computes with, or is listed as
without effect on the logits; any other is refused by name, for what it says would be ignored. Past
500 lines: a family's way in and its way back stand side by side, so that one is not changed without
the other.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from .errors import FormatError, UnsupportedError
from .parameter_file import Entry, ValueType

LLAMA3 = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")

# model_type -> architecture of the parameter file
ARCHITECTURES = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma3_text": "gemma3",
    "gpt2": "gpt2",
}
MODEL_CLASSES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma3": "Gemma3ForCausalLM",
    "gpt2": "GPT2LMHeadModel",
}
_MAX_LAYER = 1024  # as the engine has it
_TIED_BY_DEFAULT = ("gemma3_text", "gpt2")

# Beside the hyperparameters: other than these values compute something else.
_PINNED = {
    "hidden_act": ("silu", "swish"),
    "hidden_activation": ("gelu_pytorch_tanh",),
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "rope_interleaved": (False,),
    "quantization_config": (None,),
    "auto_map": (None,),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "final_logit_softcapping": (None,),
    "attn_logit_softcapping": (None,),
    "use_bidirectional_attention": (False, None),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "partial_rotary_factor": (None, 1, 1.0),
    "use_qk_norm": (False, None),
    "num_experts": (None, 0),
}
# Without effect on the logits of a finished model, or read elsewhere.
_IGNORED = set(
    """_attn_implementation _attn_implementation_autoset _commit_hash _name_or_path
    architectures attention_dropout attn_implementation attn_pdrop bad_words_ids
    begin_suppress_tokens bos_token_id cache_implementation chunk_size_feed_forward
    cross_attention_hidden_size decoder_start_token_id diversity_penalty do_sample dtype
    early_stopping embd_pdrop encoder_no_repeat_ngram_size eos_token_id
    exponential_decay_length_penalty finetuning_task forced_bos_token_id forced_eos_token_id
    id2label initializer_range is_decoder is_llama_config label2id length_penalty max_length
    max_window_layers min_length model_type n_ctx name_or_path no_repeat_ngram_size
    num_beam_groups num_beams num_return_sequences output_attentions output_hidden_states
    output_past output_scores pad_token_id prefix pretraining_tp problem_type pruned_heads
    remove_invalid_values reorder_and_upcast_attn repetition_penalty resid_pdrop return_dict
    return_dict_in_generate sep_token_id summary_activation summary_first_dropout
    summary_proj_to_labels summary_type summary_use_proj suppress_tokens task_specific_params
    temperature tf_legacy_loss tie_encoder_decoder tokenizer_class top_k top_p torch_dtype
    torchscript transformers.js_config transformers_version typical_p unk_token_id
    unsloth_fixed unsloth_version use_bfloat16 use_cache use_return_dict""".split()
)


@dataclass(frozen=True)
class Hyperparameters:
    """What the forward pass of a model depends on, beside its weights."""

    architecture: str
    n_vocab: int
    n_ctx: int
    n_embd: int
    n_layer: int
    n_head: int
    n_kv_head: int
    head_dim: int
    n_ff: int
    norm_eps: float
    tied_output: bool
    rope_theta: float = 10000.0
    rope_linear: float | None = None  # positions are divided by it
    rope_llama3: tuple[float, ...] | None = None  # in the order of LLAMA3
    rope_theta_local: float = 10000.0  # gemma3
    window: int = 0  # gemma3: positions that a local layer sees
    window_period: int = 6  # every which layer sees all
    attention_bias: bool = False  # llama: of q, k, v and output
    mlp_bias: bool = False


# ---- config.json ----


class _Keys:
    """Reads keys with a check each and knows which were read."""

    def __init__(self, where: str, values: dict):
        self.where, self.values, self.used = where, values, set()

    def get(self, key: str, default: Any = None) -> Any:
        self.used.add(key)
        value = self.values.get(key)
        return default if value is None else value

    def fail(self, key: str, expected: str) -> FormatError:
        return FormatError(f"{self.where}: {key} is {self.values.get(key)!r}, expected {expected}")

    def integer(self, key: str, default: int | None = None, most: int = 2**31 - 1) -> int:
        value = self.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
            raise self.fail(key, f"an integer from 1 to {most}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self.get(key, default)
        plain = isinstance(value, int | float) and not isinstance(value, bool)
        if not plain or not math.isfinite(value) or value <= 0:
            raise self.fail(key, "a number over 0")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise self.fail(key, "true or false")
        return value

    def part(self, key: str) -> _Keys:
        """A nested object."""
        value = self.get(key, {})
        if not isinstance(value, dict):
            raise self.fail(key, "an object")
        return _Keys(f"{self.where}: {key}", value)

    def refuse_others(self) -> None:
        for key, value in self.values.items():
            if value is not None and key in _PINNED and value not in _PINNED[key]:
                expected = " or ".join(map(repr, _PINNED[key]))
                raise UnsupportedError(
                    f"{self.where}: {key} is {str(value)[:60]!r}; this program computes with "
                    f"{expected}"
                )
            if key not in self.used and key not in _PINNED and key not in _IGNORED:
                raise UnsupportedError(
                    f"{self.where}: key {key} is not one that this program knows"
                )


def from_config(config: dict, where: str) -> tuple[Hyperparameters, list[str]]:
    """The hyperparameters, and notes for the user. where: names config.json in messages."""
    keys = _Keys(where, config)
    model_type = keys.get("model_type")
    if not isinstance(model_type, str) or model_type not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise UnsupportedError(f"{where}: model_type is {model_type!r}; this program has {known}")
    tied = keys.flag("tie_word_embeddings", model_type in _TIED_BY_DEFAULT)
    if model_type == "gpt2":
        shape = _gpt2(keys, tied)
    else:
        shape = _decoder(keys, model_type, tied)
    notes = []
    window = _window(keys, model_type, shape)
    if model_type == "gemma3_text":
        shape = dataclasses.replace(shape, window=window, window_period=_period(keys, shape))
        _check_attention_scale(keys, shape)
    elif 0 < window < shape.n_ctx:
        notes.append(f"layers see {window} positions only: the context ends there")
        shape = dataclasses.replace(shape, n_ctx=window)
    keys.refuse_others()
    _check_heads(where, shape)
    return shape, notes


def _attention_scalar(h: Hyperparameters) -> int:
    """Gemma 3's scores are divided by its root; the engine knows 27B by its 62 layers."""
    return h.n_embd // h.n_head if h.n_layer == 62 else h.head_dim


def _check_attention_scale(keys: _Keys, h: Hyperparameters) -> None:
    expected = _attention_scalar(h)
    if keys.number("query_pre_attn_scalar", 256.0) != expected:
        raise UnsupportedError(
            f"{keys.where}: query_pre_attn_scalar is {keys.values.get('query_pre_attn_scalar')}; "
            f"this program computes with {expected}"
        )


def _check_heads(where: str, h: Hyperparameters) -> None:
    if h.n_head % h.n_kv_head:
        raise FormatError(f"{where}: {h.n_head} heads cannot share {h.n_kv_head} evenly")
    if h.head_dim % 2 and h.architecture != "gpt2":
        raise FormatError(f"{where}: head_dim {h.head_dim} is odd; RoPE needs pairs")


def _gpt2(keys: _Keys, tied: bool) -> Hyperparameters:
    n_embd, n_head = keys.integer("n_embd"), keys.integer("n_head")
    if n_embd % n_head:
        raise FormatError(f"{keys.where}: n_embd {n_embd} is not a multiple of n_head {n_head}")
    return Hyperparameters(
        architecture="gpt2",
        n_vocab=keys.integer("vocab_size"),
        n_ctx=keys.integer("n_positions"),
        n_embd=n_embd,
        n_layer=keys.integer("n_layer", most=_MAX_LAYER),
        n_head=n_head,
        n_kv_head=n_head,
        head_dim=n_embd // n_head,
        n_ff=keys.integer("n_inner", 4 * n_embd),
        norm_eps=keys.number("layer_norm_epsilon", 1e-5),
        tied_output=tied,
    )


def _decoder(keys: _Keys, model_type: str, tied: bool) -> Hyperparameters:
    n_embd, n_head = keys.integer("hidden_size"), keys.integer("num_attention_heads")
    if keys.get("head_dim") is None and n_embd % n_head:
        raise FormatError(f"{keys.where}: hidden_size {n_embd} is not a multiple of {n_head} heads")
    biases = {}
    for ours, key in (("attention_bias", "attention_bias"), ("mlp_bias", "mlp_bias")):
        biases[ours] = keys.flag(key, False)
        if biases[ours] and model_type != "llama":
            raise UnsupportedError(f"{keys.where}: {key} is true in a {model_type} model")
    shape = Hyperparameters(
        architecture=ARCHITECTURES[model_type],
        n_vocab=keys.integer("vocab_size"),
        n_ctx=keys.integer("max_position_embeddings"),
        n_embd=n_embd,
        n_layer=keys.integer("num_hidden_layers", most=_MAX_LAYER),
        n_head=n_head,
        n_kv_head=keys.integer("num_key_value_heads", n_head),
        head_dim=keys.integer("head_dim", n_embd // n_head),
        n_ff=keys.integer("intermediate_size"),
        norm_eps=keys.number("rms_norm_eps", 1e-6),
        tied_output=tied,
        **biases,
    )
    return dataclasses.replace(shape, **_rope(keys, model_type))


# ---- rotary positions ----


def _rope(keys: _Keys, model_type: str) -> dict:
    """rope_parameters of transformers 5, or rope_theta and rope_scaling of those before."""
    base = 1e6 if model_type == "gemma3_text" else 10000.0
    theta = keys.number("rope_theta", base)
    local = keys.number("rope_local_base_freq", 10000.0)
    both = [key for key in ("rope_parameters", "rope_scaling") if keys.get(key) is not None]
    if len(both) == 2 and not _same_scaling(*(keys.values[key] for key in both)):
        raise FormatError(f"{keys.where}: rope_parameters and rope_scaling contradict each other")
    part = keys.part(both[0]) if both else _Keys(keys.where, {})
    if model_type == "gemma3_text" and "full_attention" in part.values:
        sliding, part = part.part("sliding_attention"), part.part("full_attention")
        local = sliding.number("rope_theta", local)
        if sliding.get("rope_type", "default") != "default":
            raise UnsupportedError(f"{sliding.where}: rope_type is {sliding.get('rope_type')!r}")
        sliding.refuse_others()
    out = {"rope_theta": part.number("rope_theta", theta), "rope_theta_local": local}
    if "rope_theta" in keys.values and "rope_theta" in part.values and out["rope_theta"] != theta:
        raise FormatError(f"{keys.where}: rope_theta is {theta} and {out['rope_theta']}")
    kind = part.get("rope_type", part.get("type", "default"))
    if part.get("type", kind) != kind:
        raise FormatError(f"{part.where}: rope_type {kind!r} and type {part.get('type')!r}")
    if kind == "linear":
        out["rope_linear"] = part.number("factor")
    elif kind == "llama3" and ARCHITECTURES[model_type] == "llama":
        out["rope_llama3"] = tuple(part.number(key) for key in LLAMA3)
    elif kind != "default":
        raise UnsupportedError(
            f"{part.where}: rope_type {kind!r} does not run in a {model_type} model"
        )
    part.refuse_others()
    return out


def _same_scaling(new, old) -> bool:
    """rope_parameters also names the base, or those of two kinds of layer."""
    if isinstance(new, dict) and isinstance(old, dict):
        new = new.get("full_attention", new)
        if isinstance(new, dict):
            new = {key: value for key, value in new.items() if key != "rope_theta" or key in old}
    return new == old


def llama3_factors(h: Hyperparameters) -> np.ndarray:
    """The divisor of each frequency: 1 for waves that are short against the first training's
    context, `factor` for long ones, in between in between (transformers' modeling_rope_utils)."""
    factor, low, high, context = h.rope_llama3
    turns = context / (2 * np.pi * h.rope_theta ** (np.arange(0, h.head_dim, 2) / h.head_dim))
    smooth = ((turns - low) / (high - low)).clip(0, 1)
    return (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)


def llama3_from_factors(factors: np.ndarray, h: Hyperparameters) -> tuple[float, ...] | None:
    """The scaling that gives exactly these, with the bounds 1 and 4 that every published one has;
    None where there is none."""
    for context in (2.0**power for power in range(4, 21)):
        parameters = (float(factors.max()), 1.0, 4.0, context)
        if np.array_equal(llama3_factors(dataclasses.replace(h, rope_llama3=parameters)), factors):
            return parameters
    return None


# ---- windows ----


def _window(keys: _Keys, model_type: str, h: Hyperparameters) -> int:
    """Positions that layers with a window see, 0 where no layer has one."""
    window = 0 if keys.get("sliding_window") is None else keys.integer("sliding_window")
    used = keys.flag("use_sliding_window", model_type in ("mistral", "gemma3_text"))
    types = keys.get("layer_types")
    if types is None:
        return window if used else 0
    kinds = ("full_attention", "sliding_attention")
    whole = isinstance(types, list) and len(types) == h.n_layer
    if not whole or not all(kind in kinds for kind in types):
        raise UnsupportedError(
            f"{keys.where}: layer_types has another length than {h.n_layer} layers, or others "
            f"than {' and '.join(kinds)}"
        )
    if kinds[1] in types and not window:
        raise FormatError(f"{keys.where}: layer_types has windows, sliding_window is missing")
    return window if kinds[1] in types else 0


def _period(keys: _Keys, h: Hyperparameters) -> int:
    """n where layer i has a window unless i % n = n - 1."""
    stated = [k for k in ("sliding_window_pattern", "_sliding_window_pattern") if keys.get(k)]
    period = keys.integer(stated[0]) if stated else 6
    types = keys.get("layer_types")
    if types is None:
        return period
    for n in (period, *range(1, h.n_layer + 2)):
        if all((kind == "full_attention") == (i % n == n - 1) for i, kind in enumerate(types)):
            return n
    raise UnsupportedError(f"{keys.where}: layer_types is not periodic: {', '.join(types)[:60]}...")


# ---- GGUF ----

_INTEGERS = {
    "n_vocab": "vocab_size",
    "n_ctx": "context_length",
    "n_embd": "embedding_length",
    "n_layer": "block_count",
    "n_ff": "feed_forward_length",
    "n_head": "attention.head_count",
}


def to_gguf(h: Hyperparameters) -> list[Entry]:
    """All keys of the architecture."""
    out = [Entry("general.architecture", h.architecture, ValueType.STRING)]

    def integer(key: str, value: int) -> None:
        out.append(Entry(f"{h.architecture}.{key}", value, ValueType.UINT32))

    def number(key: str, value: float) -> None:
        out.append(Entry(f"{h.architecture}.{key}", value, ValueType.FLOAT32))

    for name, key in _INTEGERS.items():
        integer(key, getattr(h, name))
    if h.architecture == "gpt2":
        number("attention.layer_norm_epsilon", h.norm_eps)
        return out
    integer("attention.head_count_kv", h.n_kv_head)
    integer("attention.key_length", h.head_dim)
    integer("attention.value_length", h.head_dim)
    number("attention.layer_norm_rms_epsilon", h.norm_eps)
    integer("rope.dimension_count", h.head_dim)
    number("rope.freq_base", h.rope_theta)
    if h.rope_linear is not None:
        out.append(Entry(f"{h.architecture}.rope.scaling.type", "linear", ValueType.STRING))
        number("rope.scaling.factor", h.rope_linear)
    if h.architecture == "gemma3":
        integer("attention.sliding_window", h.window)
        integer("attention.sliding_window_pattern", h.window_period)
        number("rope.freq_base_swa", h.rope_theta_local)
    return out


def from_gguf(metadata, tensors) -> Hyperparameters:
    """Of an open model: its metadata, and its tensors by name. The engine has checked both."""
    architecture = metadata["general.architecture"]

    def key(name: str, default=None):
        return metadata.get(f"{architecture}.{name}", default)

    values = {name: key(suffix) for name, suffix in _INTEGERS.items()}
    values["n_vocab"] = tensors.shape("token_embd.weight")[0]
    head_dim = key("attention.key_length", values["n_embd"] // values["n_head"])
    kind = "layer_norm" if architecture == "gpt2" else "layer_norm_rms"
    h = Hyperparameters(
        architecture,
        **values,
        n_kv_head=key("attention.head_count_kv", values["n_head"]),
        head_dim=head_dim,
        norm_eps=_short(key(f"attention.{kind}_epsilon")),
        tied_output="output.weight" not in tensors,
        rope_theta=_short(key("rope.freq_base", 10000.0)),
        rope_theta_local=_short(key("rope.freq_base_swa", 10000.0)),
        window=key("attention.sliding_window", 0) if architecture == "gemma3" else 0,
        window_period=key("attention.sliding_window_pattern", 6),
    )
    if key("rope.dimension_count", head_dim) != head_dim and architecture != "gpt2":
        raise UnsupportedError(f"heads of {head_dim} elements of which RoPE turns a part only")
    factor = key("rope.scaling.factor", key("rope.scale_linear", 1.0))
    if factor != 1.0 and key("rope.scaling.type", "linear") == "linear":
        h = dataclasses.replace(h, rope_linear=_short(factor))
    return _with_tensors(h, tensors)


def _short(value: float) -> float:
    """The shortest decimal that a float32 stands for: 1e-5, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _with_tensors(h: Hyperparameters, tensors) -> Hyperparameters:
    """What the names of tensors say."""
    if h.architecture != "llama":
        return h
    if "rope_freqs.weight" in tensors:
        scaling = llama3_from_factors(np.array(tensors["rope_freqs.weight"]), h)
        if scaling is None or h.rope_linear is not None:
            raise UnsupportedError("rope_freqs.weight is not Llama 3's scaling: no config says it")
        h = dataclasses.replace(h, rope_llama3=scaling)
    biased = {name.split(".", 2)[2] for name in tensors if name.endswith(".bias")}
    flags = {
        "attention_bias": any(name.startswith("attn") for name in biased),
        "mlp_bias": any(name.startswith("ffn") for name in biased),
    }
    return dataclasses.replace(h, **flags)


def to_config(h: Hyperparameters) -> dict:
    """config.json as transformers 4 and 5 read it."""
    out = {
        "architectures": [MODEL_CLASSES[h.architecture]],
        "dtype": "float32",
        "vocab_size": h.n_vocab,
        "tie_word_embeddings": h.tied_output,
    }
    if h.architecture == "gpt2":
        return out | {
            "model_type": "gpt2",
            "n_positions": h.n_ctx,
            "n_embd": h.n_embd,
            "n_layer": h.n_layer,
            "n_head": h.n_head,
            "n_inner": h.n_ff,
            "activation_function": "gelu_new",
            "layer_norm_epsilon": h.norm_eps,
        }
    gemma = h.architecture == "gemma3"
    scaling = _scaling(h)
    out |= {
        "model_type": "gemma3_text" if gemma else h.architecture,
        "hidden_size": h.n_embd,
        "intermediate_size": h.n_ff,
        "num_hidden_layers": h.n_layer,
        "num_attention_heads": h.n_head,
        "num_key_value_heads": h.n_kv_head,
        "head_dim": h.head_dim,
        "max_position_embeddings": h.n_ctx,
        "rms_norm_eps": h.norm_eps,
        "hidden_activation" if gemma else "hidden_act": "gelu_pytorch_tanh" if gemma else "silu",
        "rope_theta": h.rope_theta,
        "rope_parameters": scaling | {"rope_theta": h.rope_theta},
    }
    if scaling["rope_type"] != "default":
        out["rope_scaling"] = scaling
    if h.architecture == "llama":
        return out | {"attention_bias": h.attention_bias, "mlp_bias": h.mlp_bias}
    return out | (_gemma(h, out["rope_parameters"]) if gemma else {"use_sliding_window": False})


def _scaling(h: Hyperparameters) -> dict:
    if h.rope_llama3:
        *bounds, context = h.rope_llama3
        return {"rope_type": "llama3"} | dict(zip(LLAMA3, [*bounds, int(context)], strict=True))
    if h.rope_linear is not None:
        return {"rope_type": "linear", "factor": h.rope_linear}
    return {"rope_type": "default"}


def _gemma(h: Hyperparameters, rope: dict) -> dict:
    kinds = ["sliding_attention"] * (h.window_period - 1) + ["full_attention"]
    kinds = kinds if h.window else ["full_attention"]
    local = {"rope_type": "default", "rope_theta": h.rope_theta_local}
    return {
        "query_pre_attn_scalar": _attention_scalar(h),
        "layer_types": [kinds[i % len(kinds)] for i in range(h.n_layer)],
        "sliding_window": h.window or None,
        "sliding_window_pattern": h.window_period,
        "rope_local_base_freq": h.rope_theta_local,
        "rope_parameters": {"full_attention": rope, "sliding_attention": local},
    }
