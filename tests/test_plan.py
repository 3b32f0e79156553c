"""The planner against published runs, and what its command refuses."""

import re

import pytest

from llm import cli
from llm.config import ModelConfig
from llm.plan import (
    GPUS,
    NETWORK_KEPT,
    NETWORKS,
    Network,
    batch_tokens,
    data_parallel,
    exchange,
    gpu_hours,
    make_plans,
    parse_bytes,
    shape,
    training_flops,
)
from llm.plan import _n_params as n_params_of

A100 = GPUS["a100"]


@pytest.mark.parametrize(
    ("name", "n_params", "n_tokens", "hours"),
    [  # Touvron et al. 2023: both papers' tables of carbon
        ("LLaMA 1 65B", 65.2e9, 1.4e12, 1_022_362),
        ("LLaMA 2 7B", 6.74e9, 2e12, 184_320),
        ("LLaMA 2 13B", 13.0e9, 2e12, 368_640),
        ("LLaMA 2 70B", 69.0e9, 2e12, 1_720_320),
    ],
)
def test_published_hours_within_15_percent(name, n_params, n_tokens, hours):
    assert gpu_hours(A100, training_flops(n_params, n_tokens)) == pytest.approx(hours, rel=0.15)


def test_published_arithmetic():
    assert training_flops(174.6e9, 300e9) == pytest.approx(3.14e23, rel=0.01)  # GPT-3, table D.1
    assert training_flops(70e9, 1.4e12) == pytest.approx(5.76e23, rel=0.03)  # Chinchilla's budget


def test_chinchilla_is_what_its_arithmetic_buys():
    plan = make_plans(10**15, 5.76e23)["compute-optimal"]
    assert plan.n_params == pytest.approx(70e9, rel=0.05)
    assert plan.n_tokens == pytest.approx(1.4e12, rel=0.05)


def test_ten_terabytes_become_140_gigabytes():
    """The hours of LLaMA 2 70B and a text that gives it 2 T tokens: its size comes out."""
    plans = make_plans(8 * 10**12, 1_720_320 * 3600 * A100.peak * A100.mfu)
    plan = plans["inference-heavy"]
    assert plan.n_tokens == pytest.approx(2e12)
    assert 2 * plan.n_params == pytest.approx(140e9, rel=0.05)


@pytest.mark.parametrize(("n_params", "n_embd", "n_layer"), [(69e9, 8192, 80), (8.1e9, 4096, 32)])
def test_shapes_are_llamas(n_params, n_embd, n_layer):
    config = shape(n_params)
    assert config.n_layer == pytest.approx(n_layer, rel=0.15)
    assert config.n_embd == pytest.approx(n_embd, rel=0.1)
    assert config.n_params == n_params_of(config) == pytest.approx(n_params, rel=0.05)


def test_the_count_of_parameters_is_the_layouts():
    config = ModelConfig(
        n_vocab=100,
        n_ctx=8,
        n_embd=64,
        n_layer=3,
        n_head=4,
        n_kv_head=2,
        n_ff=96,
        tied_output=False,
    )
    assert n_params_of(config) == config.n_params


def test_a_short_text_is_read_four_times_at_most():
    for flops in (1e21, 1e25):
        plans = make_plans(4 * 10**9, flops)
        assert list(plans) == ["text-limited"]
        plan = plans["text-limited"]
        assert plan.readings == 4 and plan.n_tokens == 4e9 and plan.flops < flops
        assert plan.n_params == pytest.approx(2e8, rel=0.25)
    assert list(make_plans(4 * 10**9, 1e17)) == ["compute-optimal", "inference-heavy"]


@pytest.mark.parametrize("text_bytes", [10**9, 4 * 10**9, 10**11])
def test_no_plan_asks_for_more_than_there_is(text_bytes):
    just_past = (1.0001 * text_bytes) ** 2 * 6 / 20  # 4 readings of 4 bytes a token
    (name, plan), *_ = make_plans(text_bytes, just_past).items()
    assert name == "text-limited" and plan.flops <= just_past * (1 + 1e-9)


@pytest.mark.parametrize("flops", [1e16, 1e18, 1e20, 1e22, 1e24])
def test_the_arithmetic_is_what_there_is(flops):
    assert make_plans(10**14, flops)["compute-optimal"].flops == pytest.approx(flops)


@pytest.mark.parametrize(
    ("text", "n"), [("10TB", 10**13), ("3.5 GB", 3_500_000_000), ("2000", 2000), ("7kB", 7000)]
)
def test_sizes(text, n):
    assert parse_bytes(text) == n


@pytest.mark.parametrize("text", ["", "TB", "10XB", "-1GB", "0", "1e9", "nan"])
def test_what_is_no_size(text):
    with pytest.raises(ValueError, match="is no size"):
        parse_bytes(text)


def test_the_command_prints_both_plans(capsys):
    command = "plan --text 10TB --gpu h100 --count 1000 --days 12".split()
    assert cli.main(command) == 0
    said = capsys.readouterr().out
    assert "compute-optimal: " in said and "inference-heavy: " in said
    assert re.search(r"file +F16 [\d.]+ GB, Q8_0 [\d.]+ GB, Q4_K [\d.]+ GB", said)
    days = [float(d) for d in re.findall(r"([\d.]+) days of 1,000", said)]
    assert days == pytest.approx([12, 12], rel=0.05)
    assert "10 TB of text, 2.5 T tokens" in said and "$7" in said


def test_small_models_are_those_of_a_depth():
    assert (shape(7e6).n_embd, shape(7e6).n_layer, shape(1.0).n_layer) == (288, 6, 1)


def test_this_machine_is_measured(capsys):
    assert cli.main(["plan", "--text", "4MB", "--gpu", "cpu", "--days", "0.01"]) == 0
    assert "1 cpu for 0.01 days" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--days", "nan"], "--days is nan, expected"),
        (["--days", "1", "--count", "0"], "--count is 0, expected 1 to"),
        (["--days", "1", "--mfu", "2"], "--mfu is 2.0, expected 0.001 to 1"),
    ],
)
def test_absurd_values_are_refused(more, message, capsys):
    assert cli.main(["plan", "--text", "1GB", *more]) == 1
    assert message in capsys.readouterr().err


# ---- many ranks ----

H100, NDR = GPUS["h100"], NETWORKS["h100"]


def test_an_exchange_moves_what_each_rank_lacks():
    """By hand: 64 ranks in 8 nodes, a buffer of 64 GB, 1 GB for each rank to own."""
    net = Network(node=8, inside=100e9, outside=10e9, message=0)

    def seconds(*arguments):
        return NETWORK_KEPT * exchange(64e9, 64, net, *arguments)[0]

    assert seconds("owners") == pytest.approx(7 / 100 + 56 / 10)  # from 7 neighbours, 56 others
    assert seconds("owner") == pytest.approx(64 * (7 / 100 + 56 / 10))  # the links of 63 lie idle
    assert seconds("nodes") == pytest.approx(56 / 100 + 7 / 10)  # 7 of 8 GB, then 7 nodes' sums
    assert [exchange(1, 64, net, r)[1] for r in ("owner", "owners", "nodes")] == [63] * 3
    assert exchange(1e9, 8, net, "nodes") == exchange(1e9, 8, net, "owners")
    assert exchange(1e9, 1, net, "owner") == (0, 0)


def test_ranks_cost_messages_and_save_memory():
    config = shape(7e9)
    n_params, n_tokens = n_params_of(config), batch_tokens(7e9)
    steps = [data_parallel(config, r, n_tokens, H100, NDR) for r in (1, 8, 64, 1024)]
    assert steps[0].efficiency == 1
    alone = training_flops(n_params, n_tokens) / (H100.peak * H100.mfu)
    assert [s.compute for s in steps] == pytest.approx([alone / r for r in (1, 8, 64, 1024)])
    efficiencies = [s.efficiency for s in steps]
    assert efficiencies == sorted(efficiencies, reverse=True) and efficiencies[-1] < 0.6
    assert steps[0].memory == 18 * n_params and steps[-1].memory == pytest.approx(
        10.01 * n_params, rel=1e-3
    )


def test_the_backward_pass_hides_the_gradient_but_for_the_last_block():
    slow = Network(8, 1e3, 1e3, 0)  # nothing is hidden that matters
    config = shape(7e9)
    step = data_parallel(config, 2, 2**21, H100, slow)
    one, _ = exchange(4 * n_params_of(config), 2, slow, "nodes")
    assert step.exposed == pytest.approx(2 * one - step.compute * 2 / 3)
    step = data_parallel(config, 2, 2**40, H100, slow)
    assert step.exposed == pytest.approx(one + one / config.n_layer)


def test_batches_are_the_published_ones():
    published = {125e6: 0.5e6, 1.3e9: 1e6, 6.7e9: 2e6, 13e9: 2e6}  # GPT-3
    for n_params, n_tokens in {**published, 70e9: 4e6}.items():
        assert batch_tokens(n_params) == pytest.approx(n_tokens, rel=0.06)


def test_the_command_says_what_ranks_keep(capsys):
    asked = ["plan", "--text", "10TB", "--gpu", "h100", "--days", "30", "--count"]
    assert cli.main([*asked, "1024"]) == 0
    line = re.search("^ranks .*$", capsys.readouterr().out, re.M)[0]
    assert re.search(r"steps of 4.19 M tokens: \d\d% of 1,024 times one; each has 4,096", line)
    assert line.endswith("weights and gradients, too much")
    assert cli.main([*asked, "1"]) == 0
    assert "\nranks" not in capsys.readouterr().out
