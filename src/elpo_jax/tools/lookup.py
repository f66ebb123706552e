"""Lookup of one property of one record of a table, by any of the record's keys."""

from collections.abc import Mapping, Sequence
from typing import Any

from elpo_jax.tools.base import Observation

Record = Mapping[str, str | None]  # property -> text as shown; None: not known


class Lookup:
    """The tool `lookup(element, property)`. Stateless.

    Args:
      records: the table; every record has the same properties.
      keys: the properties that identify a record; matched without regard to case.

    Raises:
      ValueError: if the table is empty, its records differ in their properties, or two records
        share a key.
    """

    name = "lookup"

    def __init__(self, records: Sequence[Record], keys: Sequence[str]):
        if not records:
            raise ValueError("Lookup: records: expected at least one, got none")
        self._properties = tuple(records[0])
        self._records: dict[str, Record] = {}
        for record in records:
            if tuple(record) != self._properties:
                raise ValueError(
                    f"Lookup: records: expected properties {self._properties}, got {tuple(record)}"
                )
            for key in keys:
                text = (record[key] or "").casefold()
                if not text or text in self._records:
                    raise ValueError(f"Lookup: records: expected unique keys, got {text!r} twice")
                self._records[text] = record

    @property
    def schema(self) -> Mapping[str, Any]:
        return {
            "name": self.name,
            "description": "Looks up a property of a chemical element.",
            "parameters": {
                "type": "object",
                "properties": {
                    "element": {
                        "type": ["string", "integer"],
                        "description": "symbol, name or atomic number",
                    },
                    "property": {"type": "string", "enum": list(self._properties)},
                },
                "required": ["element", "property"],
            },
        }

    def initial_state(self) -> None:
        return None

    def call(self, state: None, arguments: Mapping[str, Any]) -> tuple[None, Observation]:
        """The property as shown, or a 'tool_error' of a few words."""
        record = self._records.get(str(arguments["element"]).strip().casefold())
        name = arguments["property"]
        if record is None:
            return state, Observation("error: unknown element", error="tool_error")
        if name not in self._properties:
            return state, Observation("error: unknown property", error="tool_error")
        value = record[name]
        if value is None:
            return state, Observation("error: not known", error="tool_error")
        return state, Observation(value)
