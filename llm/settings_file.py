"""Settings as TOML: read with every mistake named, written so that they can be read again. Layer 2.

A file holds `name = value` lines with the names of Settings. Fields that are None are left out.
Source: TOML 1.0.
"""

from __future__ import annotations

import json
import os
from dataclasses import fields, replace
from difflib import get_close_matches
from typing import get_args, get_type_hints

from .errors import LlmError
from .settings import BUDGETS, FREE, OWN_VOCABULARY, Settings

LARGEST = 1 << 20  # bytes of a file
_EXPECTED = {int: "an integer", float: "a number", bool: "true or false", str: "a text"}


def read_settings(path: str | os.PathLike) -> dict:
    """Field -> value, typed, ready for Settings; LlmError names the file and the key."""
    try:
        import tomllib
    except ModuleNotFoundError:  # Python 3.10
        import tomli as tomllib
    with open(path, "rb") as file:
        text = file.read(LARGEST + 1)  # a device may never end
        if len(text) > LARGEST:
            raise LlmError(f"{path}: more than {LARGEST:,} bytes, too long for settings")
        try:
            values = tomllib.loads(text.decode("utf-8"))
        except (ValueError, RecursionError) as error:  # not TOML, or not UTF-8
            raise LlmError(f"{path}: not TOML: {error}") from error
    hints = get_type_hints(Settings)
    for name, value in values.items():
        if name not in hints:
            raise LlmError(f"{path}: unknown key {name}{nearest(name, hints)}")
        values[name] = _typed(f"{path}: {name}", value, hints[name])
    return values


def nearest(name: str, known) -> str:
    """ "; did you mean ...?", or nothing where no known name is like it."""
    found = get_close_matches(name, list(known), n=1)
    return f"; did you mean {found[0]}?" if found else ""


def _typed(where: str, value, hint):
    kind = next((k for k in get_args(hint) if k in _EXPECTED), hint)
    if kind is float and type(value) is int:
        return float(value)
    if kind not in _EXPECTED or hint not in (kind, kind | None):  # text: one, or a list
        items = [value] if isinstance(value, str) else value
        if isinstance(items, list) and all(isinstance(item, str) for item in items):
            return tuple(items)
        raise LlmError(f"{where} is {value!r}, expected a list of texts")
    if type(value) is not kind:
        raise LlmError(f"{where} is {value!r}, expected {_EXPECTED[kind]}")
    return value


def settings_of(values: dict) -> Settings:
    """Of a checkpoint; a field that is younger has its default. TypeError for what no run keeps."""
    hints, typed = get_type_hints(Settings), {}
    if not isinstance(values, dict):
        raise TypeError(f"the settings are {values!r}")
    for name, value in values.items():
        is_none = value is None and type(None) in get_args(hints[name])
        try:
            typed[name] = None if is_none else _typed(name, value, hints[name])
        except LlmError as error:
            raise TypeError(str(error)) from None
    return Settings(**typed)


def merge_given(from_file: dict, flags: dict) -> dict:
    """Flags override the file; a budget of any kind overrides the file's of another kind. With
    a vocabulary of its own the file's n_vocab is left out: earlier runs kept it there too."""
    if any(name in flags for name in BUDGETS):
        from_file = {k: v for k, v in from_file.items() if k not in BUDGETS}
    if any((from_file | flags).get(name) for name in OWN_VOCABULARY):
        from_file = {k: v for k, v in from_file.items() if k != "n_vocab"}
    return {**from_file, **flags}


def to_toml(settings: Settings, n_steps: int | None = None, all_fields: bool = True) -> str:
    """One line for each field that has a value. With n_steps the text repeats the run exactly: the
    budget is these steps. all_fields False: without FREE, which cannot change the weights."""
    if n_steps is not None:
        settings = replace(settings, steps=n_steps, minutes=None, tokens=None, depth=None)
    left_out = set() if all_fields else FREE
    if any(getattr(settings, name) for name in OWN_VOCABULARY):
        left_out = left_out | {"n_vocab"}
    lines = []
    for field in fields(settings):
        value = getattr(settings, field.name)
        if value is not None and field.name not in left_out:
            lines.append(f"{field.name} = {_toml(value)}\n")
    return "".join(lines)


def _toml(value) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value).lower() if isinstance(value, bool) else repr(value)
