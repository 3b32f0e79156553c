"""Model: an open parameter file in Python, over tokenizer.py, sampler.py and context.py.

The C of csrc/ does the work, in the compiled module `llm._llm`.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np

from llm._llm import ffi, lib
from llm.binding import (
    Handle,
    Metadata,
    Tensors,
    call,
    check_options,
    id_array,
    integer,
    is_text,
    options_of,
    pointer_to,
)
from llm.chat_template import recognised, render, warn_of_stand_in
from llm.context import CONTEXT, Context, ContextOptions, Step
from llm.sampler import SAMPLING, Sampler
from llm.tokenizer import Tokenizer

Config = dataclasses.make_dataclass(
    "Config", [name for name, _ in ffi.typeof("llm_config").fields], frozen=True
)
Config.__module__ = __name__  # where pickle looks for it


def _config(struct) -> Config:
    values = {name: getattr(struct, name) for name, _ in ffi.typeof("llm_config").fields}
    values["architecture"] = ffi.string(struct.architecture).decode()
    values["tied_output"] = bool(struct.tied_output)
    return Config(**values)


MOST_IDLE = 4  # contexts that wait for the next call: each holds the memory of a window


def _text(step: Step) -> str:
    return step.text.decode("utf-8", "replace")


class Model:
    """An open parameter file. Options are those of Context; each call works on its own context,
    so that calls from several threads, or a call inside a stream, do not disturb each other.

    >>> with llm.Model("weights/weights.bin") as m:
    ...     print(m.generate("In the", max_tokens=50, temperature=0))
    """

    def __init__(self, path: str | os.PathLike, **context_options):
        self.path = os.fspath(path)
        self._handle = Handle(self.path)
        check_options("llm.Model()", context_options, CONTEXT, {"generate()": GENERATE})
        ContextOptions(**context_options)  # a wrong one fails here, not at the first use
        self._options = context_options
        self._idle: list[Context] = []
        self._idle_chats: list[Context] = []  # not emptied: the next call may go on there
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
        self._idle_chats.clear()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def __repr__(self) -> str:
        state = " (closed)" if self._handle.closed else ""
        return f"<llm.Model {self.path}: {self.n_params:,} parameters{state}>"

    @contextmanager
    def _context(self, chat: bool = False) -> Iterator[Context]:
        """A context of the call's own: an idle one, or a new one. Empty, or a chat's."""
        idle = self._idle_chats if chat else self._idle
        try:
            context = idle.pop()
        except IndexError:
            defaults = {"on_full": "forget"} if chat else {}
            context = Context(self, **defaults | self._options)
        try:
            if not chat:
                context.truncate(0)
            yield context
        finally:
            if not self._handle.closed:
                idle.append(context)
                del idle[:-MOST_IDLE]

    def tokenize(self, text: str | bytes, special: bool = False) -> list[int]:
        """Ids of a text, BOS first where the file asks for it; special: parse control tokens."""
        ids = self.tokenizer.encode(text, parse_special=special)
        return [self.tokenizer.bos, *ids] if self.tokenizer.add_bos else ids

    def detokenize(self, ids) -> str:
        return self.tokenizer.decode(ids)

    @property
    def chat_template(self) -> str | None:
        """What the file's chat template is recognised as; None: unknown, chatml stands in."""
        return recognised(self._handle)

    def render_chat(
        self,
        messages: Sequence[Mapping[str, str]],
        add_generation_prompt: bool = True,
        template: str | None = None,
    ) -> list[int]:
        """Ids of a conversation, [{"role": "user", "content": "..."}, ...], by the file's chat
        template or the family of that name; see llm.chat_template."""
        return render(self._handle, messages, add_generation_prompt, template)

    def chat_stream(
        self,
        messages: Sequence[Mapping[str, str]],
        max_tokens: int | None = None,
        stop: Sequence[str | bytes] = (),
        template: str | None = None,
        **sampling,
    ) -> Iterator[str]:
        """The answer to a conversation, piece by piece; sampling: as at generate(). One that goes
        on where an earlier call ended evaluates its new tokens only; the oldest turns of one that
        does not fit are forgotten. llm.Chat remembers the messages and tells what is forgotten."""
        check_options("chat_stream()", sampling, CHAT, ELSEWHERE)
        warn_of_stand_in(self._handle, self.metadata, template)
        return self._answer(messages, max_tokens, stop, template, **sampling)

    def chat(self, messages: Sequence[Mapping[str, str]], **options) -> str:
        """The answer as one str; options as for chat_stream()."""
        check_options("chat()", options, CHAT, ELSEWHERE)
        warn_of_stand_in(self._handle, self.metadata, options.get("template"))
        return "".join(self._answer(messages, **options))

    def _answer(
        self, messages, max_tokens=None, stop=(), template=None, **sampling
    ) -> Iterator[str]:
        sampler = Sampler(self.config.n_vocab, **sampling)
        with self._context(chat=True) as context:
            for step in context.chat(messages, sampler, max_tokens, stop, template=template):
                if step.text:
                    yield _text(step)

    def logits(self, ids) -> np.ndarray:
        """(T, n_vocab) float32: row t holds the logits after ids[: t + 1]."""
        array = id_array(ids)
        with self._context() as context:
            return context.eval(array, n_rows=array.size)

    def _ids(self, text: str | bytes | Sequence[int], special: bool = False) -> Sequence[int]:
        return self.tokenize(text, special) if is_text(text) else text

    def _prompt_ids(self, prompt: str | bytes | Sequence[int], special: bool) -> Sequence[int]:
        ids = self._ids(prompt, special)
        if len(ids) > 0:
            return ids
        # A model continues something.
        first = self.tokenizer.eos if self.tokenizer.bos is None else self.tokenizer.bos
        if first is None:
            raise ValueError("the prompt has no tokens, and the file names none to begin with")
        return [first]

    def steps(
        self,
        prompt: str | bytes | Sequence[int],
        max_tokens: int | None = None,
        special: bool = False,
        stop: Sequence[str | bytes] = (),
        logprobs: int | None = None,
        **sampling,
    ) -> Iterator[Step]:
        """The continuation of a prompt, a Step per token. special: parse control tokens in the
        prompt. stop: strings that end the text before them. logprobs: how many alternatives to
        report beside each token's log-probability. sampling: as listed at generate()."""
        _check_call("steps()", prompt, sampling, STEPS)
        ids = self._prompt_ids(prompt, special)
        sampler = Sampler(self.config.n_vocab, **sampling)
        with self._context() as context:
            yield from context.stream(ids, sampler, max_tokens, stop, logprobs)

    def stream(self, prompt: str | bytes | Sequence[int], *args, **options) -> Iterator[str]:
        """The text of steps(), piece by piece. The pieces join to whole characters."""
        _check_call("stream()", prompt, options, STEPS)
        for step in self.steps(prompt, *args, **options):
            if step.text:
                yield _text(step)

    def generate(
        self, prompt: str | bytes | Sequence[int], *args, n: int | None = None, **options
    ) -> str | list[str]:
        """The continuation of a prompt as one str. Options, here and in stream() and steps():

        max_tokens=None: at most so many; None: until the model ends or the window is full
        stop=(): strings that end the text before them
        special=False: control tokens in the prompt are parsed
        temperature=0.8: what logits are divided by; 0: the likeliest token
        top_k=40: of so many likeliest tokens; 0: of all
        top_p=0.95: of the likeliest that have this probability together; 1: of all
        min_p=0.0: of those at least so likely as a share of the likeliest's probability
        seed=None: 0 to 2^64 - 1, of the random numbers; None: another each time
        repeat_penalty=1.0: divides the logits of recent tokens (negative ones: times)
        presence_penalty=0.0: is taken from the logit of each recent token
        frequency_penalty=0.0: the same, times how often it occurred
        penalty_last_n=64: tokens that are recent
        logit_bias=None: {id: what is added to its logit}; -inf bans
        n=None: that many continuations, as a list, with the seeds seed, seed + 1, ...; the prompt
            is read once, and each is what a call of its own would give

        Sampler has their order."""
        _check_call("generate()", prompt, options, GENERATE)
        if n is None:
            return "".join(self.stream(prompt, *args, **options))
        return ["".join(map(_text, steps)) for steps in self._choices(prompt, n, *args, **options)]

    def _choices(
        self,
        prompt: str | bytes | Sequence[int],
        n: int,
        max_tokens: int | None = None,
        special: bool = False,
        stop: Sequence[str | bytes] = (),
        logprobs: int | None = None,
        seed: int | None = None,
        **sampling,
    ) -> Iterator[list[Step]]:
        n, ids, held = integer("n", n, low=1), self._prompt_ids(prompt, special), 0
        first = Sampler(self.config.n_vocab, seed=seed, **sampling).seed
        with self._context() as context:
            for i in range(n):
                sampler = Sampler(self.config.n_vocab, seed=(first + i) % 2**64, **sampling)
                context.truncate(held)
                sampler.accept(ids[:held])
                steps = list(context.stream(ids[held:], sampler, max_tokens, stop, logprobs))
                yield steps
                # All but the last token stay, unless the window overflowed and some were forgotten.
                held = len(ids) - 1 if len(ids) + len(steps) <= context.n_ctx else 0

    def score(self, ids, stride: int = 0) -> tuple[np.ndarray, float]:
        """Context.score on a context of the call's own."""
        with self._context() as context:
            return context.score(ids, stride)

    def perplexity(self, text: str | bytes | Sequence[int], stride: int = 0) -> float:
        """e^(mean -ln p) over the tokens of a text, or of ids, but the first; see Context.score."""
        each, nats = self.score(self._ids(text), stride)
        return math.exp(nats / (each.size - 1))

    def embed(self, text: str | bytes | Sequence[int]) -> np.ndarray:
        """Context.embed of a text or of ids, on a context of the call's own."""
        with self._context() as context:
            return context.embed(self._ids(text))

    def needs(self) -> dict:
        """llm_needs: bytes of memory for the file and a full window, and seconds a token at the
        measured bandwidth of this machine, by the Model's options. Takes about 0.1 s."""
        options, needs = ContextOptions(**self._options), ffi.new("llm_needs *")
        call(lib.llm_model_needs, self._handle.use(), options.pointer, needs)
        out = {name: getattr(needs, name) for name, _ in ffi.typeof("llm_needs").fields}
        return out | {"kernels": ffi.string(needs.kernels).decode()}

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


STEPS = [*options_of(Model.steps), *SAMPLING]
GENERATE = [*STEPS, "n"]
CHAT = [*options_of(Model.chat_stream), *SAMPLING]
ELSEWHERE = {"generate()": GENERATE, "llm.Model()": CONTEXT}


def _check_call(caller: str, prompt, options: Mapping, known: Sequence[str]) -> None:
    check_options(caller, options, known, ELSEWHERE)
    if not hasattr(prompt, "__len__"):
        kind = type(prompt).__name__
        raise TypeError(f"{caller} continues a text or a list of token ids, not {kind}")


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
