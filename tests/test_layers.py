"""The layers of the design: a file uses lower layers and its own group, never a higher one.

Here, and only here, stands which file belongs to which layer. Lowest first; a tuple is a layer, a
string in it a group whose files may use each other. Every #include "..." and every import is
followed, also those inside functions; a file without a place in the table fails.
"""

import ast
import re
from fnmatch import fnmatchcase

import pytest

from conftest import ROOT

C_LAYERS = (
    ("llm", "cpu"),
    ("numeric", "hash", "unicode unicode_tables"),
    ("error",),
    ("mapfile", "threads", "quant", "sha256"),
    ("quantize quantize_fit",),
    ("gguf gguf_get gguf_reader", "sampler logprobs", "coder"),
    ("emulate_avx512",),  # tests/c: stands for immintrin.h in an emulated build
    ("kernels kernels_*", "pretokenize tokenizer tokenizer_parts tokenizer_*"),
    ("model model_*",),
    ("context",),
    ("forward forward_*",),
    ("generate stop chat chat_template chat_render session", "score proof embed needs", "zip"),
    ("run run_*",),
)
# The trainer's C may use what stands low in the engine; no engine file may use the trainer's.
C_TRAINER = "train train_* tokenizer_train port port_tensor"
C_TRAINER_MAY_USE = "llm error numeric cpu hash unicode threads pretokenize"

PYTHON_LAYERS = (
    ("errors", "atomic", "_llm", "_train", "_build"),
    (
        "config",
        "distributed nccl",
        "pulse",
        "packages",
        "safetensors_file",
        "sentencepiece_file",
        "binding tokenizer sampler context engine chat_template",
    ),
    (
        "chat",
        "ops ops_*",
        "lora",
        "settings settings_file",
        "documents corpus",
        "data",
        "shards",
        "duplicates",
        "vocabularies",
    ),
    ("model", "optim", "budget", "guard"),
    ("parameter_file compare", "checkpoint", "evaluate memory", "memorisation"),
    ("quantize calibrate", "chat_data"),
    ("vocabulary", "base_file", "convert convert_* export export_*"),
    (
        "report report_html curves label tokenizer_report",
        "prepare prepare_plan prepare_items",
        "material",
    ),
    ("run_files", "plan"),
    ("train step",),
    ("tune",),
    ("launch", "tokenize_command", "data_command", "quantize_command", "bench_command", "zip"),
    ("zip_command",),
    ("cli",),
    ("__main__",),
)


def matches(name: str, group: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in group.split())


def place(name: str, layers) -> tuple[int, str] | None:
    """(layer, group), or None for a file that the table does not know."""
    for level, groups in enumerate(layers):
        for group in groups:
            if matches(name, group):
                return level, group
    return None


def fault(user: str, used: str, layers) -> str | None:
    """What is wrong with `user` using `used`, or None."""
    above, below = place(user, layers), place(used, layers)
    if above is None or below is None:
        return f"{user if above is None else used} has no place in the table of test_layers.py"
    if above[1] != below[1] and above[0] <= below[0]:
        return f"{user} (layer {above[0]}) uses {used} (layer {below[0]})"
    return None


def c_fault(user: str, used: str) -> str | None:
    if matches(user, C_TRAINER):
        fine = matches(used, C_TRAINER) or matches(used, C_TRAINER_MAY_USE)
        return None if fine else f"{user} (trainer) uses {used}"
    if matches(used, C_TRAINER):
        return f"{user} (engine) uses {used} (trainer)"
    if matches(user, "run run_*") and used not in (user, "run", "llm"):
        return f"{user} uses {used}; the program sees llm.h and run.h only"
    return fault(user, used, C_LAYERS)


def c_edges():
    for path in sorted((ROOT / "csrc").glob("*.[ch]*")):
        text = path.read_text(encoding="utf-8")
        yield path.stem, path.stem
        for used in re.findall(r'^\s*#\s*include\s+"([^"]+)"', text, re.M):
            yield path.stem, used.rsplit("/", 1)[-1].rsplit(".", 1)[0]


def python_edges():
    for path in sorted((ROOT / "llm").glob("*.py")):
        if path.stem == "__init__":
            continue  # names every home, loads none
        yield path.stem, path.stem
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                module = f"llm.{node.module or ''}" if node.level else node.module
                named = module.rstrip(".") == "llm"  # `from . import x`, `from llm import x`
                names = [f"llm.{alias.name}" for alias in node.names] if named else [module]
            else:
                continue
            for name in names:
                if name.startswith("llm.") and name != "llm.__version__":
                    yield path.stem, name.split(".")[1]


def test_python_headers_name_their_layer():
    """Counted from 0, the lowest."""
    for path in sorted((ROOT / "llm").glob("*.py")):
        header = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        for named in re.findall(r"Layer\s(\d+)", header):
            assert int(named) == place(path.stem, PYTHON_LAYERS)[0], path


def test_c_includes_point_down():
    faults = {c_fault(user, used) for user, used in c_edges()} - {None}
    assert not faults, "\n".join(sorted(faults))


def test_python_imports_point_down():
    faults = {fault(user, used, PYTHON_LAYERS) for user, used in python_edges()} - {None}
    assert not faults, "\n".join(sorted(faults))


@pytest.mark.parametrize(
    "user, used",
    [
        ("gguf", "model"),
        ("model", "train"),
        ("train_ops", "gguf"),
        ("run", "model"),
        ("run_options", "sampler"),
        ("generate", "run"),
        ("new", "llm"),
    ],
)
def test_a_wrong_include_is_found(user, used):
    assert c_fault(user, used)


@pytest.mark.parametrize("user, used", [("engine", "model"), ("errors", "config"), ("data", "new")])
def test_a_wrong_import_is_found(user, used):
    assert fault(user, used, PYTHON_LAYERS)
