"""Loading, searching and printing the catalog."""

import json
import pathlib

import pytest

from reweight import catalog
from reweight.catalog import table
from reweight.catalog.__main__ import main

GOOD = """
[[paper]]
id = "mean"
title = "On the Mean"
authors = "Doe et al."
year = 2001
arxiv = "2001.00001"
kind = "reduction"
functions = ["reweight.reduce.weighted_mean"]
experiment = "long_tail"
verified = ["properties", "claim"]
formula = "sum w x / sum w"
tags = ["averages"]
notes = "For averages | of anything."
"""


def written(folder, text, name="family"):
    (folder / f"{name}.toml").write_text(text, encoding="utf-8")
    return folder


def stored(folder, *verdicts, paper="Doe et al. 2001, arXiv 2001.00001"):
    claims = [
        {
            "paper": paper,
            "better": "a",
            "than": "b",
            "metric": "test_error",
            "direction": "lower",
            "seeds": 5,
            "verdict": v,
        }
        for v in verdicts
    ]
    (folder / "long_tail.json").write_text(json.dumps({"claims": claims}), encoding="utf-8")
    return folder


def test_a_good_entry_is_read_field_by_field(tmp_path):
    paper = catalog.load(written(tmp_path, GOOD))["mean"]
    assert (paper.id, paper.family, paper.kind, paper.year) == ("mean", "family", "reduction", 2001)
    assert paper.functions == ("reweight.reduce.weighted_mean",)
    assert paper.reference == "Doe et al., On the Mean, 2001, arXiv 2001.00001"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (('notes = "', 'colour = "red"\nnotes = "'), "unknown field 'colour'"),
        (('title = "On the Mean"', ""), "'title' is missing"),
        (('title = "On the Mean"', 'title = ""'), "title is empty"),
        (("year = 2001", 'year = "2001"'), "year is '2001'"),
        (('"reduction"', '"trick"'), "kind is 'trick'"),
        (('["properties", "claim"]', '["tested"]'), "verified names 'tested'"),
        (('["properties", "claim"]', '["properties", "properties"]'), "twice"),
        (('["properties", "claim"]', '["golden"]'), "one is there without the other"),
        (('experiment = "long_tail"', ""), "'claim' is verified by an experiment"),
        (('"2001.00001"', '"arXiv:2001.00001"'), "arxiv is 'arXiv:2001.00001'"),
        (
            ('functions = ["reweight.reduce.weighted_mean"]', 'functions = "reweight.reduce.weighted_mean"'),
            "functions is",
        ),
        (("[[paper]]", "[[papers]]"), "allowed: [[paper]] entries"),
        (("year = 2001", "year = "), "family.toml"),
    ],
)
def test_a_bad_entry_is_refused_with_its_place(tmp_path, change, says):
    with pytest.raises(ValueError, match=r"family\.toml") as error:
        catalog.load(written(tmp_path, GOOD.replace(*change)))
    assert says in str(error.value)


def test_an_id_stands_for_one_paper(tmp_path):
    written(tmp_path, GOOD)
    with pytest.raises(ValueError, match=r"other.toml, entry 1 \(id 'mean'\): this id stands in family.toml already"):
        catalog.load(written(tmp_path, GOOD, "other"))


@pytest.mark.parametrize(
    ("query", "first"),
    [
        ("extremely noisy labels", "co_teaching"),
        ("worst group", "group_dro"),
        ("momentum scale-invariant weights", "7"),
        ("doubly robust", "10"),
        ("conditional value at risk", "cvar_dro"),
        ("group_dro", "group_dro"),
        ("1708.02002", "focal"),
        ("off-policy", "importance_weighting"),
    ],
)
def test_search_finds_what_was_meant_first(query, first):
    assert catalog.search(query)[0].paper.id == first


def test_search_for_rare_classes_finds_class_weights_and_adjusted_logits():
    found = {hit.paper.id for hit in catalog.search("rare classes")[:6]}
    assert {"effective_number", "inverse_frequency", "logit_adjustment"} <= found


def test_search_for_nonsense_finds_nothing(capsys):
    assert catalog.search("qwertyuiop") == []
    assert main(["search", "qwertyuiop"]) == 1
    assert "nothing found" in capsys.readouterr().out


def test_search_prints_papers_and_functions(capsys):
    assert main(["search", "extremely", "noisy", "labels"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("co_teaching: Co-teaching")
    assert "reweight.weights.small_loss" in printed


@pytest.mark.parametrize("name", catalog.load())
def test_every_paper_can_be_shown(name, capsys):
    assert main(["show", name]) == 0
    printed = capsys.readouterr().out
    paper = catalog.load()[name]
    for part in (paper.title.split()[0], *paper.functions, *paper.verified):
        assert part in printed


def test_a_paper_is_shown_by_a_function_of_it(capsys):
    assert main(["show", "reweight.optim.sgdp"]) == 0
    assert "7: AdamP" in capsys.readouterr().out


def test_a_name_that_is_unknown_is_answered_with_near_ones(capsys):
    with pytest.raises(SystemExit) as error:
        main(["show", "group_drop"])
    assert error.value.code == 2
    assert "did you mean group_dro" in capsys.readouterr().err


def test_the_table_is_what_comes_without_a_command(capsys):
    assert main([]) == 0
    plain = capsys.readouterr().out
    assert main(["table"]) == 0
    assert capsys.readouterr().out == plain
    assert all(name in plain for name in catalog.load())


@pytest.mark.parametrize(
    ("verdicts", "cell"),
    [(("shown",), "shown"), (("not shown",), "not shown"), (("shown", "not shown", "shown"), "shown 2 of 3"), ((), "")],
)
def test_the_table_shows_the_verdict_whatever_it_is(tmp_path, verdicts, cell):
    papers = catalog.load(written(tmp_path, GOOD))
    row = table.markdown(papers, stored(tmp_path, *verdicts)).splitlines()[-1]
    assert row.split(" | ")[-1].removesuffix("|").strip() == cell


def test_a_verdict_on_another_paper_is_not_this_ones(tmp_path):
    paper = catalog.load(written(tmp_path, GOOD))["mean"]
    assert catalog.verdicts(paper, stored(tmp_path, "shown", paper="Roe 2001, arXiv 2001.000012")) == []
    (verdict,) = catalog.verdicts(paper, stored(tmp_path, "not shown", paper="mean"))
    assert (verdict.claim, verdict.shown, verdict.seeds) == ("a < b: test error", False, 5)


def test_what_a_cell_holds_cannot_break_the_table(tmp_path):
    papers = catalog.load(written(tmp_path, GOOD.replace("On the Mean", "On | the Mean")))
    assert "On \\| the Mean" in table.markdown(papers)


def test_check_passes_for_the_generated_page_and_fails_for_a_stale_one(tmp_path, capsys):
    assert main(["table", "--markdown"]) == 0
    page = tmp_path / "methods.md"
    page.write_text(capsys.readouterr().out, encoding="utf-8")
    assert main(["table", "--check", str(page)]) == 0
    page.write_text(page.read_text(encoding="utf-8").replace("AdamP", "AdamQ"), encoding="utf-8")
    assert main(["table", "--check", str(page)]) == 1
    assert "is not what the catalog says" in capsys.readouterr().err
    assert main(["table", "--check", str(tmp_path / "none.md")]) == 1
    assert "is missing" in capsys.readouterr().err


def test_the_page_of_the_docs_is_up_to_date():
    path = pathlib.Path(__file__).parents[2] / "docs" / "methods.md"
    assert main(["table", "--check", str(path)]) == 0


def test_an_import_path_that_leads_nowhere_is_named():
    for path in ("reweight.reduce.no_such_function", "reweight.no_such_module.f", "plain"):
        with pytest.raises(LookupError, match=path):
            catalog.resolve(path)
