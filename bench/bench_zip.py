"""Texts through `llm.zip` beside xz, zstd and brotli: sizes, bits per byte and speed.

    .venv/bin/python bench/bench_zip.py [--model FILE] [--bytes N] [--threads N] [TEXT ...]

Without texts: the World English Bible, the documentation and the sources of this Python's standard
library, and Debian's reference in French; packages are fetched.
"""

import argparse
import gzip
import hashlib
import io
import lzma
import shutil
import subprocess
import tarfile
import tempfile
import time
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np

import llm
from llm import zip as zips
from llm.corpus import read_corpus

ROOT = Path(__file__).resolve().parent.parent
TOOLS = {"zstd": "zstd --ultra -22 -c".split(), "brotli": "brotli -q 11 -w 24 -c".split()}
LIBRARY, SOURCES = Path(tarfile.__file__).parent, ("argparse", "subprocess", "tarfile", "typing")
FRENCH = "debian-reference-fr"  # a package of Debian, GPL


def texts(paths, n):
    """n bytes each, from the middle of what is not given by path."""
    if paths:
        return {Path(path).name: Path(path).read_bytes()[:n] for path in paths}
    whole = {
        "prose": b"\n\n".join(read_corpus().documents),
        "documentation": "\n\n".join(topics[name] for name in sorted(topics)).encode(),
        "source code": b"".join((LIBRARY / f"{name}.py").read_bytes() for name in SOURCES),
        "French": french(),
    }
    return {name: text[len(text) // 2 :][:n] for name, text in whole.items() if text}


def french():
    """Documentation in French, by apt-get download; nothing where there is no apt-get."""
    if not shutil.which("apt-get"):
        return b""
    with tempfile.TemporaryDirectory() as folder:
        for command in (
            f"apt-get -qq -o APT::Sandbox::User=root download {FRENCH}",
            f"dpkg-deb -x {FRENCH}_*.deb .",
        ):
            subprocess.run(command, shell=True, cwd=folder, check=True)
        (path,) = Path(folder).glob("usr/share/debian-reference/*.txt.gz")
        return gzip.decompress(path.read_bytes())


def others(text):
    yield "xz -9e", len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME))
    for name, command in TOOLS.items():
        if shutil.which(name):
            yield name, len(subprocess.run(command, input=text, capture_output=True).stdout)


def model_bytes(model, text, window):
    """What the model's own log-probabilities come to, block by block, in the archive's windows."""
    start, nats = model.tokenizer.bos, 0.0
    context = llm.Context(model, n_ctx=window)
    while text:
        end = zips.cut(text, zips.DEFAULT_BLOCK)
        _, ids = zips.spell(model, text[:end])
        nats += context.score([start, *ids], stride=window - window // 4)[1]
        text = text[end:]
    return nats / np.log(2) / 8


def frame_bytes(archive):
    """Of the header and around the blocks."""
    archive.seek(0)
    n_blocks = zips.read_header(archive).n_blocks
    return zips.HEADER.size + zips.CRC.size + n_blocks * (zips.BLOCK.size + zips.CRC.size)


def main():
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--model", default=ROOT / "weights/SmolLM2-135M-Instruct.Q4_1.gguf")
    options.add_argument("--bytes", type=int, default=100_000)
    options.add_argument("--threads", type=int, default=0)
    options.add_argument("--unzip", action="store_true", help="time the way back too")
    options.add_argument("--score", action="store_true", help="measure the coder's overhead too")
    options.add_argument("texts", nargs="*")
    given = options.parse_args()
    n_model = Path(given.model).stat().st_size
    with llm.Model(given.model, n_threads=given.threads) as model:
        for name, text in texts(given.texts, given.bytes).items():
            archive, begin = io.BytesIO(), time.perf_counter()
            cpu = time.process_time()
            zips.compress(model, io.BytesIO(text), archive, n_threads=given.threads)
            seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
            size = len(archive.getvalue())
            digest = hashlib.sha256(text).hexdigest()[:8]
            print(f"{name}: {len(text):,} bytes, SHA-256 {digest}...")
            print(f"  {len(text) / seconds / 1e3:.2f} KB/s zipping,", end=" ")
            print(f"{len(text) / cpu / 1e3:.2f} KB/s a processor second", flush=True)
            sizes = dict(others(text))
            rows = sizes | {"two-file zip": size, "with the parameter file": size + n_model}
            for label, n in rows.items():
                part = n / sizes["xz -9e"]
                print(
                    f"  {label:<24}{n:>12,}{8 * n / len(text):>10.3f} bits/byte{part:>9.3f} of xz"
                )
            if given.score:
                own = model_bytes(model, text, min(zips.DEFAULT_WINDOW, model.config.n_ctx_train))
                frames = frame_bytes(archive)
                parts = {"the model's own bits": own, "the coder": size - frames - own}
                for label, n in (parts | {"frames": frames}).items():
                    print(f"    {label:<22}{n:>12,.0f}{100 * n / own:>10.2f} % of its own bits")
            if given.unzip:
                archive.seek(0)
                back, begin, cpu = io.BytesIO(), time.perf_counter(), time.process_time()
                zips.decompress(model, archive, back, n_threads=given.threads)
                seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
                print(f"  {len(text) / seconds / 1e3:.2f} KB/s unzipping,", end=" ")
                print(f"{len(text) / cpu / 1e3:.2f} KB/s a processor second")
                assert back.getvalue() == text


if __name__ == "__main__":
    main()
