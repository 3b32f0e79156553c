"""The Python half: package, dependencies and the two compiled modules (see llm/_build.py)."""

import re
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent
VERSION = re.search(r'^__version__ = "(.+)"$', (HERE / "llm/__init__.py").read_text(), re.M)[1]
# What our files, ids and probabilities are compared with; small enough for every CI run.
PARITY = [
    "gguf==0.19.0",
    "jinja2==3.1.6",
    "sentencepiece",
    "tiktoken",
    "tokenizers",
    "xllamacpp==2026.10.11549",
]

MPI = ["mpi4py>=4", "mpich>=4.3"]


class BuildPy(build_py):
    """Puts the kernels beside the modules: llm/ops_cuda.py compiles them where there is a GPU."""

    def run(self):
        super().run()
        if not self.editable_mode:
            folder = Path(self.build_lib) / "llm" / "csrc"
            self.mkpath(str(folder))
            headers = "numeric.h", "port.h", "port_tensor.h", "train.h", "train_flash.h"
            for name in (*headers, "train_kernels.cu"):
                self.copy_file(str(HERE / "csrc" / name), str(folder / name))


setup(
    name="two-file-llm",
    version=VERSION,
    description="A language model in two files: one parameter file and one executable",
    license="MIT",
    python_requires=">=3.10",
    packages=["llm"],
    install_requires=[
        "cffi>=1.15",
        "matplotlib",
        "numpy>=1.24",
        "tomli; python_version < '3.11'",
        "tqdm",
    ],
    extras_require={
        # ctk: cuBLAS and NVRTC come along; NCCL does not, which ranks with GPUs need.
        "cuda": ["cupy-cuda13x[ctk]>=14,<15", "nvidia-nccl-cu13>=2.27.7,<3"],
        "data": ["pyarrow", "zstandard"],  # .parquet and .zst
        "mpi": MPI,  # many processes; MPICH's launcher comes with it
        "test": ["hypothesis", "pyarrow", "pytest", "zstandard", *MPI],
        "lint": ["ruff==0.17.6"],
        # Other people's programs, for tests and benchmarks only.
        "parity": PARITY,
        "peers": [*PARITY, "torch==2.13.0"],
    },
    cmdclass={"build_py": BuildPy},
    cffi_modules=["llm/_build.py:engine", "llm/_build.py:trainer"],
    zip_safe=False,
)
