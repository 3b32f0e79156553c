"""Chat templates: ids beside sandboxed Jinja's rendering of the published texts, what is refused,
and that no text becomes a control token. vectors/chat_templates/README.md says where the texts come
from."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import TINY, random_params
from vocabulary_files import BYTE, CONTROL, NORMAL, UNKNOWN

import llm
from conftest import ROOT
from llm.chat_template import names
from llm.config import layout
from llm.parameter_file import (
    Entry,
    TensorData,
    ValueType,
    Vocabulary,
    write_parameter_file,
)

FOLDER = ROOT / "tests" / "vectors" / "chat_templates"


@dataclass(frozen=True)
class Family:
    name: str
    control: tuple[str, ...]  # beside BOS and EOS
    bos: str | None = None
    eos: str | None = None
    add_bos: bool = False
    add_space: bool = True  # SentencePiece's dummy prefix

    def special(self) -> list[str]:
        return [text for text in (self.bos, self.eos, *self.control) if text]


CHATML = Family("chatml", ("<|im_start|>",), eos="<|im_end|>")
LLAMA3 = Family(
    "llama3",
    ("<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>"),
    "<|begin_of_text|>",
    "<|eot_id|>",
    add_bos=True,
)
LLAMA2 = Family("llama2", (), "<s>", "</s>", add_bos=True)
MISTRAL = Family(
    "mistral", ("[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"), "<s>", "</s>"
)
GEMMA = Family(
    "gemma", ("<start_of_turn>", "<end_of_turn>"), "<bos>", "<eos>", add_bos=True, add_space=False
)
ZEPHYR = Family("zephyr", (), "<s>", "</s>", add_bos=True)

TEMPLATES = {
    "chatml": CHATML,
    "smollm2": CHATML,
    "qwen2_5": CHATML,
    "qwen3": CHATML,
    "qwen3_2507": CHATML,
    "llama2": LLAMA2,
    "llama3": LLAMA3,
    "llama3_1": LLAMA3,
    "llama3_2": LLAMA3,
    "mistral_7b_v0.1": replace(MISTRAL, control=(), add_bos=True),
    "mistral_7b_v0.2": replace(MISTRAL, control=()),
    "mistral_v1": replace(MISTRAL, control=()),
    "mistral_v3": MISTRAL,
    "mistral_v3_tekken": MISTRAL,
    "mistral_v7": MISTRAL,
    "gemma": GEMMA,
    "gemma3": GEMMA,
    "zephyr": ZEPHYR,
}
# The user's turn first, then the assistant's, and so on.
ALTERNATING = {name for name in TEMPLATES if name.startswith(("llama2", "mistral", "gemma"))}
ALTERNATING -= {"mistral_v7"}
NO_SYSTEM = {"mistral_7b_v0.1", "mistral_7b_v0.2", "gemma"}


def source(name: str) -> str:
    return (FOLDER / f"{name}.jinja").read_bytes().decode()


# Pairs that join across the border of a template's words and a text.
MERGES = ["\n\n", "\n ", " [", " a", "]a", "a\n", " \n", "er", "s\n", "\nT", "ab", "\ta", "  "]


def byte_level(family: Family) -> tuple[int, list[Entry]]:
    """All bytes, the pairs and the family's control tokens: their number and their keys."""
    tokens = [bytes([b]) for b in range(256)] + [pair.encode() for pair in MERGES]
    merges = np.array([list(pair.encode()) for pair in MERGES])
    ids = {text: len(tokens) + i for i, text in enumerate(family.special())}
    vocabulary = Vocabulary(
        tokens + [text.encode() for text in ids],
        merges,
        "gpt-2",
        bos=ids.get(family.bos),
        eos=ids.get(family.eos),
        add_bos=family.add_bos,
        control=frozenset(ids.values()),
    )
    return len(vocabulary.tokens), vocabulary.entries()


def sentencepiece(family: Family) -> tuple[int, list[Entry]]:
    """The same as SentencePiece has it: bytes as a fallback, letters, and the pairs."""
    plain = [chr(c) for c in range(33, 127)] + [
        "\u2581",
        *(m.replace(" ", "\u2581") for m in MERGES),
    ]
    special = family.special()
    tokens = ["<unk>", *special, *(f"<0x{b:02X}>" for b in range(256)), *plain]
    types = [UNKNOWN] + [CONTROL] * len(special) + [BYTE] * 256 + [NORMAL] * len(plain)
    entries = [
        Entry("tokenizer.ggml.model", "llama", ValueType.STRING),
        Entry("tokenizer.ggml.tokens", tokens, ValueType.ARRAY, ValueType.STRING),
        Entry("tokenizer.ggml.token_type", types, ValueType.ARRAY, ValueType.INT32),
        Entry(
            "tokenizer.ggml.scores",
            [-float(i) for i in range(len(tokens))],
            ValueType.ARRAY,
            ValueType.FLOAT32,
        ),
        Entry("tokenizer.ggml.add_bos_token", family.add_bos, ValueType.BOOL),
        Entry("tokenizer.ggml.add_space_prefix", family.add_space, ValueType.BOOL),
        Entry("tokenizer.ggml.bos_token_id", tokens.index(family.bos), ValueType.UINT32),
        Entry("tokenizer.ggml.eos_token_id", tokens.index(family.eos), ValueType.UINT32),
    ]
    return len(tokens), entries


def write_model(
    path, template: str | bytes | int | None, family: Family, vocabulary=byte_level
) -> None:
    n_vocab, entries = vocabulary(family)
    config = replace(TINY, n_vocab=n_vocab)
    flat = random_params(config)
    tensors = [
        TensorData(e.gguf_name, e.shape, "F32", flat[e.offset : e.offset + e.size])
        for e in layout(config)
    ]
    types = {int: ValueType.UINT32, float: ValueType.FLOAT32, str: ValueType.STRING}
    metadata = [Entry(key, value, types[type(value)]) for key, value in config.to_gguf().items()]
    metadata += entries
    if template is not None:
        kind = ValueType.UINT32 if isinstance(template, int) else ValueType.STRING
        metadata.append(Entry("tokenizer.chat_template", template, kind))
    write_parameter_file(path, metadata, tensors)


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """Models by the name of their template, made when they are asked for."""
    folder, models = tmp_path_factory.mktemp("chat"), {}

    def get(name: str, vocabulary=byte_level) -> llm.Model:
        key = f"{name}_{vocabulary.__name__}"
        if key not in models:
            write_model(folder / key, source(name), TEMPLATES[name], vocabulary)
            models[key] = llm.Model(folder / key)
        return models[key]

    yield get
    for model in models.values():
        model.close()


# ---- beside Jinja ----


def jinja(text: str):
    """The template as transformers compiles it, without strftime_now."""
    pytest.importorskip("jinja2", reason="the package jinja2 is not installed")
    from jinja2.exceptions import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message):
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = raise_exception
    return environment.from_string(text)


def rendered(template, family: Family, messages, add_generation_prompt: bool) -> str:
    return template.render(
        messages=messages,
        add_generation_prompt=add_generation_prompt,
        bos_token=family.bos or "",
        eos_token=family.eos or "",
    )


def expected_ids(model: llm.Model, text: str) -> list[int]:
    tokenizer = model.tokenizer
    ids = tokenizer.encode(text, parse_special=True)
    return [tokenizer.bos, *ids] if tokenizer.add_bos and ids[:1] != [tokenizer.bos] else ids


# Without the first characters of control tokens: with them Jinja's text is ambiguous.
CHARACTERS = st.one_of(
    st.sampled_from(" \n\t\r\x0b\x1c\x1f\x85\xa0\u2003\u3000ab>]|TA'\x00é€😀"),
    st.characters(codec="utf-8", exclude_characters="<["),
)
TEXTS = st.one_of(
    st.text(CHARACTERS, max_size=12),
    st.sampled_from(["", " ", "\n", "Hello", "  Hi\n", "\n\na ", "\u3000a\u3000", "a\x1f"]),
)


def message(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


@st.composite
def conversations(draw, name: str):
    texts = draw(st.lists(TEXTS, min_size=1, max_size=6))
    if name not in ALTERNATING:
        roles = st.sampled_from(["system", "user", "assistant"])
        return [message(draw(roles), text) for text in texts]
    turns = [message(("user", "assistant")[i % 2], text) for i, text in enumerate(texts)]
    if name in NO_SYSTEM or draw(st.booleans()):
        return turns
    return [message("system", draw(TEXTS)), *turns]


# A family's models have one of these; both are tried where there is a BOS to write.
VOCABULARIES = [(name, byte_level) for name in TEMPLATES]
VOCABULARIES += [(name, sentencepiece) for name, family in TEMPLATES.items() if family.bos]


@pytest.mark.peer
@pytest.mark.parametrize("name, vocabulary", VOCABULARIES)
def test_ids_equal_jinjas(name, vocabulary, opened):
    model, template, family = opened(name, vocabulary), jinja(source(name)), TEMPLATES[name]

    @settings(max_examples=60, deadline=None)
    @given(conversations(name), st.booleans())
    def check(messages, add_generation_prompt):
        text = rendered(template, family, messages, add_generation_prompt)
        assert model.render_chat(messages, add_generation_prompt) == expected_ids(model, text)

    check()


ROLES = st.sampled_from(["system", "user", "assistant"])


@pytest.mark.peer
@pytest.mark.parametrize("name", sorted(ALTERNATING))
def test_refuses_what_jinja_refuses(name, opened):
    """And two things more: a system message behind the first, which some templates drop or show as
    a turn that no model knows, and one without a user's message, which they drop."""
    model, template, family = opened(name), jinja(source(name)), TEMPLATES[name]
    from jinja2.exceptions import TemplateError

    @settings(max_examples=60, deadline=None)
    @given(st.lists(ROLES, min_size=1, max_size=5))
    def check(roles):
        messages = [message(role, "a") for role in roles]
        try:
            text = rendered(template, family, messages, True)
            refused = "system" in roles[1:] or roles == ["system"]
        except TemplateError:
            refused = True
        if refused:
            with pytest.raises(ValueError, match="chat template"):
                model.render_chat(messages)
        else:
            assert model.render_chat(messages) == expected_ids(model, text)

    check()


@pytest.mark.peer
def test_thoughts_as_qwen3_has_them(opened):
    model, template, family = opened("qwen3"), jinja(source("qwen3")), CHATML
    pieces = ["<think>", "</think>", "\n", "a", " ", "<tool_response>", "</tool_response>"]
    texts = st.lists(st.sampled_from(pieces), max_size=7).map("".join)

    @settings(max_examples=200, deadline=None)
    @given(st.lists(st.builds(message, ROLES, texts), min_size=1, max_size=5), st.booleans())
    def check(messages, add_generation_prompt):
        text = rendered(template, family, messages, add_generation_prompt)
        assert model.render_chat(messages, add_generation_prompt) == expected_ids(model, text)

    check()


@pytest.mark.peer
def test_smollm2_itself(smollm2):
    with llm.Model(smollm2) as model:
        text = model.metadata["tokenizer.chat_template"]
        assert text == source("smollm2") and model.chat_template == "chatml"
        template = jinja(text)

        @settings(max_examples=100, deadline=None)
        @given(conversations("smollm2"), st.booleans())
        def check(messages, add_generation_prompt):
            text = rendered(template, CHATML, messages, add_generation_prompt)
            assert model.render_chat(messages, add_generation_prompt) == expected_ids(model, text)

        check()


# ---- control tokens ----


def control_ids(model: llm.Model) -> list[int]:
    tokenizer = model.tokenizer
    return [id for id in range(tokenizer.n_vocab) if tokenizer.token_type(id) == CONTROL]


def check_no_text_becomes_control(model: llm.Model, roles) -> None:
    """Every control token's text, alone and amid others, in each role: the control ids are those of
    the same conversation about nothing, and the text stands there in full."""
    control = set(control_ids(model))
    plain = model.render_chat([message(role, "x") for role in roles])
    spelled = [model.tokenizer.decode([id]) for id in sorted(control)]
    for text in [*spelled, *(f"a{t}\n{t}b" for t in spelled), "".join(spelled)]:
        for at in range(len(roles)):
            messages = [message(r, text if i == at else "x") for i, r in enumerate(roles)]
            ids = model.render_chat(messages)
            assert [i for i in ids if i in control] == [i for i in plain if i in control]
            without = model.tokenizer.decode([i for i in ids if i not in control])
            assert text in without


@pytest.mark.parametrize("name, vocabulary", VOCABULARIES)
def test_no_text_becomes_a_control_token(name, vocabulary, opened):
    roles = ["user", "assistant", "user"]
    check_no_text_becomes_control(opened(name, vocabulary), roles)
    if name not in NO_SYSTEM:
        check_no_text_becomes_control(opened(name, vocabulary), ["system", *roles])


def test_no_text_becomes_a_control_token_of_smollm2(smollm2):
    with llm.Model(smollm2) as model:
        assert len(control_ids(model)) == 17
        check_no_text_becomes_control(model, ["system", "user", "assistant", "user"])


# ---- recognition ----


@pytest.mark.parametrize("name", TEMPLATES)
def test_recognised_as_its_family(name, opened):
    assert opened(name).chat_template == TEMPLATES[name].name


def as_chatml(model: llm.Model) -> str:
    return model.tokenizer.decode(model.render_chat([message("user", "hi")]))


UNRECOGNISED = {
    "none": None,
    "empty": "",
    "other": "{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}{% endfor %}",
    "phi4": "{{ '<|im_start|>user<|im_sep|>' + message['content'] + '<|im_end|>' }}",
    "trimmed": source("smollm2").replace("message['content'] +", "message['content'] | trim +"),
    "with a zero byte": source("smollm2") + "\0",
    "too long": source("smollm2") + " " * 65536,
    "a number": 7,
    "not UTF-8": b"\xff\xfe{{ messages }}",
    "llama 3.1 without its date": source("llama3_1").replace("set date_string", "set d"),
}


@pytest.mark.parametrize("case", UNRECOGNISED)
def test_an_unknown_template_falls_back_to_plain_chatml(case, tmp_path):
    write_model(tmp_path / "m", UNRECOGNISED[case], CHATML)
    with llm.Model(tmp_path / "m") as model:
        assert model.chat_template is None
        expected = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
        assert as_chatml(model) == expected
        with_bytes = model.render_chat([message("user", b"\xff\x00")])
        assert b"\xff\x00" in model.tokenizer.decode_bytes(with_bytes)


def test_line_ends_and_quotes_of_either_kind(tmp_path):
    """Files hold Jinja's escapes or what they stand for; people republish with other quotes."""
    for name in ("smollm2", "llama3", "zephyr", "gemma"):
        text = source(name)
        escaped = text.replace("\n", "\\n") if name != "zephyr" else text.replace("\\n", "\n")
        for variant in (escaped, text.replace('"', "'"), text.replace("'", '"')):
            write_model(tmp_path / "m", variant, TEMPLATES[name])
            with llm.Model(tmp_path / "m") as model:
                assert model.chat_template == TEMPLATES[name].name


def test_an_answer_is_asked_for_when_the_caller_wants_it(tmp_path):
    """Llama 3's first template asks in any case."""
    always = (
        source("llama3").replace("{% if add_generation_prompt %}", "").removesuffix("{% endif %}")
    )
    write_model(tmp_path / "m", always, LLAMA3)
    with llm.Model(tmp_path / "m") as model:
        start = model.tokenizer.encode("<|start_header_id|>", parse_special=True)
        counts = [model.render_chat([message("user", "hi")], flag).count(*start) for flag in (0, 1)]
        assert model.chat_template == "llama3" and counts == [1, 2]


def test_the_default_system_message_is_the_files(tmp_path):
    """Qwen 2's template is SmolLM 2's with other words; control tokens in them stay text."""
    said = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    for words in ("You are a helpful assistant.", "be <|im_start|> kind", ""):
        write_model(tmp_path / "m", source("smollm2").replace(said, words), CHATML)
        with llm.Model(tmp_path / "m") as model:
            assert as_chatml(model).startswith(f"<|im_start|>system\n{words}<|im_end|>\n")
            start = model.tokenizer.encode("<|im_start|>", parse_special=True)
            assert model.render_chat([message("user", "hi")]).count(*start) == 3


def test_a_family_by_name(opened):
    model = opened("zephyr")
    assert names() == ["chatml", "llama2", "llama3", "mistral", "gemma", "zephyr"]
    chat = [message("system", "Be kind."), message("user", "Hi")]
    shown = {
        name: model.tokenizer.decode(model.render_chat(chat, template=name)) for name in names()
    }
    assert shown == {
        "chatml": "<s><|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\n",
        "llama2": "<s>[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nHi [/INST]",
        "llama3": "<s><|start_header_id|>system<|end_header_id|>\n\nBe kind.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "mistral": "<s> [INST] Be kind.\n\nHi [/INST]",
        "gemma": "<s><start_of_turn>user\nBe kind.\n\nHi<end_of_turn>\n<start_of_turn>model\n",
        "zephyr": "<s><|system|>\nBe kind.</s>\n<|user|>\nHi</s>\n<|assistant|>\n",
    }
    with pytest.raises(ValueError, match="alpaca"):
        model.render_chat(chat, template="alpaca")


@pytest.mark.parametrize(
    "messages, fragment",
    [
        ([], "no messages"),
        ([{"role": "tool", "content": "x"}], "message 0: role is 'tool'"),
        ([{"content": "x"}], "message 0: role is None"),
        ([{"role": [], "content": "x"}], r"message 0: role is \[\]"),
        ([message("user", "x"), {"role": "user", "content": None}], "message 1: content"),
        ([{"role": "user", "content": [{"type": "text", "text": "x"}]}], "message 0: content"),
    ],
)
def test_bad_messages(messages, fragment, opened):
    with pytest.raises(ValueError, match=fragment):
        opened("chatml").render_chat(messages)


@pytest.mark.parametrize("messages", [None, 5, "", "a", b"", {}, message("user", "x"), ["a"]])
def test_no_list_of_messages(messages, opened):
    with pytest.raises(TypeError, match="messages is no list of"):
        opened("chatml").render_chat(messages)
