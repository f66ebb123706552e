"""Which tokenizer and chat template a config gets, and what is said when it can't."""

import json
import shutil
from dataclasses import replace

import pytest
from chat_folders import LLAMA, QWEN, QWEN3, byte_level, llama_folder, qwen_folder, write_folder

from elpo_jax.config import PolicyConfig
from elpo_jax.errors import UsageError
from elpo_jax.policy.chat import EMBEDDED_TEMPLATE
from elpo_jax.policy.chat_files import chat_files, make_chat
from elpo_jax.policy.export_tokenizer import write_tokenizer
from elpo_jax.policy.hf_tokenizer import HuggingFaceTokenizer
from elpo_jax.policy.origin import digests_of
from elpo_jax.policy.template import quiet_import
from elpo_jax.policy.tokenizer import EMBEDDED_TOKENIZER, SentencePieceTokenizer

SCHEMA = {"name": "add", "description": "Adds.", "parameters": {"type": "object"}}


def problem(**policy):
    with pytest.raises(UsageError) as caught:
        make_chat(PolicyConfig(**policy), [SCHEMA])
    (line,) = caught.value.problems
    assert len(line.splitlines()) == 1
    return line


def test_the_embedded_one_without_settings():
    chat = make_chat(PolicyConfig(), [SCHEMA])
    assert isinstance(chat.tokenizer, SentencePieceTokenizer)
    assert chat.tokenizer.decode([chat.end_of_turn]) == "<|im_end|>"
    assert chat_files(PolicyConfig()) == []


@pytest.mark.parametrize(("make", "form"), [(qwen_folder, "hermes"), (llama_folder, "llama3")])
def test_a_checkpoints_own(tmp_path, make, form):
    policy = PolicyConfig(checkpoint=str(make(tmp_path)))
    chat = make_chat(policy, [SCHEMA])
    assert isinstance(chat.tokenizer, HuggingFaceTokenizer)
    assert chat.call_form.name == form
    names = ["chat_template.jinja", "tokenizer.json", "tokenizer_config.json"]
    assert [file.name for file in chat_files(policy)] == names


def test_an_export_of_the_embedded_policy(tmp_path):
    shutil.copy(EMBEDDED_TOKENIZER, tmp_path / "tokenizer.model")
    policy = PolicyConfig(checkpoint=str(tmp_path))
    line = problem(checkpoint=str(tmp_path))
    assert line.startswith(
        f"policy.checkpoint: {tmp_path}: expected a chat template (chat_template.jinja, or in"
    )
    shutil.copy(EMBEDDED_TEMPLATE, tmp_path)
    chat, embedded = make_chat(policy, [SCHEMA]), make_chat(PolicyConfig(), [SCHEMA])
    assert chat.prompt_ids([{"role": "user", "content": "Hi"}]) == embedded.prompt_ids(
        [{"role": "user", "content": "Hi"}]
    )
    assert len(chat_files(policy)) == 2


def test_a_tokenizer_of_ones_own_with_a_checkpoint(tmp_path):
    policy = PolicyConfig(checkpoint=str(tmp_path), tokenizer=str(EMBEDDED_TOKENIZER))
    chat = make_chat(policy, [SCHEMA])
    assert chat.tokenizer.vocab_size == 512
    # The folder's template goes before the embedded one.
    text = EMBEDDED_TEMPLATE.read_text(encoding="utf-8").replace("tools>", "list>")
    (tmp_path / "chat_template.jinja").write_text(text, encoding="utf-8")
    prompt = make_chat(policy, [SCHEMA]).prompt_ids([{"role": "user", "content": "Hi"}])
    assert "<list>" in chat.tokenizer.decode(prompt)


@pytest.mark.parametrize("place", ["text", "list", "file"])
def test_a_sentence_piece_folders_template_and_special_tokens(tmp_path, place):
    """Wherever transformers looks for them, and as the template reads them."""
    shutil.copy(EMBEDDED_TOKENIZER, tmp_path / "tokenizer.model")
    template = "{{ eos_token }}" + EMBEDDED_TEMPLATE.read_text(encoding="utf-8")
    settings = {"eos_token": {"content": "<|im_end|>"}, "pad_token": "<pad>"}
    if place == "text":
        settings["chat_template"] = template
    elif place == "list":
        named = {"default": "{{ never }}", "tool_use": template}
        settings["chat_template"] = [{"name": n, "template": t} for n, t in named.items()]
    else:
        settings["chat_template"] = "{{ never }}"
        (tmp_path / "additional_chat_templates").mkdir()
        (tmp_path / "additional_chat_templates/tool_use.jinja").write_text(template)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    messages = [{"role": "user", "content": "Hi"}]
    embedded = make_chat(PolicyConfig(), [SCHEMA])
    expected = [embedded.end_of_turn, *embedded.prompt_ids(messages)]
    policy = PolicyConfig(checkpoint=str(tmp_path))
    assert make_chat(policy, [SCHEMA]).prompt_ids(messages) == expected
    # The same beside a tokenizer of one's own.
    policy = PolicyConfig(checkpoint=str(tmp_path), tokenizer=str(EMBEDDED_TOKENIZER))
    assert make_chat(policy, [SCHEMA]).prompt_ids(messages) == expected


def test_special_tokens_that_a_sentence_piece_model_does_not_have(tmp_path):
    shutil.copy(EMBEDDED_TOKENIZER, tmp_path / "tokenizer.model")
    template = "{{ bos_token }}" + EMBEDDED_TEMPLATE.read_text(encoding="utf-8")
    (tmp_path / "chat_template.jinja").write_text(template, encoding="utf-8")
    path = str(tmp_path)
    (tmp_path / "special_tokens_map.json").write_text('{"bos_token": "<s>"}')
    assert "chat template: reads bos_token, '<s>' by the" in problem(checkpoint=path)
    (tmp_path / "special_tokens_map.json").write_text('{"bos_token": "<|im_start|>"}')
    make_chat(PolicyConfig(checkpoint=path), [SCHEMA])
    (tmp_path / "added_tokens.json").write_text('{"<|im_end|>": 2, "<think>": 512}')
    assert "added token '<think>' with id 512, which is no piece" in problem(checkpoint=path)
    (tmp_path / "added_tokens.json").write_text("[1]")
    assert "added_tokens.json: expected a JSON object" in problem(checkpoint=path)
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": [1]}')
    (tmp_path / "chat_template.jinja").unlink()
    (tmp_path / "added_tokens.json").unlink()
    assert "chat_template: expected a text, or a list" in problem(checkpoint=path)


def test_tokens_that_transformers_added_beside_a_sentence_piece_model(tmp_path):
    """Its version 5 writes them to tokenizer.json alone."""
    with quiet_import():
        from transformers import AutoTokenizer
    write_tokenizer(tmp_path, EMBEDDED_TOKENIZER, None)
    policy = {"checkpoint": str(tmp_path)}
    make_chat(PolicyConfig(**policy), [SCHEMA])
    theirs = AutoTokenizer.from_pretrained(str(tmp_path))
    theirs.save_pretrained(str(tmp_path))
    make_chat(PolicyConfig(**policy), [SCHEMA])
    theirs.add_tokens(["<think>"])
    theirs.save_pretrained(str(tmp_path))
    model = tmp_path / "tokenizer.model"
    assert problem(**policy) == (
        f"policy.checkpoint: {tmp_path}/tokenizer.json: expected no tokens besides the pieces of "
        f"the SentencePiece model beside it, got the added token '<think>' with id 512, which is "
        f"no piece; policy.tokenizer={model} goes without added tokens"
    )
    assert make_chat(PolicyConfig(tokenizer=str(model), **policy), []).tokenizer.vocab_size == 512


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("tokenizer_config.json", {"added_tokens_decoder": {"2": {"content": "<|im_end|>"}}}, ""),
        (
            "tokenizer_config.json",
            {"added_tokens_decoder": {"512": {"content": "<x>"}}},
            "added token '<x>' with id 512, which is no piece",
        ),
        (
            "tokenizer_config.json",
            {"additional_special_tokens": ["<|im_end|>", "<x>"]},
            "added token '<x>', which is no piece",
        ),
        (
            "special_tokens_map.json",
            {"additional_special_tokens": [{"content": "<x>"}]},
            "added token '<x>', which is no piece",
        ),
        (
            "tokenizer_config.json",
            {"extra_special_tokens": {"image_token": "<x>"}},
            "added token '<x>', which is no piece",
        ),
        ("added_tokens.json", {"<|im_end|>": 3}, "'<|im_end|>' with id 3, which is piece 2"),
        ("tokenizer.json", {"added_tokens": [{"id": 2, "content": "<|im_end|>"}]}, ""),
        (
            "tokenizer.json",
            {"added_tokens": [{"id": 1, "content": "<|im_end|>"}]},
            "'<|im_end|>' with id 1, which is piece 2",
        ),
        ("tokenizer.json", {"added_tokens": 3}, "added_tokens: expected a list or an object"),
        ("tokenizer.json", {"added_tokens": [[]]}, "added_tokens: expected tokens, got []"),
    ],
)
def test_added_tokens_wherever_they_are_written(tmp_path, file, content, words):
    shutil.copy(EMBEDDED_TOKENIZER, tmp_path / "tokenizer.model")
    shutil.copy(EMBEDDED_TEMPLATE, tmp_path)
    (tmp_path / file).write_text(json.dumps(content))
    if words:
        line = problem(checkpoint=str(tmp_path))
        assert words in line
        assert str(tmp_path / file) in line
    else:
        make_chat(PolicyConfig(checkpoint=str(tmp_path)), [SCHEMA])


def test_a_tokenizer_model_of_another_library_is_left_alone(tmp_path):
    """Llama-3's folders have tiktoken's beside tokenizer.json."""
    folder = llama_folder(tmp_path)
    (folder / "tokenizer.model").write_text("IQ== 0\nIg== 1\n")
    chat = make_chat(PolicyConfig(checkpoint=str(folder)), [SCHEMA])
    assert isinstance(chat.tokenizer, HuggingFaceTokenizer)


def test_turns_end_at_the_checkpoints_other_ends_too(tmp_path):
    folder = qwen_folder(tmp_path)
    policy = PolicyConfig(checkpoint=str(folder))
    chat = make_chat(policy, [SCHEMA])
    end, other = chat.end_of_turn, chat.tokenizer.id_of("<|endoftext|>")
    assert chat.stop_tokens == (end,)
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen3", "eos_token_id": other}))
    assert make_chat(policy, [SCHEMA]).stop_tokens == (end, other)
    generation = folder / "generation_config.json"
    generation.write_text(json.dumps({"eos_token_id": [end, other, 9000]}))
    assert make_chat(policy, [SCHEMA]).stop_tokens == (end, other, 9000)
    assert "policy.checkpoint/generation_config.json" in digests_of(policy)
    # Another tokenizer has none of these ids.
    own = PolicyConfig(checkpoint=str(folder), tokenizer=str(EMBEDDED_TOKENIZER))
    assert len(make_chat(own, [SCHEMA]).stop_tokens) == 1
    for found, words in (
        ("no", "expected an id, or a list of ids, got 'no'"),
        ([1, -1], "expected an id, or a list of ids, got [1, -1]"),
        (list(range(9)), "expected at most 8 ids that end a turn"),
    ):
        generation.write_text(json.dumps({"eos_token_id": found}))
        assert words in problem(checkpoint=str(folder))


def test_options_reach_the_template(tmp_path):
    folder = qwen_folder(tmp_path, QWEN3)
    policy = PolicyConfig(checkpoint=str(folder), thinking=False, earlier_turns="as_sampled")
    ids = make_chat(policy, [SCHEMA]).tool_result_ids("4")
    other = make_chat(replace(policy, thinking=True), [SCHEMA]).tool_result_ids("4")
    assert len(ids) > len(other)


def test_what_is_said_of_folders_that_do_not_fit(tmp_path):
    assert problem(checkpoint=str(tmp_path / "no")).startswith(
        f"policy.checkpoint: {tmp_path / 'no'}: expected a folder with a tokenizer"
    )
    bare = write_folder(tmp_path / "bare", byte_level(), None)
    assert f"policy.checkpoint: {bare}: expected a chat template" in problem(checkpoint=str(bare))
    qwen = str(qwen_folder(tmp_path / "qwen", QWEN))
    assert "policy.thinking=True" in problem(checkpoint=qwen, thinking=True)
    qwen3 = str(qwen_folder(tmp_path / "qwen3", QWEN3))
    assert "policy.earlier_turns=as_sampled" in problem(checkpoint=qwen3, thinking=False)
    # A template for another tokenizer.
    mixed = str(qwen_folder(tmp_path / "mixed", LLAMA))
    assert "end with a control token" in problem(checkpoint=mixed)
    assert problem(tokenizer=qwen).startswith(f"policy.tokenizer: {qwen}: expected a readable")
