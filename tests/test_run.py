"""The program ./run: every mode, exit codes and wrong use, as a user meets them. Pipes and signals:
test_run_signals.py; conversations: test_run_chat.py."""

import dataclasses
import json
import os
import subprocess
from pathlib import Path

import pytest
from models import NO_BOS_EOS, TINY, byte_vocabulary, file_fixture, write_trained, write_typed

import llm
from llm.vocabulary import tokenizer_of

RUN = Path(__file__).parent.parent / "run"
pytestmark = pytest.mark.skipif(not RUN.exists(), reason="./run is not built: make run")


file = file_fixture(write_trained)


def run(*arguments, stdin=b"", **options):
    done = subprocess.run(
        [RUN, *map(str, arguments)], input=stdin, capture_output=True, timeout=60, **options
    )
    assert done.returncode >= 0, f"died by signal {-done.returncode}"
    return done


def fails(code, fragment, *arguments, **options):
    """One clear line on stderr, nothing on stdout, the exit code that was asked for."""
    done = run(*arguments, **options)
    message = done.stderr.decode()
    assert done.returncode == code and done.stdout == b""
    assert fragment in message and message.count("\n") == 1 and message.startswith("run: ")


# ---- completing ----


def test_plain_output_is_prompt_then_continuation(file):
    done = run(file, "the th", "-n", 8, "--temp", 0)
    with llm.Model(file) as model:
        text = model.generate("the th", max_tokens=8, temperature=0)
    assert done.stdout.decode("utf-8", "replace") == "the th" + text + "\n"
    assert done.returncode == 0 and b"seed" in done.stderr
    bare = run(file, "the th", "-n", 8, "--temp", 0, "--no-echo")
    assert bare.stdout.decode("utf-8", "replace") == text + "\n"


def test_options_in_any_place(file):
    one = run("--temp", 0, file, "-n", 5, "the").stdout
    assert one == run(file, "the", "--temp", 0, "-n", 5).stdout
    assert one == run("-n", 5, "--temp", 0, "--", file, "the").stdout


def test_json(file):
    done = run(file, "the", "--json", "-n", 6, "--seed", 11, "--threads", 2)
    out = json.loads(done.stdout)
    assert out["prompt_ids"] == [257] and len(out["ids"]) <= 6
    assert out["finish_reason"] in ("length", "stop") and out["seed"] == 11
    assert out["n_ctx"] == TINY.n_ctx and out["threads"] == 2 and out["kernels"]
    for key in ("load_s", "prefill_s", "decode_s", "prefill_tok_s", "decode_tok_s"):
        assert out[key] >= 0
    raw = tokenizer_of(byte_vocabulary()).decode_bytes(out["ids"], render_special=False)
    assert out["text"].encode() == raw or "\ufffd" in out["text"]


def test_logprobs(file):
    """Of the raw distribution, whatever the sampler does; bytes where a token is no UTF-8."""
    arguments = ["the", "--json", "-n", 6, "--seed", 3, "--temp", 9, "--top-k", 0]
    out = json.loads(run(file, *arguments, "--logprobs", 259).stdout)
    with llm.Model(file) as model:
        steps = list(model.steps("the", 6, seed=3, temperature=9, top_k=0, logprobs=259))
        assert len(out["logprobs"]) == len(out["ids"]) > 0
        for entry, step in zip(out["logprobs"], steps, strict=True):
            assert (entry["id"], entry["logprob"]) == (step.id, pytest.approx(step.logprob))
            top = [(e["id"], pytest.approx(e["logprob"])) for e in entry["top"]]
            assert step.top == top
            for e in [entry, *entry["top"]]:
                raw = model.tokenizer.decode_bytes([e["id"]], render_special=True)
                assert bytes(e["bytes"]) == raw if "bytes" in e else e["text"].encode() == raw
        assert any("bytes" in e for e in out["logprobs"][0]["top"])
    assert "logprobs" not in json.loads(run(file, *arguments).stdout)
    bare = json.loads(run(file, *arguments, "--logprobs", 0).stdout)["logprobs"]
    assert [entry["top"] for entry in bare] == [[]] * len(bare)
    fails(1, "vocabulary of 259", file, *arguments, "--logprobs", 260)


def test_parallel_continuations_are_runs_of_their_own(file):
    options = ["-n", 12, "--temp", 2, "--repeat-penalty", 1.5]
    alone = [json.loads(run(file, "the", "--json", "--seed", s, *options).stdout) for s in (7, 8)]
    both = json.loads(run(file, "the", "--json", "--seed", 7, "-p", 2, *options).stdout)
    keys = ("ids", "text", "finish_reason", "seed")
    assert both["choices"] == [{key: one[key] for key in keys} for one in alone]
    assert both["prompt_ids"] == alone[0]["prompt_ids"] and "ids" not in both
    done = run(file, "the", "--seed", 7, "--parallel", 2, *options)
    texts = [run(file, "the", "--seed", s, *options).stdout for s in (7, 8)]
    heads = [b"==== 1 of 2, seed 7 ====\n", b"\n==== 2 of 2, seed 8 ====\n"]
    assert done.stdout == heads[0] + texts[0] + heads[1] + texts[1]
    assert done.stderr.count(b"finish") == 2
    assert len(json.loads(run(file, "the", "--json", "-p", 1).stdout)["choices"]) == 1


def test_sampling_options(file):
    """Each changes what is drawn as the same option does in Python."""
    options = {
        "min_p": 0.25,
        "repeat_penalty": 1.5,
        "presence_penalty": -2,
        "frequency_penalty": 3,
        "temperature": 3,
        "top_k": 0,
    }
    flags = {"temperature": "--temp"}
    arguments = ["--seed", 4, "-n", 20, "--no-echo"]
    plain = run(file, "the the", *arguments).stdout
    with llm.Model(file) as model:
        for name, value in options.items():
            flag = flags.get(name, "--" + name.replace("_", "-"))
            done = run(file, "the the", *arguments, flag, value)
            text = model.generate("the the", max_tokens=20, seed=4, **{name: value})
            assert done.stdout.decode("utf-8", "replace") == text + "\n"
            if name not in ("min_p", "top_k"):  # which may leave what would have been drawn
                assert done.stdout != plain
    ban = [argument for id in range(65, 259) for argument in ("--logit-bias", f"{id}=-inf")]
    out = json.loads(run(file, "the", "--json", "-n", 30, *ban, "--logit-bias", "64=1e3").stdout)
    assert out["ids"] == [64] * 30


def test_stop_strings(file):
    arguments = [file, "the", "-n", 30, "--seed", 2, "--temp", 2, "--top-k", 0, "--json"]
    raw = json.loads(run(*arguments, "--logit-bias", "258=-inf").stdout)["text"]
    stop = next(c for c in raw[5:] if c.isascii() and c.isprintable())
    out = json.loads(run(*arguments, "--logit-bias", "258=-inf", "--stop", stop).stdout)
    assert (out["text"], out["finish_reason"]) == (raw[: raw.index(stop)], "stop")
    both = ["--stop", "no such text", "--stop", stop]
    assert (
        json.loads(run(*arguments, "--logit-bias", "258=-inf", *both).stdout)["text"] == out["text"]
    )
    fails(2, "--stop takes a text", *arguments, "--stop", "")


@pytest.mark.parametrize("on_full", ["stop", "forget", "slide"])
def test_a_full_window(file, on_full):
    """As the same option in Python; what is forgotten is said."""
    done = run(
        *(file, "the", "--json", "-n", 40, "--seed", 1, "--temp", 2, "--ctx", 16),
        *("--on-full", on_full, "--logit-bias", "258=-inf"),
    )
    out = json.loads(done.stdout)
    with llm.Model(file, n_ctx=16, on_full=on_full) as model:
        bias = {258: float("-inf")}
        steps = list(model.steps("the", 40, seed=1, temperature=2, logit_bias=bias))
    assert out["ids"] == [step.id for step in steps if step.id is not None]
    assert (
        out["finish_reason"] == steps[-1].finish == ("context" if on_full == "stop" else "length")
    )
    assert out.get("forgot_tokens", 0) == sum(step.forgot_tokens for step in steps)
    assert done.stderr.count(b"[forgot 4 tokens; window 16]\n") == (6 if on_full == "forget" else 0)
    if on_full != "stop":  # what is dropped before it is read takes no time
        arguments = ["a" * 99, "--json", "-n", 0, "--ctx", 16, "--on-full", on_full]
        out = json.loads(run(file, *arguments).stdout)
        n_read = out["prefill_tok_s"] * out["prefill_s"]
        assert n_read == pytest.approx(12 if on_full == "forget" else 99, rel=0.1)


@pytest.mark.parametrize("kv_type", ["f16", "f32", "q8_0"])
def test_types_of_keys_and_values(tmp_path, kv_type):
    path = tmp_path / "wide.bin"  # whole blocks in a head
    write_trained(path, dataclasses.replace(TINY, n_head=2, n_kv_head=1))
    out = json.loads(run(path, "the", "--json", "-n", 20, "--temp", 0, "--kv", kv_type).stdout)
    with llm.Model(path, kv_type=kv_type) as model:
        steps = list(model.steps("the", 20, temperature=0))
    assert out["ids"] == [step.id for step in steps if step.id is not None]
    assert f"({kv_type.upper()})" in run(path, "--info", "--kv", kv_type).stdout.decode()


def test_embed(file):
    out = json.loads(run(file, "the thing", "--embed").stdout)
    with llm.Model(file) as model:
        assert out["embedding"] == pytest.approx(model.embed("the thing").tolist(), rel=1e-7)
        assert out["n_tokens"] == len(model.tokenize("the thing"))
    assert out == json.loads(run(file, "-", "--embed", stdin=b"the thing").stdout)
    fails(1, "no tokens", file, "--embed", "")
    fails(2, "--embed needs a text", file, "--embed")
    fails(1, "65 tokens, the context holds 64", file, "--embed", "a" * 65)


def test_the_seed_is_printed_and_reproduces(file):
    first = run(file, "the", "-n", 12)
    seed = first.stderr.decode().split("seed ")[1].split(",")[0]
    again = run(file, "the", "-n", 12, "--seed", seed)
    assert again.stdout == first.stdout


def test_finish_context_and_no_off_by_one(file):
    for seed in range(20):
        out = json.loads(run(file, "a" * 60, "--json", "--seed", seed, "--temp", 3).stdout)
        assert len(out["prompt_ids"]) + len(out["ids"]) <= TINY.n_ctx
        if out["finish_reason"] == "context":
            assert len(out["prompt_ids"]) + len(out["ids"]) == TINY.n_ctx
            break
    else:
        pytest.fail("twenty runs ended before the context was full")


def test_a_prompt_that_names_a_file(file, tmp_path):
    (tmp_path / "text").write_text("the")
    done = run(file, "text", "-n", 1, cwd=tmp_path)
    assert done.stdout.startswith(b"text")
    assert done.stderr.startswith(b"run: text is taken as the prompt; - < text reads the file")
    assert not run(file, ".", "-n", 1, cwd=tmp_path).stderr.startswith(b"run:")


def test_stdin_is_read_exactly(file):
    text = b"the\x00 th\xff\n"
    ids = run(file, "-", "--tokens", stdin=text).stdout.split()
    with llm.Model(file) as model:
        assert [int(i) for i in ids] == model.tokenize(text)
        assert model.tokenizer.decode_bytes([int(i) for i in ids]) == text
    done = run(file, "-", "-n", 3, "--temp", 0, stdin=text)
    assert done.stdout.startswith(text)


def test_special_tokens_only_when_asked(file):
    assert run(file, "<|endoftext|>", "--tokens", "--special").stdout == b"258\n"
    assert len(run(file, "<|endoftext|>", "--tokens").stdout.split()) > 5


def test_empty_prompt(file):
    done = run(file, "", "-n", 4, "--temp", 0)
    assert done.returncode == 0
    assert run(file, "-n", 4, "--temp", 0).stdout == done.stdout
    assert run(file, "", "--tokens").stdout == b"\n"


def test_nothing_to_begin_with(tmp_path):
    write_typed(tmp_path / "none.bin", "F32", drop=NO_BOS_EOS)
    fails(1, "names none to begin with", tmp_path / "none.bin")


def test_kernels_and_threads_give_the_same_text(file):
    expected = run(file, "the", "-n", 20, "--temp", 0).stdout
    for options in (["--kernels", "scalar"], ["--threads", 1], ["--threads", 3]):
        assert run(file, "the", "-n", 20, "--temp", 0, *options).stdout == expected
    environment = os.environ | {"LLM_KERNELS": "scalar"}
    out = json.loads(run(file, "the", "-n", 2, "--json", env=environment).stdout)
    assert out["kernels"] == "scalar"


# ---- other modes ----


def test_info_and_verify(file, tmp_path):
    info = run(file, "--info").stdout.decode()
    assert "llama" in info and "n_layer 2" in info and "256 of 256" in info
    done = run(file, "--verify")
    assert done.returncode == 0 and b"verified" in done.stdout
    raw = bytearray(Path(file).read_bytes())
    raw[-777] ^= 16
    (tmp_path / "flipped.bin").write_bytes(raw)
    fails(1, "SHA-256", tmp_path / "flipped.bin", "--verify")


def test_info_escapes_what_the_file_says(tmp_path):
    name = "a\x1b[2J\n\x9b31mé"  # U+009B is one character of a terminal's ESC [
    write_typed(tmp_path / "named.bin", "F32", name=name)
    shown = run(tmp_path / "named.bin", "--info").stdout
    assert b"a\\x1b[2J\\x0a\\xc2\\x9b31m\xc3\xa9\n" in shown


def test_perplexity(file, tmp_path):
    text = tmp_path / "text.txt"
    text.write_bytes(b"the quick brown fox " * 12)
    done = run(file, "--perplexity", text)
    values = dict(line.split() for line in done.stdout.decode().splitlines())
    with llm.Model(file) as model:
        ids = model.tokenize(text.read_bytes())
        _, total = model.score(ids)
    assert int(values["tokens_scored"]) == len(ids) - 1
    assert float(values["nats_per_token"]) == pytest.approx(total / (len(ids) - 1), abs=1e-5)
    assert float(values["bits_per_byte"]) == pytest.approx(total / 0.693147 / 240, abs=1e-4)
    done = run(file, "--perplexity", text, "--stride", 7)
    with llm.Model(file) as model:
        _, total = model.score(ids, 7)
    assert f"nats_per_token {total / (len(ids) - 1):.6f}" in done.stdout.decode()
    fails(1, "stride is 64", file, "--perplexity", text, "--stride", 64)
    fails(1, "none.txt", file, "--perplexity", tmp_path / "none.txt")
    (tmp_path / "empty.txt").write_bytes(b"")
    fails(1, "nothing to score", file, "--perplexity", tmp_path / "empty.txt")
    fails(1, "directory", file, "--perplexity", tmp_path)


def test_help_and_usage():
    done = run("--help")
    assert done.returncode == 0 and b"--max-tokens" in done.stdout and done.stderr == b""
    done = run()
    assert done.returncode == 2 and b"usage" in done.stderr and done.stdout == b""


# ---- wrong use, each one line ----


@pytest.mark.parametrize(
    "arguments",
    [
        ["--temp", "-1"],
        ["--temp", "hot"],
        ["--temp", "nan"],
        ["--top-k", "-1"],
        ["--top-k", "1.5"],
        ["--top-p", "0"],
        ["--top-p", "2"],
        ["-n", "-1"],
        ["-n", "99999999999999999999"],
        ["-n"],
        ["--seed", "-1"],
        ["--seed", "18446744073709551616"],
        ["--min-p", "-0.1"],
        ["--min-p", "1.5"],
        ["--repeat-penalty", "0"],
        ["--repeat-penalty", "nan"],
        ["--presence-penalty", "inf"],
        ["--frequency-penalty", "much"],
        ["--logit-bias"],
        ["--logit-bias", "5"],
        ["--logit-bias", "=1"],
        ["--logit-bias", "5="],
        ["--logit-bias", "5=x"],
        ["--logit-bias", "5=nan"],
        ["--logit-bias", "5=inf"],
        ["--logit-bias", "-1=1"],
        ["--logit-bias", "99999999999=1"],
        ["--logprobs", "3"],
        ["--json", "--logprobs", "-1"],
        ["-p", "0"],
        ["-p", "2", "--chat"],
        ["--stride", "8"],
        ["--embed", "--tokens"],
        ["--ctx", "0"],
        ["--threads", "0"],
        ["--threads", "5000"],
        ["--kv", "q8"],
        ["--kernels", "abacus"],
        ["--no-such-option"],
        ["a second prompt"],
        ["--info", "--verify"],
        ["--json", "--tokens"],
    ],
)
def test_wrong_usage(file, arguments):
    fails(2, "see run --help", file, "the", *arguments)


def test_no_text_to_take_apart(file):
    fails(2, "--tokens needs a text", file, "--tokens")


def test_kernels_of_another_processor(file):
    wrong = 'kernel set "abacus" is unknown or not on this processor, which has scalar'
    fails(2, wrong, file, "x", "--kernels", "abacus")
    fails(2, wrong, file, "--verify", env={"LLM_KERNELS": "abacus"})


def test_info_as_json_is_had_elsewhere(file):
    fails(2, "python -m llm inspect FILE --json", file, "--info", "--json")


def test_failures(file, tmp_path):
    fails(
        1,
        "none.bin: cannot open the file: No such file or directory; make train or make model",
        tmp_path / "none.bin",
        "x",
    )
    fails(1, "directory", tmp_path, "x")
    (tmp_path / "empty.bin").write_bytes(b"")
    fails(1, "empty.bin", tmp_path / "empty.bin", "x")
    (tmp_path / "foreign.bin").write_bytes(b"PK\x03\x04 a zip, say" * 10)
    fails(1, "GGUF", tmp_path / "foreign.bin", "x")
    (tmp_path / "cut.bin").write_bytes(Path(file).read_bytes()[:50000])
    fails(1, "cut.bin", tmp_path / "cut.bin", "x")
    fails(1, "--allow-long-context", file, "x", "--ctx", 65)
    assert run(file, "x", "--ctx", 65, "--allow-long-context", "-n", 1).returncode == 0
    fails(1, "outside the vocabulary of 259", file, "x", "--logit-bias", "259=1")


def test_a_prompt_longer_than_the_context_says_both_counts(file):
    fails(1, "the prompt has 65 tokens, the context holds 64", file, "a" * 65)


def test_an_endless_text_is_refused(file):
    if not Path("/dev/zero").exists():
        pytest.skip("no /dev/zero here")
    fails(1, "too large", file, "--perplexity", "/dev/zero")
