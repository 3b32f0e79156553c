"""Many processes of one run: who I am, and how arrays and values travel between ranks. Layer 1.

One process is the ordinary case: a Group of size 1, whose methods do nothing, and no import of
mpi4py. Under mpiexec world() is the group of all ranks, over mpi4py (extra [mpi]). Sums over ranks
are taken in a fixed binary tree, ((0 + 1) + (2 + 3)) ..., so that float32 gives the same bits
whoever computes them: each owner receives the parts of all ranks and adds them itself, which moves
as many bytes as recursive halving and may run beside a backward pass. Neighbours that share a host
are a subtree and add first: then one sum of theirs travels to other hosts.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import stat
import struct
import sys
import termios
import time
from collections import deque
from collections.abc import Callable
from contextlib import contextmanager
from fcntl import ioctl
from functools import cache
from pathlib import Path

import numpy as np

from .errors import LlmError

SIZE_VARIABLES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE")  # of MPICH's launchers, of Open MPI's
SHORT_WAIT = 0.001  # seconds between two looks at a barrier
PATIENCE = 1.0  # seconds
LONGEST_WAIT = 10.0  # seconds for a launcher to read what a rank has said
IN_FLIGHT = 2  # parts of an array whose sums are under way while the next one is begun
ENDINGS = signal.SIGINT, signal.SIGTERM, signal.SIGHUP  # end a run in good order, unless ignored
LOST = os.EX_TEMPFAIL  # exit status where a rank, a host or a link is gone: it may come back


class Group:
    """The ranks of a run. shards: for each rank the slices of a flat array that it owns; together
    they are the array. Arrays are contiguous and of one type on all ranks, and every rank calls the
    same methods in the same order."""

    def __init__(self):
        self.rank, self.size = 0, 1
        self.host = socket.gethostname()
        self.n_here = 1  # ranks on this host
        self.seconds = 0.0  # spent here so far
        self.exchange = None  # the number of the one that this rank waits in now

    def begin_reduce(self, array, shards: list[list[slice]], part: slice) -> Callable[[], None]:
        """Starts to sum array[part] over all ranks; what it returns waits for the end. Then what
        this rank owns of the part is the sum; the rest of it is undefined."""
        return lambda: None

    def received(self, shards: list[list[slice]], parts: list[slice]) -> int:
        """The most elements that come in beside the array, on any rank, while the parts are summed
        one after the other, IN_FLIGHT at a time."""
        return 0

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

    def abort(self, message: str, status: int = 1) -> None:
        """Prints the message with this rank and host, and ends all ranks with the status."""
        raise SystemExit(f"llm: {message}")


class MpiGroup(Group):
    """Group over a communicator of mpi4py."""

    def __init__(self, mpi, comm):
        super().__init__()
        self._mpi, self._comm = mpi, comm
        self.rank, self.size = comm.Get_rank(), comm.Get_size()
        self._levels, self._begun, self._n_exchanges = [], iter(()), 0

    def meet(self) -> None:
        """Learns who is where, before anything else travels."""
        hosts = self.share(self.host)
        self.n_here, self._levels = hosts.count(self.host), levels(hosts, self.rank)

    def begin_reduce(self, array, shards, part):
        if len(self._levels) > 1:  # the part before goes on to other nodes
            next(self._begun, None)
        work = self._begun = self._sums(array, [within(shard, part) for shard in shards])
        next(work)
        return lambda: deque(work, maxlen=0)

    def _sums(self, array, pieces: list[list[slice]]):
        """Begins the sums of a level, and at the next call ends them and begins those of the next:
        a rank's node sums what the ranks of its place in all nodes own."""
        for peers, step in self._levels:
            end = self._begin_sum(array, owned(pieces, peers, step))
            yield
            end()
            del end  # what came in goes before the next level's comes

    def received(self, shards, parts):
        def size(part: slice, peers: list[int], step: int) -> int:
            pieces = owned([within(shard, part) for shard in shards], peers, step)[self.rank]
            return (len(peers) - 1) * sum(piece.stop - piece.start for piece in pieces)

        # A part that is begun sums in its node; by then those before are between nodes.
        first, last = ([size(p, *self._levels[i]) for p in parts] for i in (0, -1))
        most = max(n + sum(last[max(0, i - IN_FLIGHT) : i]) for i, n in enumerate(first))
        return max(self.share(most))

    def _begin_sum(self, array, pieces: dict[int, list[slice]]) -> Callable[[], None]:
        others, own = self._others(list(pieces)), pieces[self.rank]
        parts = [self._buffers(array[piece], pieces) for piece in own]
        sends = [(array[piece], other) for other in others for piece in pieces[other]]
        receives = [(buffers[other], other) for buffers in parts for other in others]
        end = self._exchange(sends, receives)

        def finish() -> None:
            end()
            start = time.perf_counter()
            for piece, buffers in zip(own, parts, strict=True):
                tree_sum(list(buffers.values()), array[piece], self._add)
            self.seconds += time.perf_counter() - start

        return finish

    def all_gather(self, array, shards):
        for peers, step in reversed(self._levels):
            pieces, others = owned(shards, peers, step), self._others(peers)
            sends = [(array[piece], other) for other in others for piece in pieces[self.rank]]
            receives = [(array[piece], other) for other in others for piece in pieces[other]]
            self._exchange(sends, receives)()

    def _buffers(self, own, peers) -> dict:
        """What the peers' parts of an own piece come into; this rank's is there already."""
        return {peer: own if peer == self.rank else self._empty(own) for peer in peers}

    def _exchange(self, sends: list[tuple], receives: list[tuple]) -> Callable[[], None]:
        """Starts to send and to receive (array, rank); what it returns waits for the end."""
        start = time.perf_counter()
        requests = [self._comm.Irecv(array, source=other) for array, other in receives]
        requests += [self._comm.Isend(array, dest=other) for array, other in sends]
        self.seconds += time.perf_counter() - start

        def finish() -> None:
            with self._waits():
                self._mpi.Request.Waitall(requests)

        return finish

    @contextmanager
    def _waits(self):
        start = time.perf_counter()
        self._n_exchanges += 1
        self.exchange = self._n_exchanges
        yield
        self.exchange = None
        self.seconds += time.perf_counter() - start

    _empty = staticmethod(np.empty_like)
    _add = staticmethod(np.add)

    def share(self, value) -> list:
        with self._waits():
            return self._comm.allgather(value)

    def gather(self, value) -> list | None:
        with self._waits():
            return self._comm.gather(value)

    def broadcast(self, value):
        with self._waits():
            return self._comm.bcast(value)

    def barrier(self) -> None:
        with self._waits():
            request = self._comm.Ibarrier()
            while not request.Test():
                time.sleep(SHORT_WAIT)

    def abort(self, message: str, status: int = 1) -> None:
        who = f"rank {self.rank} on {self.host}"
        print(f"llm: {who}: {message}", file=sys.stderr, flush=True)
        wait_for_reader(sys.stderr)  # a launcher drops what it has not read when a rank ends all
        self._comm.Abort(status)
        os._exit(status)  # it may return before the launcher has heard of it

    def _others(self, peers: list[int]) -> list[int]:
        """From the next one on, so that not all send to the same one at once."""
        own = peers.index(self.rank)
        return [*peers[own + 1 :], *peers[:own]]


@cache
def world() -> Group:
    """All processes that a launcher started together; this one alone where none did."""
    size = next((os.environ[v] for v in SIZE_VARIABLES if v in os.environ), "1")
    if size == "1":
        return Group()
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # RuntimeError: there is no MPI library
        why = str(error).split("\n")[0]  # where it looked follows
        raise LlmError(
            f"started as one of {size} ranks, but mpi4py does not load ({why}): "
            "pip install 'two-file-llm[mpi]'"
        ) from error
    group = MpiGroup(MPI, MPI.COMM_WORLD)
    if str(group.size) != size:
        raise LlmError(
            f"started as one of {size} ranks, but mpi4py sees {group.size}: start them with the "
            f"mpiexec of mpi4py's own MPI ({MPI.Get_library_version().split(chr(10))[0].strip()})"
        )
    try:
        group.meet()
    except MPI.Exception as error:  # the others wait
        group.abort(f"the ranks do not reach each other: {error}", status_of(error))
    return group


def check_alike(group: Group, facts: dict) -> None:
    """Raises LlmError, the same on all ranks, where a fact is another on one of them."""
    shared = group.share((facts, group.host))
    first = shared[0][0]
    for rank, (other, host) in enumerate(shared):
        for name in {**first, **other}:
            here, there = (facts.get(name, "not given") for facts in (first, other))
            if repr(here) != repr(there):  # NaN is like NaN, and refused by who knows its limits
                raise LlmError(
                    f"{name} is {here} on rank 0 and {there} on rank {rank} ({host}): all ranks "
                    "must be started alike"
                )


def cores(group: Group) -> int:
    """The cores for each rank: this machine's, shared by the ranks that may run on the same."""
    own = (group.host, sorted(os.sched_getaffinity(0)))
    return max(1, len(own[1]) // group.share(own).count(own))


def end_all(message: str, status: int = 1) -> None:
    """Prints the message, with rank and host, and ends all ranks; returns in one process. What all
    ranks meet is told by rank 0 alone, which ends the others while they wait."""
    try:
        group = world()
    except LlmError:
        return
    if group.size > 1:
        time.sleep(PATIENCE if group.rank else 0)
        group.abort(message, status)


def status_of(error: Exception | None) -> int:
    """Of a rank that an error ends: what MPI says of its messages is no mistake of the run's."""
    return LOST if type(error).__module__.startswith("mpi4py") else 1


def wait_for_reader(stream) -> None:
    """Until somebody has read what lies in the stream's pipe; returns at once of anything else."""
    end = time.monotonic() + LONGEST_WAIT
    while stat.S_ISFIFO(os.fstat(stream.fileno()).st_mode) and time.monotonic() < end:
        if not struct.unpack("i", ioctl(stream.fileno(), termios.FIONREAD, bytes(4)))[0]:
            return
        time.sleep(SHORT_WAIT)


def mpiexec() -> str:
    """The launcher: that of this Python's environment, or the first in PATH."""
    own = Path(sys.executable).with_name("mpiexec")
    found = str(own) if own.exists() else shutil.which("mpiexec")
    if found is None:
        raise LlmError("there is no mpiexec: pip install 'two-file-llm[mpi]'")
    return found


def levels(hosts: list[str], rank: int) -> list[tuple[list[int], int]]:
    """(the ranks that this one sums with, their distance to the next who sum the same) inside its
    node, then between nodes: neighbours who share a host, as many as on every other, are a subtree
    of the sum. One level where there is one node, or no order in the hosts."""
    node = size = len(hosts)
    while any(len(set(hosts[i : i + node])) > 1 for i in range(0, size, node)):
        node //= 2
    first = rank - rank % node
    inside, between = range(first, first + node), range(rank % node, size, node)
    return [(list(r), step) for r, step in ((inside, node), (between, size)) if len(r) > 1]


def owned(pieces: list[list[slice]], peers: list[int], step: int) -> dict[int, list[slice]]:
    """For each peer what it and the ranks at multiples of the step from it own."""
    return {peer: [p for own in pieces[peer % step :: step] for p in own] for peer in peers}


def tree_sum(parts: list, out, add=np.add) -> None:
    """out = ((0 + 1) + (2 + 3)) ..., of a power of two of arrays, which are written over; out may
    be one of them. add (x, y, out)."""
    while len(parts) > 2:
        for x, y in zip(parts[::2], parts[1::2], strict=True):
            add(x, y, x)
        parts = parts[::2]
    add(*parts, out)


def even_shards(size: int, n: int) -> list[list[slice]]:
    return [[slice(size * i // n, size * (i + 1) // n)] for i in range(n)]


def within(slices: list[slice], part: slice) -> list[slice]:
    """What of the slices lies in the part."""
    cut = [slice(max(s.start, part.start), min(s.stop, part.stop)) for s in slices]
    return [s for s in cut if s.start < s.stop]
