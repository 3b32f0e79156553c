"""The tokenizer beside tiktoken and tokenizers on one core: encoding MB/s, seconds to learn.

Ours and the peers encode the same text with the vocabulary learned here (pre-tokenizer gpt-2), turn
by turn; figures are medians of the rounds. Needs the text of `make train` in build/packages and,
for the peers, `make test-peers`; a peer that is absent is said to be.
"""

import argparse
import statistics
import time
from importlib import import_module

from llm.corpus import read_corpus
from llm.parameter_file import byte_alphabet
from llm.vocabulary import learn_vocabulary, tokenizer_of

PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""


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
    counts = {name: len(encode(whole)) for name, encode in encoders.items()}
    times = {name: [] for name in encoders}
    learning = {name: [] for name in learners}
    for _ in range(options.rounds):
        for name, encode in encoders.items():
            times[name].append(seconds(encode, whole))
        for name, learn in learners.items():
            learning[name].append(seconds(learn))
    megabytes = len(whole.encode()) / 1e6
    print(f"{megabytes:.2f} MB, {options.n_vocab} tokens, medians of {options.rounds} rounds")
    for name, values in times.items():
        rate = megabytes / statistics.median(values)
        print(f"encode {name:10} {rate:8.2f} MB/s, {counts[name]:,} tokens")
    for name, values in learning.items():
        print(f"learn  {name:10} {statistics.median(values):8.3f} s")


if __name__ == "__main__":
    main()
