"""cffi builders of the two compiled modules, in API mode: `llm._llm` (the engine) and `llm._train`
(the trainer's kernels and merge learning).

setup.py names them in `cffi_modules`. What cffi declares is the marked text of the C headers, so
there is no second copy; only the callbacks stand here. Which half a C file belongs to is said by
its name: train_* and tokenizer_train are the trainer's, run and run_* are the program, the rest is
the engine. FLAGS stands in the Makefile too; tests/test_build.py compares the two.
"""

from pathlib import Path

import cffi

ROOT = Path(__file__).resolve().parent.parent
CSRC = ROOT / "csrc"
# -fno-math-errno changes no result: it lets loops with sqrtf be vectorised.
FLAGS = "-std=c11 -O3 -ffp-contract=off -fno-math-errno -Wall -Wextra -pthread".split()

# Engine files that the trainer's module takes along: threads, errors, and how text is cut.
SHARED = ("cpu", "error", "numeric", "pretokenize", "threads", "unicode", "unicode_tables")

TRAINER_HEADERS = ("train.h", "tokenizer_train.h", "train_documents.h")

CALLBACKS = """
extern "Python" int llm_python_cancel_check(void *);
extern "Python" void llm_python_input_observer(void *, const void *, const float *, size_t, size_t);
"""

ACTIVATION = "typedef float llm_act;\n"  # conditional in train.h


def is_trainer(path: Path) -> bool:
    return path.name.startswith(("train_", "tokenizer_train"))


def is_program(path: Path) -> bool:
    return path.stem == "run" or path.name.startswith("run_")


def engine_sources() -> list[str]:
    """Paths relative to the repository, as setuptools wants them."""
    paths = sorted(CSRC.glob("*.c"))
    return [f"csrc/{p.name}" for p in paths if not is_trainer(p) and not is_program(p)]


def trainer_sources() -> list[str]:
    own = [f"csrc/{p.name}" for p in sorted(CSRC.glob("*.c")) if is_trainer(p)]
    return own + [f"csrc/{name}.c" for name in SHARED]


def declarations(header: str) -> str:
    """The text of a header between its two marker lines."""
    text = (CSRC / header).read_text(encoding="utf-8")
    return text.split("/* cffi: begin */\n", 1)[1].split("/* cffi: end */\n", 1)[0]


def error_declarations() -> str:
    """llm_status and llm_error: the part of llm.h that both modules need."""
    return declarations("llm.h").split("const char *llm_version", 1)[0]


def builder(module: str, cdef: str, source: str, sources: list[str]) -> cffi.FFI:
    ffi = cffi.FFI()
    ffi.cdef(cdef)
    ffi.set_source(
        module,
        source,
        sources=sources,
        include_dirs=["csrc"],
        depends=[str(p.relative_to(ROOT)) for p in CSRC.iterdir() if p.suffix in (".h", ".cu")],
        extra_compile_args=FLAGS,
        extra_link_args=["-pthread"],
        libraries=["m"],
    )
    return ffi


def engine() -> cffi.FFI:
    # Called without the GIL, which they take; context.py and calibrate.py say what they do.
    return builder(
        "llm._llm",
        declarations("llm.h") + CALLBACKS,
        '#include "llm.h"',
        engine_sources(),
    )


def trainer() -> cffi.FFI:
    # setuptools does not compile .cu, so the kernels' one text is included here, as C.
    return builder(
        "llm._train",
        error_declarations() + ACTIVATION + "".join(map(declarations, TRAINER_HEADERS)),
        "".join(f'#include "{name}"\n' for name in (*TRAINER_HEADERS, "train_kernels.cu")),
        trainer_sources(),
    )
