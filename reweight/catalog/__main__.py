"""`python -m reweight.catalog`: the table of methods, search, and the page of one paper."""

import argparse
import difflib
import pathlib
import sys
from collections.abc import Sequence

from reweight.catalog import find, papers, table


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m reweight.catalog", description="The methods and their evidence.")
    commands = parser.add_subparsers(dest="command")
    listing = commands.add_parser("table", help="all papers (the default)")
    listing.add_argument("--markdown", action="store_true", help="as the page of the docs")
    listing.add_argument("--check", metavar="FILE", type=pathlib.Path, help="fail if FILE is not that page")
    query = commands.add_parser("search", help='papers by words: search "noisy labels"')
    query.add_argument("words", nargs="+")
    one = commands.add_parser("show", help="one paper: formula, functions, references, evidence")
    one.add_argument("name", help="the id of a paper, or the name of a function")
    return parser


def _check(path: pathlib.Path, wanted: str) -> int:
    came = path.read_text(encoding="utf-8") if path.is_file() else None
    if came == wanted:
        return 0
    state = "is missing" if came is None else "is not what the catalog says"
    print(f"{path} {state}; run: python -m reweight.catalog table --markdown > {path}", file=sys.stderr)
    if came is not None:
        changes = difflib.unified_diff(
            came.splitlines(), wanted.splitlines(), "as it is", "as it should be", lineterm=""
        )
        print("\n".join(changes), file=sys.stderr)
    return 1


def _named(catalog: dict[str, papers.Paper], name: str) -> list[papers.Paper]:
    if name in catalog:
        return [catalog[name]]
    tail = name.rpartition(".")[2]
    return [paper for paper in catalog.values() if tail in (path.rpartition(".")[2] for path in paper.functions)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; the exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    catalog = papers.load()
    match options.command:
        case "search":
            hits = find.search(" ".join(options.words), catalog)
            if not hits:
                print(f"nothing found for {' '.join(options.words)!r}")
                return 1
            for hit in hits[:10]:
                print(f"{hit.paper.id}: {hit.paper.title} ({hit.paper.authors} {hit.paper.year})")
                print(f"    {hit.paper.kind}; {', '.join(hit.paper.functions)}")
        case "show":
            found = _named(catalog, options.name)
            if not found:
                near = difflib.get_close_matches(options.name, catalog)
                parser.error(
                    f"no paper or function {options.name!r}" + (f"; did you mean {', '.join(near)}?" if near else "")
                )
            print("\n\n".join(table.page(paper) for paper in found))
        case _:
            if getattr(options, "check", None) is not None:
                return _check(options.check, table.markdown(catalog))
            print(table.markdown(catalog) if getattr(options, "markdown", False) else table.rows(catalog), end="")
            if not getattr(options, "markdown", False):
                print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
