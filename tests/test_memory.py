"""The memory of a training, counted before it: what counts, who shares it, what would help."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from test_distributed import needs_mpi, ranks
from training import arguments

from llm.config import ModelConfig, layout, layout_size
from llm.distributed import Group
from llm.memory import check_memory, logits_bytes, scratch_bytes, training_bytes, validation_bytes
from llm.model import _Buffers
from llm.ops_numpy import OpsNumpy
from llm.settings import Settings

CONFIG = ModelConfig(n_layer=2, n_head=4, n_kv_head=2, n_embd=64, n_ff=160, n_vocab=300, n_ctx=64)


def test_the_gradients_of_slots_that_wait_are_counted():
    """Of eight slots, before the last: the sums of four and of two, and one."""
    one, eight = (training_bytes(CONFIG, 8, n_slots=n) for n in (1, 8))
    assert eight - one == 3 * 4 * layout_size(CONFIG)


def test_ranks_share_the_moments():
    one, four = (training_bytes(CONFIG, 8, n_ranks=n) for n in (1, 4))
    assert one - four == (4 * 2 + 1) * layout_size(CONFIG) * 3 // 4  # and what decays


def test_muon_works_on_a_matrix_for_each_thread():
    entries, ff = layout(CONFIG), 160 * 64
    most = 4 * 2 * (ff + 64**2)
    assert scratch_bytes("adamw", entries, 4, 1) == 0
    assert scratch_bytes("muon", entries, 4, 1) == 4 * most
    assert scratch_bytes("muon", entries, 40, 1) == 14 * most  # as many matrices as there are
    assert scratch_bytes("muon", entries, 40, 4) == 4 * most


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_the_buffers_of_a_validation_are_counted_exactly(architecture):
    config = replace(CONFIG, architecture=architecture)
    made = []

    class Counts(OpsNumpy):
        def empty(self, *shape):
            made.append(4 * math.prod(shape))
            return super().empty(*shape)

    ops = Counts(np.float32)
    _Buffers(config, ops, 4, 64, keep=False, recompute=False)
    assert sum(made) == validation_bytes(config, 4 * 64) + logits_bytes(ops, config, 4 * 64)


def ops_of(room, **more):
    machine = {"n_threads": 1, "act_bytes": 4, "piece_rows": 256, "shares_memory": True}
    machine |= {"chunk_rows": 32, "chunk_floats": 0, **more}
    answers = {"memory": lambda: (room, "there are few"), "workspace_bytes": lambda *_: 0}
    return SimpleNamespace(**machine, **answers, reserve=lambda n: None)


def group_of(size, n_here):
    group = Group()
    group.size, group.n_here = size, n_here
    return group


# A validation beside it, and 32 rows of logits for each of the two.
HELD = validation_bytes(CONFIG, 4 * 64) + 2 * 32 * 300 * 4
SETTINGS = Settings(batch=16, slot_sequences=2, n_ctx=64, optimizer="adamw", lr=1e-3)


def refusal(room, settings=SETTINGS, group=None, **machine):
    """None where it fits."""
    try:
        given = (ops_of(room, **machine), group or Group(), CONFIG, settings)
        check_memory(*given, settings.slot_sequences)
    except ValueError as error:
        return str(error)


def test_ranks_of_a_machine_share_its_memory():
    alone = training_bytes(CONFIG, 128, n_slots=1, n_ranks=8) + HELD
    eight, settings = group_of(8, 8), SETTINGS
    assert refusal(8 * alone, settings, eight) is None
    said = refusal(8 * alone - 1, settings, eight)
    assert "GB of memory in each of 8 ranks, there are few: lower --batch" in said
    assert refusal(8 * alone - 1, settings, group_of(8, 4)) is None  # two machines
    assert refusal(alone, settings, eight, shares_memory=False) is None  # a GPU each


@pytest.mark.parametrize(
    ("piece_rows", "slot_sequences", "recompute", "helps"),
    [
        (64, 2, True, "a larger --slot-sequences"),  # few rows at a time: slots cost gradients
        (1 << 20, 16, False, "--recompute or a smaller --slot-sequences"),  # rows cost the most
        (64, 16, True, None),
    ],
)
def test_the_advice_would_help(piece_rows, slot_sequences, recompute, helps):
    settings = replace(SETTINGS, slot_sequences=slot_sequences, recompute=recompute)
    said = refusal(1, settings, piece_rows=piece_rows)
    assert said.endswith(f"the sizes, or give {helps}" if helps else "or the sizes")


# A run whose ranks tell what was counted for other ranks' gradients, and what lived of them.
RECEIVES = """
import os, socket, sys, weakref
host = sys.argv[1][int(os.environ["PMI_RANK"])]
socket.gethostname = lambda: host
import numpy as np
from llm import cli, memory, ops_clocked
from llm.distributed import MpiGroup, world
from llm.report import Report
Report._write_pages = lambda *_: None
ops_clocked.PEAK_SECONDS = 0.0
now = most = 0
counted = []
def add(n):
    global now, most
    now += n
    most = max(most, now)
def empty(like):
    array = np.empty_like(like)
    add(array.nbytes)
    weakref.finalize(array, add, -array.nbytes)
    return array
def received_bytes(*given):
    counted.append(count(*given))
    return counted[-1]
MpiGroup._empty = staticmethod(empty)
count, memory.received_bytes = memory.received_bytes, received_bytes
assert cli.main(sys.argv[2:]) == 0
lived = max(world().share(most))
assert counted[-1] == lived > 0 and not now, (counted, lived, now)
"""


@needs_mpi
@pytest.mark.parametrize("hosts", ["aa", "aaaa", "aabb"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_what_ranks_receive_is_counted_exactly(text, tmp_path, hosts, optimizer):
    more = ("--n-embd", 16, "--tied", "--optimizer", optimizer)  # the embedding is the largest part
    given = arguments(text, tmp_path, "--steps", 2, *more)
    status, _, errors = ranks(len(hosts), "-c", RECEIVES, hosts, *given)
    assert status == 0, errors


def test_what_ranks_receive_is_refused():
    group, room = group_of(2, 2), 2 * (training_bytes(CONFIG, 128, n_slots=4, n_ranks=2) + HELD)
    assert refusal(room, SETTINGS, group) is None
    group.received = lambda shards, parts: 1
    assert refusal(room, SETTINGS, group) and refusal(room + 2 * 4, SETTINGS, group) is None


def test_the_scratch_of_muon_counts():
    room = training_bytes(CONFIG, 128, n_slots=8) + HELD
    assert refusal(room) is None
    muon = replace(SETTINGS, optimizer="muon")
    more = scratch_bytes("muon", layout(CONFIG), 4, 1)
    assert refusal(room + more - 1, muon, n_threads=4) and not refusal(
        room + more, muon, n_threads=4
    )
