"""Tokenizer: text to token ids and back, over the compiled module `llm._llm`."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from llm._llm import ffi, lib
from llm.binding import (
    Handle,
    borrowed,
    call,
    file_name,
    id_array,
    int32_array,
    integer,
    new,
    pointer_to,
    raise_error,
    to_bytes,
    word,
)

NORMAL, UNKNOWN, CONTROL = lib.LLM_TOKEN_NORMAL, lib.LLM_TOKEN_UNKNOWN, lib.LLM_TOKEN_CONTROL
USER_DEFINED, UNUSED, BYTE = lib.LLM_TOKEN_USER_DEFINED, lib.LLM_TOKEN_UNUSED, lib.LLM_TOKEN_BYTE
new_text = ffi.new_allocator(should_clear_after_alloc=False)


class Tokenizer:
    """Text to token ids and back. `Model.tokenizer` is the file's; `open` reads a file
    for it alone, `from_bpe` builds one."""

    def __init__(self, source):
        self._source = source  # an own llm_tokenizer, or the Handle of the file that has one

    @classmethod
    def open(cls, path: str | os.PathLike) -> Tokenizer:
        """That of a parameter file, without its model: a vocabulary alone will do."""
        name = file_name(path)
        args = (lib.llm_tokenizer_open, "llm_tokenizer", lib.llm_tokenizer_free, name)
        return cls(new(*args, path=os.fspath(path)))

    @classmethod
    def from_bpe(cls, pre: str, tokens: Sequence[bytes], merges, types=None) -> Tokenizer:
        """tokens: the raw bytes of each id; merges: (n, 2) ids, best first, or None where ids are
        ranks, as in tiktoken's files; types: llm_token_type of each id, all normal when None."""
        offsets = np.zeros(len(tokens) + 1, np.uint64)
        np.cumsum(np.fromiter(map(len, tokens), np.uint64, len(tokens)), out=offsets[1:])
        pairs = int32_array("merges", [] if merges is None else merges).reshape(-1, 2)
        kinds = None if types is None else int32_array("types", types)
        if kinds is not None and kinds.shape != (len(tokens),):
            raise ValueError(f"{kinds.size} token types for {len(tokens)} tokens")
        text = b"".join(tokens)
        spec = ffi.new("llm_bpe_spec *")
        name, buffer = ffi.new("char[]", word("pre", pre)), ffi.from_buffer("uint8_t[]", text)
        spec.pre, spec.n_vocab, spec.text = name, len(tokens), buffer
        spec.offsets = pointer_to("uint64_t", offsets)
        spec.types = ffi.NULL if kinds is None else pointer_to("int32_t", kinds)
        spec.n_merges = lib.LLM_BPE_BY_RANK if merges is None else len(pairs)
        spec.merges = pointer_to("int32_t", pairs)
        return cls(new(lib.llm_tokenizer_new_bpe, "llm_tokenizer", lib.llm_tokenizer_free, spec))

    def _use(self):
        if not isinstance(self._source, Handle):
            return self._source
        model = self._source.use()
        return borrowed(lib.llm_model_tokenizer(model), model)

    @property
    def n_vocab(self) -> int:
        return lib.llm_tokenizer_n_vocab(self._use())

    @property
    def n_byte_tokens(self) -> int:
        """How many of the 256 single bytes the vocabulary can spell."""
        return lib.llm_tokenizer_n_byte_tokens(self._use())

    @property
    def bos(self) -> int | None:
        id = lib.llm_tokenizer_bos(self._use())
        return id if id >= 0 else None

    @property
    def eos(self) -> int | None:
        id = lib.llm_tokenizer_eos(self._use())
        return id if id >= 0 else None

    @property
    def add_bos(self) -> bool:
        """The file asks for BOS before a text."""
        return bool(lib.llm_tokenizer_add_bos(self._use()))

    @property
    def add_eos(self) -> bool:
        """The file asks for EOS after a text."""
        return bool(lib.llm_tokenizer_add_eos(self._use()))

    @property
    def adds_space(self) -> bool:
        """SentencePiece's dummy prefix: encoding puts a space before the text."""
        return bool(lib.llm_tokenizer_adds_space(self._use()))

    @property
    def model(self) -> str:
        """As tokenizer.ggml.model: gpt2 is byte-level BPE, llama SentencePiece's."""
        return ffi.string(lib.llm_tokenizer_model(self._use())).decode()

    def is_eog(self, id: int) -> bool:
        return bool(lib.llm_tokenizer_is_eog(self._use(), integer("id", id)))

    def token_type(self, id: int) -> int:
        """llm_token_type; 0 when there is no such id."""
        return lib.llm_tokenizer_token_type(self._use(), integer("id", id))

    def find(self, text: str | bytes) -> int | None:
        """The id of the token whose bytes are exactly these, special tokens included."""
        raw = to_bytes(text)
        id = lib.llm_tokenizer_find(self._use(), ffi.from_buffer("char[]", raw), len(raw))
        return id if id >= 0 else None

    def encode_array(self, text: str | bytes, parse_special: bool = False) -> np.ndarray:
        """encode() as an int32 array: for corpora."""
        raw, source = to_bytes(text), self._use()
        doubles = lib.llm_tokenizer_adds_space(source)  # see llm.h
        ids = np.empty((2 if doubles and parse_special else 1) * len(raw) + 1, np.int32)
        needed = ffi.new("size_t *")
        call(
            lib.llm_tokenizer_encode,
            source,
            ffi.from_buffer("char[]", raw),
            len(raw),
            int(parse_special),
            pointer_to("int32_t", ids),
            ids.size,
            needed,
        )
        return ids[: needed[0]].copy()

    def encode_documents(self, documents: Sequence[bytes], first_id: int) -> np.ndarray:
        """All documents' ids in one int32 array, first_id before each."""
        text, source = b"".join(documents), self._use()
        offsets = np.zeros(len(documents) + 1, np.uint64)
        np.cumsum([len(document) for document in documents], out=offsets[1:])
        each = 2 if lib.llm_tokenizer_adds_space(source) else 1
        ids = np.empty(len(text) + each * len(documents), np.int32)
        needed = ffi.new("size_t *")
        call(
            lib.llm_tokenizer_encode_documents,
            source,
            ffi.from_buffer("char[]", text),
            pointer_to("uint64_t", offsets),
            len(documents),
            integer("first_id", first_id),
            pointer_to("int32_t", ids),
            ids.size,
            needed,
        )
        return ids[: needed[0]]

    def encode(self, text: str | bytes, parse_special: bool = False) -> list[int]:
        return self.encode_array(text, parse_special).tolist()

    def decode_bytes(self, ids, render_special: bool = True, whole: bool = True) -> bytes:
        """whole: the ids are a text, whose encoding may have begun with a space of its own (see
        adds_space) that is left out; else they go on from others, and every byte counts."""
        decode = lib.llm_tokenizer_decode_text if whole else lib.llm_tokenizer_decode
        array, source = id_array(ids), self._use()
        needed, capacity = ffi.new("size_t *"), 16 * array.size + 64
        while True:
            out = new_text("char[]", capacity)
            err = ffi.new("llm_error *")
            status = decode(
                source,
                pointer_to("int32_t", array),
                array.size,
                int(render_special),
                out,
                capacity,
                needed,
                err,
            )
            if status == lib.LLM_OK:
                return ffi.buffer(out, needed[0])[:]
            if needed[0] <= capacity:
                raise_error(err)
            capacity = needed[0]

    def tokens(self) -> list[bytes]:
        """The bytes of each id."""
        source, n_vocab, capacity = self._use(), self.n_vocab, 64
        id, needed, err = ffi.new("int32_t *"), ffi.new("size_t *"), ffi.new("llm_error *")
        out, found = ffi.new("char[]", capacity), []
        for id[0] in range(n_vocab):
            lib.llm_tokenizer_decode(source, id, 1, 1, out, capacity, needed, err)
            if needed[0] > capacity:
                capacity = needed[0]
                out = ffi.new("char[]", capacity)
                lib.llm_tokenizer_decode(source, id, 1, 1, out, capacity, needed, err)
            found.append(ffi.unpack(out, needed[0]))
        return found

    def decode(self, ids, render_special: bool = True, whole: bool = True) -> str:
        """Bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids, render_special, whole).decode("utf-8", "replace")
