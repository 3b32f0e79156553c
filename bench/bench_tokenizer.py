"""The tokenizer beside tiktoken, tokenizers and sentencepiece on one core: MB/s, seconds to learn.

Ours and the peers encode the same text turn by turn, with the vocabulary learned here
(pre-tokenizer gpt-2) and with published ones; figures are medians of the rounds. Needs the text of
`make train` in build/packages and, for the peers and the published vocabularies, `make test-peers`;
what is absent is said to be.
"""

import argparse
import gzip
import os
import statistics
import time
from importlib import import_module
from pathlib import Path

from llm.corpus import read_corpus
from llm.packages import CACHE, PACKAGES
from llm.parameter_file import byte_alphabet
from llm.tokenizer import Tokenizer
from llm.vocabularies import merges_to_ranks, read_ranks, tokenizer_of_ranks
from llm.vocabulary import learn_vocabulary, tokenizer_of

PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
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


def optional(name: str):
    try:
        return import_module(name)
    except ImportError:
        print(f"{name}: absent")
        return None


def tiktoken_encoder(tiktoken, vocabulary):
    ranks = {token: id for id, token in enumerate(vocabulary.tokens[:-1])}  # the last is a control
    encoding = tiktoken.Encoding("x", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})
    return encoding.encode_ordinary


def tokenizers_encoder(tokenizers, vocabulary):
    alphabet = byte_alphabet()
    spelled = ["".join(alphabet[b] for b in token) for token in vocabulary.tokens[:-1]]
    merges = [(spelled[a], spelled[b]) for a, b in vocabulary.merges.tolist()]
    model = tokenizers.models.BPE({t: i for i, t in enumerate(spelled)}, merges)
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    return lambda text: tokenizer.encode(text).ids


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


def published_pairs(tiktoken, sentencepiece):
    """(name, {program: encoder}) for each published vocabulary that is there."""
    for name, pre, pattern in PUBLISHED:
        ranks = read_published(name)
        if ranks is None:
            continue
        encoders = {"ours": tokenizer_of_ranks(pre, ranks, {}).encode_array}
        if tiktoken:
            pattern = public_pattern(pattern)
            peer = tiktoken.Encoding(
                name, pat_str=pattern, mergeable_ranks=ranks, special_tokens={}
            )
            encoders["tiktoken"] = peer.encode_ordinary
        yield name, encoders
    folder = Path(os.environ.get("LLM_TEST_DATA", "none"))
    vocabulary, model = folder / "ggml-vocab-llama-spm.gguf", folder / "llama2_tokenizer.model"
    if not vocabulary.exists():
        print("llama-2: absent (LLM_TEST_DATA)")
        return
    encoders = {"ours": Tokenizer.open(vocabulary).encode_array}
    if sentencepiece:
        encoders["sentencepiece"] = sentencepiece.SentencePieceProcessor(str(model)).encode
    yield "llama-2", encoders


def measure(encoders, text: str, rounds: int) -> dict[str, tuple[float, int]]:
    """MB/s and tokens by program."""
    counts = {name: len(encode(text)) for name, encode in encoders.items()}
    times = {name: [] for name in encoders}
    for _ in range(rounds):
        for name, encode in encoders.items():
            times[name].append(seconds(encode, text))
    megabytes = len(text.encode()) / 1e6
    return {
        name: (megabytes / statistics.median(values), counts[name])
        for name, values in times.items()
    }


def learn_with_tokenizers(tokenizers, texts: list[str], n_vocab: int) -> None:
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=n_vocab,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)


def seconds(function, *arguments) -> float:
    start = time.process_time()  # of all threads: what one core would take
    function(*arguments)
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--n-vocab", type=int, default=4096)
    options = parser.parse_args()
    documents = read_corpus().documents
    texts = [text.decode() for text in documents]
    whole = "".join(texts)
    vocabulary = learn_vocabulary(documents, options.n_vocab)
    encoders = {"ours": tokenizer_of(vocabulary).encode_array}
    learners = {"ours": lambda: learn_vocabulary(documents, options.n_vocab)}
    if tiktoken := optional("tiktoken"):
        encoders["tiktoken"] = tiktoken_encoder(tiktoken, vocabulary)
    if tokenizers := optional("tokenizers"):
        encoders["tokenizers"] = tokenizers_encoder(tokenizers, vocabulary)
        learners["tokenizers"] = lambda: learn_with_tokenizers(tokenizers, texts, options.n_vocab)
    learning = {name: [] for name in learners}
    for _ in range(options.rounds):
        for name, learn in learners.items():
            learning[name].append(seconds(learn))
    megabytes = len(whole.encode()) / 1e6
    print(f"{megabytes:.2f} MB, medians of {options.rounds} rounds")
    learned = (f"learned, {options.n_vocab}", encoders)
    for vocabulary, programs in [learned, *published_pairs(tiktoken, optional("sentencepiece"))]:
        for name, (rate, count) in measure(programs, whole, options.rounds).items():
            print(f"encode {vocabulary:14} {name:14} {rate:8.2f} MB/s, {count:,} tokens")
    for name, values in learning.items():
        print(f"learn  {name:14} {statistics.median(values):8.3f} s")


if __name__ == "__main__":
    main()
