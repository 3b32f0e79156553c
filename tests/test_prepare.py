"""python -m llm data: the same shards whatever the workers and kills, duplicates, what is held out,
and every bad input as one line."""

import errno
import gzip
import io
import json
import multiprocessing
import os
import re
import resource
import signal
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

from conftest import ROOT
from llm import prepare as module
from llm.cli import main
from llm.corpus import read_corpus
from llm.duplicates import document_key
from llm.errors import CorpusError
from llm.material import gather
from llm.prepare import Wishes, prepare
from llm.prepare_items import done_path
from llm.prepare_plan import Source, make_plan, parts_of, sample
from llm.settings import Settings
from llm.shards import MANIFEST, TOKENIZER, ShardSet
from llm.tokenizer import Tokenizer
from llm.vocabulary import load_vocabulary

WORDS = "the sea and a ship of salt over grey water under stars until morning came to land".split()


class Quiet:
    def say(self, text):
        pass

    def begin(self, n_items, n_done):
        self.n_done = n_done

    def done(self, result):
        pass

    def end(self):
        pass


def text(seed: int, n_words: int = 60) -> str:
    rng = np.random.default_rng(seed)
    return " ".join(rng.choice(WORDS, n_words)) + f" {seed}."


def corpus(folder, n_files=6, n_each=100):
    folder.mkdir()
    for i in range(n_files):
        records = [json.dumps({"text": text(n_each * i + j)}) for j in range(n_each)]
        (folder / f"{i}.jsonl").write_text("\n".join(records))
    return folder


def make(out, *paths, workers=1, report=None, **wishes) -> ShardSet:
    values = {"n_vocab": 320, "item_bytes": 40_000, "index_bytes": 1 << 16} | wishes
    paths = tuple(path if path == "-" else str(path) for path in paths)
    return prepare(Wishes(paths=paths, **values), out, workers, report or Quiet())


def files_of(folder) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.suffix in (".bin", ".json")}


def documents_of(stream, shards) -> list[bytes]:
    tokenizer, ids = Tokenizer.open(shards.tokenizer_path), stream[0 : len(stream)]
    starts = np.flatnonzero(ids == shards.eot)
    return [tokenizer.decode_bytes(part[1:]) for part in np.split(ids, starts)[1:]]


def test_every_document_is_in_the_shards_once(tmp_path):
    source = corpus(tmp_path / "in")
    shards = make(tmp_path / "out", source)
    assert len(shards.content["train"]) > 2
    train, held = documents_of(shards.train, shards), documents_of(shards.held_out, shards)
    assert sorted(train + held) == sorted(text(i).encode() for i in range(600))
    assert 10 <= len(held) <= 60
    assert shards.n_documents == 600 and shards.content["corpus"]["duplicates"] == 0
    assert sorted(p.suffix for p in (tmp_path / "out").iterdir() if p.suffix != ".bin") == sorted(
        ["", ".gguf", ".json", ".npz"]  # lock, tokenizer, manifest, vocabulary
    )


def test_neither_workers_nor_a_stop_change_a_byte(tmp_path, monkeypatch):
    source = corpus(tmp_path / "in")
    (source / "7.jsonl").write_bytes((source / "2.jsonl").read_bytes())  # duplicates
    expected = files_of(make(tmp_path / "a", source, near_duplicates=True).folder)
    assert (
        files_of(make(tmp_path / "b", source, workers=3, near_duplicates=True).folder) == expected
    )

    stopped(monkeypatch, "finish", tmp_path / "c", source, near_duplicates=True)
    done_path(tmp_path / "c", 1).unlink()  # an item that was not finished
    done_path(tmp_path / "c", 3).write_bytes(b"damaged")
    (tmp_path / "c" / "train-000001.bin.1234.tmp").write_bytes(b"half")
    report = Quiet()
    shards = make(tmp_path / "c", source, workers=2, near_duplicates=True, report=report)
    assert report.n_done > 0
    assert files_of(shards.folder) == expected
    assert not list((tmp_path / "c").glob("*.tmp"))


def test_a_killed_command_goes_on(tmp_path):
    source = corpus(tmp_path / "in", n_files=8, n_each=400)
    command = [sys.executable, "-m", "llm", "data", source, "--n-vocab", "300"]
    command += ["--shard-mb", "0.1", "--workers", "2", "--out"]
    subprocess.run([*command, tmp_path / "a"], check=True, cwd=ROOT, capture_output=True)
    killed = subprocess.Popen([*command, tmp_path / "b"], cwd=ROOT, stdout=subprocess.DEVNULL)
    while killed.poll() is None and not list((tmp_path / "b").glob("item-*.npz")):
        pass
    killed.kill()
    killed.wait()
    subprocess.run([*command, tmp_path / "b"], check=True, cwd=ROOT, capture_output=True)
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")


def test_a_worker_killed_before_it_is_spoken_to():
    ours, theirs = multiprocessing.Pipe()
    theirs.close()
    with pytest.raises(CorpusError, match=r"a worker was killed .*; the same command goes on"):
        module.Order._give(ours, iter([3]))


def test_the_status_tells_the_signal(tmp_path, monkeypatch, capsys):
    def stopped(*_):
        error = KeyboardInterrupt()
        error.signal = signal.SIGTERM
        raise error

    monkeypatch.setattr(module, "prepare", stopped)
    (tmp_path / "a.txt").write_text("a")
    assert main(["data", str(tmp_path / "a.txt"), "--out", str(tmp_path / "out")]) == 143
    assert capsys.readouterr().err == "stopped; the same command goes on\n"


def test_a_long_file_is_cut_at_lines_and_read_in_parts(tmp_path, monkeypatch):
    lines = "".join(text(i) + "\n" for i in range(2000))
    (tmp_path / "a.txt").write_text(lines)
    shards = make(tmp_path / "out", tmp_path / "a.txt", held_out=0.01)
    parts = documents_of(shards.train, shards) + documents_of(shards.held_out, shards)
    assert len(shards.content["train"]) > 5
    assert sum(map(len, parts)) == len(lines)
    monkeypatch.setattr("llm.prepare_items.KEEP_BYTES", 1000)  # read again
    again = make(tmp_path / "again", tmp_path / "a.txt", held_out=0.01)
    assert files_of(again.folder) == files_of(shards.folder)


def test_a_long_line_is_not_held_to_cut_a_file(tmp_path):
    path, n = tmp_path / "a.txt", 64 << 20
    with path.open("wb") as file:
        file.truncate(n)
    tracemalloc.start()
    assert parts_of(str(path), n, 1 << 20) == [Source(str(path), 0, n)]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 << 20


def test_the_split_stays_when_data_is_added(tmp_path):
    source = corpus(tmp_path / "in")
    before = make(tmp_path / "a", source)
    held = set(documents_of(before.held_out, before))
    (source / "0-more.jsonl").write_text("\n".join(json.dumps(text(i)) for i in range(900, 1100)))
    after = make(tmp_path / "b", source)
    old = {text(i).encode() for i in range(600)}
    assert set(documents_of(after.held_out, after)) & old == held


def test_duplicates_go_and_are_counted(tmp_path):
    source = corpus(tmp_path / "in")
    (source / "9.jsonl").write_bytes((source / "0.jsonl").read_bytes())
    near = [json.dumps(text(i, 300)) for i in range(5000, 5040)]
    near += [
        json.dumps(text(i, 300).replace(" sea ", " SEA ", 2) + " End.") for i in range(5000, 5040)
    ]
    (source / "near.jsonl").write_text("\n".join(near))
    exact = make(tmp_path / "a", source).content["corpus"]
    assert (exact["n_documents"], exact["duplicates"], exact["near_duplicates"]) == (780, 100, 0)
    both = make(tmp_path / "b", source, near_duplicates=True).content["corpus"]
    assert both["duplicates"] == 100 and 38 <= both["near_duplicates"] <= 45
    assert 0 < both["false_positive_rates"]["near"] < 0.5


def test_a_vocabulary_of_a_parameter_file(tmp_path):
    source = corpus(tmp_path / "in")
    first = make(tmp_path / "a", source)
    again = make(tmp_path / "b", source, tokenizer=str(tmp_path / "a" / TOKENIZER))
    assert np.array_equal(first.train[0:1000], again.train[0:1000])
    with pytest.raises(CorpusError, match="no byte-level BPE with merges"):
        gather(Settings(data=str(again.folder)))  # a vocabulary alone does not tell its merges
    with pytest.raises(CorpusError, match="another tokenizer than the model's"):
        other = load_vocabulary(make(tmp_path / "c", source, n_vocab=310).folder)
        gather(Settings(data=str(first.folder)), other)


def test_standard_input(tmp_path, monkeypatch):
    data = "\n".join(json.dumps({"body": text(i)}) for i in range(500)).encode()
    for name, given in (("a", data), ("b", gzip.compress(data, mtime=0))):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(given)))
        shards = make(tmp_path / name, "-", field="body")
        assert shards.content["corpus"]["n_documents"] == 500
        assert not list((tmp_path / name).glob("stdin*"))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"ab\0c" * 999)))
    with pytest.raises(CorpusError, match=r"no text to train on: .*stdin\.txt: binary"):
        make(tmp_path / "c", "-")


def test_the_sample_is_chosen_by_hash_all_over_the_corpus(tmp_path):
    source = corpus(tmp_path / "in")
    size = sum(path.stat().st_size for path in source.iterdir()) // 3

    def sampled(paths):
        wishes = Wishes(paths=tuple(map(str, paths)), sample_bytes=size, item_bytes=10_000)
        folder = tmp_path / "plan"
        folder.mkdir(exist_ok=True)
        return sample(wishes, make_plan(folder, wishes, Quiet()))

    files, whole = sorted(source.iterdir()), {text(i).encode(): i for i in range(600)}
    chosen = sampled(files)
    assert sum(map(len, chosen)) == size
    assert chosen == sampled(files[::-1])  # whatever the order
    numbers = [whole[document] for document in chosen[:-1]]  # the last one is cut
    assert min(numbers) < 60 and max(numbers) > 540 and len(set(numbers)) == len(numbers) > 40
    keys = [document_key(document) for document in whole]
    held_below = int(0.05 * 2**64)
    wanted = sorted(key for key in keys if key >= held_below)
    assert [document_key(document) for document in chosen[:-1]] == wanted[: len(numbers)]


def test_a_large_corpus_is_sampled_in_part(tmp_path, monkeypatch):
    source = corpus(tmp_path / "in")
    wishes = Wishes(paths=(str(source),), sample_bytes=4000, item_bytes=10_000)
    plan = make_plan(tmp_path, wishes, Quiet())
    read = []
    monkeypatch.setattr(
        "llm.prepare_plan.document_key", lambda text: (read.append(text), document_key(text))[1]
    )
    assert sum(map(len, sample(wishes, plan))) == 4000
    assert len({number_of(text) // 20 for text in read}) > 15  # from all over
    assert sum(map(len, set(read))) < 10 * 4000  # of 200,000


def number_of(document: bytes) -> int:
    """Of text(seed), whole or cut."""
    found = re.search(rb" (\d+)\.", document)
    return int(found[1]) if found else 0


PEAK = """if True:
    import resource, sys
    from pathlib import Path
    from llm.prepare import Wishes, prepare
    from test_prepare import Quiet
    source, out, tokenizer = sys.argv[1:]
    wishes = Wishes(paths=(source,), tokenizer=tokenizer, item_bytes=1 << 20)
    assert prepare(wishes, Path(out), 2, Quiet()).content["corpus"]["duplicates"] == 0
    status = Path("/proc/self/status").read_text()  # getrusage would count the process before exec
    worker = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    print(status.split("VmHWM:")[1].split()[0], worker)"""


def test_memory_does_not_grow_with_the_corpus(tmp_path):
    tokenizer = make(tmp_path / "small", corpus(tmp_path / "in")).tokenizer_path
    words, peaks = text(1, 200_000), []
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    for megabytes in (2, 20):
        source = tmp_path / f"{megabytes}.jsonl"
        with source.open("w") as file:
            for i in range(megabytes * 500):
                file.write(json.dumps(f"{i} {words[i % 1000 * 700 :][:2000]}") + "\n")
        run = subprocess.run(
            [sys.executable, "-c", PEAK, source, tmp_path / f"{megabytes}", tokenizer],
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            check=True,
        )
        peaks.append(np.array(run.stdout.split(), int))  # of this process and of a worker, in kB
    assert (peaks[1] - peaks[0] < 6000).all(), peaks


# ---- bad input ----


def test_what_is_not_text_is_skipped_and_counted(tmp_path):
    source = corpus(tmp_path / "in")
    (source / "a.txt").write_bytes(b"na\xefve")
    (source / "b.txt").write_bytes(b"\0")
    (source / "c.png").write_bytes(b"\x89PNG")
    (source / "d.jsonl").write_text(json.dumps("fine") + "\n{oops\n")
    assert make(tmp_path / "out", source).content["corpus"]["skipped"] == {
        "files that are not text": 2,
        "files of other kinds": 1,
        "records without text": 1,
    }


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no text to train on"),
        (b" \n \t", "no text to train on"),
        (b"\0", r"no text to train on: .*a\.txt: binary"),
        (b"x", "1 bytes with 1 places to cut, too few to hold some out"),
        (b"one block of words", "too few to hold some out"),
    ],
)
def test_a_corpus_that_is_too_short(tmp_path, data, message):
    (tmp_path / "a.txt").write_bytes(data)
    with pytest.raises(CorpusError, match=message) as caught:
        make(tmp_path / "out", tmp_path / "a.txt")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / MANIFEST).exists()


def test_a_damaged_file_stops_the_work_or_is_left_out(tmp_path):
    source = corpus(tmp_path / "in")
    (source / "8.jsonl.gz").write_bytes(gzip.compress(os.urandom(2000).hex().encode())[:-40])
    (source / "9.txt").symlink_to("nowhere")
    with pytest.raises(CorpusError, match=r"9\.txt: cannot read: No such file"):
        make(tmp_path / "out", source)
    (source / "9.txt").unlink()
    with pytest.raises(CorpusError, match=r"8\.jsonl\.gz: truncated.*--skip-damaged leaves"):
        make(tmp_path / "out", source, workers=2)
    skipped = make(tmp_path / "out", source, skip_damaged=True)
    assert skipped.content["corpus"]["skipped"] == {"damaged files": 1}


def stopped(monkeypatch, name, *args, **wishes):
    """A preparation that ends as by Ctrl-C where it would call the function `name`."""
    with monkeypatch.context() as patch:
        patch.setattr(module, name, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            make(*args, **wishes)


def test_input_that_grows_is_refused_by_its_name(tmp_path, monkeypatch):
    source = corpus(tmp_path / "in")
    stopped(monkeypatch, "run_items", tmp_path / "out", source)
    with (source / "3.jsonl").open("a") as file:
        file.write("\n")
    with pytest.raises(CorpusError, match=r"3\.jsonl: has changed since the preparation began"):
        make(tmp_path / "out", source)


def test_other_content_of_the_same_size_and_time_is_refused_by_its_name(tmp_path, monkeypatch):
    source = corpus(tmp_path / "in")
    expected = files_of(make(tmp_path / "whole", source).folder)
    stopped(monkeypatch, "finish", tmp_path / "out", source)
    for path in source.iterdir():
        path.chmod(0o600)  # the times of the inodes change, the content does not
    stopped(monkeypatch, "finish", tmp_path / "out", source)
    changed = source / "3.jsonl"
    before, data = changed.stat(), changed.read_bytes()
    changed.write_bytes(data.replace(b"sea", b"bay"))
    os.utime(changed, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(CorpusError, match=r"3\.jsonl.*: has changed since the preparation began"):
        make(tmp_path / "out", source)
    changed.write_bytes(data)
    os.utime(changed, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert files_of(make(tmp_path / "out", source).folder) == expected


def test_other_wishes_need_another_folder(tmp_path):
    source = corpus(tmp_path / "in")
    shards = make(tmp_path / "out", source)
    assert make(tmp_path / "out", source).sha256 == shards.sha256  # finished already
    with pytest.raises(CorpusError, match="begun with n_vocab 320, asked for 400: choose another"):
        make(tmp_path / "out", source, n_vocab=400)


@pytest.mark.parametrize("damage", [b"", b"[]", b"[" * 100_000, b'{"wishes": {}, "skipped": 1}'])
def test_a_damaged_plan_is_one_line(tmp_path, damage):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/plan.json").write_bytes(damage)
    with pytest.raises(CorpusError, match=r"plan\.json: damaged"):
        make(tmp_path / "out", corpus(tmp_path / "in"))


def test_a_full_disk_keeps_what_is_finished(tmp_path):
    source = corpus(tmp_path / "in", n_files=3, n_each=400)
    command = [sys.executable, "-m", "llm", "data", source, "--n-vocab", "300", "--workers", "1"]

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))

    out = tmp_path / "out"
    full = subprocess.run(
        [*command, "--out", out], cwd=ROOT, preexec_fn=limit, capture_output=True, text=True
    )
    assert full.returncode == 1
    assert full.stderr.startswith("llm: ") and "File too large" in full.stderr
    assert str(out) in full.stderr and full.stderr.count("\n") == 1
    assert not list(out.glob("*.tmp")) and not (out / MANIFEST).exists()
    subprocess.run([*command, "--out", out], cwd=ROOT, check=True, capture_output=True)
    ShardSet(out).verify()


def test_two_preparations_never_share_a_folder(tmp_path):
    with module.locked(tmp_path), pytest.raises(CorpusError, match="another process prepares"):
        with module.locked(tmp_path):
            pass


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    source = corpus(tmp_path / "in", n_files=5)

    def guarded(path, *args):  # root, as tests may run, reads every file
        if str(path).endswith("1.jsonl"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return open(path, *args)

    monkeypatch.setattr("llm.documents.open", guarded, raising=False)
    with pytest.raises(CorpusError, match=r"1\.jsonl: cannot read: Permission denied \(--skip-d"):
        make(tmp_path / "out", source)
    skipped = make(tmp_path / "out", source, skip_damaged=True).content["corpus"]
    assert skipped["skipped"] == {"damaged files": 1} and skipped["n_documents"] == 400


def test_wrong_field(tmp_path):
    source = corpus(tmp_path / "in")
    with pytest.raises(CorpusError, match=r"0\.jsonl: line 1: no field 'txt'; there are: text"):
        make(tmp_path / "out", source, field="txt")


def test_documents_are_those_of_a_text(tmp_path):
    source = corpus(tmp_path / "in")
    assert read_corpus([str(source)]).documents == [text(i).encode() for i in range(600)]
