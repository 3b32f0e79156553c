"""What real CUDA packages make of the GPU's back end without a GPU: its kernels by nvcc and NVRTC,
and the names that the stand-ins play, in CuPy, cuBLAS and NCCL. Each skips where it is absent. And
that our own package brings the kernels.
"""

import ctypes
import glob
import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cuda_stand_in import Array, StandIn
from nccl_stand_in import FLOAT32

from conftest import ROOT
from llm import ops_cuda
from llm.errors import LlmError
from llm.nccl import library

PRECISIONS = {"fp32": (), "bf16": ops_cuda.ROUNDING}
CARDS = (80, 90)  # A100, H100


def assert_no_spills(said: str, more: tuple) -> None:
    """What -v of ptxas says of each kernel; that those on tensor cores are there, and that the one
    of most threads can be launched: a processor has 65,536 registers."""
    used = [line for line in said.splitlines() if "spill stores" in line]
    assert len(used) >= 15
    assert all("0 bytes spill stores, 0 bytes spill loads" in line for line in used), said
    assert ("flash_backward_kv_64_kernel" in said) == bool(more)
    n_registers = re.search(r"'cross_entropy_kernel'.*?Used (\d+) registers", said, re.S)[1]
    assert int(n_registers) * ops_cuda.LENGTHS["cross_entropy"][1] <= 1 << 16


@pytest.mark.parametrize("card", CARDS)
@pytest.mark.parametrize("more", PRECISIONS.values(), ids=PRECISIONS)
def test_no_register_spills(more, card):
    nvcc = shutil.which("nvcc")
    if not nvcc:
        pytest.skip("nvcc is not installed")
    command = [nvcc, f"-arch=sm_{card}", "-cubin", "-Xptxas", "-v", "-Werror", "all-warnings"]
    command += [*more, *ops_cuda.OPTIONS[1:], "-o", "/dev/null", ROOT / "csrc/train_kernels.cu"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert_no_spills(done.stderr, more)


def nvrtc_library():
    """Of the pip package, of a CUDA installation, or None."""
    found = importlib.util.find_spec("nvidia")
    folders = list(found.submodule_search_locations) if found else []
    patterns = [f"{folder}/*/lib/libnvrtc.so.*" for folder in folders]
    patterns += ["/usr/local/cuda*/lib64/libnvrtc.so.*"]
    for path in (p for pattern in patterns for p in glob.glob(pattern)):
        for builtins in Path(path).parent.glob("libnvrtc-builtins.so.*.*"):
            ctypes.CDLL(str(builtins))  # which it would look for elsewhere
        return ctypes.CDLL(path)
    return None


@pytest.mark.parametrize("card", CARDS)
@pytest.mark.parametrize("more", PRECISIONS.values(), ids=PRECISIONS)
def test_nvrtc_compiles_what_ops_cuda_gives_it(more, card):
    """As CuPy compiles it, to a program for the card."""
    nvrtc = nvrtc_library()
    if nvrtc is None:
        pytest.skip("no libnvrtc: pip install nvidia-cuda-nvrtc")
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    source = ops_cuda.kernel_source().encode()
    assert not nvrtc.nvrtcCreateProgram(ctypes.byref(program), source, b"k.cu", 0, None, None)
    options = [*ops_cuda.OPTIONS, *more, f"-arch=sm_{card}", "-ftz=true"]
    options += ["--device-as-default-execution-space", "--ptxas-options=-v"]
    options = [o.encode() for o in options]
    failed = nvrtc.nvrtcCompileProgram(
        program, len(options), (ctypes.c_char_p * len(options))(*options)
    )
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    assert not failed, log.value.decode()
    assert_no_spills(log.value.decode(), more)


def test_an_installed_package_has_the_kernels(tmp_path):
    """Beside the modules, where a checkout has none."""
    command = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", tmp_path]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    spec = importlib.util.spec_from_file_location("llm.elsewhere", tmp_path / "llm/ops_cuda.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert Path(module.__file__).is_relative_to(tmp_path)
    assert module.kernel_source() == ops_cuda.kernel_source()
    assert "ROW_KERNEL(causal_softmax)" in module.kernel_source()


def test_the_stand_in_names_what_cupy_has():
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
    played = StandIn(None).cupy
    assert hasattr(cupy, "RawModule") and hasattr(cupy, "empty")
    for name in vars(played.cuda):
        assert hasattr(cupy.cuda, name), name
    for name in vars(played.cuda.runtime):
        assert hasattr(cupy.cuda.runtime, name), name
    for name in ("memset_async", "copy_from_device_async", "copy_from_host_async", "__add__"):
        assert hasattr(cupy.cuda.MemoryPointer, name), name
    for name in ("malloc", "free_all_blocks", "free_bytes", "total_bytes"):
        assert hasattr(cupy.cuda.MemoryPool, name), name
    for name in (n for n in dir(Array) if not n.startswith("_")):
        assert hasattr(cupy.ndarray, name), name
    from cupy_backends.cuda.libs import cublas

    played = StandIn(None).cublas
    for name in (n for n in vars(played) if not n.startswith("__")):
        assert hasattr(cublas, name), name
        if name.isupper():
            assert getattr(cublas, name) == getattr(played, name), name
    for name in ("record", "wait_event", "synchronize"):
        assert hasattr(cupy.cuda.Stream, name), name


def test_the_stand_in_names_what_nccl_has():
    pytest.importorskip("cupy", reason="CuPy is not installed")
    try:
        nccl = library()
    except LlmError as error:
        pytest.skip(str(error))
    assert nccl.NCCL_FLOAT32 == FLOAT32
    for name in ("get_unique_id", "groupStart", "groupEnd", "NcclCommunicator"):
        assert hasattr(nccl, name), name
    assert {"send", "recv"} <= set(dir(nccl.NcclCommunicator))
