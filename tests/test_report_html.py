"""The page about a run: whole, without network or script, and safe whatever the text, the names and
the model say."""

from html.parser import HTMLParser

import numpy as np
import pytest
from models import byte_vocabulary, write_trained
from report_runs import finished_run
from test_label import write_with

from llm.parameter_file import Entry, ValueType
from llm.report_html import is_report, write_report

EVIL = '</pre><script>alert(1)</script><img src=x onerror="a()">\x1b[31m\u202e\'"&amp;'


class Page(HTMLParser):
    """Checks that every element is closed in its turn and collects what there is."""

    VOID = {"meta", "br", "img", "link", "input", "hr"}

    def __init__(self, text: str):
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], [], [], ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text += data


def page_of(tmp_path, run, pictures=False, entries=None, **changes) -> tuple[str, Page]:
    out = tmp_path / "w.bin"
    if entries is None:
        changes = {"train_steps": run.step, "validation_bits_per_byte": run.bits_per_byte} | changes
        write_trained(out, **changes)
    else:
        write_with(out, entries)
    write_report(run, out, tmp_path / "report.html", pictures)
    assert is_report(tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    return text, Page(text)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return page_of(tmp_path_factory.mktemp("page"), finished_run(60), pictures=True)


def test_the_page_is_whole_and_needs_nothing_else(whole):
    text, page = whole
    assert page.tags.count("svg") == 6
    assert "script" not in page.tags and "link" not in page.tags and "iframe" not in page.tags
    for name, value in page.attributes:
        assert not name.startswith("on")
        if name in ("src", "href", "xlink:href"):
            assert value.startswith("#"), value
    assert "@import" not in text
    assert text.count("url(") == text.count("url(#")


def test_the_page_tells_the_figures(whole):
    shown = " ".join(whole[1].text.split())
    for part in (
        "1 kB of text became a file of 320 kB",
        "2.500 bits for a byte",
        "Model facts",
        "step 60",
        "the end",
        "Cyrillic",
        "33.3%",
        "weight_decay",
        "Peak is 100 GFLOP/s",
    ):
        assert part in shown, part


def test_the_figure_is_of_the_weights_in_the_file(tmp_path):
    best = {"train_steps": 24, "validation_bits_per_byte": 2.0}
    _, page = page_of(tmp_path, finished_run(60, samples=[[60, "later"], [24, "best"]]), **best)
    shown = " ".join(page.text.split())
    assert "It needs 2.000 bits" in shown
    assert "weights of step 24: step 60 was worse on that text, 2.500 bits" in shown
    assert "the file, step 24" in shown


def test_a_run_that_was_stopped_says_so(tmp_path):
    stopped = finished_run(60)
    stopped.is_done, stopped.n_steps = False, 80
    _, page = page_of(tmp_path, stopped)
    assert "stopped at step 60 of 80" in page.text


def test_without_pictures_the_page_says_why(tmp_path):
    _, page = page_of(tmp_path, finished_run(0, memorisation=None, samples=[]))
    assert "matplotlib is not installed" in page.text
    assert "svg" not in page.tags


def test_nothing_that_others_wrote_becomes_markup(tmp_path):
    """Names, samples, tokens, settings, keys of the file."""
    plain = page_of(tmp_path, finished_run(60))[1]
    run = finished_run(60)
    run.samples = [[60, EVIL + "\udcff"]]
    vocabulary = byte_vocabulary()
    run.vocabulary = type(vocabulary)(
        [*vocabulary.tokens[:257], EVIL.encode(), vocabulary.tokens[258]],
        vocabulary.merges,
        "gpt-2",
        bos=258,
        eos=258,
    )
    run.examples.tokens = np.array([257, 65, 257], np.int32)
    run.settings = type(run.settings)(
        **{**vars(run.settings), "text": (EVIL,), "out": EVIL, "prompt": EVIL}
    )
    keys = ("general.name", "general.author", "two_file.corpus.name", "two_file.other")
    entries = {key: Entry(key, EVIL, ValueType.STRING) for key in keys}
    text, page = page_of(tmp_path, run, entries=entries)
    assert set(page.tags) <= set(plain.tags) | {"code"}
    assert page.attributes.count(("onerror", "a()")) == 0
    assert "\x1b" not in text and "\u202e" not in text
    assert page.text.count("<script>alert(1)</script>") >= 8
