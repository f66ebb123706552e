"""What transformers makes of our exports: the ids of our own tokenizer, or a note that it can't."""

import io
import json
import shutil

import checkpoints
import jax
import pytest
import sentencepiece
from chat_folders import LINES
from hypothesis import given
from test_tokenizer import TEXT
from worlds import PROPERTY

from elpo_jax.config import MeshConfig, PolicyConfig
from elpo_jax.errors import UsageError
from elpo_jax.policy.architecture import Architecture, Compute
from elpo_jax.policy.build import make_decoder
from elpo_jax.policy.chat import EMBEDDED_TEMPLATE
from elpo_jax.policy.chat_files import make_chat
from elpo_jax.policy.export import export_policy, save_checkpoint
from elpo_jax.policy.model import Decoder
from elpo_jax.policy.sharding import init_params, make_mesh
from elpo_jax.policy.template import quiet_import
from elpo_jax.policy.tokenizer import EMBEDDED_TOKENIZER, SentencePieceTokenizer
from elpo_jax.policy.tokenizer_json import NotTheSameError, same_tokenizer
from elpo_jax.policy.weights import load_params

EMBEDDED = same_tokenizer(EMBEDDED_TOKENIZER)
OURS = SentencePieceTokenizer()
SCHEMA = {"name": "add", "description": "Adds.", "parameters": {"type": "object"}}


def trained(path, **changes):
    """A lossless model of a few lines, with control pieces."""
    model = io.BytesIO()
    options = {
        "sentence_iterator": LINES * 3,
        "model_writer": model,
        "model_type": "bpe",
        "vocab_size": 340,
        "user_defined_symbols": ["<|im_start|>", "<|im_end|>"],
        "character_coverage": 1.0,
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "add_dummy_prefix": False,
        "remove_extra_whitespaces": False,
        "split_by_whitespace": False,
        "num_threads": 1,
        "minloglevel": 2,
    }
    options |= changes
    options["sentence_iterator"] = iter(options["sentence_iterator"])
    sentencepiece.SentencePieceTrainer.train(**options)
    path.write_bytes(model.getvalue())
    return path


@PROPERTY
@given(TEXT)
def test_its_ids_are_ours(text):
    ids = EMBEDDED.encode(text, add_special_tokens=False).ids
    assert ids == OURS.encode(text, allow_special=True)
    assert EMBEDDED.decode(ids, skip_special_tokens=False) == text


def test_so_are_those_of_another_model_with_control_pieces(tmp_path):
    path = trained(tmp_path / "tokenizer.model")
    ours, theirs = SentencePieceTokenizer(path), same_tokenizer(path)
    text = "<s>Use the calculator, 中文 then</s> put\u2581 it <s"
    ids = ours.encode(text, allow_special=True)
    assert theirs.encode(text, add_special_tokens=False).ids == ids
    assert (ids[0], ours.decode(ids)) == (ours.id_of("<s>"), text)
    assert ours.id_of("<s>") not in ours.encode(text)
    assert ours.decode(ours.encode(text)) == text


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"model_type": "unigram"}, "isn't BPE"),
        ({"user_defined_symbols": ["<|im_end|>", "a<s>b"]}, "it makes"),
        ({"sentence_iterator": [*["aaa"] * 99, *LINES]}, "neighbours that overlap"),
    ],
)
def test_what_the_library_cannot_do_is_said(tmp_path, changes, why):
    with pytest.raises(NotTheSameError, match=why):
        same_tokenizer(trained(tmp_path / "tokenizer.model", **changes))


def exported(folder, tokenizer=EMBEDDED_TOKENIZER, source=None):
    """A tiny policy's export and what was said."""
    ids = SentencePieceTokenizer(tokenizer).vocab_size
    mesh = make_mesh(MeshConfig())
    model = Decoder(Architecture(ids, 8, 1, 2, 1, 4, 8, tie_embeddings=True), Compute(), mesh)
    params = init_params(model, jax.random.key(0), mesh)
    return save_checkpoint(folder, params, model, source, tokenizer)


def test_auto_tokenizer_gives_our_ids_of_an_export(tmp_path):
    with quiet_import():
        from transformers import AutoTokenizer, GenerationConfig
    assert exported(tmp_path / "export") == []
    theirs = AutoTokenizer.from_pretrained(str(tmp_path / "export"))
    chat = make_chat(PolicyConfig(), [SCHEMA])
    messages = [{"role": "user", "content": "How many atoms are in 2 mol of Fe2O3?"}]
    function = {"type": "function", "function": SCHEMA}
    rendered = theirs.apply_chat_template(
        messages, tools=[function], add_generation_prompt=True, tokenize=False
    )
    ids = chat.prompt_ids(messages)
    assert theirs(rendered, add_special_tokens=False).input_ids == ids
    assert theirs(rendered).input_ids == ids, "no BOS is put before it"
    assert theirs.decode(ids) == chat.tokenizer.decode(ids)
    assert theirs.eos_token_id == chat.end_of_turn
    generation = GenerationConfig.from_pretrained(str(tmp_path / "export"))
    assert generation.eos_token_id == chat.end_of_turn
    config = json.loads((tmp_path / "export/config.json").read_text())
    assert config["eos_token_id"] == chat.end_of_turn
    # And this package reads the folder as the tokenizer it was.
    again = make_chat(PolicyConfig(checkpoint=str(tmp_path / "export")), [SCHEMA])
    assert isinstance(again.tokenizer, SentencePieceTokenizer)
    assert again.prompt_ids(messages) == ids


def test_an_export_that_transformers_reads_otherwise_says_so(tmp_path):
    tokenizer = trained(tmp_path / "unigram.model", model_type="unigram")
    (note,) = exported(tmp_path / "export", tokenizer)
    assert note.startswith(f"warning: {tokenizer}: transformers can't be made to give the ids")
    assert not (tmp_path / "export/tokenizer.json").exists()


def test_another_tokenizers_ids_do_not_go_along(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    ids = {"bos_token_id": 9000, "eos_token_id": [9001, 9002], "pad_token_id": 9000}
    (source / "config.json").write_text(json.dumps({"model_type": "qwen3", **ids}))
    (source / "generation_config.json").write_text(json.dumps({"top_p": 0.8, **ids}))
    template = EMBEDDED_TEMPLATE.read_text(encoding="utf-8").replace("tools>", "list>")
    settings = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "chat_template": template}
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    exported(tmp_path / "export", source=source)
    eos = OURS.id_of("<|im_end|>")
    generation = json.loads((tmp_path / "export/generation_config.json").read_text())
    assert generation == {"top_p": 0.8, "eos_token_id": eos}
    config = json.loads((tmp_path / "export/config.json").read_text())
    assert {key: config[key] for key in config if key.endswith("_token_id")} == {
        "eos_token_id": eos
    }
    assert (tmp_path / "export/chat_template.jinja").read_text(encoding="utf-8") == template
    (source / "generation_config.json").write_text("[]")
    with pytest.raises(UsageError, match=r"generation_config\.json: expected an object, got list"):
        exported(tmp_path / "other", source=source)
    assert not (tmp_path / "other").exists()


def sentence_piece_checkpoint(folder, family, tokenizer=EMBEDDED_TOKENIZER):
    """A checkpoint with a SentencePiece tokenizer of its own, as others publish it."""
    checkpoints.make(folder, family, vocab_size=520, num_hidden_layers=1)
    shutil.copy(tokenizer, folder / "tokenizer.model")
    settings = {
        "tokenizer_class": "LlamaTokenizer",
        "add_bos_token": True,
        "chat_template": EMBEDDED_TEMPLATE.read_text(encoding="utf-8"),
        "added_tokens_decoder": {"2": {"content": "<|im_end|>", "rstrip": True}},
        "eos_token": "<|im_end|>",
        "pad_token": "<pad>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "special_tokens_map.json").write_text('{"eos_token": "<|im_end|>"}')
    # transformers' own conversion, which has other ids.
    (folder / "tokenizer.json").write_text('{"model": {}, "added_tokens": []}')
    return folder


def exported_again(folder, source):
    """The export of a run from that checkpoint, and what was said but for its ends."""
    mesh, policy = make_mesh(MeshConfig()), PolicyConfig(checkpoint=str(source))
    model = make_decoder(policy, 520, mesh)
    params = load_params(source, model, mesh, jax.random.key(0))
    notes = export_policy(folder, params, model, policy)
    return [note for note in notes if not note.startswith("generation_config.json")]


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_auto_tokenizer_gives_the_ids_of_a_checkpoints_own_sentence_piece_model(tmp_path, family):
    with quiet_import():
        from transformers import AutoTokenizer
    source, target = sentence_piece_checkpoint(tmp_path / "source", family), tmp_path / "target"
    assert exported_again(target, source) == []
    theirs = AutoTokenizer.from_pretrained(str(target))
    messages = [{"role": "user", "content": "How many  atoms are in 2 mol of Fe2O3?"}]
    chat = make_chat(PolicyConfig(checkpoint=str(source)), ())
    ids = chat.prompt_ids(messages)
    options = {"add_generation_prompt": True, "return_dict": False}
    assert theirs.apply_chat_template(messages, **options) == ids
    assert theirs("<|im_end|> a").input_ids == chat.tokenizer.encode(
        "<|im_end|> a", allow_special=True
    )
    assert (theirs.eos_token_id, theirs.pad_token) == (chat.end_of_turn, None)
    # And this package reads the folder as it read the source.
    assert make_chat(PolicyConfig(checkpoint=str(target)), ()).prompt_ids(messages) == ids


def test_a_sentence_piece_model_that_transformers_reads_otherwise_stays_as_it_was(tmp_path):
    tokenizer = trained(tmp_path / "unigram.model", model_type="unigram")
    source = sentence_piece_checkpoint(tmp_path / "source", "llama", tokenizer)
    settings = json.loads((source / "tokenizer_config.json").read_text())
    del settings["added_tokens_decoder"]
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    (note,) = exported_again(tmp_path / "target", source)
    model = source / "tokenizer.model"
    assert note.startswith(f"warning: {model}: transformers can't be made to give the ids")
    for file in source.glob("*token*"):
        assert (tmp_path / "target" / file.name).read_bytes() == file.read_bytes()
