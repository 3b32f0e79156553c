"""`python -m llm quantize IN OUT`: a parameter file in fewer bits. Layer 11."""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser, Namespace
from collections import Counter
from contextlib import contextmanager
from pathlib import Path


def add_arguments(command: ArgumentParser) -> None:
    command.add_argument("file", metavar="IN", help="the parameter file to read")
    command.add_argument("out", metavar="OUT", help="the file to write")
    command.add_argument(
        "--type",
        required=True,
        metavar="TYPE",
        help="F32, F16, BF16, Q8_0, Q6_K, Q5_K, Q5_1, Q5_0, Q4_K, Q4_1, Q4_0, or a mixture: "
        "Q5_K_M, Q4_K_M, Q4_K_S",
    )
    command.add_argument(
        "--calibrate", metavar="FILE", help="a text: rounds so that what the layers do to it stays"
    )
    command.add_argument(
        "--text", metavar="FILE", help="another text, to measure the change in bits per byte on"
    )
    command.add_argument("--embedding-type", metavar="TYPE", help="of the embedding (finer)")
    command.add_argument("--output-type", metavar="TYPE", help="of the output matrix (finer)")


def run(options: Namespace) -> int:
    from .quantize import check_paths, quantize_file, stand_ins

    for path in filter(None, (options.text, options.calibrate)):
        check_paths(path, options.out)
    texts = {
        name: Path(path).read_bytes()
        for name, path in (("text", options.text), ("calibration", options.calibrate))
        if path is not None
    }
    with progress_bar(os.path.getsize(options.file)) as progress:
        done = quantize_file(
            options.file,
            options.out,
            options.type,
            embedding=options.embedding_type,
            output=options.output_type,
            progress=progress,
            **texts,
        )
    kinds = Counter(done.types.values())
    print("tensors    " + ", ".join(f"{n} {kind}" for kind, n in kinds.most_common()))
    instead = stand_ins(done.wanted, done.types)
    if instead:
        print(f"instead    {instead}")
    ratio = done.bytes_after / done.bytes_before
    print(f"size       {done.bytes_before:,} bytes to {done.bytes_after:,}: {ratio:.3f} of it")
    if done.bits_per_byte is None:
        print("cost       not measured: --text FILE measures it in bits per byte")
    else:
        before, after = done.bits_per_byte
        print(f"cost       {before:.4f} bits per byte to {after:.4f}: {after - before:+.4f}")
    return 0


@contextmanager
def progress_bar(n_bytes: int):
    """Yields what quantize_file calls; a bar where standard error is a terminal, else a line for
    each long part."""
    if not sys.stderr.isatty():

        def plain(name: str, n: int) -> None:
            if n == 0:
                print(name, file=sys.stderr, flush=True)

        yield plain
        return
    from tqdm import tqdm

    with tqdm(total=n_bytes, unit="B", unit_scale=True, leave=False) as bar:

        def progress(name: str, n: int) -> None:
            bar.set_postfix_str(name, refresh=n == 0)
            bar.update(n)

        yield progress
