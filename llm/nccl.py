"""Ranks with a GPU each: arrays travel by NCCL, everything else by MPI. Layer 1.

NCCL's own sums have no fixed order, so only its messages are used: the tree of distributed.py is
the same. They go on a stream of their own beside the backward pass; the stream that computes waits
for them where their data are needed, the host never. Tested without a GPU on a host that plays it
(tests/test_nccl.py).
"""

from __future__ import annotations

from .distributed import Group, MpiGroup
from .errors import LlmError


def library():
    """NCCL as CuPy knows it: a module that `import cupy` does not bring by itself."""
    from cupy.cuda import nccl

    if not nccl.available:
        raise LlmError("ranks with GPUs need NCCL: pip install 'two-file-llm[cuda,mpi]'")
    return nccl


class NcclGroup(MpiGroup):
    """The ranks of an MpiGroup; arrays are CuPy's float32, `ops` adds them. nccl: library().
    `seconds` does not count what the GPU does by itself."""

    def __init__(self, group: MpiGroup, ops, cupy, nccl):
        super().__init__(group._mpi, group._comm)
        self.n_here, self._levels = group.n_here, group._levels
        identity = self.broadcast(nccl.get_unique_id() if self.rank == 0 else None)
        self._link = nccl.NcclCommunicator(self.size, identity, self.rank)
        self._cupy, self._nccl, self._ops = cupy, nccl, ops
        self._stream = cupy.cuda.Stream(non_blocking=True)

    def _exchange(self, sends, receives):
        computing = self._cupy.cuda.get_current_stream()
        self._stream.wait_event(computing.record())
        self._nccl.groupStart()
        for calls, send_or_receive in ((receives, self._link.recv), (sends, self._link.send)):
            for array, other in calls:
                kind, stream = self._nccl.NCCL_FLOAT32, self._stream.ptr
                send_or_receive(array.data.ptr, array.size, kind, other, stream)
        self._nccl.groupEnd()
        for array, _ in receives:
            self._ops.changed(array)
        done = self._stream.record()
        return lambda: computing.wait_event(done)

    def _empty(self, like):
        return self._ops.empty(like.size)

    def _add(self, x, y, out):
        self._ops.combine(out, 1.0, x, 1.0, y)


def choose_gpu(group: Group, cupy) -> None:
    """The GPU of this rank: the next one of its machine, or of those that a scheduler shows it."""
    runtime = cupy.cuda.runtime
    n = runtime.getDeviceCount()
    seen = group.host, [runtime.deviceGetPCIBusId(i) for i in range(n)]
    others = group.share(seen)
    own = others[: group.rank].count(seen)
    if own >= n:
        n_ranks = others.count(seen)
        raise LlmError(f"{n_ranks} ranks on {group.host}, which has {n} GPUs: one rank for each")
    cupy.cuda.Device(own).use()
