"""Statuses to exceptions, and the open file: what engine.py stands on.

A `Handle` holds the C model until it is closed. Whatever reads the mapping, a running call or a
tensor view, holds the model too: the file is unmapped when the last of these lets go.
"""

from __future__ import annotations

import inspect
import operator
import os
import threading
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches

import numpy as np

from llm._llm import ffi, lib
from llm.errors import ContextFullError, FormatError, UnsupportedError

# ---- errors ----

# One row per llm_status but LLM_OK. OSError, ContextFullError and the cancelled call need more than
# the message: see _raise.
STATUS_EXCEPTIONS: dict[str, type[BaseException]] = {
    "LLM_ERR_ARG": ValueError,
    "LLM_ERR_IO": OSError,
    "LLM_ERR_FORMAT": FormatError,
    "LLM_ERR_UNSUPPORTED": UnsupportedError,
    "LLM_ERR_NOMEM": MemoryError,
    "LLM_ERR_CONTEXT_FULL": ContextFullError,
    "LLM_ERR_CANCELLED": KeyboardInterrupt,
}


def raise_error(err, path: str | None = None) -> None:
    message = ffi.string(err.message).decode("utf-8", "replace")
    kind = STATUS_EXCEPTIONS[ffi.string(lib.llm_status_name(err.status)).decode()]
    if kind is OSError and err.sys_errno:
        why, name = os.strerror(err.sys_errno), os.fsdecode(path or "")
        if name and message.startswith(name):  # else the name was cleaned, and what it has is told
            why = message.removeprefix(name).lstrip(": ")
        raise OSError(err.sys_errno, why, path)
    if kind is ContextFullError:
        raise ContextFullError(message, n_tokens=err.found, n_ctx=err.limit)
    raise kind(message)


def call(function: Callable, *args, path: str | None = None) -> None:
    """Calls a function that takes an llm_error last, and raises what it reports."""
    err = ffi.new("llm_error *")
    if function(*args, err) != lib.LLM_OK:
        raise_error(err, path)


def new(function: Callable, kind: str, free: Callable, *args, path: str | None = None):
    """Calls a constructor; the result frees itself."""
    out = ffi.new(f"{kind} **")
    call(function, out, *args, path=path)
    return ffi.gc(out[0], free)


class Alone:
    """A C object for one thread at a time, in turn. The thread that is inside a call can come back
    by way of a cancel_check alone, and is refused: it would wait for itself."""

    def __init__(self, name: str, pointer):
        self._name, self._pointer = name, pointer
        self._lock = threading.RLock()
        self._busy = False  # inside a call; seen under the lock by its own thread only

    @contextmanager
    def use(self) -> Iterator:
        with self._lock:
            if self._busy:
                raise RuntimeError(f"a cancel_check used the {self._name} that it was asked about")
            self._busy = True
            try:
                yield self._pointer
            finally:
                self._busy = False


# ---- arguments ----


def typed(name: str, value, kind: type):
    """TypeError for an argument that is no such thing."""
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be {kind.__name__}, not {type(value).__name__}")
    return value


INT32, INT64 = 2**31 - 1, 2**63 - 1  # the largest of each


def integer(name: str, value, low: int | None = None, high: int = INT32) -> int:
    """low: None for that of the C field, where C itself says what of it makes sense."""
    low = -high - 1 if low is None else low
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, not {type(value).__name__}") from None
    if number < low:
        raise ValueError(f"{name} is {number}, expected {low} or more")
    if number > high:
        raise ValueError(f"{name} is {number}, expected at most {high}")
    return number


def chosen(name: str, value, choices: Mapping[str, int]) -> int:
    """What is chosen by its name."""
    if value not in list(choices):  # a list also finds what has no hash
        raise ValueError(f"{name} is {value!r}, expected one of {', '.join(choices)}")
    return choices[value]


def c_string(name: str, raw: bytes) -> bytes:
    if b"\0" in raw:  # C would take the part before it
        raise ValueError(f"{name} cannot hold a zero byte: {os.fsdecode(raw)!r}")
    return raw


def file_name(path: str | os.PathLike) -> bytes:
    """As C takes it."""
    return c_string("a path", os.fsencode(path))


def word(name: str, value: str) -> bytes:
    """A name of something, as C takes it."""
    return c_string(name, typed(name, value, str).encode("utf-8", "surrogateescape"))


def is_text(value) -> bool:
    """str, or what is like bytes; a NumPy array is numbers, also where these are bytes."""
    if isinstance(value, memoryview):
        return value.itemsize == 1
    return isinstance(value, str | bytes | bytearray)


def to_bytes(text, name: str = "text") -> bytes:
    """UTF-8 of a str, or the bytes of anything like bytes."""
    if not is_text(text):
        raise TypeError(f"{name} must be str or bytes, not {type(text).__name__}")
    return text.encode("utf-8", "surrogateescape") if isinstance(text, str) else bytes(text)


NOT_IDS = "token ids must be a flat sequence of integers"
TOO_WIDE = "token ids must fit 32 bits"


def id_array(ids) -> np.ndarray:
    """Token ids as a C-ordered int32 vector; ids that int32 cannot hold are a ValueError."""
    try:  # of a list NumPy would make an array of 64 bits, and read it twice
        wide = np.asarray(array("i", ids) if isinstance(ids, list) else ids)
    except TypeError:
        raise ValueError(NOT_IDS) from None
    except OverflowError:
        raise ValueError(TOO_WIDE) from None
    if wide.ndim != 1 or is_text(ids):
        raise ValueError(NOT_IDS)
    return int32_array("token ids", wide)


def int32_array(name: str, values) -> np.ndarray:
    """C-ordered; what int32 cannot hold is a ValueError."""
    wide = np.asarray(values)
    if wide.size and wide.dtype.kind not in "iu":
        raise ValueError(f"{name} must be integers")
    if wide.size and (wide.max() > INT32 or wide.min() < -INT32 - 1):
        raise ValueError(f"{name} must fit 32 bits")
    return np.ascontiguousarray(wide, dtype=np.int32)


def pointer_to(kind: str, array: np.ndarray):
    return ffi.cast(f"{kind} *", array.ctypes.data)


# ---- options by name ----


def options_of(function: Callable) -> list[str]:
    """The arguments that have a default."""
    named = inspect.signature(function).parameters.values()
    return [p.name for p in named if p.default is not p.empty]


def check_options(
    caller: str, given: Iterable[str], known: Sequence[str], others: Mapping[str, Sequence[str]]
) -> None:
    """TypeError for an option that `caller`, which is what the user called, has not: says which of
    the others has it, or those that it begins, or the nearest one, or all that there are."""
    for name in given:
        if name in known:
            continue
        hint = f"its options are {', '.join(known)}"
        begun = [option for option in known if option.startswith(name)]
        if near := begun or get_close_matches(name, known, n=1):
            hint = f"did you mean {' or '.join(near)}?"
        if has := [other for other, names in others.items() if name in names]:
            hint = f"{has[0]} has it"
        raise TypeError(f"{caller} has no option {name}: {hint}")


# ---- the open file ----


class Handle:
    """One mapped parameter file. Every call takes the model from use() and keeps it while it runs;
    close() makes the next use() fail."""

    def __init__(self, path: str):
        args = (lib.llm_model_open, "llm_model", lib.llm_model_free, file_name(path))
        self._model = new(*args, path=path)

    @property
    def closed(self) -> bool:
        return self._model is None

    def use(self):
        model = self._model
        if model is None:
            raise ValueError("the model is closed")
        return model

    def close(self) -> None:
        self._model = None


def borrowed(pointer, model):
    """A pointer into the model's memory that keeps the model while it lives."""
    return ffi.gc(pointer, lambda _, keep=model: None)


# ---- metadata and tensors ----

_SCALARS = {0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?"} | {
    10: "<u8",
    11: "<i8",
    12: "<f8",
}  # GGUF value type -> NumPy
_STRING, _ARRAY = 8, 9


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")


def split_strings(raw: bytes) -> list[bytes]:
    """The strings of an array, each behind its length."""
    out, at = [], 0
    while at < len(raw):
        length = int.from_bytes(raw[at : at + 8], "little")
        out.append(raw[at + 8 : at + 8 + length])
        at += 8 + length
    return out


class Metadata(Mapping):
    """Keys and values of the file. Strings are str, numbers int, float or bool, arrays of numbers
    NumPy arrays (copies), arrays of strings lists."""

    def __init__(self, handle: Handle):
        self._handle = handle
        self._index = {}
        model = handle.use()
        for i in range(lib.llm_model_n_meta(model)):
            self._index[ffi.string(self._entry(model, i).key).decode()] = i

    @staticmethod
    def _entry(model, index: int):
        """Points into the model's memory: the caller keeps the model."""
        meta = ffi.new("llm_meta *")
        call(lib.llm_model_meta, model, index, meta)
        return meta

    def __getitem__(self, key: str):
        meta, raw = self._entry(self._handle.use(), self._index[key]), self.raw(key)
        if meta.value_type == _STRING:
            return _text(raw)
        if meta.value_type != _ARRAY:
            return np.frombuffer(raw, _SCALARS[meta.value_type])[0].item()
        if meta.element_type == _STRING:
            return [_text(string) for string in split_strings(raw)]
        return np.frombuffer(raw, _SCALARS[meta.element_type])

    def raw(self, key: str) -> bytes:
        """The value's bytes as llm_meta describes them."""
        model = self._handle.use()
        meta = self._entry(model, self._index[key])
        return bytes(ffi.buffer(meta.data, meta.n_bytes)) if meta.n_bytes else b""

    def value_type(self, key: str) -> tuple[int, int]:
        """GGUF's number of the value's type, and of its elements' where it is an array (else 0)."""
        meta = self._entry(self._handle.use(), self._index[key])
        return meta.value_type, meta.element_type if meta.value_type == _ARRAY else 0

    def __iter__(self):
        return iter(self._index)

    def __len__(self):
        return len(self._index)


class Tensors(Mapping):
    """Weights by GGUF name, row-major: shape (n_out, n_in). F32 and F16 are read-only views into
    the mapped file; other types are expanded to float32 copies."""

    _DTYPES = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2")}

    def __init__(self, handle: Handle):
        self._handle = handle
        self._index = {}
        model = handle.use()
        for i in range(lib.llm_model_n_tensors(model)):
            self._index[ffi.string(self._entry(model, i).name).decode()] = i

    @staticmethod
    def _entry(model, index: int):
        """Points into the model's memory: the caller keeps the model."""
        tensor = ffi.new("llm_tensor *")
        call(lib.llm_model_tensor, model, index, tensor)
        return tensor

    def __getitem__(self, name: str) -> np.ndarray:
        model = self._handle.use()
        tensor, shape = self._entry(model, self._index[name]), self.shape(name)
        dtype = self._DTYPES.get(self.type_name(name))
        if dtype is None:
            out = np.empty(shape, np.float32)
            call(lib.llm_dequantize, tensor.type, tensor.data, out.size, pointer_to("float", out))
            return out
        return np.frombuffer(self._view(model, tensor), dtype).reshape(shape)

    def shape(self, name: str) -> tuple[int, ...]:
        """Row-major: GGUF's dimensions reversed."""
        tensor = self._entry(self._handle.use(), self._index[name])
        return tuple(tensor.dims[i] for i in reversed(range(tensor.n_dims)))

    def raw(self, name: str) -> memoryview:
        """The tensor's bytes as they lie in the file, read-only and not copied."""
        model = self._handle.use()
        return self._view(model, self._entry(model, self._index[name]))

    def address(self, name: str) -> int:
        """Where its bytes lie in the mapped file, while the model is open."""
        tensor = self._entry(self._handle.use(), self._index[name])
        return int(ffi.cast("uintptr_t", tensor.data))

    def type_name(self, name: str) -> str:
        """The tensor's type as GGUF spells it, "Q4_1"."""
        tensor = self._entry(self._handle.use(), self._index[name])
        return ffi.string(lib.llm_type_describe(tensor.type).name).decode()

    @staticmethod
    def _view(model, tensor) -> memoryview:
        pointer = borrowed(ffi.cast("char *", tensor.data), model)
        return memoryview(ffi.buffer(pointer, tensor.n_bytes)).toreadonly()

    def __iter__(self):
        return iter(self._index)

    def __len__(self):
        return len(self._index)
