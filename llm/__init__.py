"""Two files make a language model: one parameter file, one executable.

The public names load on first use, so that `import llm` costs nothing and needs neither NumPy nor
the compiled modules.
"""

from importlib import import_module

__version__ = "0.1.0"

_HOME = {
    "Chat": "chat",
    "Context": "context",
    "Model": "engine",
    "Sampler": "sampler",
    "Tokenizer": "tokenizer",
    "ContextFullError": "errors",
    "CorpusError": "errors",
    "FormatError": "errors",
    "LlmError": "errors",
    "PackageError": "errors",
    "UnsupportedError": "errors",
}
__all__ = ["__version__", *_HOME]


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'llm' has no attribute {name!r}")
    return getattr(import_module(f"llm.{_HOME[name]}"), name)


def __dir__():
    return sorted([*globals(), *_HOME])
