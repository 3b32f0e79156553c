"""NCCL between hosts that play the GPU (cuda_stand_in.py): what llm/nccl.py calls of it, over MPI.

Messages of a group leave when it ends, from memory as it was then; they arrive where a stream waits
for the event that was recorded behind them, and not before: who forgets to wait reads NaN. Run as a
program (a rank of test_nccl.py) it trains a tiny model and writes the parameters.
"""

import ctypes
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
FLOAT32 = 7


class Stream:
    ptr = 5

    def __init__(self, link=None):
        self._link = link  # of the stream that messages go on

    def record(self):
        """An event: what of this stream is under way."""
        return self._link.begin() if self._link else lambda: None

    def wait_event(self, event):
        event()

    def synchronize(self):
        pass


class Nccl:
    """The module, and its one communicator."""

    NCCL_FLOAT32 = FLOAT32

    def __init__(self, comm):
        self._comm, self._calls, self._is_open = comm, [], False

    def get_unique_id(self):
        assert self._comm.Get_rank() == 0
        return b"identity"

    def NcclCommunicator(self, n_ranks, identity, rank):
        assert (n_ranks, rank) == (self._comm.Get_size(), self._comm.Get_rank())
        assert identity == b"identity"
        return self

    def groupStart(self):
        self._is_open = True

    def groupEnd(self):
        assert self._is_open
        self._is_open = False

    def send(self, *call):
        self._note(self._comm.Isend, *call)

    def recv(self, *call):
        self._note(self._comm.Irecv, *call)

    def _note(self, method, address, count, kind, other, stream):
        assert self._is_open and (kind, stream) == (FLOAT32, Stream.ptr)
        values = np.ctypeslib.as_array((ctypes.c_float * count).from_address(address))
        self._calls.append((method, values, other))

    def begin(self):
        """Lets the messages leave; what it returns lets them arrive."""
        arrivals, requests = [], []
        for method, values, other in self._calls:
            copy = values.copy()
            requests.append(method(copy, other))
            if method == self._comm.Irecv:
                arrivals.append((values, copy))
        self._calls = []

        def end():
            for request in requests:
                request.Wait()
            for values, copy in arrivals:
                values[...] = copy
            requests.clear()
            arrivals.clear()

        return end


def train(kernels, out: str) -> None:
    from cuda_stand_in import StandIn

    from llm.config import ModelConfig
    from llm.data import Examples
    from llm.distributed import world
    from llm.model import Transformer, init_params
    from llm.nccl import NcclGroup, choose_gpu
    from llm.ops_cuda import OpsCuda
    from llm.run_files import Run
    from llm.settings import Settings
    from llm.step import take_step
    from llm.train import optimizer_of

    host, group = StandIn(kernels), world()
    cuda, chosen, computing = host.cupy.cuda, [], Stream()
    if group.size > 1:
        nccl = Nccl(group._comm)
        cuda.Stream = lambda non_blocking: Stream(nccl)
        cuda.get_current_stream = lambda: computing
        cuda.Device = lambda n=0: SimpleNamespace(
            compute_capability="90", use=lambda: chosen.append(n)
        )
        cuda.runtime.getDeviceCount = lambda: group.size
        choose_gpu(group, host.cupy)
        assert chosen == [group.rank]
    ops = OpsCuda("fp32", host.modules)
    if group.size > 1:
        group = NcclGroup(group, ops, host.cupy, nccl)
    config = ModelConfig(n_vocab=50, n_ctx=8, n_embd=16, n_layer=2, n_head=2, n_kv_head=1, n_ff=24)
    settings = Settings(batch=4, slot_sequences=1, n_ctx=8, lr=0.02, warmup=1)
    tokens = np.random.default_rng(1).integers(0, 50, 200, dtype=np.int32)
    model = Transformer(config, ops, init_params(config, 1))
    run = Run(
        settings=settings, material=None, vocabulary=None, tokenizer=None, validation=None,
        examples=Examples(tokens, 8, 1, 4, 1), model=model, group=group, n_steps=9,
        optimizer=optimizer_of(settings, model, group),
    )  # fmt: skip
    for _ in range(3):
        assert take_step(run) is None
    host.check_guards()
    Path(f"{out}.{group.rank}").write_bytes(ops.to_host(model.params).tobytes())


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    train([ctypes.CDLL(sys.argv[1]), None], sys.argv[2])
