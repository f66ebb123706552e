"""Conversations from files for the cold start: what is read, what is refused, in which order."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from worlds import PROPERTY

from elpo_jax.errors import UsageError
from elpo_jax.policy.chat import EMBEDDED_TEMPLATE, Chat
from elpo_jax.policy.tokenizer import SentencePieceTokenizer
from elpo_jax.tasks.conversations import read_conversations
from elpo_jax.tools.calculator import Calculator

TOOL = {"type": "function", "function": dict(Calculator().schema)}
CHAT = Chat(SentencePieceTokenizer(), EMBEDDED_TEMPLATE.read_text(encoding="utf-8"))
LIMIT = 400


def call(arguments):
    function = {"name": "calculator", "arguments": arguments}
    return {"role": "assistant", "content": "", "tool_calls": [{"function": function}]}


def conversation(a=2, arguments=None):
    return {
        "messages": [
            {"role": "system", "content": "Use the tools."},
            {"role": "user", "content": f"{a} cans of 7 pens. How many?"},
            call(arguments or {"expression": f"{a}*7"}),
            {"role": "tool", "content": str(7 * a)},
            {"role": "assistant", "content": f"\\boxed{{{7 * a}}}"},
        ],
        "tools": [TOOL],
    }


def read(path, *rows, limit=LIMIT):
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return read_conversations(str(path), CHAT.conversation, limit)


def learnt(pair):
    """The texts of the policy's own tokens, a run each."""
    ids, is_policy = pair
    edges = np.flatnonzero(np.diff(np.concatenate([[0], is_policy, [0]])))
    return [CHAT.tokenizer.decode(ids[a:b]) for a, b in edges.reshape(-1, 2)]


def test_a_row_becomes_tokens_of_which_the_assistants_are_learnt(tmp_path):
    path = tmp_path / "sft.jsonl"
    found = read(path, conversation(), conversation(3))
    assert len(found.pairs) == 2
    call_text = '<tool_call>\n{"name": "calculator", "arguments": {"expression": "2*7"}}\n'
    assert learnt(found.pairs[0]) == [
        f"{call_text}</tool_call><|im_end|>",
        "\\boxed{14}<|im_end|>",
    ]
    ids, is_policy = found.pairs[0]
    assert (ids.dtype, is_policy.dtype, ids.shape) == (np.int32, bool, is_policy.shape)
    assert found.tools == ("calculator",)
    assert found.notes == (f"sft.data: {path}: conversations: 2, bad rows: 0",)


def test_turns_that_an_episode_refuses_are_counted(tmp_path):
    """An episode may run one call a turn only; such rows are learnt all the same."""
    twice = conversation()
    twice["messages"][2]["tool_calls"] *= 2
    text = conversation()
    written = CHAT.call_form.write("calculator", {"expression": "2*7"})
    text["messages"][2] = {"role": "assistant", "content": f"{written}\n{written}"}
    text["messages"][4:] = [text["messages"][2], text["messages"][3], text["messages"][4]]
    path = tmp_path / "sft.jsonl"
    found = read(path, conversation(), twice, text)
    assert len(found.pairs) == 3
    assert found.notes[1:] == (
        f"warning: sft.data: {path}: 2 conversations have turns with several calls (3 turns); they "
        "are learnt, but an episode runs more than the first call of a turn only with "
        "episode.calls_in_turn=all",
    )


def test_every_kind_of_file_gives_the_same_tokens(tmp_path):
    """Also where Parquet fills objects up with nulls, or columns hold JSON text."""
    rows = [conversation(), conversation(3, {"expression": "3*7", "digits": "2"})]
    expected = read(tmp_path / "sft.jsonl", *rows)
    (tmp_path / "sft.json").write_text(json.dumps(rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "sft.parquet")
    filled = pq.read_table(tmp_path / "sft.parquet").to_pylist()[0]["messages"]
    assert filled[0]["tool_calls"] is None
    assert filled[2]["tool_calls"][0]["function"]["arguments"]["digits"] is None
    text = [{name: json.dumps(value) for name, value in row.items()} for row in rows]
    pq.write_table(pa.Table.from_pylist(text), tmp_path / "text.parquet")
    for name in ("sft.json", "sft.parquet", "text.parquet"):
        found = read_conversations(str(tmp_path / name), CHAT.conversation, LIMIT)
        for pair, other in zip(found.pairs, expected.pairs, strict=True):
            np.testing.assert_array_equal(pair, other)
        assert found.digest != expected.digest


def test_tools_may_be_missing(tmp_path):
    plain = {"messages": [*conversation()["messages"][:2], {"role": "assistant", "content": "14"}]}
    for tools in ({}, {"tools": None}, {"tools": []}, {"tools": "[]"}, {"tools": ""}):
        found = read(tmp_path / "sft.jsonl", plain | tools)
        assert found.tools == ()
        assert learnt(found.pairs[0]) == ["14<|im_end|>"]


DEEP = "[" * 500 + "]" * 500


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("no", "expected JSON, got 'no'"),
        ({"tools": []}, "messages: expected this field, got 'tools'"),
        ({"messages": None}, "messages: expected a list, got NoneType"),
        ({"messages": []}, "messages: expected at least one, got none"),
        ({"messages": "no"}, "messages: expected JSON, got 'no'"),
        ({"messages": {"role": "user"}}, "messages: expected a list, got dict"),
        ({"messages": ["hello"]}, "messages[0]: expected an object, got 'hello'"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages: expected Unicode with"),
        ({"messages": [{"role": "user", "content": "a"}]}, "messages: expected the last to be an"),
        ({"messages": [{"role": "judge", "content": "a"}]}, "messages[0].role: expected one of"),
        ({"messages": [{"role": "user", "content": [1]}]}, "messages[0].content: expected text"),
        (conversation() | {"tools": "x"}, "tools: expected JSON, got 'x'"),
        (conversation() | {"tools": 1}, "tools: expected a list, got int"),
        (conversation() | {"tools": ["calculator"]}, "tools[0]: expected an object, got 'calcu"),
        (conversation() | {"tools": [{"name": "\udfff"}]}, "tools: expected Unicode without"),
        (
            {"messages": [{"role": "user", "content": "?"}, call("no")]},
            "messages[1].tool_calls[0].arguments: expected JSON, got",
        ),
        (
            conversation("2" * LIMIT),
            f"messages: expected at most the {LIMIT} tokens of the last of train.length_buckets, ",
        ),
        (
            {"messages": [{"role": "assistant", "content": "a<|im_end|>b"}]},
            "messages",
        ),
        (f'{{"messages": [{{"role": "user", "content": {DEEP}}}]}}', ""),
        (f'{{"messages": [{{"role": "assistant", "content": "a"}}], "tools": [{DEEP}]}}', ""),
        (f'{{"messages": [{{"role": "assistant"}}], "tools": [{{"name": {DEEP}}}]}}', ""),
    ],
)
def test_bad_rows_are_named_and_the_others_kept(tmp_path, row, problem):
    path = tmp_path / "sft.jsonl"
    found = read(path, conversation(), row, conversation(3))
    assert len(found.pairs) == 2
    line, counts = found.notes
    assert line.startswith(f"{path}:2: {problem}")
    assert line.isprintable()
    assert len(line) < len(str(path)) + 250
    assert counts.endswith("conversations: 2, bad rows: 1")


def test_a_file_without_a_usable_row_is_an_error(tmp_path):
    path = tmp_path / "sft.jsonl"
    with pytest.raises(UsageError) as caught:
        read(path, "no", {"messages": []})
    assert caught.value.problems == (
        f"sft.data: {path}: expected a row with messages that can be learnt from, got none",
        f"{path}:1: expected JSON, got 'no'",
        f"{path}:2: messages: expected at least one, got none",
    )
    with pytest.raises(UsageError, match="that can be learnt from, got none"):
        read(path)


def test_a_broken_file_is_an_error_in_one_line(tmp_path):
    path = tmp_path / "sft.parquet"
    path.write_text("no Parquet")
    with pytest.raises(UsageError) as caught:
        read_conversations(str(path), CHAT.conversation, LIMIT)
    (line,) = caught.value.problems
    assert line.startswith(f"sft.data: {path}: expected Parquet, got a fault: ")


MESSAGES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["role", "content", "tool_calls", "function", "name", "arguments", "type"]
            ),
            inner | st.sampled_from(["assistant", "user", "tool"]),
            max_size=4,
        )
    ),
    max_leaves=12,
)


@PROPERTY
@given(MESSAGES, MESSAGES)
def test_any_row_is_a_conversation_or_named(tmp_path_factory, messages, tools):
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    found = read(path, conversation(), {"messages": messages, "tools": tools})
    assert 1 <= len(found.pairs) <= 2
    assert all(line.isprintable() for line in found.notes)
