"""Names of columns that are not there."""

import pandas as pd
import pytest

from sckit.data.labels import group_values
from sckit.errors import ConfigError


@pytest.mark.parametrize(
    ("asked", "meant"),
    [("celltype", "cell_type_predicted"), ("Donor", "donor"), ("batches", "batch"), ("sources", "source"), ("xyz", "")],
)
def test_a_column_of_the_input_is_proposed_before_one_of_the_store(asked, meant):
    obs = pd.DataFrame(columns=["cell", "source", "total_counts", "n_genes", "donor", "batch", "cell_type_predicted"])
    with pytest.raises(ConfigError, match="there is no column") as error:
        group_values(obs, asked)
    assert str(error.value).endswith(f"; did you mean {meant!r}?" if meant else ".")
