"""`python -m llm tokenize`: how a text falls into tokens: their number, ids and pieces. Layer 11.

On a terminal the pieces stand in alternating background colours; piped, or with NO_COLOR set, each
stands in quotes. What a terminal would act on is shown instead: control characters and bytes that
are no whole character as \\x1b, a line end as ⏎ before it, a tab as ⇥.
"""

from __future__ import annotations

import json
import os
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

DEFAULT = "cl100k"
BACKGROUNDS = (183, 151, 222, 217, 153)  # of 256 colours: pale violet, green, yellow, red, blue


def add_arguments(command: ArgumentParser) -> None:
    command.add_argument("text", nargs="?", help="the text; - or none: standard input")
    command.add_argument("--file", metavar="FILE", help="the text of a file, instead")
    command.add_argument(
        "--vocab",
        metavar="NAME|FILE",
        default=DEFAULT,
        help=f"gpt2, cl100k (GPT-4), o200k (GPT-4o), or a parameter file ({DEFAULT})",
    )
    command.add_argument(
        "--special",
        action="store_true",
        help="the text of control tokens, such as <|endoftext|>, becomes those tokens",
    )
    shown = command.add_mutually_exclusive_group()
    shown.add_argument("--count", action="store_true", help="print the number of tokens only")
    shown.add_argument("--ids", action="store_true", help="print the ids only")
    shown.add_argument(
        "--json",
        action="store_true",
        help="print count, ids and pieces as JSON; a piece that is not whole UTF-8 is a list of "
        "its bytes",
    )


def run(options: Namespace) -> int:
    from .vocabularies import open_vocabulary

    if options.text is not None and options.file is not None:
        raise ValueError("give a text or --file, not both")
    text = read_text(options)
    tokenizer = open_vocabulary(options.vocab, say=lambda line: print(line, file=sys.stderr))
    ids = tokenizer.encode(text, parse_special=options.special)
    if options.count:
        print(len(ids))
    elif options.ids:
        print(*ids)
    elif options.json:
        print(as_json(options.vocab, ids, pieces_of(tokenizer, ids)))
    else:
        show(options.vocab, ids, pieces_of(tokenizer, ids))
    return 0


def read_text(options: Namespace) -> bytes:
    if options.file is not None:
        return Path(options.file).read_bytes()
    return text_of("-" if options.text is None else options.text, f"--file {options.text}")


def text_of(argument: str, how: str) -> bytes:
    """What stands for a text on the command line; -: standard input. how: to read a file instead,
    which is said where the text is the name of one."""
    from .report import escape

    if argument == "-":
        return sys.stdin.buffer.read()
    if os.path.isfile(argument):
        line = f"note: {argument} is taken as the text; {how} reads the file of that name"
        print(escape(line), file=sys.stderr)
    return argument.encode("utf-8", "surrogateescape")


def pieces_of(tokenizer, ids: list[int]) -> list[bytes]:
    """The bytes of each token, with the space that SentencePiece puts before a text."""
    known = {id: tokenizer.decode_bytes([id], whole=False) for id in set(ids)}
    return [known[id] for id in ids]


# ---- printing ----


def as_json(vocabulary: str, ids: list[int], pieces: list[bytes]) -> str:
    def readable(piece: bytes) -> str | list[int]:
        try:
            return piece.decode("utf-8")
        except UnicodeDecodeError:
            return list(piece)

    shown = [readable(piece) for piece in pieces]
    record = {"vocabulary": vocabulary, "count": len(ids), "ids": ids, "pieces": shown}
    return json.dumps(record, ensure_ascii=False)


def show(vocabulary: str, ids: list[int], pieces: list[bytes]) -> None:
    from .report import escape

    n_bytes = sum(len(piece) for piece in pieces)
    each = f", {n_bytes / len(ids):.1f} bytes each" if ids else ""
    print(f"{len(ids)} token{'' if len(ids) == 1 else 's'} of {escape(vocabulary)}{each}")
    if not ids:
        return
    print(*ids)
    if colours_wanted():
        print(coloured(pieces))
    else:
        print(*(quoted(piece) for piece in pieces))


def colours_wanted() -> bool:
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    return sys.stdout.isatty()


def coloured(pieces: list[bytes]) -> str:
    """A background ends before its line does, or the terminal would fill the line with it."""
    out = []
    for i, piece in enumerate(pieces):
        on, off = f"\x1b[48;5;{BACKGROUNDS[i % len(BACKGROUNDS)]};38;5;16m", "\x1b[0m"
        *ended, last = visible(piece, {"\n": "\n", "\t": "⇥"}).split("\n")
        out += [f"{on}{line}⏎{off}\n" for line in ended]
        out += [f"{on}{last}{off}"] if last else []
    return "".join(out)


def quoted(piece: bytes) -> str:
    escapes = {"\n": "\\n", "\t": "\\t", "\r": "\\r", '"': '\\"', "\\": "\\\\"}
    return f'"{visible(piece, escapes)}"'


def visible(piece: bytes, shown: dict[str, str]) -> str:
    """Text with what a terminal acts on, and bytes that are no whole character, as \\x1b."""

    def one(char: str) -> str:
        if char in shown:
            return shown[char]
        if char.isprintable():
            return char
        return "".join(f"\\x{byte:02x}" for byte in char.encode("utf-8", "surrogateescape"))

    return "".join(map(one, piece.decode("utf-8", "surrogateescape")))
