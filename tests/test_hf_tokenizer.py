"""Tokenizers of checkpoints: any text, added tokens, agreement with transformers."""

import json
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from chat_folders import (
    LLAMA_SPECIAL,
    QWEN_ADDED,
    QWEN_SPECIAL,
    byte_level,
    llama_folder,
    qwen_folder,
    write_folder,
)
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
from worlds import PROPERTY

from elpo_jax.policy.hf_tokenizer import HuggingFaceTokenizer
from elpo_jax.policy.template import quiet_import

with quiet_import():
    from transformers import AutoTokenizer

ADDED = {"qwen": (*QWEN_SPECIAL, *QWEN_ADDED), "llama": LLAMA_SPECIAL}
FULLWIDTH = str.maketrans("<|>", "\uff1c\uff5c\uff1e")  # NFKC makes ASCII of them
HOSTILE = (
    *ADDED["qwen"],
    *ADDED["llama"],
    *(text.translate(FULLWIDTH) for text in ADDED["qwen"]),
    "<",
    "<|",
    "<<|im_end|>|im_end|>",
    "_call>",
    "\u0120",
    "\r\n",
    "  ",
    "\x00",
    "e\u0301",
    "\U0001f600",
    "\ufffd",
)
TEXT = st.text() | st.lists(st.sampled_from(HOSTILE) | st.text(max_size=3), max_size=8).map("".join)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("tokenizers")
    return {"qwen": qwen_folder(root / "qwen"), "llama": llama_folder(root / "llama")}


@pytest.fixture(scope="module")
def loaded(folders):
    return {name: HuggingFaceTokenizer(folder) for name, folder in folders.items()}


@pytest.mark.parametrize("name", ["qwen", "llama"])
@PROPERTY
@given(text=TEXT)
def test_no_text_yields_added_tokens(loaded, name, text):
    tokenizer = loaded[name]
    added = {tokenizer.id_of(piece) for piece in ADDED[name]}
    ids = tokenizer.encode(text)
    assert added.isdisjoint(ids)
    assert all(0 <= token < tokenizer.vocab_size for token in ids)
    # The Qwen layout normalises.
    expected = unicodedata.normalize("NFC", text) if name == "qwen" else text
    assert tokenizer.decode(ids) == expected


@pytest.mark.parametrize("name", ["qwen", "llama"])
@PROPERTY
@given(text=TEXT)
def test_trusted_text_is_encoded_as_transformers_does(folders, loaded, name, text):
    tokenizer = loaded[name]
    reference = AutoTokenizer.from_pretrained(str(folders[name]), local_files_only=True)
    ids = tokenizer.encode(text, allow_special=True)
    assert ids == reference.encode(text, add_special_tokens=False)
    decoded = reference.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    assert tokenizer.decode(ids) == decoded


@pytest.mark.parametrize("name", ["qwen", "llama"])
def test_added_tokens_are_one_id_where_allowed(loaded, name):
    tokenizer = loaded[name]
    for piece in ADDED[name]:
        ids = tokenizer.encode(piece, allow_special=True)
        assert ids == [tokenizer.id_of(piece)]
        assert tokenizer.decode(ids) == piece
        assert len(tokenizer.encode(piece)) > 1


@pytest.mark.parametrize("name", ["qwen", "llama"])
def test_nothing_is_put_before_a_text(loaded, name):
    for special in (False, True):
        assert loaded[name].encode("", allow_special=special) == []
        ids = loaded[name].encode(" a , b .", allow_special=special)
        assert loaded[name].decode(ids) == " a , b ."  # nor cleaned


def test_the_vocabulary_ends_with_the_highest_added_token(loaded, folders):
    for name, tokenizer in loaded.items():
        raw = Tokenizer.from_file(str(folders[name] / "tokenizer.json"))
        assert tokenizer.vocab_size == raw.token_to_id(ADDED[name][-1]) + 1
        assert loaded[name].decode(range(tokenizer.vocab_size + 100))  # beyond: no text


@pytest.mark.parametrize("name", ["qwen", "llama"])
@PROPERTY
@given(data=st.data())
def test_any_ids_decode_to_unicode(loaded, name, data):
    ids = st.lists(st.integers(0, loaded[name].vocab_size - 1))
    loaded[name].decode(data.draw(ids)).encode()


def test_lone_surrogates_are_refused(loaded):
    with pytest.raises(ValueError, match=r"lone surrogates, got '\\ud800' at 2"):
        loaded["qwen"].encode("ab\ud800")


def test_id_of_needs_one_token(loaded):
    with pytest.raises(ValueError, match=r"'<\|no_such\|>' to be one token"):
        loaded["qwen"].id_of("<|no_such|>")


def test_added_tokens_outside_ascii_are_read_as_written(tmp_path):
    tokenizer = byte_level()
    tokenizer.add_special_tokens(["<\uff5cend\u2581of\u2581turn\uff5c>", "<na\u00efve>"])
    loaded = HuggingFaceTokenizer(write_folder(tmp_path, tokenizer, "{{ 1 }}"))
    text = "<na\u00efve>caf\u00e9<\uff5cend\u2581of\u2581turn\uff5c>"
    ids = loaded.encode(text, allow_special=True)
    assert loaded.decode(ids) == text
    assert ids[-1] == loaded.id_of("<\uff5cend\u2581of\u2581turn\uff5c>")


def test_truncation_and_padding_in_the_file_are_not_for_us(tmp_path):
    tokenizer = byte_level()
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=64)
    loaded = HuggingFaceTokenizer(write_folder(tmp_path, tokenizer, "{{ 1 }}"))
    assert loaded.decode(loaded.encode("a long sentence " * 9)) == "a long sentence " * 9
    assert loaded.decode(loaded.encode("short", allow_special=True)) == "short"


def test_templates_have_names(tmp_path):
    named = [{"name": "default", "template": "A"}, {"name": "tool_use", "template": "B"}]
    folder = write_folder(tmp_path / "named", byte_level(), None, chat_template=named)
    loaded = HuggingFaceTokenizer(folder)
    assert (loaded.template(False), loaded.template(True)) == ("A", "B")
    loaded = HuggingFaceTokenizer(write_folder(tmp_path / "one", byte_level(), "C"))
    assert (loaded.template(False), loaded.template(True)) == ("C", "C")
    loaded = HuggingFaceTokenizer(write_folder(tmp_path / "none", byte_level(), None))
    with pytest.raises(ValueError, match=r"none: expected a chat template .*, found none"):
        loaded.template(True)


def with_word_piece(folder):
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    return write_folder(folder, tokenizer, None)


def with_prefix_space(folder):
    tokenizer = byte_level()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return write_folder(folder, tokenizer, None)


def lower_cased(folder):
    tokenizer = byte_level()
    tokenizer.normalizer = normalizers.Lowercase()
    return write_folder(folder, tokenizer, None)


def with_an_added_word(folder):
    tokenizer = byte_level()
    word = next(w for w in tokenizer.get_vocab() if w.isascii() and len(w) > 3)
    tokenizer.add_tokens([AddedToken(word, normalized=False)])
    return write_folder(folder, tokenizer, None)


def empty(folder):
    folder.mkdir()
    return folder


def with_file(name, content):
    """A maker of folders in which one file is another."""

    def make(folder):
        folder = write_folder(folder, byte_level(), None)
        (folder / name).write_text(content)
        return folder

    return make


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder, "expected a folder with a tokenizer, got none"),
        (empty, r"it: expected a tokenizer: tokenizer\.json, or vocab.* found none of them$"),
        (with_file("tokenizer.json", "{"), r"it/tokenizer\.json: expected JSON, got: Expecting"),
        (with_file("tokenizer.json", "[]"), r"tokenizer\.json: expected an object, got list"),
        (with_file("tokenizer.json", "{}"), "expected a tokenizer, with 'model' and .* keys "),
        (with_file("tokenizer_config.json", "no"), r"it/tokenizer_config\.json: expected JSON"),
        (
            with_file("tokenizer.json", '{"model": 1, "added_tokens": []}'),
            "expected a tokenizer that transformers can read, got: ",
        ),
        (with_word_piece, "expected a byte-level BPE tokenizer .*, got WordLevel"),
        (with_prefix_space, "expected a byte-level BPE tokenizer .*, got one that makes"),
        (lower_cased, "expected a byte-level BPE tokenizer .*, got one that makes"),
        (with_an_added_word, "expected added tokens that no merge of its BPE makes"),
    ],
)
def test_folders_that_can_not_be_used(tmp_path, make, message):
    with pytest.raises(ValueError, match=message) as caught:
        HuggingFaceTokenizer(make(tmp_path / "it"))
    assert str(caught.value).startswith(f"{tmp_path / 'it'}")
    assert len(str(caught.value).splitlines()) == 1


def test_loading_is_quiet_and_asks_nobody(folders, tmp_path):
    """Also where transformers has something to say about config.json."""
    folder = tmp_path / "it"
    shutil.copytree(folders["qwen"], folder)
    config = {"model_type": "qwen3", "vocab_size": 12, "pad_token_id": 9, "eos_token_id": 99}
    (folder / "config.json").write_text(json.dumps(config))
    code = (
        "import socket, sys\n"
        "def refuse(*_): raise AssertionError('network')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "from elpo_jax.policy.hf_tokenizer import HuggingFaceTokenizer\n"
        "assert 'transformers' not in sys.modules\n"
        f"print(HuggingFaceTokenizer({str(folder)!r}).vocab_size)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("385\n", "")


def test_folders_are_always_the_same(tmp_path):
    files = [qwen_folder(tmp_path / name) / "tokenizer.json" for name in "ab"]
    first, second = (json.loads(Path(file).read_text(encoding="utf-8")) for file in files)
    assert first == second
