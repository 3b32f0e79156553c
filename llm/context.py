"""Context: one timeline of tokens, over the compiled module `llm._llm`.

A lock per context and per sampler, taken in this order by a step, and buffers kept alive; cffi
releases the GIL during every call. A cancel_check runs inside both: it must not wait for a context
or a sampler that another thread uses.
"""

from __future__ import annotations

import dataclasses
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from llm._llm import ffi, lib
from llm.binding import (
    INT64,
    Alone,
    Handle,
    call,
    check_options,
    chosen,
    id_array,
    integer,
    is_text,
    new,
    options_of,
    pointer_to,
    raise_error,
    to_bytes,
    typed,
    word,
)
from llm.chat_template import family, message_array
from llm.sampler import Sampler

if TYPE_CHECKING:
    from llm.engine import Model


@ffi.def_extern(error=1, onerror=lambda kind, error, trace: _remember(error))
def llm_python_cancel_check(user) -> int:
    """Called between layers with the GIL taken: being Python, it lets pending signals raise."""
    check = ffi.from_handle(user)
    if check is not None:
        check()
    return 0


@ffi.def_extern(onerror=lambda kind, error, trace: _remember(error))
def llm_python_input_observer(user, weight, x, n_tok, n_in) -> None:
    rows = np.frombuffer(ffi.buffer(x, n_tok * n_in * 4), np.float32).reshape(n_tok, n_in)
    ffi.from_handle(user)(int(ffi.cast("uintptr_t", weight)), rows)


_cancelled = threading.local()


def _remember(error: BaseException) -> None:
    _cancelled.error = error


def _raise_remembered() -> None:
    error, _cancelled.error = getattr(_cancelled, "error", None), None
    if error is not None:
        raise error


def call_cancellable(function: Callable, *args) -> None:
    """Calls a function that takes an llm_error last and asks the cancel check; raises what either
    reports."""
    err = ffi.new("llm_error *")
    status = function(*args, err)
    if status == lib.LLM_ERR_CANCELLED:
        _raise_remembered()
        raise KeyboardInterrupt
    if status != lib.LLM_OK:
        raise_error(err)


class ContextOptions:
    """llm_context_options, with the memory that they point at.

    n_ctx 0: the trained length, at most 4096. on_full: what makes room in a full window: "stop",
    "forget" the oldest text, or "slide" behind the first n_sink tokens. cancel_check: called
    between layers; an exception that it raises ends the call, leaves the context as it was, and is
    raised from the call."""

    _KV_TYPES = {"f16": lib.LLM_TYPE_F16, "f32": lib.LLM_TYPE_F32, "q8_0": lib.LLM_TYPE_Q8_0}
    _ON_FULL = {
        "stop": lib.LLM_ON_FULL_STOP,
        "forget": lib.LLM_ON_FULL_FORGET,
        "slide": lib.LLM_ON_FULL_SLIDE,
    }

    def __init__(
        self,
        n_ctx: int = 0,
        n_threads: int = 0,
        kv_type: str = "f16",
        kernels: str | None = None,
        allow_long_context: bool = False,
        on_full: str = "stop",
        n_sink: int = 4,
        cancel_check: Callable[[], object] | None = None,
    ):
        self._check = ffi.new_handle(cancel_check)
        self._kernels = ffi.NULL if kernels is None else ffi.new("char[]", word("kernels", kernels))
        self.pointer = ffi.new("llm_context_options *")
        self.pointer.n_ctx = integer("n_ctx", n_ctx, high=INT64)
        self.pointer.n_threads = integer("n_threads", n_threads)
        self.pointer.kv_type = chosen("kv_type", kv_type, self._KV_TYPES)
        self.pointer.kernels = self._kernels
        self.pointer.allow_long_context = int(allow_long_context)
        self.pointer.on_full = chosen("on_full", on_full, self._ON_FULL)
        self.pointer.n_sink = integer("n_sink", n_sink, high=INT64)
        self.pointer.cancel_check = lib.llm_python_cancel_check
        self.pointer.cancel_user = self._check


CONTEXT = options_of(ContextOptions)


class Context:
    """One timeline of tokens. Calls from several threads wait for each other."""

    def __init__(self, model: Model, **options):
        """options: those of ContextOptions."""
        check_options("llm.Context()", options, CONTEXT, {})
        if not isinstance(getattr(model, "_handle", None), Handle):  # engine.py imports this file
            raise TypeError(f"model must be an llm.Model, not {type(model).__name__}")
        self._handle = model._handle
        self._n_vocab, self._n_embd = model.config.n_vocab, model.config.n_embd
        self._options = ContextOptions(**options)
        self._pointer = new(
            lib.llm_context_new,
            "llm_context",
            lib.llm_context_free,
            self._handle.use(),
            self._options.pointer,
        )
        self._alone = Alone("context", self._pointer)

    @contextmanager
    def _use(self):
        """The C context, alone; the model is kept while it is in use."""
        model = self._handle.use()
        try:
            with self._alone.use() as pointer:
                yield pointer
        finally:
            del model

    @property
    def n_ctx(self) -> int:
        return lib.llm_context_n_ctx(self._pointer)

    @property
    def n_past(self) -> int:
        """Tokens held."""
        return lib.llm_context_n_past(self._pointer)

    @property
    def ids(self) -> list[int]:
        """The tokens held, in the order of the text."""
        with self._use() as pointer:
            return ffi.unpack(lib.llm_context_ids(pointer), lib.llm_context_n_past(pointer))

    @property
    def kernels(self) -> str:
        return ffi.string(lib.llm_context_kernels(self._pointer)).decode()

    def eval(self, ids, n_rows: int = 1) -> np.ndarray:
        """Appends tokens; returns the logits of the last n_rows of them, (n_rows, n_vocab)."""
        array = id_array(ids)
        if integer("n_rows", n_rows, low=0) > array.size:
            raise ValueError(f"logits of {n_rows} rows asked for {array.size} tokens")
        with self._use() as pointer:
            out = np.empty((n_rows, self._n_vocab), np.float32)
            call_cancellable(
                lib.llm_context_eval,
                pointer,
                pointer_to("int32_t", array),
                array.size,
                pointer_to("float", out),
                n_rows,
            )
        return out

    @contextmanager
    def observed(self, observer: Callable[[int, np.ndarray], None]):
        """Within the block, observer(address, x) is shown each input of a weight matrix: where the
        matrix lies (Tensors.address), and x (T, n_in) float32 that is gone when it returns. What it
        raises is raised at the end of the block."""
        handle = ffi.new_handle(observer)
        _remember(None)
        with self._use() as pointer:
            lib.llm_context_observe(pointer, lib.llm_python_input_observer, handle)
        try:
            yield
        finally:
            with self._use() as pointer:
                lib.llm_context_observe(pointer, ffi.NULL, ffi.NULL)
        _raise_remembered()

    def truncate(self, n_keep: int = 0) -> None:
        """Forgets every token from position n_keep on."""
        with self._use() as pointer:
            call(lib.llm_context_truncate, pointer, integer("n_keep", n_keep, high=INT64))

    def score(self, ids, stride: int = 0) -> tuple[np.ndarray, float]:
        """-ln p of each token of a text (NaN for the first), and their sum. Windows of n_ctx that
        begin `stride` tokens apart (0: half overlap) where the text is longer; each token is
        scored once. Starts from an empty context."""
        array, stride = id_array(ids), integer("stride", stride, high=INT64)
        each, out = np.empty(array.size, np.float32), ffi.new("llm_score *")
        with self._use() as pointer:
            call_cancellable(
                lib.llm_score_text,
                pointer,
                pointer_to("int32_t", array),
                array.size,
                stride,
                pointer_to("float", each),
                out,
            )
        return each, out.nats

    def embed(self, ids) -> np.ndarray:
        """(n_embd,) float32 of length 1: the mean of the text's last hidden states after the final
        norm. Starts from an empty context, which must hold the text."""
        array, out = id_array(ids), np.empty(self._n_embd, np.float32)
        with self._use() as pointer:
            text = pointer_to("int32_t", array)
            target = pointer_to("float", out)
            call_cancellable(lib.llm_context_embed, pointer, text, array.size, target)
        return out

    def stream(
        self,
        ids,
        sampler: Sampler,
        max_tokens: int | None = None,
        stop: Sequence[str | bytes] = (),
        logprobs: int | None = None,
    ) -> Iterator[Step]:
        """Evaluates ids on top of what is held, then yields a Step per token until a finish. The
        text ends before the first of the stop strings that appears in it. logprobs: how many
        alternatives to report beside each token's log-probability."""
        array = id_array(ids)
        options = GeneratorOptions(max_tokens, stop, logprobs)
        prompt = pointer_to("int32_t", array), array.size
        generator = self._start(lib.llm_generator_new, sampler, *prompt, options)
        yield from self._steps(generator, sampler)

    def chat(
        self,
        messages: Sequence[Mapping[str, str]],
        sampler: Sampler,
        max_tokens: int | None = None,
        stop: Sequence[str | bytes] = (),
        logprobs: int | None = None,
        template: str | None = None,
    ) -> Iterator[Step]:
        """The answer to a conversation, [{"role": "user", "content": "..."}, ...]. What the context
        holds of it stays, the rest is evaluated; a context that forgets drops the oldest whole
        turns where it does not fit. Steps as those of stream()."""
        array, kept = message_array(messages)
        options = GeneratorOptions(max_tokens, stop, logprobs)
        conversation = family(template), array, len(kept)
        generator = self._start(lib.llm_chat_start, sampler, *conversation, options)
        del kept
        for step in self._steps(generator, sampler):
            yield dataclasses.replace(
                step, forgot_messages=lib.llm_generator_n_forgotten(generator)
            )

    def _start(self, function: Callable, sampler: Sampler, *args) -> object:
        """An llm_generator by one of its constructors; the last of args are GeneratorOptions."""
        out, options = ffi.new("llm_generator **"), args[-1].pointer
        typed("sampler", sampler, Sampler)
        with self._use() as pointer, sampler._use() as own:
            call_cancellable(function, out, pointer, own, *args[:-1], options)
        return ffi.gc(out[0], lib.llm_generator_free)

    def _steps(self, generator, sampler: Sampler) -> Iterator[Step]:
        step = ffi.new("llm_step *")
        while not step.finish:
            with self._use(), sampler._use():
                call_cancellable(lib.llm_generator_next, generator, step)
                text = ffi.buffer(step.text, step.n_bytes)[:] if step.n_bytes else b""
            finish = ffi.string(lib.llm_finish_name(step.finish)).decode() if step.finish else None
            id = step.id if step.id >= 0 else None
            logprob = None if math.isnan(step.logprob) else step.logprob
            top = [(step.top_ids[i], step.top_logprobs[i]) for i in range(step.n_top)]
            yield Step(id, text, finish, step.forgot_tokens, step.forgot_turns, 0, logprob, top)


def _limit(name: str, value: int | None) -> int:
    """As C has what may be absent."""
    return -1 if value is None else integer(name, value, 0, INT64)


class GeneratorOptions:
    """llm_generator_options, with the memory that they point at."""

    def __init__(
        self, max_tokens: int | None, stop: Sequence[str | bytes], logprobs: int | None = None
    ):
        stop = [stop] if is_text(stop) else typed("stop", stop, Iterable)
        raw = [to_bytes(s, "a stop string") for s in stop]
        self._kept = [ffi.new("char[]", s) for s in raw]
        self._list = ffi.new("char *[]", self._kept)
        self._lengths = ffi.new("size_t[]", [len(s) for s in raw])
        self.pointer = ffi.new("llm_generator_options *")
        self.pointer.max_tokens = _limit("max_tokens", max_tokens)
        self.pointer.n_top = _limit("logprobs", logprobs)
        self.pointer.n_stop = len(raw)
        self.pointer.stop, self.pointer.stop_bytes = self._list, self._lengths


@dataclasses.dataclass(frozen=True)
class Step:
    """One step of a generation: the new token (None when there is none), the bytes that became
    complete, and why it ended ("stop", "length", "context"), None before that. What was forgotten
    before this token: tokens, and whole turns of a chat; how many of a conversation's messages
    behind the system message are forgotten by now. The log-probability of the token and the
    likeliest tokens with theirs, where asked for."""

    id: int | None
    text: bytes
    finish: str | None
    forgot_tokens: int = 0
    forgot_turns: int = 0
    forgot_messages: int = 0
    logprob: float | None = None
    top: list[tuple[int, float]] = dataclasses.field(default_factory=list)
