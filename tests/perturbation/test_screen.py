from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from sckit.config.finetune import FinetuneConfig
from sckit.config.prepare import PrepareConfig
from sckit.data.prepare import prepare
from sckit.errors import ConfigError, DataError
from sckit.perturbation.screen import read_screen

from .small_screens import as_anndata, small_screen

CONFIG = FinetuneConfig("condition", "control", genes=12, min_cells=4)
GENES = 20


def obs_of(conditions, **columns):
    """Six cells of each condition, in turn; columns give one value per cell of a condition, or one for all."""
    labels = {"condition": np.tile(np.array(conditions, object), 6)}
    return pd.DataFrame(labels | {k: np.repeat(np.broadcast_to(v, 6), len(conditions)) for k, v in columns.items()})


def read(tmp_path, obs, *, counts=None, heard=None, **options):
    generator = np.random.default_rng(5)
    counts = generator.poisson(2.0, (len(obs), GENES)) if counts is None else counts
    as_anndata(counts, {name: np.asarray(obs[name], object) for name in obs}).write_h5ad(tmp_path / "screen.h5ad")
    on_event = (lambda *_: None) if heard is None else (lambda _, facts: heard.append(facts["text"]))
    return read_screen(tmp_path / "screen.h5ad", replace(CONFIG, **options), on_event=on_event)


def units_of(screen):
    return {(unit.name, screen.covariates[unit.covariates]): len(unit.cells) for unit in screen.units}


PLAIN = obs_of(["control", "A", "B"])


def test_a_screen_has_the_units_controls_counts_and_totals_of_its_file(tmp_path, rng):
    counts = rng.poisson(2.0, (18, GENES))
    screen = read(tmp_path, PLAIN, counts=counts, genes=GENES)
    assert units_of(screen) == {("A", "all"): 6, ("B", "all"): 6}
    assert screen.perturbations == ("A", "B")
    assert [unit.parts for unit in screen.units] == [(0,), (1,)]
    np.testing.assert_array_equal(screen.control, PLAIN["condition"] == "control")
    np.testing.assert_array_equal(screen.units[1].cells, np.flatnonzero(PLAIN["condition"] == "B"))
    np.testing.assert_array_equal(screen.counts.toarray(), counts)
    np.testing.assert_array_equal(screen.totals, counts.sum(1))
    np.testing.assert_allclose(screen.values.toarray(), np.log1p(counts / counts.sum(1, keepdims=True) * 1e4))


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        pytest.param({"condition": "drug"}, ConfigError, "no column 'drug' in obs; it has .*condition", id="condition"),
        pytest.param({"covariates": ("donor",)}, ConfigError, "no column 'donor'", id="covariate"),
        pytest.param({"replicate": "lane"}, ConfigError, "no column 'lane'", id="replicate column"),
        pytest.param({"dose": "um"}, ConfigError, "no column 'um'", id="dose column"),
        pytest.param(
            {"control": "DMSO"},
            ConfigError,
            "--control 'DMSO' is not in condition, which has 'A', 'B', 'control'",
            id="control",
        ),
        pytest.param({"exclude": ("C",)}, ConfigError, "--exclude 'C' is not in condition", id="excluded label"),
        pytest.param({"exclude": ("A", "B")}, DataError, "nothing to compare", id="everything excluded"),
        pytest.param({"min_cells": 7}, DataError, "7 treated and 7 control cells .*lower --min-cells", id="few cells"),
    ],
)
def test_what_is_not_there_is_named(tmp_path, options, error, words):
    with pytest.raises(error, match=words):
        read(tmp_path, PLAIN, **options)


def test_controls_alone_are_no_screen(tmp_path):
    with pytest.raises(DataError, match="no condition but 'control'; there is nothing to compare"):
        read(tmp_path, obs_of(["control"]))


def test_one_condition_is_enough(tmp_path):
    assert units_of(read(tmp_path, obs_of(["control", "A"]))) == {("A", "all"): 6}


def test_excluded_and_unlabelled_cells_are_left_out_and_counted(tmp_path):
    screen = read(tmp_path, obs_of(["control", "A", "multiplet", None]), exclude=("multiplet",))
    assert units_of(screen) == {("A", "all"): 6}
    assert len(screen.control) == 12
    assert screen.notes == ("left out: 12 cells without a condition or with an excluded one",)


def test_combinations_are_the_same_in_either_order_and_a_part_beside_control_is_single(tmp_path):
    screen = read(tmp_path, obs_of(["control", "A", "A+ctrl", "control+A", "B+A", "A+B", "B"]))
    assert units_of(screen) == {("A", "all"): 18, ("A+B", "all"): 12, ("B", "all"): 6}
    parts = {unit.name: [screen.perturbations[p] for p in unit.parts] for unit in screen.units}
    assert parts == {"A": ["A"], "A+B": ["A", "B"], "B": ["B"]}


def test_a_perturbation_at_two_doses_is_two_units_of_one_name(tmp_path):
    obs = obs_of(["control", "A", "B"], um=["0.5", "0.50", "10", "10", "1e1", "0.5"])
    screen = read(
        tmp_path, pd.concat([obs, obs]), dose="um"
    )  # fmt: skip
    assert screen.perturbations == ("A", "B")
    assert sorted((unit.name, unit.dose, len(unit.cells)) for unit in screen.units) == [
        ("A @ 0.5", 0.5, 6), ("A @ 10", 10.0, 6), ("B @ 0.5", 0.5, 6), ("B @ 10", 10.0, 6)
    ]  # fmt: skip


@pytest.mark.parametrize("bad", ["-1", "high", None, "inf"], ids=["negative", "text", "missing", "infinite"])
def test_a_dose_that_is_none_is_refused_for_treated_cells_that_are_used(tmp_path, bad):
    obs = obs_of(["control", "A", "B"], um="1")
    obs.loc[obs["condition"] == "control", "um"] = bad  # controls have none
    assert len(read(tmp_path, obs, dose="um").units) == 2
    obs.loc[obs["condition"] == "B", "um"] = bad
    with pytest.raises(DataError, match="for 6 cells; correct the column, or leave them out with --exclude"):
        read(tmp_path, obs, dose="um")
    assert units_of(read(tmp_path, obs, dose="um", exclude=("B",))) == {("A @ 1", "all"): 6}


def test_contexts_are_combined_from_two_columns_and_one_may_be_held_out(tmp_path):
    obs = pd.concat([obs_of(["control", "A"], kind=kind, donor=donor) for kind in "TB" for donor in ("d1", "d2")])
    screen = read(tmp_path, obs, covariates=("kind", "donor"), unseen="donor")
    assert screen.covariates == ("B | d1", "B | d2", "T | d1", "T | d2")
    assert screen.unseen_of_covariates == ("d1", "d2", "d1", "d2")
    assert set(units_of(screen)) == {("A", context) for context in screen.covariates}
    assert read(tmp_path, obs, covariates=("kind", "donor")).unseen_of_covariates == screen.covariates


def test_treated_cells_are_compared_with_controls_of_their_own_replicate_or_not_at_all(tmp_path):
    obs = pd.concat([obs_of(["control", "A"], lane="1"), obs_of(["control", "A"], lane="2"), obs_of(["A"], lane="3")])
    obs.index = range(len(obs))
    lonely = obs.index[(obs["lane"] == "2") & (obs["condition"] == "control")][1:]
    screen = read(tmp_path, obs.drop(lonely), replicate="lane")
    assert units_of(screen) == {("A", "all"): 6}
    assert screen.notes == ("left out: 12 treated cells whose covariate group or replicate has no controls",)
    assert set(screen.replicate[screen.units[0].cells]) == {"1"}


def test_strata_are_contexts_within_replicates_whatever_their_names(tmp_path):
    pairs = [("a b", "c"), ("a", "b c"), ("a", "c")]
    obs = pd.concat([obs_of(["control", "A"], kind=kind, lane=lane) for kind, lane in pairs])
    screen = read(tmp_path, obs, covariates=("kind",), replicate="lane")
    together = {s: set(zip(obs["kind"][screen.stratum == s], obs["lane"][screen.stratum == s], strict=True))
                for s in set(screen.stratum)}  # fmt: skip
    assert sorted(map(sorted, together.values())) == sorted([pair] for pair in pairs)


def test_units_with_few_cells_are_left_out_by_min_cells(tmp_path):
    obs = pd.concat([obs_of(["control", "A"]), obs_of(["B"]).iloc[:3]])
    screen = read(tmp_path, obs)
    assert units_of(screen) == {("A", "all"): 6}
    assert screen.perturbations == ("A",)
    assert "left out: 1 units with fewer than 4 treated or control cells" in screen.notes
    assert len(read(tmp_path, pd.concat([obs, obs_of(["B"]).iloc[:1]])).units) == 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("A\tGENE1\nB\tGENE2\n", ("GENE1", "GENE2"), id="tabs"),
        pytest.param("\ufeffcondition,gene\n# guides\n\nB,GENE2\nA , GENE1\n", ("GENE1", "GENE2"), id="commas"),
        pytest.param("A,GENE1,library 3\n", ("GENE1", None), id="another column"),
        pytest.param("A\tGENE1\nB\t\n", ("GENE1", None), id="a gene missing"),
        pytest.param("C\tGENE1\n", (None, None), id="others"),
    ],
)
def test_targets_come_from_a_file_of_two_columns(tmp_path, text, expected):
    (tmp_path / "map").write_text(text, encoding="utf-8")
    assert read(tmp_path, PLAIN, target_map=str(tmp_path / "map")).target_genes == expected


@pytest.mark.parametrize("name", ["A#2", "A, 5 uM"], ids=["number sign", "comma"])
def test_conditions_of_any_name_find_their_target(tmp_path, name):
    (tmp_path / "map").write_text(f"{name}\tGENE7\nB\tGENE2\n")
    screen = read(tmp_path, obs_of(["control", name]), target_map=str(tmp_path / "map"))
    assert (screen.perturbations, screen.target_genes) == ((name,), ("GENE7",))


@pytest.mark.parametrize("text", ["A\nB\nC\n", "A\tGENE1\nB\n", "", "GENE1\nGENE2\n"],
                         ids=["one column", "one column in places", "empty", "genes alone"])  # fmt: skip
def test_a_map_that_is_none_is_refused(tmp_path, text):
    (tmp_path / "map").write_text(text)
    with pytest.raises(ConfigError, match="give condition and gene per line, separated by a tab or comma"):
        read(tmp_path, PLAIN, target_map=str(tmp_path / "map"))


def test_a_map_with_a_quote_that_does_not_end_is_refused(tmp_path):
    (tmp_path / "map").write_text('A,GENE1\n"B,GENE2\n')
    with pytest.raises(ConfigError, match="has a quote that does not end"):
        read(tmp_path, PLAIN, target_map=str(tmp_path / "map"))


def test_a_map_with_two_genes_for_one_condition_is_refused(tmp_path):
    (tmp_path / "map").write_text("A,GENE1\nB,GENE2\nA,GENE1\nB,GENE3\n")
    with pytest.raises(ConfigError, match="names both GENE2 and GENE3 for 'B'; keep one line"):
        read(tmp_path, PLAIN, target_map=str(tmp_path / "map"))


def test_without_a_map_nothing_is_known_and_same_takes_the_names(tmp_path):
    assert read(tmp_path, PLAIN).target_genes == (None, None)
    assert read(tmp_path, PLAIN, target_map="same").target_genes == ("A", "B")
    with pytest.raises(ConfigError, match="cannot be read"):
        read(tmp_path, PLAIN, target_map=str(tmp_path / "nowhere"))


def test_genes_are_chosen_by_variance_and_labels_do_not_matter(tmp_path, rng):
    counts = rng.poisson(rng.gamma(0.5, 4, GENES) + 0.5, (18, GENES))
    counts[:, 3] = 0  # never detected
    values = np.log1p(counts / counts.sum(1, keepdims=True) * 1e4)
    best = np.sort(np.argsort(-values.var(0))[:7])
    screens = [read(tmp_path, obs, counts=counts, genes=7) for obs in (PLAIN, PLAIN.iloc[rng.permutation(18)])]
    for screen in screens:
        assert list(screen.genes["symbol"]) == [f"GENE{g}" for g in best]
        np.testing.assert_array_equal(screen.counts.toarray(), counts[:, best])
        np.testing.assert_array_equal(screen.totals, counts.sum(1))
    assert len(read(tmp_path, PLAIN, counts=counts, genes=100).genes) == GENES - 1
    counts[:, 2:] = 0
    counts[:, 0] = 1
    with pytest.raises(DataError, match="2 genes are detected in the cells to compare; at least 3"):
        read(tmp_path, PLAIN, counts=counts)


def test_permuted_labels_are_exchanged_within_strata_and_sizes_stay(tmp_path):
    obs = pd.concat([obs_of(["control", "A", "A", "B", "C"], lane=lane) for lane in "12"])
    plain = read(tmp_path, obs, replicate="lane")
    mixed = read(tmp_path, obs, replicate="lane", permute=True)
    again = read(tmp_path, obs, replicate="lane", permute=True)
    other = read(tmp_path, obs, replicate="lane", permute=True, seed=1)
    np.testing.assert_array_equal(mixed.control, plain.control)
    for a, b, same in zip(plain.units, mixed.units, again.units, strict=True):
        np.testing.assert_array_equal(np.bincount(plain.stratum[a.cells]), np.bincount(mixed.stratum[b.cells]))
        np.testing.assert_array_equal(b.cells, same.cells)
        assert (a.name, a.parts) == (b.name, b.parts)
    cells = [np.sort(np.concatenate([unit.cells for unit in screen.units])) for screen in (plain, mixed)]
    np.testing.assert_array_equal(*cells)
    kept = [np.isin(b.cells, a.cells).mean() for a, b in zip(plain.units, mixed.units, strict=True)]
    assert np.mean(kept) < 0.8
    assert any((a.cells != b.cells).any() for a, b in zip(mixed.units, other.units, strict=True))


def test_one_perturbation_cannot_be_permuted(tmp_path):
    obs = pd.concat([obs_of(["control", "A"], kind=kind) for kind in "TB"])
    with pytest.raises(ConfigError, match="--permute exchanges labels between perturbations"):
        read(tmp_path, obs, covariates=("kind",), permute=True)


def test_a_store_gives_the_same_screen_as_its_file(tmp_path):
    from_file = read(tmp_path, PLAIN)
    prepare([tmp_path / "screen.h5ad"], tmp_path / "screen.sckit", config=PrepareConfig(assay="any"))
    from_store = read_screen(tmp_path / "screen.sckit", CONFIG, on_event=lambda *_: None)
    pd.testing.assert_frame_equal(from_file.genes, from_store.genes)
    np.testing.assert_array_equal(from_file.counts.toarray(), from_store.counts.toarray())
    assert units_of(from_file) == units_of(from_store)
    assert from_file.table == from_store.table


def test_the_table_of_cells_has_controls_first_and_counts_what_is_used(tmp_path):
    obs = pd.concat([obs_of(["control", "B", "A"], kind="T"), obs_of(["control", "A"], kind="B")])
    table = read(tmp_path, obs, covariates=("kind",)).table
    assert [(row["condition"], row["context"], row["cells"], row["control"]) for row in table] == [
        ("control", "B", 6, True), ("control", "T", 6, True),
        ("A", "B", 6, False), ("A", "T", 6, False), ("B", "T", 6, False),
    ]  # fmt: skip


def test_genes_that_a_unit_perturbs_are_not_scored_in_it(rng):
    targets = {"A": "GENE3", "B": "ENSG7", "C": "GENE99"}
    screen = small_screen(rng, conditions=("A", "A+B", "C", "D"), cells=4, controls=4, genes=9, targets=targets)
    ids = ["" if g != 7 else "ENSG7" for g in range(9)]
    screen = replace(screen, genes=screen.genes.assign(id=ids))
    left_out = [np.flatnonzero(~row).tolist() for row in screen.scored(np.array([1, 0, 2, 3]))]
    assert left_out == [[3, 7], [3], [], []]


def test_covariates_with_the_separator_of_groups_stay_apart(tmp_path):
    obs = obs_of(["control", "A"], x=["a | b", "a", "a | b", "a", "a | b", "a"], y=["c", "b | c"] * 3)
    obs = pd.concat([obs, obs], ignore_index=True)
    screen = read(tmp_path, obs, covariates=("x", "y"))
    assert screen.covariates == ("'a | b' | 'c'", "'a' | 'b | c'")


def test_cells_without_a_covariate_are_a_group_and_counted(tmp_path):
    obs = obs_of(["control", "A", "B"], donor=[None, None, None, "one", "one", "one"], lane="x")
    obs = pd.concat([obs, obs], ignore_index=True)
    screen = read(tmp_path, obs, covariates=("donor",), replicate="lane")
    assert screen.covariates == ("", "one")
    assert "18 cells have no value in donor: they count as a group of their own" in screen.notes
    assert not any("lane" in note for note in screen.notes)
