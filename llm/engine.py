"""Model: an open parameter file in Python, over tokenizer.py, sampler.py and context.py.

The C of csrc/ does the work, in the compiled module `llm._llm`.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np

from llm._llm import ffi, lib
from llm.binding import Handle, Metadata, Tensors, call, id_array, pointer_to
from llm.chat_template import recognised, render
from llm.context import Context
from llm.sampler import Sampler
from llm.tokenizer import Tokenizer

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

    def score(self, ids, stride: int = 0) -> tuple[np.ndarray, float]:
        """Context.score on a context of the call's own."""
        with self._context() as context:
            return context.score(ids, stride)

    def embed(self, text: str | bytes | Sequence[int]) -> np.ndarray:
        """Context.embed of a text or of ids, on a context of the call's own."""
        ids = self.tokenize(text) if isinstance(text, str | bytes) else text
        with self._context() as context:
            return context.embed(ids)

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
