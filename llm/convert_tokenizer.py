"""Tokenizers of Hugging Face folders as the keys of a parameter file. Layer 6.

tokenizer.json holds a byte-level BPE (or, without tokenizer.model, SentencePiece's BPE spelled as
merges), tokenizer.model a SentencePiece model. Pre-tokenizers are recognised by the steps and the
regular expression that they are made of; what is not recognised is refused by name.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import FormatError, UnsupportedError
from .parameter_file import Entry, ValueType
from .safetensors_file import read_json
from .sentencepiece_file import read_sentencepiece
from .tokenizer import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED

SPACE = "\u2581"
_NEVER = -1e30  # the score of a token that nothing should merge into

GPT2_REGEX = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_GPT2_REGEX_2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_REGEX = LLAMA3_REGEX.replace("{1,3}", "")
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_O200K_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEKKEN_REGEX = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}"
) + _O200K_TAIL
_CASED = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
O200K_REGEX = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CASED}"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CASED}|\p{{N}}{{1,3}}"
) + _O200K_TAIL
# Regular expression of a Split, and ignore_merges -> tokenizer.ggml.pre.
SPLITS = {
    (GPT2_REGEX, False): "gpt-2",
    (_GPT2_REGEX_2, False): "gpt-2",
    (LLAMA3_REGEX, True): "llama-bpe",
    (LLAMA3_REGEX, False): "dbrx",
    (QWEN2_REGEX, False): "qwen2",
    (TEKKEN_REGEX, True): "tekken",
    (O200K_REGEX, False): "gpt-4o",
    (O200K_REGEX, True): "o200k",
}


@dataclass
class Pieces:
    """A vocabulary in the making; None where an id has no token yet."""

    model: str  # gpt2 or llama
    tokens: list[str | None]
    types: list[int]
    merges: list[str] | None = None
    scores: list[float] | None = None
    pre: str | None = None
    add_space: bool = True
    begins: str | None = None  # a token that every text begins with
    ends: str | None = None
    notes: list[str] = field(default_factory=list)

    def put(self, id: int, token: str, kind: int, where: Path) -> None:
        if not isinstance(id, int) or isinstance(id, bool) or not 0 <= id < 1 << 24:
            raise FormatError(f"{where}: token {token!r} has id {id!r}")
        while len(self.tokens) <= id:
            self.tokens.append(None)
            self.types.append(UNUSED)
        if self.tokens[id] not in (None, token):
            raise FormatError(f"{where}: {self.tokens[id]!r} and {token!r} both have id {id}")
        self.tokens[id], self.types[id] = token, kind


def tokenizer_entries(folder: Path, n_vocab: int) -> tuple[list[Entry], list[str]]:
    """All keys of the tokenizer and its chat template, and notes for the user. n_vocab: rows of
    the embedding; ids without a token become unused ones."""
    pieces = _read_pieces(folder)
    while pieces.tokens and pieces.tokens[-1] is None:
        pieces.tokens.pop()
        pieces.types.pop()
    if len(pieces.tokens) > n_vocab:
        raise FormatError(
            f"{folder}: the tokenizer has {len(pieces.tokens)} tokens, the embedding {n_vocab} rows"
        )
    for id in range(n_vocab):
        if id >= len(pieces.tokens):
            pieces.tokens.append(None)
            pieces.types.append(UNUSED)
        if pieces.tokens[id] is None:
            pieces.tokens[id] = f"[PAD{id}]"
    if pieces.scores is not None:
        pieces.scores += [_NEVER] * (n_vocab - len(pieces.scores))
    return [*_vocabulary(pieces), *_special(folder, pieces)], pieces.notes


def _read_pieces(folder: Path) -> Pieces:
    path, model = folder / "tokenizer.json", folder / "tokenizer.model"
    tokenizer = read_json(path) if path.exists() else None
    if tokenizer is not None and _is_byte_level(tokenizer):
        pieces = _byte_level(tokenizer, path)
    elif model.exists():
        pieces = _sentencepiece(model)
        _add_tokens(pieces, _decoder_table(folder), folder / "tokenizer_config.json")
    elif tokenizer is not None:
        pieces = _merged_sentencepiece(tokenizer, path)
    else:
        raise FormatError(f"{folder}: neither tokenizer.json nor tokenizer.model")
    if tokenizer is not None:
        added = tokenizer.get("added_tokens")
        _add_tokens(pieces, added if isinstance(added, list) else [], path)
        _read_template(pieces, tokenizer.get("post_processor"), path)
    return pieces


def _object(value: Any) -> dict:
    return value if isinstance(value, dict) else {}


def _steps(part: Any, key: str) -> list[dict]:
    """The members of a Sequence, or the one thing that stands in its place; none for null."""
    part = _object(part)
    steps = part.get(key) if part.get("type") == "Sequence" else [part] if part else []
    return [_object(step) for step in steps] if isinstance(steps, list) else []


# ---- byte-level BPE ----


def _is_byte_level(tokenizer: dict) -> bool:
    steps = _steps(tokenizer.get("pre_tokenizer"), "pretokenizers")
    return any(step.get("type") == "ByteLevel" for step in steps)


def _byte_level(tokenizer: dict, where: Path) -> Pieces:
    model = _bpe_model(tokenizer, where)
    pieces = Pieces("gpt2", [], [])
    for token, id in model["vocab"].items():
        pieces.put(id, token, NORMAL, where)
    pieces.merges = [" ".join(pair) for pair in _merges(model, where)]
    pieces.pre = _pre(tokenizer, bool(model.get("ignore_merges")), where)
    for step in _steps(tokenizer.get("normalizer"), "normalizers"):
        if step.get("type") != "NFC":
            raise UnsupportedError(f"{where}: normalizer {step.get('type')!r} does not run here")
        pieces.notes.append("text is taken as it is; the original brings it to Unicode's NFC first")
    return pieces


def _bpe_model(tokenizer: dict, where: Path) -> dict:
    model = _object(tokenizer.get("model"))
    if model.get("type", "BPE") != "BPE":
        raise UnsupportedError(f"{where}: a {model['type']} tokenizer; this program has BPE")
    if not isinstance(model.get("vocab"), dict) or not model["vocab"]:
        raise FormatError(f"{where}: model.vocab is missing")
    for key in ("continuing_subword_prefix", "end_of_word_suffix", "dropout"):
        if model.get(key):
            raise UnsupportedError(f"{where}: model.{key} is {model[key]!r}, which does not run")
    return model


def _merges(model: dict, where: Path) -> list[tuple[str, str]]:
    """Pairs of spellings, best first; older files join the two by a space."""
    out, merges = [], model.get("merges")
    for merge in merges if isinstance(merges, list) else []:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if (
            not isinstance(pair, list)
            or len(pair) != 2
            or not all(isinstance(p, str) for p in pair)
        ):
            raise FormatError(f"{where}: merge {len(out)} is {merge!r}, expected two tokens")
        out.append((pair[0], pair[1]))
    return out


def _pre(tokenizer: dict, ignore_merges: bool, where: Path) -> str:
    """The name of the pre-tokenizer."""
    split, digits, regex = None, False, False
    for step in _steps(tokenizer.get("pre_tokenizer"), "pretokenizers"):
        kind = step.get("type")
        if kind == "ByteLevel" and not step.get("add_prefix_space"):
            regex = bool(step.get("use_regex", True))
        elif kind == "Digits" and step.get("individual_digits") and split is None:
            digits = True
        elif kind == "Split" and split is None and not digits and _isolates(step):
            split = _object(step.get("pattern")).get("Regex")
        else:
            raise UnsupportedError(f"{where}: pre-tokenizer {str(step)[:80]} does not run here")
    if regex and split is None and not ignore_merges:
        return "smollm" if digits else "gpt-2"
    name = SPLITS.get((split, ignore_merges)) if isinstance(split, str) else None
    if name is None or regex or digits:
        raise UnsupportedError(
            f"{where}: the pre-tokenizer {str(split)[:100]!r} with ignore_merges "
            f"{str(ignore_merges).lower()} is not one that this program has"
        )
    return name


def _isolates(step: dict) -> bool:
    found = step.get("behavior"), bool(step.get("invert"))
    return found in (("Isolated", False), ("Removed", True))


# ---- SentencePiece ----


def _sentencepiece(where: Path) -> Pieces:
    model = read_sentencepiece(where)
    pieces = Pieces("llama", [], [], scores=[], add_space=model.add_dummy_prefix)
    for id, piece in enumerate(model.pieces):
        pieces.put(id, piece.text, piece.type, where)
        pieces.scores.append(piece.score)
    return pieces


def _merged_sentencepiece(tokenizer: dict, where: Path) -> Pieces:
    """SentencePiece's BPE as transformers 5 saves it: characters, spaces as U+2581, byte tokens,
    and merges by rank. What a merge makes gets minus the rank for a score; the rank is that of
    its best pair, for SentencePiece merges any two that make a token."""
    model = _bpe_model(tokenizer, where)
    if not model.get("byte_fallback") or model.get("ignore_merges"):
        raise UnsupportedError(f"{where}: neither a byte-level BPE nor one with byte_fallback")
    pieces = Pieces("llama", [], [], scores=[], add_space=_adds_space(tokenizer, where))
    if pieces.add_space and tokenizer.get("pre_tokenizer"):
        pieces.notes.append(
            "text gets a space before it even where it begins with one, unlike there"
        )
    for token, id in model["vocab"].items():
        kind = BYTE if len(token) == 6 and token[:3] == "<0x" and token[5] == ">" else NORMAL
        pieces.put(id, token, UNKNOWN if token == model.get("unk_token") else kind, where)
    rank = {}
    for i, (left, right) in enumerate(_merges(model, where)):
        rank.setdefault(left + right, i)
    for id, token in enumerate(pieces.tokens):
        pieces.scores.append(-float(rank.get(token, len(rank)) if token else 0))
        if pieces.types[id] == NORMAL and len(token) > 1 and token not in rank:
            pieces.types[id] = UNUSED  # no text makes it
    return pieces


def _adds_space(tokenizer: dict, where: Path) -> bool:
    adds = False
    for step in _steps(tokenizer.get("normalizer"), "normalizers"):
        kind = step.get("type")
        replaces = kind == "Replace" and step.get("content") == SPACE
        if kind == "Prepend" and step.get("prepend") == SPACE:
            adds = True
        elif not replaces or _object(step.get("pattern")).get("String") != " ":
            raise UnsupportedError(f"{where}: normalizer {str(step)[:80]} does not run here")
    for step in _steps(tokenizer.get("pre_tokenizer"), "pretokenizers"):
        kind = step.get("type")
        if kind == "Metaspace" and step.get("replacement") == SPACE and not step.get("split", True):
            adds = adds or step.get("prepend_scheme", "always") != "never"
        elif kind != "Split" or _object(step.get("pattern")).get("String") != " ":
            raise UnsupportedError(f"{where}: pre-tokenizer {str(step)[:80]} does not run here")
    return adds


# ---- added tokens, what a text begins with ----


def _decoder_table(folder: Path) -> list[dict]:
    """added_tokens_decoder of tokenizer_config.json, as tokenizer.json spells the same."""
    table = _object(_config(folder, "tokenizer_config.json").get("added_tokens_decoder"))
    return [
        _object(entry) | {"id": int(id) if id.isdecimal() else id} for id, entry in table.items()
    ]


def _add_tokens(pieces: Pieces, added: list, where: Path) -> None:
    for entry in map(_object, added):
        id, token, special = entry.get("id"), entry.get("content"), bool(entry.get("special"))
        if not isinstance(token, str) or not token:
            raise FormatError(f"{where}: added token {id!r} has no content")
        strips = [key for key in ("lstrip", "rstrip", "single_word") if entry.get(key)]
        if strips:
            pieces.notes.append(f"{token} takes the spaces around it there ({strips[0]}), not here")
        kind = CONTROL if special else USER_DEFINED
        if isinstance(id, int) and id < len(pieces.types) and pieces.types[id] in (UNKNOWN, BYTE):
            kind = pieces.types[id]
        pieces.put(id, token, kind, where)


def _read_template(pieces: Pieces, processor: Any, where: Path) -> None:
    """TemplateProcessing says what stands around a text."""
    for step in _steps(processor, "processors"):
        if step.get("type") == "ByteLevel":
            continue
        if step.get("type") != "TemplateProcessing" or not isinstance(step.get("single"), list):
            raise UnsupportedError(
                f"{where}: post-processor {step.get('type')!r} does not run here"
            )
        names = [
            _object(part.get("SpecialToken")).get("id") for part in map(_object, step["single"])
        ]
        if names.count(None) != 1 or len(names) > 3 or names.index(None) > 1:
            raise UnsupportedError(f"{where}: a text is put between {names}: not a BOS and an EOS")
        text = names.index(None)
        pieces.begins = names[0] if text else ""
        pieces.ends = names[text + 1] if len(names) > text + 1 else ""


# ---- keys ----


def _vocabulary(pieces: Pieces) -> list[Entry]:
    strings, floats = (ValueType.ARRAY, ValueType.STRING), (ValueType.ARRAY, ValueType.FLOAT32)
    out = [Entry("tokenizer.ggml.model", pieces.model, ValueType.STRING)]
    if pieces.pre is not None:
        out.append(Entry("tokenizer.ggml.pre", pieces.pre, ValueType.STRING))
    out.append(Entry("tokenizer.ggml.tokens", pieces.tokens, *strings))
    if pieces.scores is not None:
        out.append(Entry("tokenizer.ggml.scores", pieces.scores, *floats))
    types = (ValueType.ARRAY, ValueType.INT32)
    out.append(Entry("tokenizer.ggml.token_type", pieces.types, *types))
    if pieces.merges is not None:
        out.append(Entry("tokenizer.ggml.merges", pieces.merges, *strings))
    else:
        out.append(Entry("tokenizer.ggml.add_space_prefix", pieces.add_space, ValueType.BOOL))
    return out


def _config(folder: Path, name: str) -> dict:
    return read_json(folder / name) if (folder / name).exists() else {}


def _special(folder: Path, pieces: Pieces) -> list[Entry]:
    """Ids with a meaning, whether BOS and EOS are added, the chat template."""
    settings = _config(folder, "tokenizer_config.json")
    where = folder / "tokenizer_config.json"
    model = _config(folder, "config.json")
    ids = {}
    for name in ("bos", "eos", "unk", "pad"):
        id = _named_id(name, settings, _config(folder, "special_tokens_map.json"), pieces, where)
        if id is None:
            id = _first(model.get(f"{name}_token_id"))
        if isinstance(id, int) and 0 <= id < len(pieces.tokens):
            ids[name] = id
    for name, text in (("bos", pieces.begins), ("eos", pieces.ends)):
        if text and (text not in pieces.tokens or ids.setdefault(name, -1) == -1):
            if text not in pieces.tokens:
                raise FormatError(f"{folder}: texts get {text!r}, which is no token")
            ids[name] = pieces.tokens.index(text)
    ends = [*_ids(_config(folder, "generation_config.json")), *_ids(model)]
    ends = [id for id in dict.fromkeys(ends) if id != ids.get("eos")]
    ids |= dict(zip(("eot", "eom"), ends, strict=False))
    spelled = {"unk": "unknown", "pad": "padding"}
    out = [
        Entry(f"tokenizer.ggml.{spelled.get(name, name)}_token_id", id, ValueType.UINT32)
        for name, id in ids.items()
        if id < len(pieces.tokens)
    ]
    for name, text, default in (
        ("bos", pieces.begins, pieces.model == "llama"),
        ("eos", pieces.ends, False),
    ):
        adds = bool(text) if text is not None else settings.get(f"add_{name}_token", default)
        if text is None and pieces.model == "gpt2":
            adds = False  # tokenizer.json alone says it
        adds = bool(adds) and name in ids
        out.append(Entry(f"tokenizer.ggml.add_{name}_token", adds, ValueType.BOOL))
    template = _chat_template(folder, settings)
    if template:
        out.append(Entry("tokenizer.chat_template", template, ValueType.STRING))
    return out


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, list) and value else value


def _ids(config: dict) -> list[int]:
    ids = config.get("eos_token_id")
    ids = ids if isinstance(ids, list) else [ids]
    return [id for id in ids if isinstance(id, int) and not isinstance(id, bool) and id >= 0]


def _named_id(name: str, settings: dict, special: dict, pieces: Pieces, where: Path) -> int | None:
    token = settings.get(f"{name}_token") or special.get(f"{name}_token")
    token = token.get("content") if isinstance(token, dict) else token
    if token is None:
        return None
    if token not in pieces.tokens:
        raise FormatError(f"{where}: {name}_token is {token!r}, which is no token")
    return pieces.tokens.index(token)


def _chat_template(folder: Path, settings: dict) -> str | None:
    path = folder / "chat_template.jinja"
    if path.exists():
        return path.read_text(encoding="utf-8")
    template = settings.get("chat_template")
    if isinstance(template, list):  # several, by name
        entries = map(_object, template)
        template = next((e.get("template") for e in entries if e.get("name") == "default"), None)
    return template if isinstance(template, str) else None
