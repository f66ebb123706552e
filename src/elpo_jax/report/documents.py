"""What single trees say: their episodes, and where searches found the critical step."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from elpo_jax.report.origins import Origins, drifts, origins, outputs
from elpo_jax.report.run import Document
from elpo_jax.report.words import answer

MODES = {
    "wrong": "wrong answer",
    "unread": "no readable answer",
    "length": "out of tokens",
    "calls": "out of calls",
    "turns": "out of turns",
    "observation": "output too long",
    "eos": "call without the end of turn",
}

ENDS = {
    "answer": "answered",
    "length": "out of tokens",
    "calls": "out of calls",
    "turns": "out of turns",
    "observation": "output too long",
    "eos": "call without the end of turn",
}


class Turn(NamedTuple):
    """A turn in a few words: what it did, and what came back."""

    does: str
    output: str
    error: str | None


class Episode(NamedTuple):
    """A trajectory of a tree.

    Attributes:
      task: id of the task; with `ordinal` the same in every evaluation.
      kind, question, expected: of the task.
      ordinal: of the rollout.
      given: the answer that the verifier read, if any.
      success: its verdict.
      mode: how it failed, a key of `MODES`; '' for a success.
      error: kind of the first error that a tool answered, if any.
      error_text: what it said.
      calls: (tool, kind of error or None) of each, in order; see `does` for malformed ones.
      repeats: two of them were the same.
      solver_calls: how many the suite's solver makes; None in trees of before that was saved.
      origins: what its calls hold that nothing before them gave.
      drifts: the answer is a number, but not that of the last output.
      turns: all of them.
      tree: number of the tree in its file.
      leaf: node that ends the trajectory.
    """

    task: str
    kind: str
    question: str
    expected: str
    ordinal: int
    given: str | None
    success: bool
    mode: str
    error: str | None
    error_text: str
    calls: tuple[tuple[str, str | None], ...]
    repeats: bool
    solver_calls: int | None
    origins: Origins
    drifts: bool
    turns: tuple[Turn, ...]
    tree: int
    leaf: int


class Critical(NamedTuple):
    """A resolved search: where the trajectory was lost.

    Attributes:
      position: t_crit / (K + 1), K the trajectory's tool calls.
      does: what the critical step does (see `does`).
      error: the step's output was an error.
      tree: number of the tree in its file.
      node: the critical step.
    """

    position: float
    does: str
    error: bool
    tree: int
    node: int


def path(document: Document, node: int) -> list[int]:
    """Node ids from the first turn to `node`."""
    ids = []
    while node >= 0:
        ids.append(node)
        node = document["nodes"][node]["parent"]
    return ids[::-1]


def episodes(number: int, document: Document) -> Iterator[Episode]:
    """The trajectories of the tree with that number in its file."""
    task = document["task"]
    for leaf in document["leaves"]:
        nodes = [document["nodes"][i] for i in path(document, leaf["node"])]
        exchanges = [each for node in nodes for each in node["exchanges"]]
        first = first_error(exchanges)
        asked = [str(each["call"]) for each in exchanges if each["call"]]
        yield Episode(
            task=task["id"],
            kind=task["kind"],
            question=task["question"],
            expected=answer(task["answer"]),
            ordinal=leaf["ordinal"],
            given=leaf["answer"],
            success=leaf["success"],
            mode=mode(leaf),
            error=first["error"] if first else None,
            error_text=first["text"] if first else "",
            calls=tuple(_call(each) for each in exchanges),
            repeats=len(set(asked)) < len(asked),
            solver_calls=task.get("calls"),
            origins=origins(document["prompt"]["text"] + task["question"], nodes),
            drifts=drifts(leaf["answer"], nodes),
            turns=tuple(turn(node) for node in nodes),
            tree=number,
            leaf=leaf["node"],
        )


def criticals(number: int, document: Document) -> Iterator[Critical]:
    """The critical steps that the tree's searches resolved."""
    ends = {leaf["node"]: leaf["end"] for leaf in document["leaves"]}
    for found in document["localizations"]:
        if not found["resolved"]:
            continue
        nodes = document["nodes"]
        calls = sum(bool(nodes[i]["exchanges"]) for i in path(document, found["leaf"]))
        node = nodes[found["critical_node"]]
        yield Critical(
            position=found["low"] / (calls + 1),
            does=does(node, ends.get(found["critical_node"])),
            error=first_error(node["exchanges"]) is not None,
            tree=number,
            node=found["critical_node"],
        )


def does(node: Document, end: str | None) -> str:
    """What a turn does, in a word or two.

    Args:
      node: the turn.
      end: why the trajectory ended with it; None if it went on.

    Returns:
      The first call's tool, 'malformed call', 'answer', or 'cut turn' where a cap left neither.
    """
    if node["exchanges"]:
        return _call(node["exchanges"][0])[0]
    return "answer" if end == "answer" else "cut turn"


def _call(exchange: Document) -> tuple[str, str | None]:
    """The tool that an exchange calls, and the kind of error that it got."""
    call, observation = exchange["call"], exchange["observation"]
    name = str(call["name"]) if call else "malformed call"
    return name, observation["error"] if observation else None


def turn(node: Document) -> Turn:
    """A turn as a line: 'calculator (77.0/200.59)' and what it returned."""
    calls = [each["call"] for each in node["exchanges"] if each["call"]]
    text = "; ".join(f"{call['name']} {arguments(call['arguments'])}" for call in calls)
    error = first_error(node["exchanges"])
    return Turn(
        text or plain(node["text"]), "\n".join(outputs(node)), error["error"] if error else None
    )


def first_error(exchanges: list[Document]) -> Document | None:
    """The first observation that is an error."""
    seen = [each["observation"] for each in exchanges if each["observation"]]
    return next((each for each in seen if each["error"]), None)


def arguments(values: dict[str, Any]) -> str:
    """A call's arguments without their names."""
    return ", ".join(str(value) for value in values.values())


def plain(text: str) -> str:
    """A turn's text without the end-of-turn mark."""
    return text.removesuffix("<|im_end|>")


def mode(leaf: Document) -> str:
    """How a trajectory failed, a key of `MODES`; '' for a success."""
    if leaf["success"]:
        return ""
    if leaf["end"] != "answer":
        return leaf["end"]
    return "unread" if leaf["answer"] is None else "wrong"
