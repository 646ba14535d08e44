"""The page of results, written from the stored ones: `python -m experiments.harness.report > docs/results.md`."""

import json
import pathlib
from collections.abc import Iterator
from typing import Any

__all__ = ["page"]

STORED = pathlib.Path(__file__).parent.parent.parent / "docs" / "results"
OPENING = """# Results

What the released experiments found, each over several seeds, with 95% intervals over the seeds. A claim is judged by
the difference of two methods on the same seeds: *shown* if its interval lies wholly on the claimed side. What is not
shown at this scale stays here as such. To run one yourself:

```bash
python -m experiments.{first}
```"""


def page(folder: pathlib.Path = STORED) -> str:
    """The results in a folder as Markdown: question, figure, verdicts and numbers of each experiment."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    blocks = [OPENING.replace("{first}", found[0]["experiment"])]
    for result in found:
        blocks.extend(_section(result))
    return "\n\n".join(blocks) + "\n"


def _section(result: dict[str, Any]) -> Iterator[str]:
    name = result["experiment"]
    yield f"## {result['question']}"
    yield f"`python -m experiments.{name}` · {result['device']} · jax {result['versions']['jax']}"
    yield f"![{result['question']}](results/{name}.png)"
    rows = ["| verdict | claim | difference | paper |", "|---|---|---|---|"]
    for claim in result["claims"]:
        sign = ">" if claim["direction"] == "higher" else "<"
        metric = claim["metric"].replace("_", " ")
        difference = _interval(claim["difference"], *claim["interval"])
        text = f"{claim['better']} {sign} {claim['than']}: {metric}"
        rows.append(f"| {claim['verdict']} | {text} | {difference} | {claim['paper']} |")
    yield "\n".join(rows)
    metrics = list(dict.fromkeys(metric for values in result["methods"].values() for metric in values))
    rows = ["| method | " + " | ".join(m.replace("_", " ") for m in metrics) + " |", "|---" * (len(metrics) + 1) + "|"]
    for method, values in result["methods"].items():
        cells = [_interval(values[m]["mean"], *values[m]["interval"]) if m in values else "" for m in metrics]
        rows.append(f"| {method} | " + " | ".join(cells) + " |")
    yield '??? note "All numbers"\n\n' + "\n".join(f"    {row}" for row in rows)


def _interval(mean: float, low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return f"{mean:.3g}"
    return f"{mean:.3g} [{low:.3g}, {high:.3g}]"


if __name__ == "__main__":
    print(page(), end="")
