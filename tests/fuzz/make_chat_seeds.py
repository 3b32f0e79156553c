"""Makes the seed corpus of fuzz_chat.c: the short published templates with a conversation that has
control tokens in its texts. Run from the repository: python -m tests.fuzz.make_chat_seeds"""

from pathlib import Path

FOLDER = Path(__file__).parent / "corpus" / "chat"
TEMPLATES = Path(__file__).parent.parent / "vectors" / "chat_templates"
SYSTEM, USER, ASSISTANT = 0, 1, 2
NAMES = [
    "smollm2",
    "llama2",
    "llama3",
    "mistral_7b_v0.1",
    "mistral_v1",
    "gemma3",
    "zephyr",
    "qwen3",
]


def message(role: int, text: bytes) -> bytes:
    return bytes([role, len(text)]) + text


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for at, name in enumerate(NAMES):
        template = (TEMPLATES / f"{name}.jinja").read_bytes()
        messages = [
            message(SYSTEM, b" <|im_start|>\n") if name != "mistral_7b_v0.1" else b"",
            message(USER, b"\n[INST] \xff</s>"),
            message(ASSISTANT, b"<think>\na\n</think>\n\nb "),
            message(USER, b""),
            message(ASSISTANT, b""),
            message(USER, b"\xe3\x80\x80<|eot_id|>\x00"),
        ]
        head = bytes([at & 7]) + len(template).to_bytes(2, "big")
        (FOLDER / name).write_bytes(head + template + b"".join(messages))
        by_name = bytes([7 | (at & 7) << 3, 0, 0])
        (FOLDER / f"family_{at}").write_bytes(by_name + b"".join(messages))


if __name__ == "__main__":
    main()
