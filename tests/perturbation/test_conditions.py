"""Labels of conditions: what is a control, what is missing, what combines perturbations, and what is said about it."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from sckit.config import FinetuneConfig
from sckit.errors import ConfigError, DataError
from sckit.perturbation.conditions import read_conditions

CONFIG = FinetuneConfig("condition", "ctrl")


def conditions_of(labels, **options):
    return read_conditions(pd.DataFrame({"condition": pd.Series(labels, dtype=object)}), replace(CONFIG, **options))


def test_spaces_around_labels_go_and_that_is_said():
    found = conditions_of([" ctrl ", "ctrl", "A ", "A+ctrl ", " B"], control=(" ctrl",))
    assert found.labels.tolist() == ["ctrl", "ctrl", "A", "A+ctrl", "B"]
    assert found.control.tolist() == [True, True, False, False, False]
    assert found.parts == {"A": ("A",), "A+ctrl": ("A",), "B": ("B",)}
    assert found.notes == ["spaces around the labels of condition were removed in 4 cells"]


def test_a_combination_of_controls_is_a_control():
    found = conditions_of(["ctrl", "ctrl+ctrl", "A+ctrl", "NT+ctrl", "NT"], control=("ctrl", "NT"))
    assert found.control.tolist() == [True, True, False, True, True]
    assert list(found.parts) == ["A+ctrl"]


def test_text_that_means_missing_is_counted_unless_an_option_names_it():
    labels = ["ctrl", "A", "nan", "None", "NA", "NA", None, ""]
    found = conditions_of(labels)
    assert found.left_out.tolist() == [False, False] + [True] * 6
    assert found.notes == ["4 cells with the label 'NA', 'None', 'nan' count as cells without a condition"]
    found = conditions_of(labels, control=("None",), exclude=("ctrl",))
    assert found.control.tolist() == [label == "None" for label in labels]


def test_several_controls_and_labels_that_look_like_more():
    labels = ["NT1", "NT2", "A", "DMSO", "non-targeting"]
    found = conditions_of(labels, control=("NT1", "NT2"))
    assert found.control.tolist() == [True, True, False, False, False]
    assert found.notes == [
        "'DMSO', 'non-targeting' in condition may be controls too, but count as perturbations; if they are controls, "
        "give --control 'DMSO' as well"
    ]
    assert "'DMSO', 'NT2', 'non-targeting' in condition may be" in conditions_of(labels, control=("NT1",)).notes[0]
    assert conditions_of(["ctrl", "A1", "A2"]).notes == []


@pytest.mark.parametrize("separator", ["_", ",", "&"])
def test_another_separator_is_used_when_given_and_hinted_at_else(separator):
    labels = ["ctrl", "A", "B", f"A{separator}B", f"A{separator}x", f"B{separator}ctrl"]
    found = conditions_of(labels)
    assert found.parts[f"A{separator}B"] == (f"A{separator}B",)
    assert found.notes == [
        f"2 labels such as 'A{separator}B' may combine perturbations that are labels too; if they do, give --separator "
        f"{separator!r}"
    ]
    found = conditions_of(labels, separator=separator)
    assert found.parts[f"A{separator}B"] == ("A", "B")
    assert found.parts[f"B{separator}ctrl"] == ("B",)
    assert found.notes == []


def test_a_separator_is_not_hinted_at_where_a_longer_one_is_given():
    assert conditions_of(["ctrl", "A", "B", "A", "A__B"], separator="__").notes == []


def test_a_value_with_commas_is_one_label_if_there_is_one():
    drug = "[('DMSO_TF', 0.0, 'uM')]"
    found = conditions_of([drug, "A, 5 uM", "A", "B"], control=(drug,), exclude=("A, 5 uM",))
    assert found.control.tolist() == [True, False, False, False]
    assert found.left_out.tolist() == [False, True, False, False]
    found = conditions_of(["ctrl", "A", "B", "C"], exclude=("A,B",))
    assert found.left_out.tolist() == [False, True, True, False]
    assert found.notes == ["no cell has the label 'A,B', so --exclude means the labels 'A', 'B'"]
    with pytest.raises(ConfigError, match=r"--exclude 'X' is not in condition, which has 'A', 'B', 'C', 'ctrl'\."):
        conditions_of(["ctrl", "A", "B", "C"], exclude=("A,X",))
    with pytest.raises(ConfigError, match=r"--control 'ctl' is not in condition.*; did you mean 'ctrl'\?"):
        conditions_of(["ctrl", "A"], control=("ctl",))


def test_numbers_and_categories_are_labels():
    obs = pd.DataFrame({"condition": pd.Categorical([0, 1, 2, 0])})
    found = read_conditions(obs, replace(CONFIG, control=("0",)))
    assert found.control.tolist() == [True, False, False, True]
    assert np.asarray(found.labels).tolist() == ["0", "1", "2", "0"]


def test_a_control_may_occur_only_in_combinations_or_be_named_by_one():
    labels = ["NT+NT", "A+NT", "B"]
    for control in ("NT", "NT+NT"):
        found = conditions_of(labels, control=(control,))
        assert found.control.tolist() == [True, False, False]
        assert found.parts == {"A+NT": ("A",), "B": ("B",)}
    with pytest.raises(DataError, match="so there are no control cells"):
        conditions_of(["A+NT", "B"], control=("NT",))


def test_a_label_is_not_both_control_and_excluded():
    with pytest.raises(ConfigError, match="'ctrl' is named by --control and by --exclude"):
        conditions_of(["ctrl", "A"], exclude=("ctrl",))
