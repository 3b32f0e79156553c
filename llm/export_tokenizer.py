"""The tokenizer of a parameter file as Hugging Face's files: tokenizer.json, for
SentencePiece's kind tokenizer.model too, tokenizer_config.json and the chat template. Layer 6."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .convert_tokenizer import SPACE, SPLITS
from .errors import UnsupportedError
from .sentencepiece_file import Piece, SentencePieceModel, write_sentencepiece
from .tokenizer import CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED

# Other names of the same cut (csrc/pretokenize.c), by the one of convert_tokenizer.py.
_ALIASES = {
    "gpt-2": ("phi-2",),
    "llama-bpe": ("llama3", "llama-v3", "pixtral"),
    "dbrx": ("smaug-bpe", "chatglm-bpe", "glm4"),
    "qwen2": ("deepseek-r1-qwen", "stablelm2"),
    "gpt-4o": ("llama4",),
}
_CANONICAL = {alias: name for name, aliases in _ALIASES.items() for alias in aliases}


def write_tokenizer(folder: Path, metadata: Mapping[str, Any], tokenizer) -> list[str]:
    """tokenizer: the open file's, whose types of tokens count. Returns notes."""
    tokens = list(metadata["tokenizer.ggml.tokens"])
    types = [tokenizer.token_type(id) for id in range(len(tokens))]
    while types[-1] == UNUSED:  # what fills the rows of the embedding
        tokens.pop()
        types.pop()
    notes = []
    if tokenizer.model == "gpt2":
        out = _byte_level(tokens, metadata)
    else:
        out = _sentencepiece(tokens, types, metadata, tokenizer.adds_space, notes)
        pieces = [
            Piece(token, float(score), kind)
            for token, score, kind in zip(
                tokens, metadata["tokenizer.ggml.scores"], types, strict=False
            )
        ]
        model = SentencePieceModel(pieces, tokenizer.adds_space)
        (folder / "tokenizer.model").write_bytes(write_sentencepiece(model))
        if tokenizer.adds_space and USER_DEFINED in types:
            notes.append("text after a user-defined token gets a space there, not here")
            _refuse_spaces(tokens, types)
    normalized = tokenizer.model == "llama" and not tokenizer.adds_space
    bos = tokens[tokenizer.bos] if tokenizer.add_bos else None
    eos = tokens[tokenizer.eos] if tokenizer.add_eos else None
    out |= {
        "version": "1.0",
        "added_tokens": _added(tokens, types, normalized),
        "post_processor": _template(tokens, bos, eos),
    }
    _write_json(folder / "tokenizer.json", out)
    _write_settings(folder, tokens, metadata)
    return notes


def _refuse_spaces(tokens: Sequence[str], types: Sequence[int]) -> None:
    for token, kind in zip(tokens, types, strict=True):
        if kind == USER_DEFINED and SPACE in token:
            raise UnsupportedError(
                f"user-defined token {token!r} where texts get a space: no tokenizer.json says it"
            )


def _write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


# ---- tokenizer.json ----


def _added(tokens: Sequence[str], types: Sequence[int], normalized: bool) -> list[dict]:
    """normalized: a user's tokens are looked for where spaces are U+2581 already."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
    return [
        {
            "id": id,
            "content": token,
            **flags,
            "normalized": normalized and kind == USER_DEFINED,
            "special": kind != USER_DEFINED,
        }
        for id, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in (CONTROL, UNKNOWN, USER_DEFINED)
    ]


def _template(tokens: Sequence[str], bos: str | None, eos: str | None) -> dict | None:
    """What stands around a text."""
    if bos is None and eos is None:
        return None

    def around(*sequences: str) -> list[dict]:
        out = []
        for i, sequence in enumerate(sequences):
            out += [{"SpecialToken": {"id": bos, "type_id": i}}] if bos is not None else []
            out.append({"Sequence": {"id": sequence, "type_id": i}})
            out += [{"SpecialToken": {"id": eos, "type_id": i}}] if eos is not None else []
        return out

    special = {
        token: {"id": token, "ids": [tokens.index(token)], "tokens": [token]}
        for token in dict.fromkeys((bos, eos))
        if token is not None
    }
    return {
        "type": "TemplateProcessing",
        "single": around("A"),
        "pair": around("A", "B"),
        "special_tokens": special,
    }


def _bpe(tokens: Sequence[str], merges: Sequence[tuple[str, str]], **changes) -> dict:
    plain = ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix")
    return {
        "type": "BPE",
        **dict.fromkeys(plain),
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        **changes,
        "vocab": {token: id for id, token in enumerate(tokens)},
        "merges": [list(pair) for pair in merges],
    }


def _byte_level(tokens: Sequence[str], metadata: Mapping) -> dict:
    pre = _CANONICAL.get(metadata["tokenizer.ggml.pre"], metadata["tokenizer.ggml.pre"])
    split, ignore_merges = next((key for key, name in SPLITS.items() if name == pre), (None, False))
    if pre not in ("gpt-2", "smollm") and split is None:
        raise UnsupportedError(f"no tokenizer.json says what the pre-tokenizer {pre!r} does")
    plain = pre in ("gpt-2", "smollm")
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    steps = [level | {"use_regex": plain}]
    if pre == "smollm":
        steps.insert(0, {"type": "Digits", "individual_digits": True})
    elif not plain:
        pattern = {"Regex": split}
        isolated = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
        steps.insert(0, isolated)
    merges = [tuple(merge.split(" ", 1)) for merge in metadata["tokenizer.ggml.merges"]]
    return {
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "decoder": level | {"use_regex": True},
        "model": _bpe(tokens, merges, ignore_merges=ignore_merges),
    }


def _sentencepiece(
    tokens: Sequence[str],
    types: Sequence[int],
    metadata: Mapping,
    adds_space: bool,
    notes: list[str],
) -> dict:
    """The same BPE as merges, as transformers spells it."""
    merges = merges_of(tokens, types, metadata["tokenizer.ggml.scores"], notes)
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    before = [{"type": "Prepend", "prepend": SPACE}] if adds_space else []
    decoders = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if adds_space:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    unknown = next((tokens[id] for id, kind in enumerate(types) if kind == UNKNOWN), None)
    return {
        "normalizer": {"type": "Sequence", "normalizers": [*before, spaces]},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": _bpe(tokens, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True),
    }


def merges_of(
    tokens: Sequence[str], types: Sequence[int], scores: Sequence[float], notes: list[str]
) -> list[tuple[str, str]]:
    """Every two tokens that make a third, those that make the highest score first."""
    parts = {token: id for id, token in enumerate(tokens) if types[id] in (NORMAL, UNUSED)}
    out, seen, ties = [], set(), []
    for id in sorted(range(len(tokens)), key=lambda id: -scores[id]):
        token = tokens[id]
        if types[id] not in (NORMAL, UNUSED):
            continue
        pairs = [
            (token[:at], token[at:])
            for at in range(1, len(token))
            if token[:at] in parts and token[at:] in parts
        ]
        if not pairs:
            continue
        if types[id] == UNUSED:
            raise UnsupportedError(
                f"token {token!r} is unused but merges: no tokenizer.json says it"
            )
        if scores[id] in seen:
            ties.append(token)
        seen.add(scores[id])
        out += sorted(pairs, key=lambda pair: (parts[pair[0]], parts[pair[1]]))
    if ties:
        notes.append(
            f"{len(ties)} tokens, {ties[0]!r} for one, have the score of another: of such the "
            "leftmost pair merges first here and by tokenizer.model, by tokenizer.json the lower id"
        )
    return out


# ---- the files beside it ----


def special_ids(metadata: Mapping) -> dict[str, Any]:
    """For config.json and generation_config.json."""
    ids = {
        name: metadata.get(f"tokenizer.ggml.{key}_token_id")
        for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))
    }
    ends = [metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    ends = [id for id in dict.fromkeys(ends) if id is not None]
    if len(ends) > 1:
        ids["eos"] = ends
    return {f"{name}_token_id": id for name, id in ids.items()}


def _write_settings(folder: Path, tokens: Sequence[str], metadata: Mapping) -> None:
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    spelled = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    for name, key in spelled.items():
        id = metadata.get(f"tokenizer.ggml.{key}_token_id")
        if id is not None and id < len(tokens):
            settings[f"{name}_token"] = tokens[id]
    for name in ("add_bos_token", "add_eos_token"):
        if f"tokenizer.ggml.{name}" in metadata:
            settings[name] = metadata[f"tokenizer.ggml.{name}"]
    template = metadata.get("tokenizer.chat_template")
    if isinstance(template, str):
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
        settings["chat_template"] = template
    _write_json(folder / "tokenizer_config.json", settings)
