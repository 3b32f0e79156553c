"""The package's exceptions, and how their messages count. Layer 0.

The engine's status codes map to these (and to built-ins) in `binding.py`; the trainer raises the
same ones, so that a caller catches one family.
"""


def counted(n: int, what: str) -> str:
    """1 file, 2,000 files"""
    return f"{n:,} {what}{'s' * (n != 1)}"


class LlmError(Exception):
    """Anything that this package reports in its own words."""


class FormatError(LlmError, ValueError):
    """A file contradicts its format: what, where, found, expected."""


class UnsupportedError(LlmError):
    """A valid file or request that this program does not handle."""


class ContextFullError(LlmError):
    """More tokens than the context holds."""

    def __init__(self, message: str, n_tokens: int, n_ctx: int):
        super().__init__(message)
        self.n_tokens = n_tokens
        self.n_ctx = n_ctx

    def __reduce__(self):  # an exception is copied and pickled by its message alone
        return type(self), (*self.args, self.n_tokens, self.n_ctx), self.__dict__


class CorpusError(LlmError, ValueError):
    """Text that cannot be trained on: empty, binary, unreadable or gone."""


class CheckpointError(LlmError):
    """A run that cannot be resumed, or a folder that another run is using."""


class PackageError(LlmError):
    """A data package that cannot be had, or is not the one that the table means."""
