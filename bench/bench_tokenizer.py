"""The tokenizer beside tiktoken, tokenizers, sentencepiece and rustbpe.

    .venv/bin/python bench/bench_tokenizer.py [encode decode load learn] [--text PATH ...]

Ours and the peers do the same thing turn by turn; figures are medians of the rounds, in seconds of
the processor (of all threads: what one core would take) and, for learning, by the clock as well.
The text is that of `make train` and whatever --text names beside it. Peers and published
vocabularies come with `make test-peers`, rustbpe with pip; what is absent is said to be. After
`taskset -c 0` all programs have one core.
"""

import argparse
import gzip
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import numpy as np

from llm.corpus import read_corpus
from llm.packages import CACHE, PACKAGES
from llm.parameter_file import Vocabulary, byte_alphabet, write_parameter_file
from llm.tokenizer import Tokenizer
from llm.vocabularies import merges_to_ranks, read_ranks, tokenizer_of_ranks
from llm.vocabulary import learn_bpe, learn_vocabulary, tokenizer_of

GPT_2 = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Name of the package's data, our pre-tokenizer, the expression: tiktoken's own, or a string.
PUBLISHED = [
    ("gpt2", "gpt-2", "gpt2"),
    ("cl100k", "cl100k", "cl100k_base"),
    ("o200k", "gpt-4o", "o200k_base"),
    ("llama-3", "llama-bpe", LLAMA_3),
    ("qwen2", "qwen2", LLAMA_3.replace("{1,3}", "")),
]
LOADED = ("gpt2", "cl100k", "llama-3")


@dataclass
class Program:
    """One program with one vocabulary."""

    encode: Callable[[str], Sequence[int]]
    decode: Callable[[Sequence[int]], str]


def ours(tokenizer: Tokenizer) -> Program:
    return Program(tokenizer.encode_array, tokenizer.decode)


def optional(name: str):
    try:
        return import_module(name)
    except ImportError:
        print(f"{name}: absent")
        return None


# ---- vocabularies ----


def spelled_tokens(tokens) -> list[str]:
    alphabet = byte_alphabet()
    return ["".join(alphabet[b] for b in token) for token in tokens]


def of_tokenizers(tokenizers, tokens, merges):
    """That library's, cutting text as GPT-2 does."""
    spelled = spelled_tokens(tokens)
    pairs = [(spelled[a], spelled[b]) for a, b in merges]
    model = tokenizers.models.BPE({t: i for i, t in enumerate(spelled)}, pairs)
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    return tokenizer


def of_tiktoken(tiktoken, name: str, pattern: str, ranks: dict[bytes, int]):
    return tiktoken.Encoding(name, pat_str=pattern, mergeable_ranks=ranks, special_tokens={})


def learned_programs(documents, n_vocab: int, tiktoken, tokenizers) -> dict[str, Program]:
    vocabulary = learn_vocabulary(documents, n_vocab)
    tokens, merges = vocabulary.tokens[:-1], vocabulary.merges.tolist()  # the last is a control
    programs = {"ours": ours(tokenizer_of(vocabulary))}
    if tiktoken:
        peer = of_tiktoken(tiktoken, "learned", GPT_2, {t: id for id, t in enumerate(tokens)})
        programs["tiktoken"] = Program(peer.encode_ordinary, peer.decode)
    if tokenizers:
        other = of_tokenizers(tokenizers, tokens, merges)
        programs["tokenizers"] = Program(lambda text: other.encode(text).ids, other.decode)
    return programs


def read_published(name: str) -> dict[bytes, int] | None:
    path = CACHE / PACKAGES[name].file_name
    if not path.exists():
        print(f"{name}: absent")
        return None
    raw = path.read_bytes()
    if name == "gpt2":
        return merges_to_ranks(raw.decode())
    return read_ranks(gzip.decompress(raw) if path.suffix == ".gz" else raw)


def public_pattern(name: str) -> str:
    """tiktoken's, without the download of ranks that comes with it."""
    public = import_module("tiktoken_ext.openai_public")
    if name not in public.ENCODING_CONSTRUCTORS:
        return name
    public.load_tiktoken_bpe = public.data_gym_to_mergeable_bpe_ranks = lambda *a, **k: {}
    return public.ENCODING_CONSTRUCTORS[name]()["pat_str"]


def published_programs(tiktoken, sentencepiece):
    """(name, programs) for each published vocabulary that is there."""
    for name, pre, pattern in PUBLISHED:
        ranks = read_published(name)
        if ranks is None:
            continue
        programs = {"ours": ours(tokenizer_of_ranks(pre, ranks, {}))}
        if tiktoken:
            peer = of_tiktoken(tiktoken, name, public_pattern(pattern), ranks)
            programs["tiktoken"] = Program(peer.encode_ordinary, peer.decode)
        yield name, programs
    folder = Path(os.environ.get("LLM_TEST_DATA", "none"))
    vocabulary, model = folder / "ggml-vocab-llama-spm.gguf", folder / "llama2_tokenizer.model"
    if not vocabulary.exists():
        print("llama-2: absent (LLM_TEST_DATA)")
        return
    programs = {"ours": ours(Tokenizer.open(vocabulary))}
    if sentencepiece:
        peer = sentencepiece.SentencePieceProcessor(str(model))
        programs["sentencepiece"] = Program(peer.encode, peer.decode)
    yield "llama-2", programs


def merges_of_ranks(ranks: dict[bytes, int]) -> list[tuple[int, int]]:
    """The last two parts of each token that merging its bytes by rank makes."""
    merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        parts = [token[i : i + 1] for i in range(len(token))]
        while len(parts) > 2:
            joined = [ranks.get(a + b, rank) for a, b in zip(parts, parts[1:], strict=False)]
            lowest = min(joined)
            if lowest >= rank:
                break
            i = joined.index(lowest)
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        if len(parts) == 2:
            merges.append((ranks[parts[0]], ranks[parts[1]]))
    return merges


# ---- rows ----


def measure(functions, rounds: int) -> dict[str, tuple[float, float]]:
    """Median seconds of the processor and by the clock, turn by turn."""
    times = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            clock, processor = time.perf_counter(), time.process_time()
            function()
            times[name].append((time.process_time() - processor, time.perf_counter() - clock))
    return {
        name: tuple(statistics.median(column) for column in zip(*pairs, strict=True))
        for name, pairs in times.items()
    }


def encode_row(name: str, programs, text: str, rounds: int) -> None:
    counts = {program: len(p.encode(text)) for program, p in programs.items()}
    found = measure({k: lambda p=p: p.encode(text) for k, p in programs.items()}, rounds)
    for program, (processor, _) in found.items():
        rate = len(text.encode()) / 1e6 / processor
        print(f"encode {name:14} {program:14} {rate:8.2f} MB/s, {counts[program]:,} tokens")


def decode_row(name: str, programs, text: str, rounds: int) -> None:
    """All decode a list of our ids; ours also an array."""
    array = np.asarray(programs["ours"].encode(text))
    ids = array.tolist()
    calls = {program: lambda p=p: p.decode(ids) for program, p in programs.items()}
    for program, decode in calls.items():
        if decode() != text:
            print(f"decode {name:14} {program:14} gives another text")
    calls["ours, an array"] = lambda: programs["ours"].decode(array)
    for program, (processor, _) in measure(calls, rounds).items():
        print(f"decode {name:14} {program:14} {len(text.encode()) / 1e6 / processor:8.2f} MB/s")


def load_row(name: str, pre: str, pattern: str, tiktoken, tokenizers, rounds: int) -> None:
    """From files, as `run` and tokenizers do, and from ranks in memory, as tiktoken does."""
    ranks = read_published(name)
    if ranks is None:
        return
    tokens, merges = sorted(ranks, key=ranks.__getitem__), merges_of_ranks(ranks)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vocabulary.gguf"
        vocabulary = Vocabulary(tokens=tokens, merges=np.array(merges), pre=pre)
        write_parameter_file(path, vocabulary.entries(), [])
        calls = {
            "ours, GGUF": lambda: Tokenizer.open(path),
            "ours, ranks": lambda: tokenizer_of_ranks(pre, ranks, {}),
        }
        if tiktoken:
            pattern = public_pattern(pattern)
            calls["tiktoken, ranks"] = lambda: of_tiktoken(tiktoken, name, pattern, ranks)
        if tokenizers:
            json = str(Path(folder) / "tokenizer.json")
            of_tokenizers(tokenizers, tokens, merges).save(json)
            calls["tokenizers, JSON"] = lambda: tokenizers.Tokenizer.from_file(json)
        for program, (processor, _) in measure(calls, rounds).items():
            print(f"load   {name:14} {program:16} {processor * 1e3:6.1f} ms")


def learn_with_tokenizers(tokenizers, texts: list[str], n_vocab: int) -> None:
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=n_vocab,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)


def learn_row(documents: list[bytes], n_vocab: int, tokenizers, rustbpe, rounds: int) -> None:
    texts = [document.decode() for document in documents]
    calls = {"ours": lambda: learn_bpe(documents, n_vocab)}
    if rustbpe:
        calls["rustbpe"] = lambda: rustbpe.Tokenizer().train_from_iterator(
            iter(texts), n_vocab, pattern=GPT_2
        )
    if tokenizers:
        calls["tokenizers"] = lambda: learn_with_tokenizers(tokenizers, texts, n_vocab)
    for program, (processor, clock) in measure(calls, rounds).items():
        print(
            f"learn  {n_vocab:<14,} {program:14} {clock:8.3f} s, {processor:.3f} s of the processor"
        )


def main() -> None:
    rows = ("encode", "decode", "load", "learn")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(rows)}; all")
    parser.add_argument("--text", nargs="+", default=[], metavar="PATH", help="more text")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--n-vocab", type=int, default=4096)
    options = parser.parse_args()
    rows, rounds = options.rows or rows, options.rounds
    documents = read_corpus().documents
    if options.text:
        documents += read_corpus(options.text).documents
    text = b"".join(documents).decode()
    n_cores = len(os.sched_getaffinity(0))
    print(f"{len(text.encode()) / 1e6:.2f} MB, medians of {rounds} rounds, cores: {n_cores}")
    names = ("tiktoken", "tokenizers", "sentencepiece", "rustbpe")
    tiktoken, tokenizers, sentencepiece, rustbpe = map(optional, names)
    if "encode" in rows or "decode" in rows:
        learned = learned_programs(documents, options.n_vocab, tiktoken, tokenizers)
        ours_first = (f"learned, {options.n_vocab}", learned)
        for name, programs in [ours_first, *published_programs(tiktoken, sentencepiece)]:
            if "encode" in rows:
                encode_row(name, programs, text, rounds)
            if "decode" in rows:
                decode_row(name, programs, text, rounds)
    if "load" in rows:
        for name, pre, pattern in PUBLISHED:
            if name in LOADED:
                load_row(name, pre, pattern, tiktoken, tokenizers, rounds)
    if "learn" in rows:
        learn_row(documents, options.n_vocab, tokenizers, rustbpe, rounds)


if __name__ == "__main__":
    main()
