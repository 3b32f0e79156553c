"""Many processes of one run: who I am, and how arrays and values travel between ranks. Layer 1.

One process is the ordinary case: a Group of size 1, whose methods do nothing, and no import of
mpi4py. Under mpiexec world() is the group of all ranks, over mpi4py (extra [mpi]). Sums over ranks
are taken in a fixed binary tree, ((0 + 1) + (2 + 3)) ..., so that float32 gives the same bits
whoever computes them: each owner receives the parts of all ranks and adds them itself, which moves
as many bytes as recursive halving and may run beside a backward pass.
"""

from __future__ import annotations

import os
import shutil
import socket
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np

from .errors import LlmError

SIZE_VARIABLES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE")  # of MPICH's launchers, of Open MPI's
SHORT_WAIT = 0.001  # seconds between two looks at a barrier


class Group:
    """The ranks of a run. shards: for each rank the slices of a flat array that it owns; together
    they are the array. Arrays are contiguous and of one type on all ranks, and every rank calls the
    same methods in the same order."""

    def __init__(self):
        self.rank, self.size = 0, 1
        self.host = socket.gethostname()
        self.seconds = 0.0  # spent here so far

    def begin_reduce(self, array, shards: list[list[slice]], part: slice) -> Callable[[], None]:
        """Starts to sum array[part] over all ranks; what it returns waits for the end. Then what
        this rank owns of the part is the sum; the rest of it is undefined."""
        return lambda: None

    def reduce_scatter(self, array, shards: list[list[slice]]) -> None:
        """Sums the array over all ranks into what each owns of it; the rest is undefined."""
        self.begin_reduce(array, shards, slice(0, array.size))()

    def all_gather(self, array, shards: list[list[slice]]) -> None:
        """Each rank's own slices to all ranks."""

    def all_reduce(self, array) -> None:
        """Sums a flat array over all ranks, in place."""
        shards = even_shards(array.size, self.size)
        self.reduce_scatter(array, shards)
        self.all_gather(array, shards)

    def share(self, value) -> list:
        """Every rank's value (any object that pickles), on every rank."""
        return [value]

    def gather(self, value) -> list | None:
        """Every rank's value on rank 0, None elsewhere."""
        return [value]

    def broadcast(self, value):
        """Rank 0's value, on every rank."""
        return value

    def barrier(self) -> None:
        """Returns when all ranks are here; waits without using the processor."""

    def abort(self, message: str) -> None:
        """Prints the message with this rank and host, and ends all ranks."""
        print(f"llm: {self._who(message)}", file=sys.stderr, flush=True)
        raise SystemExit(1)

    def _who(self, message: str) -> str:
        return message if self.size == 1 else f"rank {self.rank} on {self.host}: {message}"


class MpiGroup(Group):
    """Group over a communicator of mpi4py."""

    def __init__(self, mpi, comm):
        super().__init__()
        self._mpi, self._comm = mpi, comm
        self.rank, self.size = comm.Get_rank(), comm.Get_size()

    def begin_reduce(self, array, shards, part):
        start = time.perf_counter()
        pieces = [within(shard, part) for shard in shards]
        requests, received = [], []
        for piece in pieces[self.rank]:
            buffers = np.empty((self.size, piece.stop - piece.start), array.dtype)
            received.append((piece, buffers))
            for other in self._others():
                requests.append(self._comm.Irecv(buffers[other], source=other))
        for other in self._others():
            requests += [self._comm.Isend(array[piece], dest=other) for piece in pieces[other]]
        self.seconds += time.perf_counter() - start

        def finish() -> None:
            start = time.perf_counter()
            self._mpi.Request.Waitall(requests)
            for piece, buffers in received:
                parts = list(buffers)
                parts[self.rank] = array[piece]
                array[piece] = tree_sum(parts)
            self.seconds += time.perf_counter() - start

        return finish

    def all_gather(self, array, shards):
        start = time.perf_counter()
        requests = []
        for other in self._others():
            requests += [self._comm.Irecv(array[piece], source=other) for piece in shards[other]]
        for other in self._others():
            requests += [self._comm.Isend(array[piece], dest=other) for piece in shards[self.rank]]
        self._mpi.Request.Waitall(requests)
        self.seconds += time.perf_counter() - start

    def share(self, value) -> list:
        start = time.perf_counter()
        values = self._comm.allgather(value)
        self.seconds += time.perf_counter() - start
        return values

    def gather(self, value) -> list | None:
        return self._comm.gather(value)

    def broadcast(self, value):
        return self._comm.bcast(value)

    def barrier(self) -> None:
        request = self._comm.Ibarrier()
        while not request.Test():
            time.sleep(SHORT_WAIT)

    def abort(self, message: str) -> None:
        print(f"llm: {self._who(message)}", file=sys.stderr, flush=True)
        self._comm.Abort(1)

    def _others(self) -> list[int]:
        """From the next rank on, so that not all send to the same one at once."""
        return [(self.rank + i) % self.size for i in range(1, self.size)]


@cache
def world() -> Group:
    """All processes that a launcher started together; this one alone where none did."""
    size = next((os.environ[v] for v in SIZE_VARIABLES if v in os.environ), "1")
    if size == "1":
        return Group()
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # RuntimeError: there is no MPI library
        raise LlmError(
            f"started as one of {size} ranks, but mpi4py does not load ({error}): "
            "pip install 'two-file-llm[mpi]'"
        ) from error
    group = MpiGroup(MPI, MPI.COMM_WORLD)
    if str(group.size) != size:
        raise LlmError(
            f"started as one of {size} ranks, but mpi4py sees {group.size}: start them with the "
            f"mpiexec of mpi4py's own MPI ({MPI.Get_library_version().split(chr(10))[0].strip()})"
        )
    return group


def mpiexec() -> str:
    """The launcher: that of this Python's environment, or the first in PATH."""
    own = Path(sys.executable).with_name("mpiexec")
    found = str(own) if own.exists() else shutil.which("mpiexec")
    if found is None:
        raise LlmError("there is no mpiexec: pip install 'two-file-llm[mpi]'")
    return found


def tree_sum(parts: list[np.ndarray]) -> np.ndarray:
    """((0 + 1) + (2 + 3)) ..., for a power of two of arrays; left in the first."""
    step = 1
    while step < len(parts):
        for i in range(0, len(parts), 2 * step):
            np.add(parts[i], parts[i + step], out=parts[i])
        step *= 2
    return parts[0]


def even_shards(size: int, n: int) -> list[list[slice]]:
    return [[slice(size * i // n, size * (i + 1) // n)] for i in range(n)]


def within(slices: list[slice], part: slice) -> list[slice]:
    """What of the slices lies in the part."""
    cut = [slice(max(s.start, part.start), min(s.stop, part.stop)) for s in slices]
    return [s for s in cut if s.start < s.stop]
