"""Lists the experiments with their questions: `python -m experiments`."""

import ast
import pathlib

from rich.console import Console
from rich.table import Table

__all__ = ["main", "questions"]

PARTS = ("envs.", "harness.")  # what experiments are made of


def questions() -> dict[str, str]:
    """The question of every experiment by module name: the first line of the module's docstring, read, not imported."""
    root = pathlib.Path(__file__).parent
    found = {}
    for path in sorted(root.rglob("*.py")):
        name = ".".join(path.relative_to(root).with_suffix("").parts)
        if path.name.startswith("_") or name.startswith(PARTS):
            continue
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        if docstring:
            found[name] = docstring.splitlines()[0]
    return found


def main() -> None:
    """Prints the table of experiments."""
    table = Table("experiment", "question", title="python -m experiments.<experiment> --help", title_justify="left")
    for name, question in questions().items():
        table.add_row(name, question)
    Console().print(table)


if __name__ == "__main__":
    main()
