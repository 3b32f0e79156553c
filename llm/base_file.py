"""The parameter file that a run goes on from (`train --init`). Layer 6.

Its weights become the trainer's flat buffer, its tokenizer and every key that does not speak of the
bytes or the origin of one file go into the new file as they are.
"""

from __future__ import annotations

import os
from functools import cached_property

import numpy as np

from .atomic import file_sha256
from .config import ALIGNMENT, ROPE_HALVES, ModelConfig, layout, layout_size
from .corpus import separator_id
from .engine import Model
from .errors import UnsupportedError
from .parameter_file import Entry, Provenance, ValueType
from .quantize import kept_entries
from .tokenizer import CONTROL

EXACT_TYPES = {"F32", "F16", "BF16"}


class BaseFile:
    """Raises UnsupportedError for what the engine runs but the trainer does not train."""

    def __init__(self, path: str | os.PathLike):
        self.path = os.fspath(path)
        self.model = Model(path)
        self.tokenizer = self.model.tokenizer
        self._check()

    def _check(self) -> None:
        c, tensors = self.model.config, self.model.tensors
        if c.architecture not in ROPE_HALVES:
            raise self._refused(f"architecture {c.architecture}", ", ".join(ROPE_HALVES))
        if c.rope_dim != c.head_dim:
            raise self._refused(
                f"RoPE over {c.rope_dim} of {c.head_dim} elements", "the whole head"
            )
        for suffix in ("rope.scaling.factor", "rope.scale_linear"):
            factor = self.model.metadata.get(f"{c.architecture}.{suffix}", 1)
            kind = self.model.metadata.get(f"{c.architecture}.rope.scaling.type")
            if factor not in (0, 1) and kind != "none":
                raise self._refused(f"{suffix} {factor:g}", "RoPE without scaling")
        known = {entry.gguf_name for entry in layout(self.config(c.n_ctx_train))}
        for name in tensors:
            if name not in known:
                raise self._refused(f"tensor {name}", f"the tensors of a plain {c.architecture}")

    def _refused(self, found: str, trained: str) -> UnsupportedError:
        return UnsupportedError(f"{self.path}: {found} cannot be trained yet, only {trained}")

    def config(self, n_ctx: int) -> ModelConfig:
        """For windows of n_ctx tokens."""
        c = self.model.config
        if n_ctx > c.n_ctx_train:
            raise ValueError(
                f"n_ctx is {n_ctx}, {self.path} was trained with at most {c.n_ctx_train} tokens: "
                "give a smaller --n-ctx"
            )
        return ModelConfig(
            n_vocab=c.n_vocab,
            n_ctx=n_ctx,
            n_embd=c.n_embd,
            n_layer=c.n_layer,
            n_head=c.n_head,
            n_kv_head=c.n_kv_head,
            n_ff=c.n_ff,
            rope_theta=c.rope_theta,
            norm_eps=c.norm_eps,
            tied_output=c.tied_output,
            architecture=c.architecture,
            key_length=c.head_dim,
        )

    def params(self) -> np.ndarray:
        """The flat float32 buffer of config.layout: F32, F16 and BF16 exactly, others expanded."""
        config = self.config(1)
        flat = np.zeros(layout_size(config), np.float32)
        for entry in layout(config):
            values = self.model.tensors[entry.gguf_name]
            flat[entry.offset : entry.offset + entry.size] = values.reshape(-1)
        return flat

    @property
    def expanded_types(self) -> list[str]:
        """The types of the file that are not exact in float32 training."""
        tensors = self.model.tensors
        return sorted({tensors.type_name(name) for name in tensors} - EXACT_TYPES)

    @cached_property
    def sha256(self) -> str:
        """Of the whole file."""
        return file_sha256(self.path)

    @cached_property
    def separator(self) -> int:
        """The token before each document of a plain text."""
        found = separator_id(self.tokenizer)
        if found is None:
            raise UnsupportedError(f"{self.path}: the tokenizer has no token between documents")
        return found

    @cached_property
    def token_bytes(self) -> np.ndarray:
        """Bytes of text that each id stands for; none for control tokens."""
        t = self.tokenizer

        def length(id: int) -> int:
            return 0 if t.token_type(id) == CONTROL else len(t.decode_bytes([id], whole=False))

        return np.array([length(id) for id in range(t.n_vocab)])

    def entries(self, provenance: Provenance) -> list[Entry]:
        """The keys of a file trained from this one but its proof block, its ratio and run."""
        changed = {"general.architecture", "general.name"}
        kept = [
            entry
            for entry in kept_entries(self.model)
            if entry.key not in changed and not entry.key.startswith("two_file.")
        ]
        name = self.model.metadata.get("general.name", os.path.basename(self.path))
        return [
            Entry("general.architecture", self.model.config.architecture, ValueType.STRING),
            Entry("general.name", f"{name}, tuned on {provenance.corpus_name}", ValueType.STRING),
            Entry("general.file_type", 0, ValueType.UINT32),
            Entry("general.alignment", ALIGNMENT, ValueType.UINT32),
            *kept,
            *provenance.entries(),
            Entry("two_file.init.name", name, ValueType.STRING),
            Entry("two_file.init.sha256", self.sha256, ValueType.STRING),
        ]
