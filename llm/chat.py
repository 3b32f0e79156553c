"""Chat: a conversation that remembers, over Context.chat; what `./run FILE --chat` is in C.

>>> with llm.Model("weights/SmolLM2-135M-Instruct.Q4_1.gguf") as m:
...     chat = llm.Chat(m, system="Answer in one sentence.")
...     print(chat.say("What is a llama?"))
...     print(chat.say("And an alpaca?"))
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence

from llm._llm import ffi, lib
from llm.binding import call, check_options, file_name, new, options_of, to_bytes, typed
from llm.chat_template import ROLES, family, message_array, names, warn_of_stand_in
from llm.context import CONTEXT, Context, Step
from llm.engine import Model
from llm.sampler import SAMPLING, Sampler

MAX_TOKENS = 1024  # of an answer: small models may not find an end


class Chat:
    """messages: the conversation as far as it is not forgotten. on_forget: called with the Step
    that reports forgotten turns. sampling: options of Sampler; context: options of Context, before
    those that the model was opened with.

    Calls from several threads do no harm, but their messages mix: a conversation wants one at a
    time. An answer that is under way at a reset() or load() stays out of the new conversation."""

    def __init__(
        self,
        model: Model,
        system: str | None = None,
        template: str | None = None,
        on_forget: Callable[[Step], object] | None = None,
        context: dict | None = None,
        **sampling,
    ):
        elsewhere = {"say()": options_of(Chat.stream), "llm.Model()": CONTEXT}
        check_options("llm.Chat()", sampling, [*options_of(Chat), *SAMPLING], elsewhere)
        self.model = typed("model", model, Model)
        family(template)  # a wrong one fails here, not at the first answer
        if system is not None:
            to_bytes(system, "system")  # likewise
        options = {"on_full": "forget"} | model._options | typed("context", context or {}, dict)
        self.context = Context(model, **options)
        self.sampler = Sampler(model.config.n_vocab, **sampling)
        self.template, self._on_forget = template, on_forget
        warn_of_stand_in(model._handle, model.metadata, template)
        self.messages: list[dict] = []
        if system is not None:
            self.messages.append({"role": "system", "content": system})

    def reset(self) -> None:
        """Begins again, with the conversation's system message."""
        self.messages = _system(self.messages)
        self.context.truncate(0)

    def stream(
        self, text: str, max_tokens: int | None = MAX_TOKENS, stop: Sequence[str | bytes] = ()
    ) -> Iterator[str]:
        """The answer, piece by piece. An answer that is not read to its end stays as far as it was
        read."""
        messages, question = self.messages, {"role": "user", "content": text}
        answer, n_forgotten = b"", 0
        asked = [*messages, question]
        steps = self.context.chat(asked, self.sampler, max_tokens, stop, template=self.template)
        step = next(steps)
        messages.append(question)  # where nothing failed
        try:
            while step is not None:
                answer += step.text
                n_forgotten = step.forgot_messages
                if step.forgot_turns and self._on_forget:
                    self._on_forget(step)
                if step.text:
                    yield step.text.decode("utf-8", "replace")
                step = next(steps, None)
        finally:
            system = len(_system(messages))
            del messages[system : system + n_forgotten]
            messages.append(
                {"role": "assistant", "content": answer.decode("utf-8", "surrogateescape")}
            )

    def say(self, text: str, **options) -> str:
        """The answer as one str; options as for stream()."""
        elsewhere = {"llm.Chat()": [*options_of(Chat), *SAMPLING], "llm.Model()": CONTEXT}
        check_options("say()", options, options_of(Chat.stream), elsewhere)
        return "".join(self.stream(text, **options))

    def save(self, path: str | os.PathLike) -> None:
        """The conversation as `./run --chat` saves it; the file appears whole or not at all."""
        array, kept = message_array(self.messages)
        name = ffi.new("char[]", file_name(path))
        with self.context._use() as pointer:
            call(
                lib.llm_session_save,
                name,
                self.model._handle.use(),
                family(self.template),
                array,
                len(kept),
                lib.llm_context_ids(pointer),
                lib.llm_context_n_past(pointer),
                path=os.fspath(path),
            )

    def load(self, path: str | os.PathLike) -> None:
        """Goes on with a saved conversation. FormatError where it was saved with another parameter
        file; then, as after any failure, the conversation is as it was."""
        name = ffi.new("char[]", file_name(path))
        session = new(
            lib.llm_session_load,
            "llm_session",
            lib.llm_session_free,
            name,
            self.model._handle.use(),
            path=os.fspath(path),
        )
        n = ffi.new("size_t *")
        messages = lib.llm_session_messages(session, n)
        loaded = [_message(messages[i]) for i in range(n[0])]
        ids = lib.llm_session_ids(session, n)
        ids = ffi.unpack(ids, n[0]) if n[0] else []
        self.context.truncate(0)
        if 0 < len(ids) <= self.context.n_ctx:
            self.context.eval(ids, n_rows=0)
        which = lib.llm_session_template(session)
        self.template = names()[which - 1] if which else None
        self.messages = loaded


def _system(messages: list[dict]) -> list[dict]:
    """The system message, where there is one."""
    return [m for m in messages[:1] if m["role"] == "system"]


def _message(message) -> dict:
    role = next(name for name, number in ROLES.items() if number == message.role)
    text = ffi.buffer(message.text, message.n_bytes)[:] if message.n_bytes else b""
    return {"role": role, "content": text.decode("utf-8", "surrogateescape")}
