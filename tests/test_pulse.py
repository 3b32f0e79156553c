"""Signs of life: what a launcher concludes from them, and who gives none."""

import threading
from contextlib import nullcontext

import pytest

from llm.pulse import BEGINNING, Watch, bounded, forget, pulse


def looks(watch, n):
    """What the last of n looks finds."""
    for _ in range(n):
        found = watch.look()
    return found


def give(folder, signs):
    for rank, sign in signs.items():
        (folder / f"pulse-{rank}").write_text(sign)


def test_a_rank_that_stops_telling_is_silent(tmp_path):
    watch = Watch(tmp_path, 2, 5.0)
    for count in range(1, 20):
        give(tmp_path, {0: f"{count} None", 1: f"{min(count, 10)} None"})
        found = watch.look()
        assert found == (([1], f"silent for {count - 10} s") if count >= 15 else ([], ""))


def test_the_beginning_may_take_longer(tmp_path):
    watch = Watch(tmp_path, 2, 10.0)
    give(tmp_path, {1: "1 None"})
    watch.look()
    give(tmp_path, {1: "2 None"})
    assert looks(watch, 10) == ([], "")
    assert looks(watch, 1)[0] == [1]
    (tmp_path / "pulse-1").unlink()
    assert looks(Watch(tmp_path, 1, 10.0), int(BEGINNING) - 1) == ([], "")
    assert looks(Watch(tmp_path, 1, 10.0), int(BEGINNING)) == ([0], "silent for 120 s")


def test_a_step_that_does_not_end_is_seen(tmp_path):
    watch = Watch(tmp_path, 2, 5.0)
    for count in range(100):  # between the steps there is time, where any rank works
        give(tmp_path, {0: f"{count} None", 1: f"{count} step-8"})
        assert watch.look() == ([], "")
    for count in range(100, 200):  # and steps that end may be as many as they like
        give(tmp_path, {0: f"{count} step-{count}", 1: f"{count} step-{count}"})
        assert watch.look() == ([], "")
    for count in range(200, 206):
        give(tmp_path, {0: f"{count} step-9", 1: f"{count} step-9"})
        found = watch.look()
    assert found == ([], "step 9 has not ended in 5 s")


@pytest.mark.parametrize(("other", "named"), [("step-8", "step 8"), ("exchange-70", "exchange 71")])
def test_ranks_that_wait_for_each_other_between_steps_are_seen(tmp_path, other, named):
    watch = Watch(tmp_path, 2, 5.0)
    for count in range(6):
        give(tmp_path, {0: f"{count} exchange-71", 1: f"{count} {other}"})
        found = watch.look()
    assert found == ([], f"{named} has not ended in 5 s")


@pytest.mark.parametrize(("at", "n"), [("step-3", 5), ("exchange-70", 50), (None, 60)])
def test_a_rank_ends_itself_where_a_step_does_not_end(monkeypatch, at, n):
    """Later where it waits for others between steps, and never where it works."""
    looks, said = [], []
    monkeypatch.setattr("llm.pulse.repeated", lambda _, look: looks.append(look) or nullcontext())
    with bounded(lambda: at, 0.0, said.append):
        assert not looks
    with bounded(lambda: at, 5.0, said.append):
        for _ in range(n):
            looks[0]()
        assert not said
        looks[0]()
    assert said == ([f"{at.replace('-', ' ')} has not ended in {n} s"] if at else [])


def test_an_interrupted_rank_leaves_no_sign(tmp_path):
    with pytest.raises(KeyboardInterrupt), pulse(tmp_path, 0, lambda: None):
        assert list(tmp_path.iterdir())
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_a_rank_that_outlives_its_attempt_leaves_the_next_ones_sign(tmp_path):
    """As on a host behind a cut link, which the launcher did not reach."""
    with pulse(tmp_path, 0, lambda: None):
        forget(tmp_path)
        give(tmp_path, {0: "7 step-3"})
    assert (tmp_path / "pulse-0").read_text() == "7 step-3"


def test_a_rank_tells_while_the_block_lasts(tmp_path, monkeypatch):
    monkeypatch.setattr("llm.pulse.PERIOD", 0.01)
    told, steps = threading.Event(), iter([None, "step-7"])

    def step():
        told.set()
        return next(steps, "step-8")

    watch = Watch(tmp_path, 1, 5.0)
    with pulse(tmp_path, 0, step):
        told.wait(10)
        assert watch.look() == ([], "")
    assert not list(tmp_path.iterdir())
    give(tmp_path, {0: "", 7: ""})
    forget(tmp_path)
    assert not list(tmp_path.iterdir())
