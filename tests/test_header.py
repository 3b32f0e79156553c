"""llm.h, the compiled module and Python's tables say the same."""

import re

import pytest

import llm
from conftest import ROOT
from llm import _build, errors
from llm._llm import ffi, lib
from llm.binding import STATUS_EXCEPTIONS

# DESIGN: which status becomes which exception. A cancelled call re-raises what its callback raised;
# the table's entry serves when there is none.
EXPECTED = {
    "LLM_ERR_ARG": ValueError,
    "LLM_ERR_IO": OSError,
    "LLM_ERR_FORMAT": errors.FormatError,
    "LLM_ERR_UNSUPPORTED": errors.UnsupportedError,
    "LLM_ERR_NOMEM": MemoryError,
    "LLM_ERR_CONTEXT_FULL": errors.ContextFullError,
    "LLM_ERR_CANCELLED": KeyboardInterrupt,
}


def enum_of(name: str) -> dict[str, int]:
    """The members that llm.h spells out."""
    body = re.search(
        rf"typedef enum {name} \{{(.*?)\}} {name};", _build.declarations("llm.h"), re.S
    )
    assert body, f"llm.h declares no enum {name}"
    return {key: int(value) for key, value in re.findall(r"\b([A-Z]\w+) = (\d+)", body[1])}


def test_status_names():
    statuses = enum_of("llm_status")
    assert statuses["LLM_OK"] == 0
    for name, value in statuses.items():
        assert ffi.string(lib.llm_status_name(value)).decode() == name
    assert sorted(statuses.values()) == list(range(len(statuses)))
    assert lib.llm_status_name(len(statuses)) == ffi.NULL


def test_status_exceptions():
    assert STATUS_EXCEPTIONS == EXPECTED
    assert {"LLM_OK", *STATUS_EXCEPTIONS} == set(enum_of("llm_status"))


def test_public_exceptions_are_one_family():
    for name in errors.__dict__:
        if name.endswith("Error"):
            assert issubclass(getattr(errors, name), errors.LlmError)
    assert issubclass(llm.FormatError, ValueError)


def test_finish_names():
    for name, value in enum_of("llm_finish").items():
        assert f"LLM_FINISH_{ffi.string(lib.llm_finish_name(value)).decode().upper()}" == name
    assert lib.llm_finish_name(99) == ffi.NULL


def test_every_type_is_described():
    for name, value in enum_of("llm_type").items():
        info = lib.llm_type_describe(value)
        assert f"LLM_TYPE_{ffi.string(info.name).decode()}" == name
        assert info.n_per_block > 0 and info.bytes_per_block > 0


def test_versions_agree():
    assert ffi.string(lib.llm_version()).decode() == llm.__version__


@pytest.mark.parametrize("path", sorted(ROOT.glob("csrc/*.h")), ids=lambda path: path.name)
def test_marked_text_is_plain(path):
    """One pair of markers at most, and nothing between them that cffi would need to preprocess."""
    text = path.read_text(encoding="utf-8")
    assert text.count("/* cffi: begin */\n") == text.count("/* cffi: end */\n") <= 1
    if "/* cffi: begin */" in text:
        assert not re.search(r"^\s*#|__attribute__", _build.declarations(path.name), re.M)
