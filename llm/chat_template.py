"""Conversations to token ids, over the compiled module `llm._llm`.

A message is a mapping with "role" (system, user or assistant) and "content". The file's template is
recognised, never executed (csrc/chat_template.c); `recognised()` says as what.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import numpy as np

from llm._llm import ffi, lib
from llm.binding import Handle, chosen, is_text, pointer_to, raise_error, to_bytes, word

ROLES = {
    "system": lib.LLM_ROLE_SYSTEM,
    "user": lib.LLM_ROLE_USER,
    "assistant": lib.LLM_ROLE_ASSISTANT,
}


def names() -> list[str]:
    """The template families that render() takes by name."""
    name = lib.llm_template_name
    numbers = range(1, len(ffi.typeof("llm_template").elements))
    return [ffi.string(name(number)).decode() for number in numbers]


def recognised(handle: Handle) -> str | None:
    """The family of the file's template; None: unknown or absent, chatml is used."""
    known = ffi.new("int32_t *")
    family = lib.llm_model_template(handle.use(), known)
    return ffi.string(lib.llm_template_name(family)).decode() if known[0] else None


def warn_of_stand_in(handle: Handle, metadata: Mapping, template: str | None) -> None:
    """Where chatml stands in, in the words of csrc/run_chat.c, at the caller of the caller."""
    if template is not None or recognised(handle) is not None:
        return
    why = "the file has no chat template, its model may not have learned to converse"
    if "tokenizer.chat_template" in metadata:
        why = "this program does not know the file's chat template"
    warnings.warn(f"{why}: chatml stands in (template= chooses another)", stacklevel=3)


def family(template: str | None) -> int:
    """llm_template of a name; None: the file's."""
    if template is None:
        return lib.LLM_TEMPLATE_AUTO
    found = lib.llm_template_find(word("template", template))
    if found == lib.LLM_TEMPLATE_AUTO:
        raise ValueError(f"template is {template!r}, expected one of {', '.join(names())}")
    return found


def message_array(messages: Sequence[Mapping[str, str]]):
    """The C array, and what it points at: one for each message, of which another thread may have
    made more since."""
    is_list = isinstance(messages, Sequence) and not isinstance(messages, str | bytes)
    held = list(messages) if is_list else []
    if not is_list or not all(isinstance(m, Mapping) for m in held):
        raise TypeError('messages is no list of {"role": ..., "content": ...}')
    array, kept = ffi.new("llm_message[]", max(len(held), 1)), []
    for at, message in enumerate(held):
        role, content = message.get("role"), message.get("content")
        number = chosen(f"message {at}: role", role, ROLES)
        if not is_text(content):
            raise ValueError(f"message {at}: content is no text")
        raw = to_bytes(content)
        text = ffi.from_buffer("char[]", raw)
        array[at].role, array[at].text, array[at].n_bytes = number, text, len(raw)
        kept.append(text)
    return array, kept


def render(
    handle: Handle,
    messages: Sequence[Mapping[str, str]],
    add_generation_prompt: bool,
    template: str | None,
) -> list[int]:
    """Model.render_chat."""
    which = family(template)
    array, kept = message_array(messages)
    needed, ids = ffi.new("size_t *"), np.empty(256, np.int32)
    while True:
        err = ffi.new("llm_error *")
        status = lib.llm_chat_render(
            handle.use(),
            which,
            array,
            len(kept),
            int(add_generation_prompt),
            pointer_to("int32_t", ids),
            ids.size,
            needed,
            err,
        )
        if status == lib.LLM_OK:
            return ids[: needed[0]].tolist()
        if needed[0] <= ids.size:
            raise_error(err)
        ids = np.empty(needed[0], np.int32)
