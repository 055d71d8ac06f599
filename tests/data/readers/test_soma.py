"""A TileDB-SOMA experiment is read exactly as tiledbsoma reads it."""

import tarfile

import numpy as np
import pytest

from sckit.data.readers.soma import _places
from sckit.errors import ConfigError, DataError
from sckit.kernels.clean_numba import Places

N_CELLS, N_GENES = 7, 5


def test_soma_equals_tiledbsoma(shared_data, tmp_path, read, dense, open_source):
    import tiledbsoma

    with tarfile.open(shared_data / "soma_pbmc_small" / "soma-exp-pbmc-small.tar.gz") as archive:
        archive.extractall(tmp_path)  # Python 3.11.2 knows no filter
    source = open_source(tmp_path)
    with tiledbsoma.open(str(tmp_path)) as experiment:
        coordinates = experiment.ms["RNA"].X["counts"].read().coos((80, 230)).concat().to_scipy()
        obs = experiment.obs.read().concat().to_pandas()
        var = experiment.ms["RNA"].var.read().concat().to_pandas()
    np.testing.assert_array_equal(dense(source, cells_per_block=33), coordinates.toarray())
    assert source.obs.index.tolist() == obs["obs_id"].tolist()
    assert source.genes.symbols.tolist() == var["var_id"].tolist()
    assert source.obs["groups"].tolist() == obs["groups"].tolist()
    with pytest.raises(
        DataError,
        match=r"holds 4\.9688207\d* in X layer 'data', which is not whole; .*; try to give it as .*::layer=counts\.",
    ):
        dense(open_source(tmp_path, layer="data"))
    with pytest.raises(DataError, match=r"no X layer 'nope'; its layers are: counts, data, scale_data"):
        open_source(tmp_path, layer="nope")
    with pytest.raises(ConfigError, match="a SOMA experiment, which does not have --raw"):
        open_source(tmp_path, raw=True)
    with pytest.raises(DataError, match="ms is a Collection, not a SOMA experiment"):
        open_source(tmp_path / "ms")
    for file in (tmp_path / "ms" / "RNA" / "X" / "counts").rglob("a0.tdb"):
        file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(DataError, match=r"cannot be read: it is truncated or corrupt.*IO Error"):
        dense(source)


def test_soma_with_scattered_join_ids_like_a_slice_of_the_census(tmp_path, known, dense, open_source):
    import pyarrow as pa
    import tiledbsoma

    cell_ids, gene_ids = np.arange(N_CELLS) ** 2 + 5, np.arange(N_GENES) * 3
    schema = {"soma_joinid": pa.int64(), "assay": pa.large_string()}
    obs = pa.table({"soma_joinid": cell_ids, "assay": ["10x 3' v3"] * N_CELLS}, schema=pa.schema(schema))
    names = {"feature_id": [f"ENSG0000000000{i}" for i in range(N_GENES)], "feature_name": list("ABCDE")}
    var = pa.table({"soma_joinid": gene_ids, **{name: pa.array(names[name], pa.large_string()) for name in names}})
    cells, genes = np.nonzero(known)
    values = known[cells, genes].astype(np.float32)
    matrix = {"soma_dim_0": cell_ids[cells], "soma_dim_1": gene_ids[genes], "soma_data": values}
    with tiledbsoma.Experiment.create(str(tmp_path / "x")) as experiment:
        domain = [[0, 99]]
        experiment.add_new_dataframe("obs", schema=obs.schema, domain=domain).write(obs)
        rna = experiment.add_new_collection("ms").add_new_collection("RNA", tiledbsoma.Measurement)
        rna.add_new_dataframe("var", schema=var.schema, domain=domain).write(var)
        layers = rna.add_new_collection("X")
        layers.add_new_sparse_ndarray("raw", type=pa.float32(), shape=(100, 100)).write(pa.table(matrix))
    source = open_source(tmp_path / "x")
    np.testing.assert_array_equal(dense(source, cells_per_block=3), known)
    assert source.genes.ids.tolist() == names["feature_id"]
    assert source.genes.symbols.tolist() == names["feature_name"]
    assert source.obs["assay"].tolist() == ["10x 3' v3"] * N_CELLS
    assert source.obs.index.tolist() == cell_ids.tolist()


def test_a_wide_dense_matrix_is_read_no_further_than_its_genes(tmp_path, known, dense, open_source, monkeypatch):
    import pyarrow as pa
    import tiledbsoma

    monkeypatch.setattr("sckit.data.readers.soma.DENSE_VALUES", 3 * N_GENES)
    tables = {
        name: pa.table(
            {"soma_joinid": np.arange(n) + 2, f"{name}_id": pa.array([f"n{i}" for i in range(n)], pa.large_string())}
        )
        for name, n in (("obs", N_CELLS), ("var", N_GENES))
    }
    values = np.zeros((N_CELLS + 2, 2**20), np.float32)
    values[2:, 2 : N_GENES + 2] = known
    with tiledbsoma.Experiment.create(str(tmp_path / "x")) as experiment:
        obs, var = (tables[name] for name in ("obs", "var"))
        experiment.add_new_dataframe("obs", schema=obs.schema, domain=[[0, 99]]).write(obs)
        rna = experiment.add_new_collection("ms").add_new_collection("RNA", tiledbsoma.Measurement)
        rna.add_new_dataframe("var", schema=var.schema, domain=[[0, 99]]).write(var)
        matrix = rna.add_new_collection("X").add_new_dense_ndarray("data", type=pa.float32(), shape=values.shape)
        matrix.write((slice(None), slice(None)), pa.Tensor.from_numpy(values))
    source = open_source(tmp_path / "x")
    np.testing.assert_array_equal(dense(source), known)
    assert [len(block.obs) for block in source.blocks()] == [3, 3, 1]


def write_sparse(path, counts, gene_names, *, cells_of_obs=N_CELLS):
    """Write an experiment whose cells and genes have the join ids 0, 1, ..."""
    import pyarrow as pa
    import tiledbsoma

    tables = {
        name: pa.table({"soma_joinid": np.arange(len(ids)), f"{name}_id": pa.array(ids, pa.large_string())})
        for name, ids in (("obs", [f"c{i}" for i in range(cells_of_obs)]), ("var", gene_names))
    }
    cells, genes = np.nonzero(counts)
    entries = {"soma_dim_0": cells, "soma_dim_1": genes, "soma_data": counts[cells, genes].astype(np.float32)}
    with tiledbsoma.Experiment.create(str(path)) as experiment:
        obs, var = tables["obs"], tables["var"]
        experiment.add_new_dataframe("obs", schema=obs.schema, domain=[[0, 99]]).write(obs)
        rna = experiment.add_new_collection("ms").add_new_collection("RNA", tiledbsoma.Measurement)
        rna.add_new_dataframe("var", schema=var.schema, domain=[[0, 99]]).write(var)
        layers = rna.add_new_collection("X")
        layers.add_new_sparse_ndarray("data", type=pa.float32(), shape=(100, 100)).write(pa.table(entries))
    return path


def test_one_of_two_genomes_of_an_experiment_is_chosen(tmp_path, known, dense, open_source):
    names = [f"{'GRCh38' if i < 3 else 'mm10'}_ENSG0000000000{i}" for i in range(N_GENES)]
    path = write_sparse(tmp_path / "x", known, names)
    with pytest.raises(DataError, match=r"holds 2 genomes .*; say which with --genome GRCh38"):
        open_source(path)
    source = open_source(path, genome="GRCh38")
    np.testing.assert_array_equal(dense(source), known[:, :3])
    assert source.genes.ids.tolist() == ["ENSG00000000000", "ENSG00000000001", "ENSG00000000002"]


def test_counts_of_cells_that_obs_does_not_have_are_refused(tmp_path, known, open_source):
    path = write_sparse(tmp_path / "x", known, list("ABCDE"), cells_of_obs=4)
    with pytest.raises(DataError, match="'data' has the cells 0 to 5, and obs the cells 0 to 3; export it again"):
        open_source(path)


def places(known, wanted):
    ids, (first, table) = _places(known, wanted)
    return [int(table[i - first]) if 0 <= i - first < len(table) else -1 for i in ids.tolist()]


@pytest.mark.parametrize("cells_per_read", [1, 3, 5, 100])
def test_no_cell_is_read_twice(tmp_path, known, dense, open_source, monkeypatch, cells_per_read):
    source, read = open_source(write_sparse(tmp_path / "x", known, list("ABCDE"))), []
    monkeypatch.setattr("sckit.data.readers.soma._CELLS_PER_READ", cells_per_read)
    monkeypatch.setattr("sckit.data.readers.soma._CELLS_PER_BLOCK", cells_per_read)
    whole = type(source)._sparse_rows
    monkeypatch.setattr(
        type(source), "_sparse_rows", lambda self, handle, *cells: read.append(cells) or whole(self, handle, *cells)
    )
    source._cells_per_read = cells_per_read
    blocks = list(source.blocks(cells_per_block=2))
    assert [len(block.indptr) - 1 for block in blocks] == [2, 2, 2, 1]
    assert [cell for first, last in read for cell in range(first, last)] == list(range(N_CELLS))
    np.testing.assert_array_equal(dense(source), known)


@pytest.mark.parametrize("step", [1, 7, 2**40])
def test_join_ids_are_found_however_far_they_lie_apart(step):
    known = np.array([2, 3, 5]) * step
    assert places(known, known[[2, 0, 0, 1]]) == [2, 0, 0, 1]
    assert places(known, known[:0]) == []
    assert places(known, np.array([known[1], 0, 4 * step, 6 * step])) == [1, -1, -1, -1]


def test_entries_of_a_cell_that_was_not_asked_for_are_refused(tmp_path, known, open_source, monkeypatch):
    source = open_source(write_sparse(tmp_path / "x", known, list("ABCDE")))
    found = np.array([0, 3, 140_000_000_000_000])  # as TileDB gives from a damaged fragment
    assert places(np.arange(5), found) == [0, 3, -1]
    cells = Places(3, np.arange(2, dtype=np.int32))
    monkeypatch.setattr(
        "sckit.data.readers.soma._places",
        lambda known, wanted: (wanted, cells) if len(known) == N_CELLS else _places(known, wanted),
    )
    with pytest.raises(DataError, match="is corrupt: X layer 'data' has an entry for a cell that was not asked for"):
        list(source.blocks())
