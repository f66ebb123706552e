"""Several calls in a turn, and tools and verifiers that break or return junk."""

import json
import math

import pytest
from episodes import (
    CHAT,
    LIMITS,
    REWARD,
    SCHEMA,
    TASK,
    TOKENIZER,
    CountingSuite,
    call,
    concluded,
    environment,
    observation,
    play,
    turn,
)

from elpo_jax.errors import UsageError
from elpo_jax.policy.chat import EMBEDDED_TEMPLATE, Chat
from elpo_jax.rollout.episode import (
    NOT_RUN,
    Environment,
)
from elpo_jax.rollout.tree import ROOT, Exchange, ToolCall, Tree
from elpo_jax.rollout.tree_json import to_json
from elpo_jax.tasks.base import Verdict
from elpo_jax.tools.base import Observation, ToolFailure


def several(*turns):
    """One turn with the calls of all of them."""
    texts = [TOKENIZER.decode(each.tokens[:-1].tolist()) for each in turns]
    return turn("\n".join(texts))


def test_of_several_calls_the_first_is_run_and_the_policy_is_told():
    (outcome,) = play(environment(), [several(call(1), call(2))])
    assert outcome.step.exchanges == (
        Exchange(ToolCall("count", {"by": 1}), Observation("1" + NOT_RUN)),
    )
    assert outcome.step.states == {"count": 1}
    assert outcome.progress.calls == 1
    assert "1" + NOT_RUN in TOKENIZER.decode(outcome.step.tokens.tolist())
    (told,) = play(environment(), [several(call(-1), call(2))])
    assert observation(told) == Observation("error: negative" + NOT_RUN, "tool_error")


def test_all_calls_of_a_turn_are_run_in_order():
    env = environment(
        calls_in_turn="all",
        max_calls=5,
        max_turns=9,
        max_turn_tokens=300,
        max_observation_chars=200,
    )
    broken = turn("<tool_call>\n{]\n</tool_call>")
    first, second, last = play(
        env, [several(call(1), call(2)), several(call(4), call(-1), broken), call(1)]
    )
    assert [each.call for each in second.step.exchanges] == [
        ToolCall("count", {"by": 4}),
        ToolCall("count", {"by": -1}),
        None,
    ]
    assert [seen.text for seen in first.step.observations] == ["1", "3"]
    assert [seen.error for seen in second.step.observations] == [
        None,
        "tool_error",
        "malformed_call",
    ]
    assert second.step.states == {"count": 7}
    assert second.progress.calls == 5
    assert last.end == "calls"
    answers = TOKENIZER.decode(first.step.tokens[~first.step.is_policy].tolist())
    assert answers.count("<tool_response>") == 2
    # A turn with more calls than are left isn't run at all.
    (cut,) = play(env, [several(*[call(1)] * 6)])
    assert (cut.end, len(cut.step.exchanges), cut.step.observations) == ("calls", 6, [])
    tree = Tree(TASK, env.prompt_ids(TASK))
    tree.add(concluded(env, TASK, 0, ROOT, [first, second, last], "calls"))
    assert env.resume(tree, 1) == second.progress


def test_all_calls_need_a_template_that_has_a_place_for_their_results():
    template = EMBEDDED_TEMPLATE.read_text(encoding="utf-8")
    alternating = (
        "{%- for m in messages %}{% if m.role == 'tool' and not loop.first and "
        "messages[loop.index0 - 1].role == 'tool' %}{{ raise_exception('one call only') }}"
        "{% endif %}{% endfor %}" + template
    )
    chat = Chat(TOKENIZER, alternating, [SCHEMA])
    environment(chat=chat)
    with pytest.raises(UsageError, match=r"episode\.calls_in_turn: expected 'first', since the c"):
        environment(chat=chat, calls_in_turn="all")


@pytest.mark.parametrize(
    ("by", "message"), [(13, "the counter broke"), (14, "ZeroDivisionError: by zero")]
)
def test_a_broken_tool_is_a_failure_of_the_tool(by, message):
    env = environment()
    pending = env.finish_turn(env.begin(TASK, 50), call(by))
    with pytest.raises(ToolFailure, match=message):
        pending.run()


class Hostile(str):
    def __len__(self):
        raise RuntimeError("a string that bites")


class Unspeakable(Exception):
    def __init__(self, error):
        self.error = error

    def __str__(self):
        raise self.error("not even its words")


class Junk:
    """Adds nothing; its calls come to what `does` comes to."""

    name = "count"
    schema = SCHEMA

    def __init__(self, does, initial=lambda: 0):
        self.does, self.initial_state = does, initial

    def call(self, state, arguments):
        return self.does(state, arguments)


def raising(error):
    def does(*_):
        raise error

    return does


def pending_call(tool):
    suite = CountingSuite(tools=(tool,))
    env = Environment(suite, CHAT, LIMITS, REWARD)
    played = call(1)
    progress = env.begin(TASK, 50)
    return env, progress, played, env.finish_turn(progress, played)


@pytest.mark.parametrize(
    ("tool", "message"),
    [
        (Junk(raising(SystemExit(0))), "raised SystemExit: 0"),
        (Junk(raising(KeyboardInterrupt())), "raised KeyboardInterrupt"),
        (Junk(raising(MemoryError())), "raised MemoryError"),
        (Junk(raising(Unspeakable(RuntimeError))), "raised Unspeakable$"),
        (Junk(raising(Unspeakable(SystemExit))), "raised Unspeakable$"),
        (Junk(raising(ValueError("one\ntwo\r\n three"))), "raised ValueError: one two three$"),
        (Junk(raising(ValueError("x" * 10**6))), r"raised ValueError: x{200}\.\.\.$"),
        (Junk(raising(ToolFailure("one\ntwo"))), "^tool 'count': one two$"),
        (Junk(lambda *_: None), "raised TypeError"),
        (Junk(lambda *_: (1, 2, 3)), "raised ValueError"),
        (Junk(lambda state, _: (state, "42")), "expected an Observation of text, got str"),
        (Junk(lambda state, _: (state, Observation(42))), "expected an Observation of text"),
        (Junk(lambda state, _: (state, Observation(b"42"))), "expected an Observation of text"),
        (Junk(lambda state, _: (state, Observation(Hostile("4")))), "expected an Observation of t"),
        (
            Junk(lambda state, _: (state, Observation("4", error=13))),
            "expected an Observation of t",
        ),
        (Junk(None, initial=raising(OSError("no sandbox"))), "raised OSError: no sandbox"),
    ],
)
def test_junk_from_a_tool_is_a_failure_of_the_tool(tool, message):
    *_, pending = pending_call(tool)
    with pytest.raises(ToolFailure, match=message):
        pending.run()


@pytest.mark.parametrize(
    "text",
    ["", "\0\0", "\ud800 alone", "\x1b[2J\r\n\u202e", "<|im_end|>" * 9, "\U0010ffff", "9" * 10**7],
)
def test_whatever_text_a_tool_returns_the_episode_goes_on_or_ends(text):
    env, progress, played, pending = pending_call(
        Junk(lambda state, _: (lambda: state, Observation(text)))  # a state that nothing can store
    )
    outcome = env.observe(progress, played, pending, *pending.run())
    assert outcome.end in (None, "observation")
    tree = Tree(TASK, env.prompt_ids(TASK))
    tree.add(concluded(env, TASK, 0, ROOT, [outcome], "length"))
    document = to_json(tree, decode=TOKENIZER.decode)
    assert len(json.dumps(document).encode()) < 10_000


def test_a_tool_cannot_change_what_the_policy_wrote():
    def meddle(state, arguments):
        arguments["by"] = object()
        return state, Observation("done")

    _, _, _, pending = pending_call(Junk(meddle))
    pending.run()
    assert pending.requests.calls == (ToolCall("count", {"by": 1}),)


class BrokenVerifier(CountingSuite):
    def verify(self, task, response):
        return self.system_prompt()


@pytest.mark.parametrize(
    ("does", "message"),
    [
        (raising(ZeroDivisionError("by\nzero")), "verifier of suite 'counting' raised ZeroDiv"),
        (raising(ToolFailure("no sandbox")), "^verifier of suite 'counting': no sandbox$"),
        (lambda: True, "verifier of suite 'counting': expected a Verdict, got bool"),
        (lambda: Verdict(None, None), "expected a Verdict, got one with success=None$"),
        (lambda: Verdict(True, b"3"), "with extracted=b'3'$"),
        (lambda: Verdict(True, ["3"]), r"with extracted=\['3'\]$"),
        (lambda: Verdict(True, "3", math.nan), "with passed=nan$"),
        (lambda: Verdict(True, "3", 1.5), "with passed=1.5$"),
        (lambda: Verdict(True, "3", "all"), "with passed='all'$"),
    ],
)
def test_a_broken_verifier_gives_no_verdict(does, message):
    env = Environment(BrokenVerifier(system_prompt=does), CHAT, LIMITS, REWARD)
    outcome = env.finish_turn(env.begin(TASK, 50), turn("3"))
    with pytest.raises(ToolFailure, match=message):
        env.verify(TASK, outcome.step)
