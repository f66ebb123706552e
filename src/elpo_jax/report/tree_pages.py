"""The pages of rollout trees, and the index that finds them."""

from typing import NamedTuple

from elpo_jax.report.documents import (
    ENDS,
    arguments,
    does,
    first_error,
    mode,
    path,
    plain,
    turn,
)
from elpo_jax.report.failures import mode_words
from elpo_jax.report.layout import Layout, edge, lay_out
from elpo_jax.report.origins import outputs
from elpo_jax.report.pages import render
from elpo_jax.report.run import Document, TreeFile
from elpo_jax.report.words import answer, last_line, number, short, signed

LEAD, REPLY = 23, 14  # characters that fit into a node's two lines
HINT = 240  # of its call and of its output, that are shown under the pointer
SAID = 80  # characters of a call or an error that the index searches


class NodeView(NamedTuple):
    """A node as it is drawn.

    Attributes:
      id, parent: in the tree.
      x, y, edge: where it is, and the path from its parent.
      stroke: width of that edge, by the trajectories through it.
      lead, reply: its two lines: what the turn does, what came back.
      is_error: the tool answered with an error.
      advantage: hierarchical, as text; '' where there is no credit.
      side, strength: its sign ('up', 'down', 'none') and size from 0 to 1, for the tint.
      end: 'success' or 'failure' for the end of a trajectory, else ''.
      end_lines: what is written behind it: verdict, reward, why it ended.
      tags: what searches say of it.
      critical, elc: of the document.
      name: for screen readers.
      title: of its details.
      hint: what it does and what came back, under the pointer.
      values: (label, value) for its details.
      document: of the node.
    """

    id: int
    parent: int
    x: float
    y: float
    edge: str
    stroke: float
    lead: str
    reply: str
    is_error: bool
    advantage: str
    side: str
    strength: float
    end: str
    end_lines: tuple[str, ...]
    tags: tuple[str, ...]
    critical: bool
    elc: bool
    name: str
    title: str
    hint: str
    values: tuple[tuple[str, str], ...]
    document: Document


class SearchView(NamedTuple):
    """A search in words; `anchors` in the order in which it probed them."""

    letter: str
    leaf: int
    critical: int | None
    intro: str
    anchors: tuple[tuple[int, str], ...]
    outcome: str


class TreeView(NamedTuple):
    """A tree on its page.

    `chosen` is the node that is open at first; `only` the one tool that is called, whose name then
    isn't drawn at each node ('' if there are several).
    """

    number: int
    document: Document
    expected: str
    successes: int
    layout: Layout
    nodes: tuple[NodeView, ...]
    searches: tuple[SearchView, ...]
    only: str
    chosen: int


class IndexRow(NamedTuple):
    """A tree in the index.

    `ways` are those in which its rollouts failed, in words, a tool error among them; `text` is what
    the search looks through, in small letters.
    """

    page: str
    source: str
    number: int
    task: str
    kind: str
    question: str
    successes: int
    rollouts: int
    searches: int
    resolved: int
    ways: tuple[str, ...]
    text: str


def tree_page(
    file: TreeFile, documents: list[Document], before: TreeFile | None, after: TreeFile | None
) -> str:
    """The page of a file of trees; `before` and `after` are the files next to it, if any."""
    views = [_view(number, document) for number, document in enumerate(documents)]
    return render("tree", file=file, trees=views, before=before, after=after)


def index_rows(file: TreeFile, documents: list[Document]) -> list[IndexRow]:
    """The trees of a file for the index."""
    return [_index_row(file, number, document) for number, document in enumerate(documents)]


def index_page(rows: list[IndexRow], files: list[TreeFile], left_out: int) -> str:
    """The page that lists all trees.

    Args:
      rows: the trees.
      files: those with a page.
      left_out: files without one.
    """
    kinds = sorted({row.kind for row in rows})
    ways = sorted({way for row in rows for way in row.ways})
    return render("index", rows=rows, files=files, kinds=kinds, ways=ways, left_out=left_out)


def _index_row(file: TreeFile, number: int, document: Document) -> IndexRow:
    task, leaves = document["task"], document["leaves"]
    given = {str(leaf["answer"]) for leaf in leaves if leaf["answer"] is not None}
    words = [task["id"], task["kind"], task["question"], answer(task["answer"]), *sorted(given)]
    words += [file.title, *_said(document)]
    return IndexRow(
        page=file.name,
        source=file.title,
        number=number,
        task=task["id"],
        kind=task["kind"],
        question=task["question"],
        successes=sum(leaf["success"] for leaf in leaves),
        rollouts=len(leaves),
        searches=len(document["localizations"]),
        resolved=sum(found["resolved"] for found in document["localizations"]),
        ways=tuple(_ways(document)),
        text=" ".join(" ".join(words).lower().split())[:2000],
    )


def _said(document: Document) -> list[str]:
    """What the calls of a tree asked, and what errors they got; each once."""
    texts = []
    for node in document["nodes"]:
        for exchange in node["exchanges"]:
            call, seen = exchange["call"], exchange["observation"]
            if call:
                texts.append(short(f"{call['name']} {arguments(call['arguments'])}", SAID))
            if seen and seen["error"]:
                said = short(last_line(seen["text"]), SAID)
                texts.append(f"{seen['error'].replace('_', ' ')} {said}")
    return list(dict.fromkeys(texts))


def _ways(document: Document) -> list[str]:
    """In which ways a tree's rollouts failed, each once."""
    ways = []
    for leaf in document["leaves"]:
        if leaf["success"]:
            continue
        ways.append(mode_words(mode(leaf)))
        nodes = path(document, leaf["node"])
        if any(first_error(document["nodes"][i]["exchanges"]) for i in nodes):
            ways.append("saw a tool error")
    return sorted(set(ways))


def _view(number: int, document: Document) -> TreeView:
    nodes = document["nodes"]
    places = lay_out([node["parent"] for node in nodes])
    searches = [_search(document, i) for i in range(len(document["localizations"]))]
    tags = _tags(document, searches)
    leaves = {leaf["node"]: leaf for leaf in document["leaves"]}
    only = _only_tool(document)
    views = [_node(document, node, places, leaves.get(node["id"]), tags, only) for node in nodes]
    named = [search.critical for search in searches if search.critical is not None]
    failed = [leaf["node"] for leaf in document["leaves"] if not leaf["success"]]
    return TreeView(
        number=number,
        document=document,
        expected=answer(document["task"]["answer"]),
        successes=sum(leaf["success"] for leaf in document["leaves"]),
        layout=places,
        nodes=tuple(views),
        searches=tuple(searches),
        only=only,
        chosen=next(iter([*named, *failed, *leaves]), 0),
    )


def _only_tool(document: Document) -> str:
    """The tool of all calls, if they are of one."""
    calls = [each["call"] for node in document["nodes"] for each in node["exchanges"]]
    names = {str(call["name"]) for call in calls if call}
    return names.pop() if len(names) == 1 else ""


def _letter(number: int) -> str:
    return chr(ord("A") + number) if number < 26 else f"S{number + 1}"


def _search(document: Document, number: int) -> SearchView:
    found = document["localizations"][number]
    nodes = path(document, found["leaf"])
    calls = sum(len(document["nodes"][i]["exchanges"]) for i in nodes)
    anchors = []
    for place, probe in enumerate(found["probes"], 1):
        if not probe["suffixes"]:
            result = "no room for a suffix under the caps: irrecoverable"
        elif probe["successes"]:
            result = f"{probe['successes']} of {probe['suffixes']} suffixes succeeded: recoverable"
        else:
            result = f"none of {probe['suffixes']} suffixes succeeded"
        node = nodes[probe["step"] - 1]
        anchors.append((node, f"{_letter(number)}{place}: after step {probe['step']}, {result}"))
    if found["resolved"]:
        outcome = f"Step {found['low']} is critical."
    elif not found["probes"]:
        outcome = "No budget was left to probe it."
    else:
        outcome = f"Unresolved at the end of the budget: steps {found['low']} to {found['high']}."
    if not found["widen_clip"]:
        outcome += " ELC doesn't apply."
    return SearchView(
        letter=_letter(number),
        leaf=found["leaf"],
        critical=found["critical_node"] if found["resolved"] else None,
        intro=f"of failed rollout {found['ordinal']}, {calls} tool call{'s' if calls != 1 else ''}",
        anchors=tuple(anchors),
        outcome=outcome,
    )


def _tags(document: Document, searches: list[SearchView]) -> dict[int, list[str]]:
    """What searches say of nodes: their critical step, the anchors in order, whom they searched."""
    tags: dict[int, list[str]] = {}
    for search, found in zip(searches, document["localizations"], strict=True):
        if search.critical is not None:
            tags.setdefault(search.critical, []).append(f"◆ critical {search.letter}")
        for place, ((node, _), probe) in enumerate(
            zip(search.anchors, found["probes"], strict=True), 1
        ):
            text = f"⚓{search.letter}{place} {probe['successes']}/{probe['suffixes']}"
            tags.setdefault(node, []).append(text)
        if search.critical is None and found["widen_clip"]:
            tags.setdefault(found["critical_node"], []).append(f"◇ open {search.letter}")
        if found["probes"]:
            tags.setdefault(search.leaf, []).append(f"searched {search.letter}")
    return tags


def _node(
    document: Document,
    node: Document,
    places: Layout,
    leaf: Document | None,
    tags: dict[int, list[str]],
    only: str,
) -> NodeView:
    place = places.places[node["id"]]
    above = places.root if node["parent"] < 0 else places.places[node["parent"]]
    line, credit = turn(node), node["credit"]
    advantage = credit.get("hierarchical")
    calls = [each["call"] for each in node["exchanges"] if each["call"]]
    asked = "; ".join(arguments(call["arguments"]) for call in calls) if only else ""
    lead = asked or line.does
    if leaf and leaf["end"] == "answer":
        lead = f"answer {leaf['answer']}" if leaf["answer"] is not None else "no readable answer"
    error = first_error(node["exchanges"])
    said = last_line(error["text"]) if error else line.output
    reply = f"→ {said}" if outputs(node) else ""
    hint = [short(plain(line.does), HINT), short(reply, HINT)]
    end = ("success" if leaf["success"] else "failure") if leaf else ""
    end_lines: tuple[str, ...] = ()
    if leaf:
        verdict = "✓ right" if leaf["success"] else "✗ failed"
        reason = str(ENDS.get(leaf["end"], leaf["end"]))
        end_lines = (verdict, f"R {signed(leaf['reward'])}", reason)
    marks = tags.get(node["id"], [])
    done = does(node, leaf["end"] if leaf else None)
    title = f"Step {node['depth']} of rollout {node['ordinal']}: {done}"
    return NodeView(
        id=node["id"],
        parent=node["parent"],
        x=place.x,
        y=place.y,
        edge=edge(above, place),
        stroke=round(1 + min(4.0, 0.3 * (node["trajectories"] - 1)), 1),
        lead=short(plain(lead), LEAD - 4 if node["elc"] else LEAD),  # 'ELC' stands behind it
        reply=short(reply, REPLY if advantage is not None else LEAD),
        is_error=line.error is not None,
        advantage="" if advantage is None else f"A {signed(advantage)}",
        side="none" if not advantage else "up" if advantage > 0 else "down",
        strength=round(min(1.0, abs(advantage or 0.0) / 2), 2),
        end=end,
        end_lines=end_lines,
        tags=tuple(marks),
        critical=node["critical"] and any("critical" in mark for mark in marks),
        elc=node["elc"],
        name=_spoken(title, line.output, advantage, marks, end_lines, node["elc"]),
        title=title,
        hint="\n".join(filter(None, hint)),
        values=_values(node, leaf),
        document=node,
    )


def _spoken(
    title: str,
    output: str,
    advantage: float | None,
    marks: list[str],
    end_lines: tuple[str, ...],
    elc: bool,
) -> str:
    parts = [title]
    if output:
        parts.append(f"output {short(output, 60)}")
    if advantage is not None:
        parts.append(f"advantage {signed(advantage)}")
    return ", ".join([*parts, *marks, *(["ELC suffix"] if elc else []), *end_lines])


def _values(node: Document, leaf: Document | None) -> tuple[tuple[str, str], ...]:
    credit = node["credit"]
    names = {
        "step_reward": "step reward",
        "branch": "branch advantage",
        "trajectory": "trajectory advantage",
        "hierarchical": "hierarchical advantage",
    }
    values = [("reward", signed(leaf["reward"]))] if leaf else []
    values += [(label, signed(credit[name], 3)) for name, label in names.items() if name in credit]
    values += [
        ("mean entropy, nats", number(node["mean_entropy"])),
        ("tokens of the policy", number(node["policy_tokens"])),
        ("tokens of the environment", number(node["environment_tokens"])),
        ("trajectories through it", number(node["trajectories"])),
    ]
    return tuple(values)
