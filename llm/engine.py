"""The engine in Python: Model, Context, Tokenizer and Sampler over the compiled module `llm._llm`.

The C of csrc/ does the work; this file keeps buffers alive and holds a lock per context. cffi
releases the GIL during every call.
"""

from __future__ import annotations

import dataclasses
import os
import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from llm._llm import ffi, lib
from llm.binding import (
    Handle,
    Metadata,
    Tensors,
    borrowed,
    call,
    id_array,
    new,
    pointer_to,
    raise_error,
)

# ---- tokenizer ----


class Tokenizer:
    """Text to token ids and back. `Model.tokenizer` is the file's; `from_bpe` builds one."""

    def __init__(self, source):
        self._source = source  # an own llm_tokenizer, or the Handle of the file that has one

    @classmethod
    def from_bpe(cls, pre: str, tokens: Sequence[bytes], merges, types=None) -> Tokenizer:
        """tokens: the raw bytes of each id; merges: (n, 2) ids, best first; types: llm_token_type
        of each id, all normal when None."""
        offsets = np.zeros(len(tokens) + 1, np.uint64)
        np.cumsum([len(t) for t in tokens], out=offsets[1:])
        pairs = np.ascontiguousarray(merges, np.int32).reshape(-1, 2)
        kinds = None if types is None else np.ascontiguousarray(types, np.int32)
        if kinds is not None and kinds.shape != (len(tokens),):
            raise ValueError(f"{kinds.size} token types for {len(tokens)} tokens")
        text = b"".join(tokens)
        spec = ffi.new("llm_bpe_spec *")
        name, buffer = ffi.new("char[]", pre.encode()), ffi.from_buffer("uint8_t[]", text)
        spec.pre, spec.n_vocab, spec.text = name, len(tokens), buffer
        spec.offsets = pointer_to("uint64_t", offsets)
        spec.types = ffi.NULL if kinds is None else pointer_to("int32_t", kinds)
        spec.n_merges, spec.merges = len(pairs), pointer_to("int32_t", pairs)
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

    def is_eog(self, id: int) -> bool:
        return bool(lib.llm_tokenizer_is_eog(self._use(), id))

    def token_type(self, id: int) -> int:
        """llm_token_type; 0 when there is no such id."""
        return lib.llm_tokenizer_token_type(self._use(), id)

    def encode_array(self, text: str | bytes, parse_special: bool = False) -> np.ndarray:
        """encode() as an int32 array: for corpora."""
        is_text = isinstance(text, str)
        raw = text.encode("utf-8", "surrogateescape") if is_text else bytes(memoryview(text))
        ids = np.empty(len(raw) + 1, np.int32)  # no token spells less than a byte
        needed = ffi.new("size_t *")
        source = ffi.from_buffer("char[]", raw)
        call(
            lib.llm_tokenizer_encode,
            self._use(),
            source,
            len(raw),
            int(parse_special),
            pointer_to("int32_t", ids),
            ids.size,
            needed,
        )
        return ids[: needed[0]].copy()

    def encode(self, text: str | bytes, parse_special: bool = False) -> list[int]:
        return self.encode_array(text, parse_special).tolist()

    def decode_bytes(self, ids, render_special: bool = True) -> bytes:
        array = id_array(ids)
        needed, capacity = ffi.new("size_t *"), 16 * array.size + 64
        while True:
            out = ffi.new("char[]", capacity)
            err = ffi.new("llm_error *")
            status = lib.llm_tokenizer_decode(
                self._use(),
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

    def decode(self, ids, render_special: bool = True) -> str:
        """Bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids, render_special).decode("utf-8", "replace")


# ---- sampler ----


class Sampler:
    """Picks tokens from logits. temperature 0: arg-max. The seed in use is `.seed`."""

    def __init__(
        self,
        n_vocab: int,
        temperature: float = 0.8,
        top_k: int = 40,
        top_p: float = 0.95,
        seed: int | None = None,
    ):
        self.seed = secrets.randbits(32) if seed is None else seed
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed is {self.seed}, expected 0 to 2^64 - 1")
        if not -(2**31) <= top_k < 2**31:
            raise ValueError(f"top_k is {top_k}, expected 0 (off) to 2^31 - 1")
        self.n_vocab = n_vocab
        options = ffi.new("llm_sampler_options *", (temperature, top_k, top_p, self.seed))
        self._pointer = new(
            lib.llm_sampler_new, "llm_sampler", lib.llm_sampler_free, n_vocab, options
        )

    def sample(self, logits: np.ndarray) -> int:
        row = np.ascontiguousarray(logits, np.float32)
        if row.shape != (self.n_vocab,):
            raise ValueError(f"logits have shape {row.shape}, expected ({self.n_vocab},)")
        return lib.llm_sampler_sample(self._pointer, pointer_to("float", row))


# ---- context ----


@ffi.def_extern(error=1, onerror=lambda kind, error, trace: _remember(error))
def llm_python_cancel_check(user) -> int:
    """Called between layers with the GIL taken: being Python, it lets pending signals raise."""
    check = ffi.from_handle(user)
    if check is not None:
        check()
    return 0


_cancelled = threading.local()


def _remember(error: BaseException) -> None:
    _cancelled.error = error


def _raise_cancelled() -> None:
    error, _cancelled.error = getattr(_cancelled, "error", None), None
    raise error or KeyboardInterrupt


class Context:
    """One timeline of tokens. Calls from several threads wait for each other.

    n_ctx 0: the trained length, at most 4096. cancel_check: called between layers; an exception
    that it raises ends the call, leaves the context as it was, and is raised from the call."""

    def __init__(
        self,
        model: Model,
        n_ctx: int = 0,
        n_threads: int = 0,
        kv_type: str = "f16",
        kernels: str | None = None,
        allow_long_context: bool = False,
        cancel_check: Callable[[], object] | None = None,
    ):
        kv_types = {"f16": lib.LLM_TYPE_F16, "f32": lib.LLM_TYPE_F32}
        if kv_type not in kv_types:
            raise ValueError(f"kv_type is {kv_type!r}, expected 'f16' or 'f32'")
        self._handle = model._handle
        self._n_vocab = model.config.n_vocab
        self._lock = threading.RLock()
        self._busy = False  # inside a call; seen under the lock by its own thread only
        self._check = ffi.new_handle(cancel_check)
        name = ffi.NULL if kernels is None else ffi.new("char[]", kernels.encode())
        options = ffi.new("llm_context_options *")
        options.n_ctx, options.n_threads = n_ctx, n_threads
        options.kv_type, options.kernels = kv_types[kv_type], name
        options.allow_long_context = int(allow_long_context)
        options.cancel_check, options.cancel_user = lib.llm_python_cancel_check, self._check
        self._pointer = new(
            lib.llm_context_new,
            "llm_context",
            lib.llm_context_free,
            self._handle.use(),
            options,
        )

    @contextmanager
    def _use(self):
        """The C context, alone; the model is kept while it is in use."""
        model = self._handle.use()
        with self._lock:
            if self._busy:
                raise RuntimeError("a cancel_check used the context that it was asked about")
            self._busy = True
            try:
                yield self._pointer
            finally:
                self._busy = False
                del model

    def _call(self, function: Callable, *args) -> None:
        err = ffi.new("llm_error *")
        status = function(*args, err)
        if status == lib.LLM_ERR_CANCELLED:
            _raise_cancelled()
        if status != lib.LLM_OK:
            raise_error(err)

    @property
    def n_ctx(self) -> int:
        return lib.llm_context_n_ctx(self._pointer)

    @property
    def n_past(self) -> int:
        """Tokens held."""
        return lib.llm_context_n_past(self._pointer)

    @property
    def kernels(self) -> str:
        return ffi.string(lib.llm_context_kernels(self._pointer)).decode()

    def eval(self, ids, n_rows: int = 1) -> np.ndarray:
        """Appends tokens; returns the logits of the last n_rows of them, (n_rows, n_vocab)."""
        array = id_array(ids)
        if not 0 <= n_rows <= array.size:
            raise ValueError(f"logits of {n_rows} rows asked for {array.size} tokens")
        with self._use() as pointer:
            out = np.empty((n_rows, self._n_vocab), np.float32)
            self._call(
                lib.llm_context_eval,
                pointer,
                pointer_to("int32_t", array),
                array.size,
                pointer_to("float", out),
                n_rows,
            )
        return out

    def truncate(self, n_keep: int = 0) -> None:
        """Forgets every token from position n_keep on."""
        with self._use() as pointer:
            call(lib.llm_context_truncate, pointer, n_keep)

    def score(self, ids) -> tuple[np.ndarray, float]:
        """-ln p of each token of a text (NaN for the first), and their sum. Windows of n_ctx with
        half overlap where the text is longer. Starts from an empty context."""
        array = id_array(ids)
        each, out = np.empty(array.size, np.float32), ffi.new("llm_score *")
        with self._use() as pointer:
            self._call(
                lib.llm_score_text,
                pointer,
                pointer_to("int32_t", array),
                array.size,
                pointer_to("float", each),
                out,
            )
        return each, out.nats

    def stream(self, ids, sampler: Sampler, max_tokens: int | None = None) -> Iterator[Step]:
        """Evaluates ids on top of what is held, then yields a Step per token until a finish."""
        array, limit = id_array(ids), -1 if max_tokens is None else max_tokens
        if max_tokens is not None and max_tokens < 0:
            raise ValueError(f"max_tokens is {max_tokens}, expected 0 or more")
        out, step = ffi.new("llm_generator **"), ffi.new("llm_step *")
        with self._use() as pointer:
            prompt = pointer_to("int32_t", array)
            self._call(
                lib.llm_generator_new, out, pointer, sampler._pointer, prompt, array.size, limit
            )
        generator = ffi.gc(out[0], lib.llm_generator_free)
        while not step.finish:
            with self._use():
                self._call(lib.llm_generator_next, generator, step)
                text = ffi.buffer(step.text, step.n_bytes)[:] if step.n_bytes else b""
            finish = ffi.string(lib.llm_finish_name(step.finish)).decode() if step.finish else None
            yield Step(step.id if step.id >= 0 else None, text, finish)


@dataclasses.dataclass(frozen=True)
class Step:
    """One step of a generation: the new token (None when there is none), the bytes that became
    complete, and why it ended ("stop", "length", "context"), None before that."""

    id: int | None
    text: bytes
    finish: str | None


# ---- model ----

Config = dataclasses.make_dataclass(
    "Config", [name for name, _ in ffi.typeof("llm_config").fields], frozen=True
)


def _config(struct) -> Config:
    values = {name: getattr(struct, name) for name, _ in ffi.typeof("llm_config").fields}
    values["architecture"] = ffi.string(struct.architecture).decode()
    values["tied_output"] = bool(struct.tied_output)
    return Config(**values)


class Model:
    """An open parameter file. Options are those of Context; each call works on its own context,
    so that calls from several threads, or a call inside a stream, do not disturb each other.

    >>> with llm.Model("weights/weights.bin") as m:
    ...     print(m.generate("In the", max_tokens=50, temperature=0))
    """

    def __init__(self, path: str | os.PathLike, **context_options):
        self.path = os.fspath(path)
        self._handle = Handle(self.path)
        self._options = context_options
        self._idle: list[Context] = []
        model = self._handle.use()
        self.config = _config(lib.llm_model_config(model))
        self.n_params = lib.llm_model_n_params(model)
        self.metadata = Metadata(self._handle)
        self.tensors = Tensors(self._handle)
        self.tokenizer = Tokenizer(self._handle)

    def close(self) -> None:
        """Ends new calls at once; the file is unmapped when the last tensor view dies."""
        self._handle.close()
        self._idle.clear()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def __repr__(self) -> str:
        state = " (closed)" if self._handle.closed else ""
        return f"<llm.Model {self.path}: {self.n_params:,} parameters{state}>"

    @contextmanager
    def _context(self) -> Iterator[Context]:
        """An empty context: an idle one, or a new one."""
        try:
            context = self._idle.pop()
        except IndexError:
            context = Context(self, **self._options)
        try:
            context.truncate(0)
            yield context
        finally:
            if not self._handle.closed:
                self._idle.append(context)

    def tokenize(self, text: str | bytes, special: bool = False) -> list[int]:
        """Ids of a text, BOS first where the file asks for it; special: parse control tokens."""
        ids = self.tokenizer.encode(text, parse_special=special)
        return [self.tokenizer.bos, *ids] if self.tokenizer.add_bos else ids

    def detokenize(self, ids) -> str:
        return self.tokenizer.decode(ids)

    def logits(self, ids) -> np.ndarray:
        """(T, n_vocab) float32: row t holds the logits after ids[: t + 1]."""
        array = id_array(ids)
        with self._context() as context:
            return context.eval(array, n_rows=array.size)

    def stream(
        self,
        prompt: str | bytes | Sequence[int],
        max_tokens: int | None = None,
        temperature: float = 0.8,
        top_k: int = 40,
        top_p: float = 0.95,
        seed: int | None = None,
        special: bool = False,
    ) -> Iterator[str]:
        """The continuation of a prompt, piece by piece. The pieces join to whole characters."""
        ids = self.tokenize(prompt, special) if isinstance(prompt, str | bytes) else prompt
        if len(ids) == 0:  # a model continues something
            first = self.tokenizer.eos if self.tokenizer.bos is None else self.tokenizer.bos
            if first is None:
                raise ValueError("the prompt has no tokens, and the file names none to begin with")
            ids = [first]
        sampler = Sampler(self.config.n_vocab, temperature, top_k, top_p, seed)
        with self._context() as context:
            for step in context.stream(ids, sampler, max_tokens):
                if step.text:
                    yield step.text.decode("utf-8", "replace")

    def generate(self, prompt: str | bytes | Sequence[int], **options) -> str:
        """The continuation as one str; options as for stream()."""
        return "".join(self.stream(prompt, **options))

    def score(self, ids) -> tuple[np.ndarray, float]:
        """Context.score on a context of the call's own."""
        with self._context() as context:
            return context.score(ids)

    def verify(self) -> dict:
        """Checks the hash of the weights and replays the proof block; FormatError on a mismatch."""
        report = ffi.new("llm_verify_report *")
        call(lib.llm_model_verify, self._handle.use(), ffi.NULL, report)
        return {
            "has_hash": bool(report.has_hash),
            "has_proof": bool(report.has_proof),
            "n_probes": report.n_probes,
            "max_logprob_diff": report.max_logprob_diff,
            "kernels": ffi.string(report.kernels).decode(),
        }


def proof(
    path: str | os.PathLike, probes: Sequence[Sequence[int]], n_new: int
) -> tuple[list[list[int]], list[str]]:
    """Greedy ids and the digest of their logits for each probe: the content of a proof block."""
    model = Handle(os.fspath(path)).use()
    all_ids, digests = [], []
    for probe in probes:
        array, out = id_array(probe), np.empty(n_new, np.int32)
        hex_digits = ffi.new("char[65]")
        call(
            lib.llm_proof_compute,
            model,
            pointer_to("int32_t", array),
            array.size,
            n_new,
            pointer_to("int32_t", out),
            hex_digits,
        )
        all_ids.append(out.tolist())
        digests.append(ffi.string(hex_digits).decode())
    return all_ids, digests
