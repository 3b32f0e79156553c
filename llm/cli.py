"""`python -m llm COMMAND`: each sub-command imports what it needs. Layer 13.

Exit status: 0, 1 for a failure (one line on standard error), 2 for wrong usage, 75 for ranks that
lost each other, 128 + the signal for a run that was stopped.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from difflib import get_close_matches

from .errors import LlmError
from .pulse import PATIENCE, check_patience

SEVERAL = {"nargs": "+", "action": "extend"}  # of an option given twice both count


def main(arguments: Sequence[str] | None = None) -> int:
    if sys.stdin is None:  # closed by the caller, as standard output may be
        sys.stdin = open(os.devnull, encoding="utf-8")
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")
    if hasattr(sys.stdout, "reconfigure"):  # no alphabet of a terminal ends a run
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        options = parser().parse_args(arguments)
        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # of __main__.py
            signal.signal(signal.SIGINT, signal.default_int_handler)
        return options.command(options)
    except KeyboardInterrupt as error:
        _end_all("stopped")
        print("stopped", file=sys.stderr)
        return 128 + getattr(error, "signal", signal.SIGINT)  # of __main__.py
    except BrokenPipeError:
        _end_all("nobody reads standard output any more")
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except ModuleNotFoundError as error:
        return _fail(f"this Python has no module {error.name}: use .venv/bin/python (make ext)")
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{error.strerror or error}")
    except (LlmError, ValueError, MemoryError) as error:
        return _fail(str(error) or "out of memory")
    except SystemExit as error:
        if error.code:  # wrong usage, which is told
            _end_all("wrong usage")
        raise
    except Exception as error:  # a mistake of ours, or what MPI says of a link
        _end_all(traceback.format_exc(), error)
        raise


def _end_all(message: str, error: Exception | None = None) -> None:
    """Of a job of many ranks, which would wait for this one."""
    from .distributed import end_all, status_of

    end_all(message, status_of(error))


def _fail(message: str) -> int:
    from .report import escape

    line = escape(message).replace("\n", "\\n")  # of a file's name: what is behind it counts
    _end_all(line)
    print(f"llm: {line}", file=sys.stderr)
    return 1


class CommandParser(argparse.ArgumentParser):
    """Names the nearest flag where one is unknown, and --text where a file stands alone."""

    def parse_known_args(self, args=None, namespace=None):
        namespace, unknown = super().parse_known_args(args, namespace)
        for flag in (u.split("=")[0] for u in unknown if u.startswith("--")):
            near = get_close_matches(flag, self._option_string_actions, n=1)
            self.error(f"unknown option {flag}" + (f"; did you mean {near[0]}?" if near else ""))
        alone = unknown and not unknown[0].startswith("-")
        if alone and "--text" in self._option_string_actions:
            self.error(f"unknown argument {unknown[0]}; did you mean --text {unknown[0]}?")
        return namespace, unknown


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="python -m llm",
        description="Learns, describes, changes and uses the parameter files that ./run runs.",
        epilog="python -m llm COMMAND --help has the options of each.",
    )
    commands = top.add_subparsers(required=True, metavar="COMMAND", parser_class=CommandParser)

    def command(name: str, text: str) -> argparse.ArgumentParser:
        # No abbreviations: a misspelled option must not pass for another.
        return commands.add_parser(name, help=text, description=text, allow_abbrev=False)

    add_train(command("train", "learn a text, write a parameter file"))
    add_launch(command("launch", "train on many processes or hosts; start again when one dies"))
    add_data(command("data", "text of any size to shards for train --data"))
    add_plan(command("plan", "what a pile of text and a time on GPUs can become"))
    add_inspect(command("inspect", "what a parameter file is; compare two"))
    add_generate(command("generate", "continue a prompt"))
    add_tokenize(command("tokenize", "how a text falls into tokens"))
    add_convert(command("convert", "published weights to a parameter file"))
    add_export(command("export", "a parameter file to a folder of Hugging Face's"))
    add_quantize(command("quantize", "a parameter file in fewer bits"))
    add_bench(command("bench", "tokens a second, and the share of the memory's limit"))
    add_zip(command("zip", "compress any file with a parameter file"))
    add_unzip(command("unzip", "the file that an archive of zip holds"))
    return top


# ---- train ----


def add_train(command: argparse.ArgumentParser) -> None:
    """Flags carry the names of Settings; what is not given keeps the default there."""
    command.set_defaults(command=run_train)

    def group(title: str):
        options = command.add_argument_group(title)

        def add(flag: str, text: str, **kind) -> None:
            options.add_argument(flag, default=argparse.SUPPRESS, help=text, **kind)

        return add

    command.add_argument("--config", metavar="FILE.toml", help="settings; flags override them")
    add = group("what to learn")
    add("--text", "files, folders of .txt, .md, .jsonl, .parquet (default: the Bible)", **SEVERAL)
    add("--data", "a shard set of python -m llm data, instead", metavar="FOLDER")
    add("--holdout", "the 5 %% kept for validation: by hash, or the last", choices=["hash", "last"])
    add("--prompt", "what samples continue (default: the first words of the text)")

    add = group("how long")
    add(
        "--minutes",
        "until the file is written; measured once, then a number of steps (5)",
        type=float,
    )
    add("--tokens", "to train on; the size follows from it", type=int)
    add("--steps", "exactly so many steps", type=int)
    add("--depth", "blocks; width and, without one of the above, tokens follow from it", type=int)
    add("--tokens-per-param", "tokens for each parameter of the chosen size (2.5)", type=float)
    options = command.add_argument_group("stop and go on")
    options.add_argument("--resume", action="store_true", help="go on from the checkpoint, exactly")
    text = "where the time of ten steps goes; nothing is written"
    options.add_argument("--profile", action="store_true", help=text)
    text = f"of ranks: seconds in one step till it hangs, and they end ({PATIENCE:g}; 0: for ever)"
    options.add_argument("--patience", type=float, default=PATIENCE, metavar="S", help=text)
    add = group("where")
    add("--out", "the parameter file (weights/weights.bin); report.html lies beside it")
    add("--run-dir", "folder of the checkpoint, one run each (runs/default)")
    add("--save-seconds", "between checkpoints (30)", type=float)
    add("--keep", "so many of the last checkpoints, by step (1)", type=int)
    text = "of the best validation, or the last, go into the file (best)"
    add("--weights", text, choices=["best", "last"])
    add("--threads", "0: one per core; does not change the result", type=int)

    add(
        "--precision",
        "of products; sums and weights are float32 (bf16 where the processor has it)",
        choices=["fp32", "bf16"],
    )
    add("--device", "cuda: one NVIDIA GPU, with the extra [cuda] (cpu)", choices=["cpu", "cuda"])
    text = "of a GPU: by cuBLAS, or by a kernel of our own, not measured on a card yet (batched)"
    add("--attention", text, choices=["batched", "fused"])

    add = group("size of the model (default: chosen for the minutes by measured speed)")
    add("--n-embd", "width; the sizes below follow from it where they are not given", type=int)
    add("--n-layer", "blocks (n_embd / 48, rounded up)", type=int)
    add("--n-head", "query heads (of about 48)", type=int)
    add("--n-kv-head", "key and value heads (n_head)", type=int)
    add("--n-ff", "width of the feed-forward part (8/3 n_embd)", type=int)
    add("--n-vocab", "most tokens of the vocabulary (4096)", type=int)
    add("--n-ctx", "tokens of a window (256)", type=int)
    add(
        "--tied",
        "output matrix is the embedding (--no-tied)",
        action=argparse.BooleanOptionalAction,
    )

    add_tuning(group("tune a parameter file"))

    add = group("recipe")
    flag = {"action": "store_true"}
    add("--isolate", "no document sees another that shares its window", **flag)
    add("--recompute", "keep less for the backward pass: a third more time, less memory", **flag)
    add("--batch", "sequences of a step (8; adamw: 4; more where the arithmetic is much)", type=int)
    add("--slot-sequences", "sequences of a slot; batch / this is a power of two", type=int)
    add("--optimizer", "of the blocks' matrices (muon; --init: adamw)", choices=["adamw", "muon"])
    add("--lr", "peak learning rate (adamw: 0.0015, muon: 0.02)", type=float)
    add("--schedule", "after the warm-up: to 5 %%, or to 0 (linear)", choices=["cosine", "linear"])
    add("--warmup", "steps of linear warm-up (3 %% of all)", type=int)
    add("--weight-decay", "of matrices (0.1)", type=float)
    add("--clip", "largest norm of a gradient (1)", type=float)
    add("--seed", "of the first weights and of the order of examples (1)", type=int)


def add_tuning(add) -> None:
    add("--init", "a parameter file to go on from: llama, qwen2, qwen3, any type")
    add("--chat", 'JSON lines of {"messages": [...]} instead of --text', **SEVERAL)
    add("--epochs", "passes over the text, instead of --minutes or --steps (3)", type=float)
    add("--lora-rank", "train low-rank adapters, merged into the new file", type=int)
    add("--lora-alpha", "their scale times their rank (2 rank)", type=float)
    add("--lora-targets", "some of q,k,v,o,gate,up,down (all)", type=lambda x: tuple(x.split(",")))


TUNING = ("chat", "epochs", "lora_rank", "lora_alpha", "lora_targets")


def given_by(options: argparse.Namespace) -> dict:
    """Fields of Settings, from the flags and the file of --config."""
    from .settings_file import merge_given, read_settings

    about = ("command", "config", "resume", "profile", "patience")
    given = {k: v for k, v in vars(options).items() if k not in about}
    return merge_given(read_settings(options.config) if options.config else {}, given)


def run_train(options: argparse.Namespace) -> int:
    check_patience(options.patience)
    given, how = given_by(options), (options.resume, options.profile, options.patience)
    if "text" in given:
        given["text"] = tuple(path and os.path.abspath(path) for path in given["text"])
    if "data" in given:
        given["data"] = os.path.abspath(given["data"])
    if not given.get("init"):
        alone = [k for k in TUNING if given.get(k)]
        if alone:
            raise ValueError(f"--{alone[0].replace('_', '-')} goes with --init FILE")
        from .train import train

        return train(given, *how)
    from .tune import tune

    given["init"] = os.path.abspath(given["init"])
    if "chat" in given:
        given["chat"] = tuple(os.path.abspath(path) for path in given["chat"])
    return tune(given, *how)


# ---- launch ----


def add_launch(command: argparse.ArgumentParser) -> None:
    from . import launch

    launch.add_arguments(command)
    command.set_defaults(command=run_launch)


def run_launch(options: argparse.Namespace) -> int:
    from pathlib import Path

    from . import launch
    from .settings import Settings

    arguments = launch.check(options)
    given = given_by(parser().parse_args(arguments))  # what is misspelled is refused once, here
    folder = Path(given.get("run_dir", Settings.run_dir))
    asked = (options.ranks, options.max_restarts, arguments, folder, options.hosts)
    return launch.launch(*asked, options.patience)


# ---- data ----


def add_data(command: argparse.ArgumentParser) -> None:
    from . import data_command

    data_command.add_arguments(command)
    command.set_defaults(command=data_command.run)


# ---- plan ----


def add_plan(command: argparse.ArgumentParser) -> None:
    from . import plan

    plan.add_arguments(command)


# ---- inspect ----


def add_inspect(command: argparse.ArgumentParser) -> None:
    command.set_defaults(command=run_inspect)
    command.add_argument("file")
    command.add_argument(
        "other", nargs="?", help="compare with this file: exit 1 where they differ"
    )
    text = "compare the values of every tensor that differs, not of the first few"
    command.add_argument("--all", action="store_true", help=text)
    command.add_argument("--json", action="store_true", help="as JSON, figures unrounded")


def run_inspect(options: argparse.Namespace) -> int:
    import json

    from .compare import compare_files
    from .label import facts, label
    from .report import escape

    if options.other is None:
        print(json.dumps(facts(options.file)) if options.json else label(options.file))
        return 0
    differences = compare_files(options.file, options.other, options.all)
    if options.json:
        print(json.dumps({"same": not differences, "differences": differences}))
        return 1 if differences else 0
    for line in differences:
        print(escape(line))
    if not differences:
        print("the same file")
    return 1 if differences else 0


# ---- generate ----


def add_generate(command: argparse.ArgumentParser) -> None:
    command.set_defaults(command=run_generate)
    command.formatter_class = argparse.RawDescriptionHelpFormatter
    command.epilog = (
        "python -m llm generate weights/weights.bin 'In the beginning' --max-tokens 50 --seed 1\n"
        "-n and --temp as of ./run FILE, which has top-k, penalties, stop texts and more."
    )
    command.add_argument("file", help="a parameter file")
    command.add_argument("prompt", help="the text to continue; -: standard input")
    text = "at most so many new tokens (until the model ends the text or the window is full)"
    command.add_argument("-n", "--max-tokens", type=int, default=None, metavar="N", help=text)
    text = "what logits are divided by (0.8); 0: always the likeliest token"
    flags = ("--temperature", "--temp")
    command.add_argument(*flags, type=float, default=0.8, metavar="X", help=text)
    text = "of the random numbers: the same gives the same text (another each time)"
    command.add_argument("--seed", type=int, default=None, metavar="N", help=text)


def run_generate(options: argparse.Namespace) -> int:
    from .engine import Model
    from .tokenize_command import text_of

    with Model(options.file) as model:
        given = text_of(options.prompt, f"- < {options.prompt}")
        prompt = given.decode("utf-8", "surrogateescape")
        pieces = model.stream(
            prompt,
            max_tokens=options.max_tokens,
            temperature=options.temperature,
            seed=options.seed,
        )
        first = next(pieces, "")  # what is refused is refused before anything is printed
        print(prompt + first, end="", flush=True)
        for piece in pieces:
            print(piece, end="", flush=True)
        print()
    return 0


# ---- tokenize ----


def add_tokenize(command: argparse.ArgumentParser) -> None:
    from . import tokenize_command

    tokenize_command.add_arguments(command)
    command.set_defaults(command=tokenize_command.run)


# ---- convert, export ----


def add_convert(command: argparse.ArgumentParser) -> None:
    command.set_defaults(command=run_convert)
    command.add_argument("source", help="a Hugging Face folder, or a llama2.c checkpoint")
    command.add_argument("out", help="the parameter file")
    command.add_argument("--type", help="of matrices: F32, F16, BF16, Q8_0, Q4_K ... (as stored)")
    command.add_argument("--tokenizer", help="llama2.c's tokenizer.bin (beside the checkpoint)")


def run_convert(options: argparse.Namespace) -> int:
    from .convert import convert

    notes = convert(options.source, options.out, options.type, options.tokenizer)
    return _print_notes(notes, options.out)


def _print_notes(notes: Sequence[str], written: str) -> int:
    from .report import escape

    for note in notes:
        print(f"note: {escape(note)}", file=sys.stderr)
    print(f"written    {escape(str(written))}", file=sys.stderr)
    return 0


def add_export(command: argparse.ArgumentParser) -> None:
    command.set_defaults(command=run_export)
    command.add_argument("file", help="a parameter file")
    command.add_argument("folder", help="the Hugging Face folder: a new one")


def run_export(options: argparse.Namespace) -> int:
    from .export import export

    return _print_notes(export(options.file, options.folder), options.folder)


# ---- bench ----


def add_bench(command: argparse.ArgumentParser) -> None:
    from . import bench_command

    bench_command.add_arguments(command)


# ---- quantize ----


def add_quantize(command: argparse.ArgumentParser) -> None:
    from . import quantize_command

    quantize_command.add_arguments(command)
    command.set_defaults(command=quantize_command.run)


# ---- zip ----


def add_zip(command: argparse.ArgumentParser) -> None:
    from . import zip_command

    zip_command.add_zip(command)


def add_unzip(command: argparse.ArgumentParser) -> None:
    from . import zip_command

    zip_command.add_unzip(command)
