"""Any bytes, compressed with a parameter file. Layer 11.

csrc/zip.c codes blocks of tokens; this file cuts the input into blocks, spells them, and frames
them: csrc/ZIP.md is the contract. An archive is checked whole before the model reads a token, and
the text's own checksum before the output gets its name.
"""

from __future__ import annotations

import dataclasses
import hashlib
import lzma
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO

import numpy as np

from llm._llm import ffi, lib

from .binding import call, new, pointer_to
from .context import Context, call_cancellable
from .engine import Model
from .errors import FormatError, UnsupportedError

MAGIC, VERSION = b"\x89TFZ\r\n\x1a\n", 2
HEADER = struct.Struct("<8sHHIII16s32s32sQ32s")  # then the CRC-32 of these bytes
BLOCK = struct.Struct("<B3xIII")  # then the CRC-32 of these bytes and the coded ones
CRC = struct.Struct("<I")
STORED, SPELLED, SPACED = 0, 1, 2

MOST_BLOCK = 1 << 20
DEFAULT_BLOCK, DEFAULT_WINDOW, DEFAULT_LANES = 32768, 2048, 8
FURTHEST = 256  # bytes that are passed over to find a token's place


@dataclasses.dataclass(frozen=True)
class Header:
    window: int
    overlap: int
    n_blocks: int
    kernels: str  # that coded it: for messages; every set gives the same bits
    model: bytes  # fingerprint of the parameter file
    probe: bytes  # digest of logits: the arithmetic
    n_bytes: int
    sha256: bytes

    def pack(self) -> bytes:
        name = self.kernels.encode()
        raw = HEADER.pack(
            *(MAGIC, VERSION, 0, self.window, self.overlap, self.n_blocks, name),
            *(self.model, self.probe, self.n_bytes, self.sha256),
        )
        return raw + CRC.pack(zlib.crc32(raw))


@dataclasses.dataclass
class Block:
    method: int
    n_bytes: int
    n_symbols: int
    coded: bytes

    def pack(self) -> bytes:
        raw = BLOCK.pack(self.method, self.n_bytes, self.n_symbols, len(self.coded)) + self.coded
        return raw + CRC.pack(zlib.crc32(raw))


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What came of a text: bytes read, written, and what xz -9e makes of it."""

    n_bytes: int
    n_archive: int
    n_xz: int


# ---- the coder ----


class Coder:
    """csrc/zip.c over one model. lanes: blocks that are decoded at once; it changes no result."""

    def __init__(self, model: Model, window: int, overlap: int, lanes: int = 1, **options):
        self._handle = model._handle  # kept for the C side, which borrows the model
        options_struct = ffi.new("llm_context_options *", lib.llm_context_default_options())
        name = options.get("kernels")
        self._kept = ffi.NULL if name is None else ffi.new("char[]", name.encode())
        self._check = ffi.new_handle(None)  # Ctrl-C alone
        options_struct.n_ctx, options_struct.n_threads = window, options.get("n_threads", 0)
        options_struct.kernels = self._kept
        options_struct.cancel_check = lib.llm_python_cancel_check
        options_struct.cancel_user = self._check
        make = (lib.llm_zip_new, "llm_zip", lib.llm_zip_free, self._handle.use())
        self._pointer = new(*make, options_struct, overlap, lanes)

    @property
    def lanes(self) -> int:
        return lib.llm_zip_n_lanes(self._pointer)

    @property
    def kernels(self) -> str:
        return ffi.string(lib.llm_zip_kernels(self._pointer)).decode()

    def encode(self, symbols: np.ndarray, progress: Callable[[float], None]) -> bytes:
        """progress gets the part that is done, 0 to 1."""
        out = np.empty(8 * symbols.size + 8, np.uint8)
        block = ffi.new("llm_zip_block *")
        block.symbols, block.n_symbols = pointer_to("int32_t", symbols), symbols.size
        block.coded, block.capacity = pointer_to("uint8_t", out), out.size
        while block.n_done < block.n_symbols:
            call_cancellable(lib.llm_zip_encode, self._pointer, block)
            progress(block.n_done / block.n_symbols)
        return out[: block.n_coded].tobytes()

    def decode(self, blocks: list[Block], progress: Callable[[float], None]) -> list[np.ndarray]:
        """The symbols of at most `lanes` blocks."""
        array = ffi.new("llm_zip_block[]", len(blocks))
        out = [np.empty(block.n_symbols, np.int32) for block in blocks]
        kept = [ffi.from_buffer("uint8_t[]", block.coded) for block in blocks]
        for target, block, symbols, coded in zip(array, blocks, out, kept, strict=True):
            target.symbols, target.n_symbols = pointer_to("int32_t", symbols), symbols.size
            target.coded, target.n_coded = coded, len(block.coded)
        n_symbols, n_done = sum(block.n_symbols for block in blocks), 0
        while n_done < n_symbols:
            call_cancellable(lib.llm_zip_decode, self._pointer, array, len(blocks))
            n_done = sum(target.n_done for target in array)
            progress(n_done / n_symbols)
        return out


def fingerprint(model: Model) -> bytes:
    digits = ffi.new("char[65]")
    call(lib.llm_model_fingerprint, model._handle.use(), digits)
    return bytes.fromhex(ffi.string(digits).decode())


def probe(model: Model, **options) -> bytes:
    """SHA-256 of the logits after some fixed tokens: programs that agree in it compute alike."""
    n = min(16, model.config.n_ctx_train)
    ids = np.arange(1, n + 1) * 7919 % model.config.n_vocab
    logits = Context(model, n_ctx=n, **options).eval(ids, n_rows=n)
    return hashlib.sha256(logits.astype("<f4").tobytes()).digest()


# ---- text to symbols and back ----


def cut(data: bytes, size: int) -> int:
    """Where the first block of `data` ends: at most `size` bytes, behind a line or before a space
    in its second half, and never inside a character."""
    if len(data) <= size:
        return len(data)
    end = data.rfind(b"\n", size // 2, size) + 1 or data.rfind(b" ", size // 2, size)
    if end > 0:
        return end
    end = size
    while end > max(size - 3, 1) and data[end] & 0xC0 == 0x80:
        end -= 1
    return end


def spell(model: Model, text: bytes) -> tuple[int, np.ndarray]:
    """Method and symbols of a block: token ids, and -1 - b for a byte b that no token spells."""
    tokenizer = model.tokenizer
    ids = tokenizer.encode_array(text)
    spelled = tokenizer.decode_bytes(ids, whole=False)
    if spelled == text:
        return SPELLED, ids
    if spelled == b" " + text:
        return SPACED, ids
    pieces = {id: tokenizer.decode_bytes([id], whole=False) for id in set(ids.tolist())}
    return SPELLED, np.array(align(text, ids.tolist(), pieces), np.int32)


def align(text: bytes, ids: list[int], pieces: dict[int, bytes]) -> list[int]:
    """Symbols whose bytes are the text: ids where theirs stand next or near, other bytes escaped.
    Any result that spells the text is right, this one is short."""
    symbols, at = [], 0
    for id in ids:
        piece = pieces[id]
        where = text.find(piece, at, at + FURTHEST + len(piece)) if piece else -1
        if where >= 0:
            symbols += [-1 - byte for byte in text[at:where]] + [id]
            at = where + len(piece)
    return symbols + [-1 - byte for byte in text[at:]]


def read_symbols(model: Model, block: Block, symbols: np.ndarray) -> bytes:
    """The text of a block; what does not come out as the block says is a FormatError."""
    out, at = [], 0
    for end in [*np.flatnonzero(symbols < 0).tolist(), symbols.size]:
        out.append(model.tokenizer.decode_bytes(symbols[at:end], whole=False) if end > at else b"")
        if end < symbols.size:
            out.append(bytes([-1 - int(symbols[end])]))
        at = end + 1
    text = b"".join(out)[1 if block.method == SPACED else 0 :]
    if len(text) != block.n_bytes:
        raise FormatError(f"a block of {block.n_bytes} bytes came out with {len(text)}")
    return text


# ---- archives ----


def compress(
    model: Model,
    source: BinaryIO,
    target: BinaryIO,
    progress: Callable[[float], None] = lambda n_bytes: None,
    block_bytes: int = DEFAULT_BLOCK,
    window: int | None = None,
    **options,
) -> Sizes:
    """Reads `source` to its end, a block at a time, and writes an archive; target can seek.
    progress gets the number of bytes that are done. options: n_threads, kernels; neither changes
    the archive but for the name of the kernel set in its header."""
    if not 1 <= block_bytes <= MOST_BLOCK:
        raise ValueError(f"blocks of {block_bytes} bytes, expected 1 to {MOST_BLOCK}")
    window = min(DEFAULT_WINDOW, model.config.n_ctx_train) if window is None else window
    coder = Coder(model, window, window // 4, **options)
    key = (fingerprint(model), probe(model, **options))
    start, n_bytes, n_blocks, data = target.tell(), 0, 0, b""
    digest, xz, n_xz = hashlib.sha256(), lzma.LZMACompressor(preset=9 | lzma.PRESET_EXTREME), 0
    header = Header(window, window // 4, 0, coder.kernels, *key, 0, b"")
    target.write(header.pack())
    while data := data + source.read(block_bytes - len(data) + 1):
        text, data = data[: cut(data, block_bytes)], data[cut(data, block_bytes) :]
        method, symbols = spell(model, text)
        coded = coder.encode(symbols, scaled(progress, n_bytes, len(text)))
        block = Block(method, len(text), symbols.size, coded)
        if len(coded) >= len(text):
            block = Block(STORED, len(text), 0, text)
        target.write(block.pack())
        digest.update(text)
        n_xz += len(xz.compress(text))
        n_bytes, n_blocks = n_bytes + len(text), n_blocks + 1
    n_archive = target.tell() - start
    target.seek(start)
    end = {"n_blocks": n_blocks, "n_bytes": n_bytes, "sha256": digest.digest()}
    target.write(dataclasses.replace(header, **end).pack())
    target.seek(start + n_archive)
    return Sizes(n_bytes, n_archive, n_xz + len(xz.flush()))


def decompress(
    model: Model,
    source: BinaryIO,
    target: BinaryIO,
    progress: Callable[[float], None] = lambda n_bytes: None,
    lanes: int = DEFAULT_LANES,
    **options,
) -> int:
    """Writes the text of an archive and returns its length; source can seek. FormatError or
    UnsupportedError before anything is written, but for what only the text's own checksum finds."""
    start = source.tell()
    header = check_archive(source)
    check_model(header, model, **options)
    source.seek(start + HEADER.size + CRC.size)
    coder = Coder(model, header.window, header.overlap, lanes, **options)
    digest, n_bytes = hashlib.sha256(), 0
    for group in grouped((read_block(source, i) for i in range(header.n_blocks)), coder.lanes):
        size = sum(block.n_bytes for block in group)
        coded = [block for block in group if block.method != STORED]
        symbols = iter(coder.decode(coded, scaled(progress, n_bytes, size)))
        for block in group:
            stored = block.method == STORED
            text = block.coded if stored else read_symbols(model, block, next(symbols))
            digest.update(text)
            target.write(text)
        n_bytes += size
        progress(n_bytes)
    if digest.digest() != header.sha256:
        raise FormatError("the text that came out is not the one that went in (SHA-256)")
    return n_bytes


def scaled(progress: Callable[[float], None], n_done: int, n_bytes: int) -> Callable[[float], None]:
    """What turns parts of n_bytes, behind n_done, into bytes."""
    return lambda part: progress(n_done + part * n_bytes)


def grouped(blocks: Iterator[Block], n: int) -> Iterator[list[Block]]:
    group: list[Block] = []
    for block in blocks:
        group.append(block)
        if len(group) == n:
            yield group
            group = []
    if group:
        yield group


def read_header(source: BinaryIO) -> Header:
    raw = source.read(HEADER.size)
    if raw[: len(MAGIC)] != MAGIC:
        raise FormatError("not an archive of `python -m llm zip`")
    version = int.from_bytes(raw[8:10], "little")
    if len(raw) >= 10 and version != VERSION:
        raise UnsupportedError(f"an archive of version {version}; this program reads {VERSION}")
    end = source.read(CRC.size)
    if len(raw) < HEADER.size or len(end) < CRC.size:
        raise FormatError("the archive is cut short in its header")
    if CRC.unpack(end)[0] != zlib.crc32(raw):
        raise FormatError("the archive's header is damaged (CRC-32)")
    _, _, zero, window, overlap, n_blocks, kernels, *rest = HEADER.unpack(raw)
    if zero or not overlap < window < 2**31:
        raise FormatError("the archive's header contradicts itself")
    return Header(window, overlap, n_blocks, kernels.rstrip(b"\0").decode("latin-1"), *rest)


def read_block(source: BinaryIO, index: int) -> Block:
    def part(n: int) -> bytes:
        raw = source.read(n)
        if len(raw) < n:
            raise FormatError(f"the archive is cut short in block {index}")
        return raw

    raw = part(BLOCK.size)
    method, n_bytes, n_symbols, n_coded = BLOCK.unpack(raw)
    most = 2 * n_bytes + 1  # symbols; and a block that is coded is shorter than its text
    if method > SPACED or not 1 <= n_bytes <= MOST_BLOCK or n_coded > n_bytes or n_symbols > most:
        raise FormatError(f"the archive is damaged in block {index}: impossible sizes")
    coded = part(n_coded)
    if CRC.unpack(part(CRC.size))[0] != zlib.crc32(raw + coded):
        raise FormatError(f"the archive is damaged in block {index} (CRC-32)")
    if (method == STORED) != (n_symbols == 0) or (method == STORED and n_coded != n_bytes):
        raise FormatError(f"the archive contradicts itself in block {index}")
    return Block(method, n_bytes, n_symbols, coded)


def check_archive(source: BinaryIO) -> Header:
    """Reads all of it, so that nothing is begun with an archive that cannot end well."""
    header = read_header(source)
    n_bytes = sum(read_block(source, i).n_bytes for i in range(header.n_blocks))
    if n_bytes != header.n_bytes:
        raise FormatError(f"the blocks hold {n_bytes} bytes, the header says {header.n_bytes}")
    if source.read(1):
        raise FormatError("there are bytes behind the archive's end")
    return header


def check_model(header: Header, model: Model, **options) -> None:
    if header.model != fingerprint(model):
        raise FormatError(
            f"the archive was made with another parameter file: fingerprint "
            f"{header.model.hex()[:16]}..., {model.path} has {fingerprint(model).hex()[:16]}..."
        )
    if header.window > model.config.n_ctx_train:
        raise FormatError(
            f"windows of {header.window} tokens, the model has {model.config.n_ctx_train}"
        )
    if header.probe != probe(model, **options):
        raise UnsupportedError(
            f"the archive was made with kernel set {header.kernels!r}, whose logits are not this "
            "program's: read it with the version that wrote it, or write it with --portable"
        )
