"""The page of results says what the stored results say."""

import pathlib

from experiments.harness import report

DOCS = pathlib.Path(__file__).parent.parent.parent / "docs"


def test_the_page_of_results_is_the_one_that_the_stored_results_give():
    assert (DOCS / "results.md").read_text() == report.page()


def test_every_stored_result_has_its_figure_on_the_page():
    text = (DOCS / "results.md").read_text()
    stored = sorted(path.stem for path in (DOCS / "results").glob("*.json"))
    assert stored
    for name in stored:
        assert f"(results/{name}.png)" in text
        assert (DOCS / "results" / f"{name}.png").exists()
