"""Conversations to training examples: JSON lines of OpenAI-style `messages`. Layer 5.

The ids are those that `./run FILE --chat` renders. The loss counts what the model has to say
itself: each answer from behind the template's opening of a turn to the token that ends it. Whole
conversations share a window, and none sees another.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .corpus import Corpus
from .data import HELD_OUT, fraction, mix, permute
from .documents import LONGEST_RECORD
from .engine import Model
from .errors import CorpusError
from .evaluate import Validation

IGNORED = -1  # a target that is not counted
OPEN_WINDOWS = 64  # that a conversation may still go into


@dataclass(frozen=True)
class Conversation:
    """ids, and which of them the model says."""

    ids: np.ndarray
    said: np.ndarray
    question: str  # the first of the user's messages


# ---- reading ----


def read_chats(paths: Sequence[str], model: Model) -> tuple[Corpus, list[Conversation]]:
    """A document of the corpus is a line. CorpusError with file and line for what is no
    conversation."""
    names = [os.path.basename(path) for path in paths]
    corpus, conversations = Corpus(name=", ".join(names), documents=[]), []
    for path in paths:
        if os.path.exists(path) and not os.path.isfile(path):  # a pipe or a device may never end
            raise CorpusError(f"{path}: no regular file; give a file of JSON lines")
        with open(path, "rb") as file:
            lines = iter(lambda: file.readline(LONGEST_RECORD + 1), b"")
            for number, line in enumerate(lines, 1):
                where = f"{path}:{number}"
                if len(line) > LONGEST_RECORD:
                    raise CorpusError(f"{where}: longer than {LONGEST_RECORD >> 20} MiB")
                if line.strip():
                    conversations.append(render(model, parse(line, where), where))
                    corpus.documents.append(line.strip())
    if len(conversations) < 2:
        raise CorpusError(
            f"{', '.join(paths)}: conversations: {len(conversations)}, at least 2 are needed, as "
            "one is held out"
        )
    return corpus, conversations


def parse(line: bytes, where: str) -> list[dict]:
    """The messages of a line. Their roles and contents are checked when they are rendered."""
    try:
        record = json.loads(line)
    except UnicodeDecodeError as error:
        raise CorpusError(f"{where}: not UTF-8 (byte {error.start} of the line)") from error
    except (ValueError, RecursionError) as error:
        raise CorpusError(f"{where}: not JSON ({error})") from error
    messages = record.get("messages") if isinstance(record, dict) else None
    if not isinstance(messages, list):
        raise CorpusError(f'{where}: no {{"messages": [...]}}')
    if not messages:
        raise CorpusError(f"{where}: messages is empty")
    return messages


def render(model: Model, messages: list[dict], where: str) -> Conversation:
    try:
        ids = np.array(model.render_chat(messages, add_generation_prompt=False), np.int32)
        said = np.zeros(len(ids), bool)
        for i, message in enumerate(messages):
            if message["role"] == "assistant" and i:  # one that nobody asked for is no answer
                said[answer(model, ids, model.render_chat(messages[:i]))] = True
    except (ValueError, TypeError) as error:
        raise CorpusError(f"{where}: {error}") from error
    if not said.any():
        raise CorpusError(f"{where}: no message of the assistant to learn from")
    question = next((m["content"] for m in messages if m["role"] == "user"), "")
    return Conversation(ids, said, question)


def answer(model: Model, ids: np.ndarray, opened: list[int]) -> slice:
    """Where in ids the answer to a conversation lies that was rendered as `opened`: from the first
    id that differs to the first that ends a turn."""
    n = min(len(ids), len(opened))
    differs = np.flatnonzero(ids[:n] != opened[:n])
    start = int(differs[0]) if len(differs) else n
    for end in range(start, len(ids)):
        if model.tokenizer.is_eog(int(ids[end])):
            return slice(start, end + 1)
    return slice(start, len(ids))


def hold_out_chats(conversations: list, documents: list[bytes], rule: str) -> tuple[list, list]:
    """(training, held-out) conversations: about 5 %, at least one, by hash or the last."""
    n_held = max(1, round(HELD_OUT * len(conversations)))
    order = list(range(len(conversations)))
    if rule == "hash":
        order.sort(key=lambda i: fraction(documents[i]), reverse=True)
    held = set(order[-n_held:])
    return (
        [c for i, c in enumerate(conversations) if i not in held],
        [c for i, c in enumerate(conversations) if i in held],
    )


# ---- windows ----


@dataclass(frozen=True)
class Windows:
    """(n_windows, n_ctx) int32 each: `starts` says where the conversation of a position begins."""

    tokens: np.ndarray
    targets: np.ndarray
    starts: np.ndarray
    n_cut: int  # conversations that were longer than a window


def pack(conversations: Sequence[Conversation], n_ctx: int, padding: int) -> Windows:
    """Whole conversations into the first window with room; one that is longer loses its end."""
    windows: list[list[Conversation]] = []
    room: list[int] = []
    n_cut = 0
    for conversation in conversations:
        n = len(conversation.ids) - 1
        n_cut += n > n_ctx
        n = min(n, n_ctx)
        first = max(0, len(room) - OPEN_WINDOWS)
        at = next((i for i in range(first, len(room)) if room[i] >= n), len(room))
        if at == len(room):
            windows.append([])
            room.append(n_ctx)
        windows[at].append(conversation)
        room[at] -= n
    shape = (len(windows), n_ctx)
    tokens, targets = np.full(shape, padding, np.int32), np.full(shape, IGNORED, np.int32)
    starts = np.zeros(shape, np.int32)
    for row, window in enumerate(windows):
        at = 0
        for c in window:
            n = min(len(c.ids) - 1, n_ctx)
            tokens[row, at : at + n] = c.ids[:n]
            targets[row, at : at + n] = np.where(c.said, c.ids, IGNORED)[1 : n + 1]
            starts[row, at:] = at
            at += n
        starts[row, at:] = np.arange(at, n_ctx)  # padding sees itself alone
    return Windows(tokens, targets, starts, n_cut)


@dataclass(frozen=True)
class ChatExamples:
    """As data.Examples, over packed windows: each once in an epoch, in an order of its own."""

    windows: Windows
    seed: int
    n_slots: int  # of a step
    slot_sequences: int

    @property
    def tokens(self) -> np.ndarray:
        return self.windows.tokens.reshape(-1)

    @property
    def n_windows(self) -> int:
        return len(self.windows.tokens)

    def slot(self, step: int, slot: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(tokens, targets, starts) of a slot, (slot_sequences, n_ctx) int32 each."""
        first = (step * self.n_slots + slot) * self.slot_sequences
        rows = []
        for sequence in range(first, first + self.slot_sequences):
            epoch, index = divmod(sequence, self.n_windows)
            rows.append(permute(index, self.n_windows, mix(self.seed, epoch)))
        w = self.windows
        return w.tokens[rows], w.targets[rows], w.starts[rows]


class ChatValidation(Validation):
    """Held-out conversations; bits per byte of what the model says in them."""

    def __init__(self, windows: Windows, token_bytes: np.ndarray):
        self.inputs, self.targets, self.starts = windows.tokens, windows.targets, windows.starts
        self._count(token_bytes)
