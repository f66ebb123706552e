"""Tool calls as a policy may write them: well formed, broken, hostile."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from worlds import PROPERTY

from elpo_jax.rollout.tool_calls import ALL, CallParser
from elpo_jax.rollout.tree import ToolCall
from elpo_jax.tools.base import Observation
from elpo_jax.tools.call_forms import FORMS, LLAMA3, LLAMA3_TAG


class FakeTool:
    def __init__(self, name, parameters):
        self.name = name
        self.schema = {"name": name, "description": "", "parameters": parameters}

    def initial_state(self):
        return None

    def call(self, state, arguments):
        return state, Observation("done")


PYTHON = FakeTool(
    "python",
    {
        "type": "object",
        "properties": {"code": {"type": "string"}, "seconds": {"type": "integer", "minimum": 1}},
        "required": ["code"],
        "additionalProperties": False,
    },
)
ANYTHING = FakeTool("anything", {"type": "object"})
PARSER = CallParser([PYTHON, ANYTHING])


def only(requests):
    """The request of a turn with one."""
    (request,) = requests.calls
    assert not requests.has_more
    return request


def turn(call, before="", after=""):
    return f"{before}<tool_call>\n{call}\n</tool_call>{after}"


def wrap(arguments, name="python"):
    return json.dumps({"name": name, "arguments": arguments})


@pytest.mark.parametrize(
    "text", ["", "The answer is 4.", "</tool_call>", "<tool_call", "< tool_call>"]
)
def test_a_turn_without_a_call_is_an_answer(text):
    assert PARSER.parse(text) == ((), False)


@pytest.mark.parametrize(
    "text",
    [
        turn(wrap({"code": "1"})),
        turn(wrap({"code": "1"}), before="First I compute.\n", after="\n \n"),
        f"<tool_call>{wrap({'code': '1'})}</tool_call>",
        '<tool_call> {"arguments" : {"code":"1"},\n "name":"python"}\t</tool_call>',
    ],
)
def test_calls_are_found(text):
    assert only(PARSER.parse(text)) == ToolCall("python", {"code": "1"})


def test_a_string_may_hold_the_closing_tag():
    code = 'print("</tool_call>")\n<tool_call>{}'
    assert only(PARSER.parse(turn(wrap({"code": code})))) == ToolCall("python", {"code": code})


def test_code_may_hold_raw_newlines_and_tabs():
    text = turn('{"name": "python", "arguments": {"code": "if 1:\n\tprint(2)"}}')
    assert only(PARSER.parse(text)) == ToolCall("python", {"code": "if 1:\n\tprint(2)"})


@PROPERTY
@given(
    st.dictionaries(
        st.text(),
        st.recursive(
            st.none()
            | st.booleans()
            | st.integers()
            | st.floats(allow_nan=False, allow_infinity=False)
            | st.text(),
            lambda inner: (
                st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
            ),
            max_leaves=8,
        ),
        max_size=4,
    ),
    st.booleans(),
)
def test_any_arguments_are_read_as_written(arguments, ensure_ascii):
    text = json.dumps({"name": "anything", "arguments": arguments}, ensure_ascii=ensure_ascii)
    assert only(PARSER.parse(turn(text))) == ToolCall("anything", arguments)


GOOD = wrap({"code": "1"})
NESTED = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<tool_call>", "Expecting value (char 0)"),
        (turn("{'name': 'python'}"), "Expecting property name enclosed in double quotes (char 1)"),
        (turn("python(1)"), "Expecting value (char 0)"),
        (turn('{"name": "python", "arguments": {"code": "1}'), "Unterminated string starting at"),
        (f"<tool_call>\n{GOOD}", "expected </tool_call> after the JSON object"),
        (f"<tool_call>\n{GOOD},</tool_call>", "expected </tool_call> after the JSON object"),
        (f"<tool_call>\n{GOOD}}}</tool_call>", "expected </tool_call> after the JSON object"),
        (turn(GOOD, after=" It is 4."), "expected the turn to end after </tool_call>"),
        (turn(GOOD, after="\n</tool_call>"), "expected the turn to end after </tool_call>"),
        (turn(GOOD, after="\n<tool_response>\n4"), "expected the turn to end after </tool_call>"),
        (turn(turn(GOOD)), "Expecting value (char 0)"),
        (turn(f"[{GOOD}]"), 'expected an object with "name" and "arguments"'),
        (turn('"python"'), 'expected an object with "name" and "arguments"'),
        (turn('{"name": "python"}'), 'expected an object with "name" and "arguments"'),
        (turn('{"name": "python", "arguments": {}, "id": 1}'), 'expected an object with "name"'),
        (turn('{"name": 1, "arguments": {}}'), 'expected "name" a string'),
        (turn('{"name": ["python"], "arguments": {}}'), 'expected "name" a string'),
        (turn('{"name": "python", "arguments": "{}"}'), '"arguments" an object'),
        (turn('{"name": "python", "arguments": null}'), '"arguments" an object'),
        (
            turn('{"name": "python", "arguments": {"code": "1", "code": "2"}}'),
            "duplicate key 'code'",
        ),
        (turn('{"name": "anything", "name": "python", "arguments": {}}'), "duplicate key 'name'"),
        (turn('{"name": "anything", "arguments": {"x": [{"": 1, "": 2}]}}'), "duplicate key ''"),
        (turn('{"name": "anything", "arguments": {"x": NaN}}'), "expected JSON numbers, got NaN"),
        (turn('{"name": "anything", "arguments": {"x": -Infinity}}'), "got -Infinity"),
        (turn('{"name": "anything", "arguments": {"x": 1e999}}'), "Out of range float values"),
        (turn('{"name": "anything", "arguments": {"x": "\\ud800"}}'), "lone surrogate"),
        (turn('{"name": "\\udfff", "arguments": {}}'), "lone surrogate"),
        (turn(f'{{"name": "anything", "arguments": {{"x": {"9" * 5000}}}}}'), "4300 digits"),
        (turn(f'{{"name": "anything", "arguments": {{"x": {NESTED}}}}}'), "nested too deeply"),
    ],
)
def test_malformed_calls(text, message):
    error = only(PARSER.parse(text))
    assert isinstance(error, Observation)
    assert error.error == "malformed_call"
    assert error.text.startswith("error: malformed call: ")
    assert message in error.text


@pytest.mark.parametrize("name", ["pyhton", "", "Python", "python ", "__class__"])
def test_unknown_tools(name):
    assert only(PARSER.parse(turn(wrap({}, name)))) == Observation(
        f"error: unknown tool: {name.strip()}", "unknown_tool"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "$: 'code' is a required property"),
        ({"code": 3}, "$.code: 3 is not of type 'string'"),
        ({"code": "1", "seconds": "9"}, "$.seconds: '9' is not of type 'integer'"),
        ({"code": "1", "seconds": 3.0}, "$.seconds: 3.0 is not of type 'integer'"),
        ({"code": "1", "seconds": True}, "$.seconds: True is not of type 'integer'"),
        ({"code": "1", "seconds": 0}, "$.seconds: 0 is less than the minimum of 1"),
        ({"code": "1", "x": 1}, "$: Additional properties are not allowed ('x' was unexpected)"),
    ],
)
def test_arguments_that_do_not_fit_the_schema(arguments, message):
    assert only(PARSER.parse(turn(wrap(arguments)))) == Observation(
        f"error: bad arguments: {message}", "bad_arguments"
    )


def test_error_messages_are_one_short_line():
    for call in (wrap({"code": ["x\n" * 50_000]}), wrap({}, "no\n\nsuch\u2028tool " * 5000)):
        error = only(PARSER.parse(turn(call)))
        assert len(error.text.splitlines()) == 1
        assert len(error.text) < 200
        assert error.text.endswith("...")


SEVERAL = turn(GOOD) + "\n" + turn(wrap({"code": "2"}))
BOTH = (ToolCall("python", {"code": "1"}), ToolCall("python", {"code": "2"}))
ALL_PARSER = CallParser([PYTHON, ANYTHING], calls=ALL)


def test_several_calls():
    assert PARSER.parse(SEVERAL) == (BOTH[:1], True)
    assert ALL_PARSER.parse(SEVERAL) == (BOTH, False)
    assert ALL_PARSER.parse(turn(GOOD)) == (BOTH[:1], False)
    assert ALL_PARSER.parse("no call") == ((), False)


def test_a_wrong_call_among_several():
    wrong = wrap({"code": 3})
    first, second, third = ALL_PARSER.parse(turn(wrong) + turn(wrap({}, "x")) + turn(GOOD)).calls
    assert (first.error, second.error, third) == ("bad_arguments", "unknown_tool", BOTH[0])
    (error,), has_more = PARSER.parse(turn(wrong) + turn(GOOD))
    assert (error.error, has_more) == ("bad_arguments", True)


@pytest.mark.parametrize("after", ["<tool_call>", turn("{]"), turn(GOOD, after="4")])
def test_nothing_is_looked_for_behind_a_malformed_call(after):
    good, bad = ALL_PARSER.parse(turn(GOOD) + after).calls
    assert (good, bad.error) == (BOTH[0], "malformed_call")
    assert PARSER.parse(turn(GOOD) + after) == (BOTH[:1], True)
    assert len(ALL_PARSER.parse(after + turn(GOOD)).calls) == 1


@PROPERTY
@given(st.lists(st.sampled_from(["<tool_call>", "</tool_call>", GOOD, "{", "}", '"', "\n", "x"])))
def test_every_turn_is_an_answer_a_call_or_an_error(parts):
    text = "".join(parts)
    parsed = PARSER.parse(text)
    assert (not parsed.calls) == ("<tool_call>" not in text)
    if parsed.calls and isinstance(parsed.calls[0], ToolCall):
        after = text.partition("<tool_call>")[2].strip().removeprefix(GOOD).strip()
        assert after.startswith("</tool_call>")
        rest = after.removeprefix("</tool_call>").strip()
        assert rest.startswith("<tool_call>") == parsed.has_more
        assert parsed.has_more or not rest


# --- The Llama-3 form -------------------------------------------------------------------------

LLAMA = CallParser([PYTHON, ANYTHING], LLAMA3)


def llama(arguments, name="python"):
    return json.dumps({"name": name, "parameters": arguments})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "The answer is 4.",
        "{1, 2}",
        '{"answer": 4}',
        "[" + llama({"code": "1"}) + "]",
        "First I compute.\n" + llama({"code": "1"}),  # not the whole turn
        turn(wrap({"code": "1"})),  # not its form
        '"name"',
        "<|python_tag",
    ],
)
def test_llama_answers(text):
    assert LLAMA.parse(text) == ((), False)


@pytest.mark.parametrize(
    "text",
    [
        llama({"code": "1"}),
        "\n <|python_tag|>" + llama({"code": "1"}) + "\n",
        "<|python_tag|> " + llama({"code": "1"}),
        '{ "parameters" : {"code":"1"},\n "name":"python"}',
    ],
)
def test_llama_calls_are_found(text):
    assert only(LLAMA.parse(text)) == ToolCall("python", {"code": "1"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"name": "python"', "Expecting ',' delimiter"),
        ('{"name": "python"}', 'expected an object with "name" and "parameters"'),
        (wrap({"code": "1"}), 'expected an object with "name" and "parameters"'),
        ("<|python_tag|>print(1)", "Expecting value (char 0)"),
        ("<|python_tag|>", "Expecting value (char 0)"),
        (llama({"code": "1"}) + " It is 4.", "expected the turn to end after the JSON object"),
        (llama({"code": "1"}) + "; " + llama({}), "expected the turn to end after the JSON object"),
        ('{"name": 1, "parameters": {}}', 'expected "name" a string and "parameters" an object'),
        ('{"name": "python", "parameters": {}, "parameters": {}}', "duplicate key 'parameters'"),
        ('{"name": "anything", "parameters": {"x": NaN}}', "expected JSON numbers, got NaN"),
        ('{"name": "anything", "parameters": {"x": "\\ud800"}}', "lone surrogate"),
        (f'{{"name": "anything", "parameters": {{"x": {NESTED}}}}}', "nested too deeply"),
    ],
)
def test_malformed_llama_calls(text, message):
    error = only(LLAMA.parse(text))
    assert error.error == "malformed_call"
    assert message in error.text


def test_llama_calls_are_checked_as_others():
    assert only(LLAMA.parse(llama({}, "pyhton"))).error == "unknown_tool"
    assert only(LLAMA.parse(llama({}))).error == "bad_arguments"


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@PROPERTY
@given(arguments=st.dictionaries(st.text(), st.text() | st.integers() | st.lists(st.text())))
def test_what_is_written_is_read(form, arguments):
    parser = CallParser([ANYTHING], form)
    assert only(parser.parse(form.write("anything", arguments))) == ToolCall("anything", arguments)


def test_forms_as_templates_write_them():
    written = {form.name: form.write("f", {"x": "é\n"}) for form in FORMS.values()}
    call = '{"name": "f", "parameters": {"x": "é\\n"}}'
    assert written == {
        "hermes": '<tool_call>\n{"name": "f", "arguments": {"x": "é\\n"}}\n</tool_call>',
        "llama3": call,
        "llama3_tag": f"<|python_tag|>{call}",
    }
    assert only(CallParser([ANYTHING], LLAMA3_TAG).parse(llama({}, "anything")))


def test_tools_are_checked_at_construction():
    with pytest.raises(ValueError, match="distinct names"):
        CallParser([PYTHON, PYTHON])
    with pytest.raises(ValueError, match="tool 'bad': expected a JSON schema"):
        CallParser([FakeTool("bad", {"type": "objekt"})])
    with pytest.raises(ValueError, match="tool 'none': expected a JSON schema"):
        CallParser([FakeTool("none", None)])
