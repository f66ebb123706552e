"""Which tokenizer and chat template a config gets, and what is said when it can't."""

import shutil
from dataclasses import replace

import pytest
from chat_folders import LLAMA, QWEN, QWEN3, byte_level, llama_folder, qwen_folder, write_folder

from elpo_jax.config import PolicyConfig
from elpo_jax.errors import UsageError
from elpo_jax.policy.chat import EMBEDDED_TEMPLATE
from elpo_jax.policy.chat_files import chat_files, make_chat
from elpo_jax.policy.hf_tokenizer import HuggingFaceTokenizer
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
        f"policy.checkpoint: {tmp_path / 'chat_template.jinja'}: expected a chat"
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
