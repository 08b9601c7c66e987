"""The import contract of a room: what it may import, as an allowed list, for import-linter.

The contract types that import-linter ships say what is forbidden, so a dependency that nobody thought of
passes. This one names all that is allowed; the standard library and the room itself always are.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

from grimp import DetailedImport, ImportGraph
from importlinter import Contract, ContractCheck, fields, output

ROOT = "rankscope"
#: `testing` lies in src/rankscope beside the vocabulary, and is a room for what it may import.
ROOMS = frozenset({"agent", "exporters", "probes", "rules", "simulator", "testing", "torch_hooks"})


class MayImport(Contract):
    """Direct imports of a room, lazy ones included, are of the listed rooms and libraries only.

    Options: `room` is the directory of a room, or `vocabulary` for the modules of the root package;
    `rooms` are the rooms it may import; `libraries` the top-level modules of other distributions.
    """

    type_name = "may_import"

    room = fields.StringField()
    rooms = fields.SetField(subfield=fields.StringField(), required=False)
    libraries = fields.SetField(subfield=fields.StringField(), required=False)

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:  # noqa: ARG002
        """Collect each import that the table of rooms does not allow."""
        allowed_rooms = {self.room, *(self.rooms or ())}
        allowed_libraries = {"__future__", *sys.stdlib_module_names, *(self.libraries or ())}
        refused = []
        for importer in sorted(graph.modules):
            if _room_of(importer) != self.room:
                continue
            for imported in sorted(graph.find_modules_directly_imported_by(importer)):
                room = _room_of(imported)
                allowed = imported.split(".")[0] in allowed_libraries if room is None else room in allowed_rooms
                if not allowed:
                    refused.extend(graph.get_import_details(importer=importer, imported=imported))
        return ContractCheck(kept=not refused, metadata={"refused": refused})

    def render_broken_contract(self, check: ContractCheck) -> None:
        """Print each refused import with its place."""
        for line in _lines(check.metadata["refused"]):
            output.print_error(line)


def _room_of(module: str) -> str | None:
    root, _, rest = module.partition(".")
    if root != ROOT:
        return None
    room = rest.split(".")[0]
    return room if room in ROOMS else "vocabulary"


def _lines(refused: list[DetailedImport]) -> Iterator[str]:
    for detail in refused:
        yield f"{detail['importer']}:{detail['line_number']}: {detail['line_contents']}"
