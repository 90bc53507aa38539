"The house: a room imports only rooms before it, and real data knows nothing of simulated cells"
import ast
import json
import re
from pathlib import Path

NOTEBOOKS = sorted((Path(__file__).parents[1]/"nbs").glob("[0-9][0-9][0-9]_*.ipynb"))


def cells(path, export):
    "The exported cells of a notebook, or the others"
    code = ["".join(c["source"]) for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]
    return [cell for cell in code if bool(re.search(r"^#\| *exporti?$", cell, re.M)) == export]


def imported(path):
    "What of the package its exported cells import, as module or module.name"
    nodes = [node for cell in cells(path, True) for node in ast.walk(ast.parse(cell))]
    found = [node for node in nodes if isinstance(node, ast.ImportFrom) and node.module.startswith("integrated_cell")]
    return {f"{node.module}.{alias.name}".removeprefix("integrated_cell.") for node in found for alias in node.names}


ROOMS = {re.search(r"default_exp (\S+)", "\n".join(cells(path, False)))[1]: path for path in NOTEBOOKS}
IMPORTED = {name: imported(path) for name, path in ROOMS.items()}


def test_a_room_imports_only_rooms_before_it():
    number = {name: int(path.name[:3]) for name, path in ROOMS.items()}
    for name in ROOMS:
        used = {room for room in ROOMS for what in IMPORTED[name] if f"{what}.".startswith(f"{room}.")}
        later = {room for room in used if number[room] >= number[name]}
        assert not later, f"{name} imports {', '.join(later)}"


def test_data_knows_nothing_of_simulation():
    for name in ROOMS:
        if not name.startswith("data."): continue
        strange = {what for what in IMPORTED[name] if not what.startswith(("data.", "results."))}
        assert not strange, f"{name} imports {', '.join(strange)}"
