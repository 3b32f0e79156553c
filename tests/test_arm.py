"""64-bit ARM under an emulator (qemu-user): the kernels against the scalar ones, and whole runs
beside this machine's, digit by digit. Speed is no matter here. `make test-arm` runs the C tests
there, too."""

import json
import subprocess

import pytest
from models import TINY, WIDE, write_typed
from test_build import make

from conftest import ROOT

BUILT = ROOT / "build" / "aarch64-linux-gnu-gcc"
PROMPT = "the theory of the thing, as it then was thought"


@pytest.fixture(scope="module", autouse=True)
def built():
    needed = make("need-arm")
    if needed.returncode:
        pytest.skip(needed.stderr.splitlines()[0])
    done = make("-j2", "build-arm")
    assert done.returncode == 0, done.stderr


def output(*command) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def on_arm(program, *arguments, cpu="max") -> str:
    return output("qemu-aarch64", "-cpu", cpu, BUILT / program, *arguments)


def said(text: str) -> tuple[str, dict]:
    """The kernels of a run, and what it said but for its clock."""
    result = json.loads(text)
    kernels = result.pop("kernels")
    clock = {"load_s", "prefill_s", "decode_s", "prefill_tok_s", "decode_tok_s"}
    return kernels, {key: result[key] for key in result.keys() - clock}


def test_kernels():
    assert on_arm("tests/test_kernels", "few").endswith(" 0 failed\n")


@pytest.mark.parametrize(
    ("types", "config", "kv"),
    [
        ("F32 F16 BF16", TINY, "f32"),
        ("Q8_0 Q4_0 Q4_1 Q5_0 Q5_1", TINY, "f16"),
        ("Q4_K Q5_K Q6_K", WIDE, "q8_0"),
    ],
)
def test_logprobs_of_this_machine(run_binary, tmp_path, types, config, kv):
    write_typed(tmp_path / "m.gguf", types, config)
    run = [tmp_path / "m.gguf", PROMPT, "--kv", kv, "--json", "--logprobs", 5, "--threads", 2]
    run += ["--temp", 0, "--seed", 1, "-n", 12]
    kernels, expected = said(output(run_binary, *run, "--kernels", "scalar"))
    assert kernels == "scalar"
    assert said(on_arm("run", *run)) == ("neon", expected)
    assert said(on_arm("run", *run, cpu="cortex-a53")) == ("scalar", expected)  # has no sdot


def test_a_real_model(run_binary, smollm2):
    run = [smollm2, "The capital of France is", "--json", "--logprobs", 5, "--threads", 2]
    run += ["--temp", 0, "--seed", 1, "-n", 3]
    expected = said(output(run_binary, *run, "--kernels", "scalar"))[1]
    assert expected["text"].startswith(" Paris.")
    assert said(on_arm("run", *run)) == ("neon", expected)
