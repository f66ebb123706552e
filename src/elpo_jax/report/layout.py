"""Where a tree's nodes go: depth to the right, leaves below each other, parents amid children."""

from collections.abc import Sequence
from typing import NamedTuple

# In a window of 1280 pixels a tree of three turns fits beside its details, and one of four or five
# is made smaller to fit (tree.js).
NODE_WIDTH, NODE_HEIGHT = 164, 44
ROOT_WIDTH = 84
GAP, ROW = 22, 62  # between columns; from row to row
MARGIN, END_WIDTH = 14, 118  # END_WIDTH: room for the verdict behind a leaf
TOP = 22  # margin above the first row: what searches say of a node stands there


class Place(NamedTuple):
    """The upper left corner of a node's box, in pixels."""

    x: float
    y: float
    width: int = NODE_WIDTH

    @property
    def left(self) -> tuple[float, float]:
        """Where the edge from the parent ends."""
        return self.x, self.y + NODE_HEIGHT / 2

    @property
    def right(self) -> tuple[float, float]:
        """Where edges to children begin."""
        return self.x + self.width, self.y + NODE_HEIGHT / 2


class Layout(NamedTuple):
    """The places of all nodes, of the root (the prompt), and the size of the drawing."""

    root: Place
    places: tuple[Place, ...]
    width: int
    height: int


def lay_out(parents: Sequence[int]) -> Layout:
    """Places a tree.

    Args:
      parents: by node id, parents before children; -1 for first turns.
    """
    children: list[list[int]] = [[] for _ in range(len(parents) + 1)]  # the root's come last
    for node, parent in enumerate(parents):
        children[parent].append(node)
    depth = [0] * len(parents)
    for node, parent in enumerate(parents):
        depth[node] = 1 if parent < 0 else depth[parent] + 1
    rows = [0.0] * (len(parents) + 1)
    order = _leaves_first_to_last(children)
    for row, leaf in enumerate(order):
        rows[leaf] = row
    for node in range(len(parents) - 1, -2, -1):  # children before parents, the root (-1) last
        below = children[node]
        if below:
            rows[node] = (rows[below[0]] + rows[below[-1]]) / 2
    first = MARGIN + ROOT_WIDTH + GAP
    places = [
        Place(first + (depth[node] - 1) * (NODE_WIDTH + GAP), TOP + rows[node] * ROW)
        for node in range(len(parents))
    ]
    columns = max(depth, default=0)
    width = first + columns * (NODE_WIDTH + GAP) - GAP + END_WIDTH + MARGIN
    height = TOP + MARGIN + max(1, len(order)) * ROW - (ROW - NODE_HEIGHT)
    return Layout(Place(MARGIN, TOP + rows[-1] * ROW, ROOT_WIDTH), tuple(places), width, height)


def edge(parent: Place, child: Place) -> str:
    """The path of an edge, SVG's `d`: a curve from the parent's right to the child's left."""
    (x1, y1), (x2, y2) = parent.right, child.left
    middle = (x1 + x2) / 2
    return f"M{x1:g} {y1:g}C{middle:g} {y1:g} {middle:g} {y2:g} {x2:g} {y2:g}"


def _leaves_first_to_last(children: Sequence[Sequence[int]]) -> list[int]:
    """Leaves in depth-first order, without recursion: trees may be deep."""
    leaves, stack = [], list(reversed(children[-1]))
    while stack:
        node = stack.pop()
        if children[node]:
            stack += reversed(children[node])
        else:
            leaves.append(node)
    return leaves
