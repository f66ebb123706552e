"""The tokenizer: exactness on any text, control tokens, consistent atoms, training."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st
from worlds import PROPERTY

from elpo_jax.policy import train_tokenizer
from elpo_jax.policy.tokenizer import (
    CONTROL,
    EMBEDDED,
    EMBEDDED_TOKENIZER,
    SentencePieceTokenizer,
    tokenizer_file,
)
from elpo_jax.tasks.science.elements import elements

TOKENIZER = SentencePieceTokenizer()
HOSTILE = (
    *CONTROL,
    "<",
    "<|",
    "|im_end|>",
    "<tool_call>\n",
    "<0x41>",
    "<unk>",
    "</s>",
    "\u2581",
    "\u2581\u2581",
    "\n",
    "\r\n",
    " ",
    "  ",
    "\x00",
    "\ufeff",
    "\u2028",
    "e\u0301",
    "\U0001f600",
    "\ufffd",
    "Fe2O3",
    '"}}\n</tool_call>',
)
TEXT = st.text() | st.lists(st.sampled_from(HOSTILE), max_size=8).map("".join)


@PROPERTY
@given(TEXT, st.booleans())
def test_decoding_restores_any_text(text, allow_special):
    ids = TOKENIZER.encode(text, allow_special=allow_special)
    assert TOKENIZER.decode(ids) == text
    assert all(0 <= token < TOKENIZER.vocab_size for token in ids)


@PROPERTY
@given(TEXT)
def test_untrusted_text_has_no_control_tokens(text):
    pieces = [TOKENIZER.decode([token]) for token in TOKENIZER.encode(text)]
    assert not [piece for piece in pieces if any(control in piece for control in CONTROL)]


@PROPERTY
@given(st.lists(st.integers(0, TOKENIZER.vocab_size - 1)))
def test_any_ids_decode_to_unicode(ids):
    TOKENIZER.decode(ids).encode()


@pytest.mark.parametrize("text", CONTROL)
def test_control_strings_are_one_token_where_allowed(text):
    assert TOKENIZER.encode(text, allow_special=True) == [TOKENIZER.id_of(text)]
    assert len(TOKENIZER.encode(text)) > 1


def test_empty_text_has_no_tokens():
    assert TOKENIZER.encode("") == []
    assert TOKENIZER.decode([]) == ""


def test_lone_surrogates_are_refused():
    with pytest.raises(ValueError, match=r"lone surrogates, got '\\ud800' at 2"):
        TOKENIZER.encode("ab\ud800")


def test_id_of_names_the_missing_piece():
    assert TOKENIZER.decode([TOKENIZER.id_of(" of ")]) == " of "
    with pytest.raises(ValueError, match="'<s>'"):
        TOKENIZER.id_of("<s>")


def test_vocabulary_can_be_sharded():
    assert TOKENIZER.vocab_size == 512


CONTEXTS = (
    "{}2O3",
    "Ca({}O4)2",
    "K4{}(CN)6",
    "NO{}",
    "Which has the lowest density: C, {} or O?",
    "12.5% {} and 3.0% C",
    "element Z({})+Z(O)",
    '{{"name": "lookup", "arguments": {{"element": "{}", "property": "density"}}}}',
    "\\boxed{{{}}}",
    "{}",
)


@pytest.mark.parametrize("context", CONTEXTS)
def test_an_element_symbol_is_the_same_token_everywhere(context):
    before, after = context.format("@").split("@")
    for element in elements():
        expected = [TOKENIZER.id_of(element.symbol)]
        assert TOKENIZER.encode(before + element.symbol + after) == [
            *TOKENIZER.encode(before),
            *expected,
            *TOKENIZER.encode(after),
        ]


@PROPERTY
@given(st.text("0123456789.+-*/()e", min_size=1))
def test_expressions_are_single_characters(expression):
    before, after = '{"name": "calculator", "arguments": {"expression": "', '"}}'
    assert TOKENIZER.encode(before + expression + after) == [
        *TOKENIZER.encode(before),
        *(TOKENIZER.id_of(character) for character in expression),
        *TOKENIZER.encode(after),
    ]


def test_files_that_are_no_lossless_model_are_refused(tmp_path):
    missing = tmp_path / "missing.model"
    with pytest.raises(ValueError, match=r"missing\.model: expected a readable"):
        SentencePieceTokenizer(missing)
    broken = tmp_path / "broken.model"
    broken.write_bytes(b"not a model")
    with pytest.raises(ValueError, match=r"broken\.model: expected a readable"):
        SentencePieceTokenizer(broken)
    plain = tmp_path / "plain.model"
    with plain.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(["a few words", "and a few more"]),
            model_writer=file,
            vocab_size=16,
            minloglevel=2,
        )
    with pytest.raises(ValueError, match="trained with byte_fallback"):
        SentencePieceTokenizer(plain)


# Enough different words for 320 pieces.
FILLER = {a + b + c: 1 for a in "bcdfg" for b in "aeiou" for c in "klmnr"}
TEXTS = Counter({**FILLER, "How heavy is Fe2O3?": 5, "How heavy is Ca?": 3, "Not often: 3.5 g": 1})


def small(symbols, size=320):
    recipe = train_tokenizer.science_recipe(symbols)
    return replace(recipe, vocab_size=size, phrases=1)


def test_training_is_deterministic_and_takes_frequent_phrases(tmp_path):
    models = [train_tokenizer.train(TEXTS, small(["Fe", "O", "Ca"])) for _ in range(2)]
    assert models[0] == models[1]
    path = tmp_path / "small.model"
    path.write_bytes(models[0])
    tokenizer = SentencePieceTokenizer(path)
    pieces = [tokenizer.decode([token]) for token in tokenizer.encode("How heavy is Fe2O3?")]
    assert pieces == ["How heavy is ", "Fe", "2", "O", "3", "?"]


@pytest.mark.parametrize(("size", "message"), [(300, "multiple of 64"), (6400, "vocab_size 6400")])
def test_impossible_vocabulary_sizes_are_refused(size, message):
    with pytest.raises(ValueError, match=message):
        train_tokenizer.train(TEXTS, small(["Fe"], size))


def test_phrases_never_cut_a_control_string():
    texts = Counter({**FILLER, "a<|im_start|>user words": 9, "b<|im_start|>user words": 9})
    model = sentencepiece.SentencePieceProcessor(
        model_proto=train_tokenizer.train(texts, small(["Fe"]))
    )
    assert "<|im_start|>user\u2581words" in [model.id_to_piece(i) for i in range(320)]


@pytest.mark.parametrize("arguments", [[], ["science"], ["sciense", "out.model"]])
def test_the_command_needs_a_name_and_a_path(arguments):
    with pytest.raises(SystemExit, match=r"usage: .*science\|search\|code OUT"):
        train_tokenizer.main(["train_tokenizer", *arguments])


MODELS = {"science": EMBEDDED_TOKENIZER} | {
    setting.removeprefix("embedded:"): path for setting, path in EMBEDDED.items()
}


@pytest.mark.slow
@pytest.mark.parametrize("name", train_tokenizer.TOKENIZERS)
def test_the_command_makes_the_embedded_models(name, tmp_path):
    out: Path = tmp_path / "tokenizer.model"
    train_tokenizer.main(["train_tokenizer", name, str(out)])
    assert out.read_bytes() == MODELS[name].read_bytes()


def test_settings_name_embedded_models_and_files():
    assert tokenizer_file("") == EMBEDDED_TOKENIZER
    assert tokenizer_file("embedded:code").name == "code.model"
    assert tokenizer_file("my.model") == Path("my.model")
    assert all(SentencePieceTokenizer(path).vocab_size % 64 == 0 for path in EMBEDDED.values())
