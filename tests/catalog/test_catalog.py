"""Every entry of the catalog names what exists, and a test or a stored result proves every level that it claims."""

import importlib.util
import json
import pathlib
import re

import pytest
from conformance import registry

from reweight import catalog

ROOT = pathlib.Path(__file__).parents[2]
TESTS = ROOT / "tests"
RESULTS = ROOT / "docs" / "results"
PAPERS = catalog.load()

# Public functions that no paper proposes: what methods are built with.
INFRASTRUCTURE = {
    "reweight.losses.of_batch": "any loss that couples the examples of a batch",
    "reweight.losses.of_sums": "any loss of sums over the batch",
    "reweight.losses.preference.links.hinge": "a link of losses of pairs",
    "reweight.losses.preference.links.logistic": "the link of most losses of pairs",
    "reweight.losses.preference.links.sigmoid": "a link of losses of pairs",
    "reweight.losses.preference.links.squared": "a link of losses of pairs",
    "reweight.losses.preference.pair_loss": "losses of pairs by name",
    "reweight.losses.preference.sequence_log_probs": "from tokens to answers",
    "reweight.decoding.sample": "sampling from any model",
    "reweight.decoding.top_k_mask": "an option of sampling",
    "reweight.decoding.top_p_mask": "an option of sampling",
    "reweight.optim.default_layout": "the layout rule of flax",
    "reweight.optim.flax_layout": "the layout rule of flax, without stacks",
    "reweight.optim.layout_rules": "layout rules by path",
    "reweight.optim.param_layouts": "the layouts that a rule gives",
    "reweight.optim.path_name": "names of parameters",
    "reweight.optim.stacked": "layout rules of stacked layers",
    "reweight.reduce.combine": "adding up parts",
    "reweight.reduce.finish": "adding up parts",
    "reweight.reduce.weighted_mean": "the plain reduction",
    "reweight.reduce.weighted_sum": "the plain reduction",
    "reweight.weights.chain": "products of weightings",
    "reweight.weights.lookup": "values by id",
    "reweight.weights.max_weight_share": "a diagnostic of any weights",
    "reweight.weights.normalize": "the mean of any weights",
    "reweight.weights.smoothed": "any weighting on smoothed losses",
    "reweight.weights.stateless": "from a function to a weighting",
    "reweight.weights.table_gather": "memory by example",
    "reweight.weights.table_init": "memory by example",
    "reweight.weights.table_scatter": "memory by example",
    "reweight.weights.uniform": "the baseline",
    "reweight.weights.weight_entropy": "a diagnostic of any weights",
}


def _sources(*excluded):
    return {
        file: file.read_text(encoding="utf-8")
        for file in TESTS.rglob("*.py")
        if file.relative_to(TESTS).parts[0] not in ("conformance", "catalog", *excluded)
    }


def _with(level):
    return [name for name, paper in PAPERS.items() if level in paper.verified]


@pytest.mark.parametrize("name", PAPERS)
def test_functions_exist_and_are_public(name):
    public = catalog.public_functions()
    for path, function in PAPERS[name].resolve():
        assert callable(function)
        assert path in public, f"{path} is not the shortest path of a public function"


@pytest.mark.parametrize("name", [name for name, paper in PAPERS.items() if paper.experiment])
def test_experiments_exist(name):
    assert importlib.util.find_spec(f"experiments.{PAPERS[name].experiment}") is not None


@pytest.mark.parametrize("name", _with("properties"))
def test_properties_are_tests(name):
    sources = "\n".join(_sources().values())
    for path in PAPERS[name].functions:
        function = path.rpartition(".")[2]
        assert re.search(rf"\b{function}\b", sources), f"no test speaks of {function}"


@pytest.mark.parametrize("name", _with("golden"))
def test_golden_numbers_are_there_with_their_provenance_and_are_tested(name):
    sources = "\n".join(_sources().values())
    for file in PAPERS[name].golden:
        golden = json.loads((TESTS / "golden" / file).read_text(encoding="utf-8"))
        source = golden["source"]
        if not source.get("independent_numpy"):
            assert {"repository", "file", "commit"} <= set(source), f"{file} does not say where it comes from"
        assert golden.get("rtol", 0) > 0
        assert golden["cases"]
        stem = file.removesuffix(".json")
        assert re.search(rf"[\"']{stem}(\.json)?[\"']", sources), f"no test reads {file}"


@pytest.mark.parametrize("name", _with("conformance"))
def test_conformance_cases_are_registered(name):
    covered = registry.covered()
    for path in PAPERS[name].functions:
        assert path in covered, f"{path} has no conformance case"


@pytest.mark.parametrize("name", _with("claim"))
def test_claims_have_a_stored_verdict_over_five_seeds(name):
    found = catalog.verdicts(PAPERS[name], RESULTS)
    assert found, f"docs/results/{PAPERS[name].experiment}.json has no claim of {PAPERS[name].arxiv or name}"
    assert all(verdict.seeds >= 5 for verdict in found)


def test_every_stored_verdict_belongs_to_a_paper_that_lists_it():
    for file in RESULTS.glob("*.json"):
        for claim in json.loads(file.read_text(encoding="utf-8"))["claims"]:
            owners = [paper for paper in PAPERS.values() if paper.claims(claim["paper"])]
            assert len(owners) == 1, f"{file.name}: no paper of the catalog, or several, for {claim['paper']!r}"
            assert owners[0].experiment == file.stem
            assert "claim" in owners[0].verified, f"list the claim of {owners[0].id}"


@pytest.mark.parametrize("path", catalog.public_functions())
def test_every_public_function_belongs_to_a_paper_or_to_the_infrastructure(path):
    papers = [name for name, paper in PAPERS.items() if path in paper.functions]
    assert bool(papers) != (path in INFRASTRUCTURE), (
        f"{path} is in {papers or 'no paper'}; see INFRASTRUCTURE in this file"
    )


def test_infrastructure_names_public_functions():
    assert set(INFRASTRUCTURE) <= set(catalog.public_functions())


def test_private_and_infrastructure_packages_hold_no_methods():
    for path in catalog.public_functions():
        assert path.split(".")[1] not in catalog.INFRASTRUCTURE_PACKAGES
        assert "._" not in path
