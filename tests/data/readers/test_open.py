"""Every legal kind of storage is read exactly, by content; what is not read says how to convert it."""

import gzip
import json
import os
import re

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse

from sckit.config.reading import ReadingConfig
from sckit.data.prepare import prepare
from sckit.data.readers.open import open_sources, parse_input
from sckit.errors import ConfigError, DataError

N_CELLS, N_GENES = 7, 5
IDS = [f"ENSG0000000000{i}" for i in range(N_GENES)]


def data_of(matrix):
    obs = pd.DataFrame({"total_counts": 1.5}, index=[f"cell{i}" for i in range(N_CELLS)])
    return anndata.AnnData(matrix, obs=obs, var=pd.DataFrame({"gene_ids": IDS}, index=list("ABCDE")))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("storage", [scipy.sparse.csr_matrix, scipy.sparse.csc_matrix, np.asarray])
@pytest.mark.parametrize("dtype", [np.float32, np.int64])
def test_zarr_is_read_like_h5ad(tmp_path, known, dense, storage, dtype):
    data = data_of(storage(known.astype(dtype)))
    data.raw = data.copy()
    data.layers["half"] = data.X / 2
    data.write_zarr(tmp_path / "x.zarr")
    (source,) = open_sources(tmp_path / "x.zarr")
    np.testing.assert_array_equal(dense(source, cells_per_block=3), known)
    assert (source.genes.ids.tolist(), source.obs.index[1]) == (IDS, "cell1")
    np.testing.assert_array_equal(dense(*open_sources(f"{tmp_path}/x.zarr::raw")), known)
    with pytest.raises(DataError, match=r"in layer 'half', which is not whole; .*try to give it as .*x\.zarr::raw"):
        dense(*open_sources(f"{tmp_path}/x.zarr::layer=half"))


@pytest.mark.filterwarnings("ignore")
def test_zarr_with_pickled_objects_is_refused(tmp_path, known):
    data_of(known.astype(np.float32)).write_zarr(tmp_path / "x.zarr")
    metadata = {"zarr_format": 2, "shape": [1], "chunks": [1], "dtype": "|O", "fill_value": None, "order": "C"}
    (tmp_path / "x.zarr" / "obs" / "bad").mkdir()
    text = json.dumps(metadata | {"compressor": None, "filters": [{"id": "pickle", "protocol": 5}]})
    (tmp_path / "x.zarr" / "obs" / "bad" / ".zarray").write_text(text.replace("pickle", "\\u0070ickle"))
    with pytest.raises(DataError, match="pickled objects, which could run any code"):
        open_sources(tmp_path / "x.zarr")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.uint8, np.int16, np.uint64, bool])
def test_numbers_of_any_type_are_counts(tmp_path, known, dense, dtype):
    data = data_of(known.astype(np.float32))
    data.write_h5ad(tmp_path / "x.h5ad")
    with h5py.File(tmp_path / "x.h5ad", "r+") as file:
        del file["X"]
        file["X"] = known.astype(dtype)
        file["X"].attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    np.testing.assert_array_equal(dense(*open_sources(tmp_path / "x.h5ad")), known.astype(dtype).astype(int))


@pytest.mark.filterwarnings("ignore")
def test_dense_soma_and_another_measurement(tmp_path, known, dense):
    import tiledbsoma
    import tiledbsoma.io

    data = data_of(known.astype(np.float32))
    data.raw = data_of(2 * known.astype(np.float32))
    data.X = data.X / 2
    path = tmp_path / "x"
    tiledbsoma.io.from_anndata(str(path), data, "RNA", X_kind=tiledbsoma.DenseNDArray)
    with pytest.raises(DataError, match=r"which is not whole; .*; try to give it as .*x::measurement=raw"):
        dense(*open_sources(path))
    (source,) = open_sources(path, ReadingConfig(measurement="raw"))
    np.testing.assert_array_equal(dense(source, cells_per_block=3), 2 * known)
    with pytest.raises(DataError, match=r"no measurement 'nope'; its measurements are: RNA, raw"):
        open_sources(path, ReadingConfig(measurement="nope"))


def test_a_store_is_an_input_and_keeps_its_totals(tmp_path, known, dense):
    first = data_of(known.astype(np.float32))
    first.obs["batch"] = "one"
    first.write_h5ad(tmp_path / "a.h5ad")
    data_of(3 * known.astype(np.float32)).write_h5ad(tmp_path / "b.h5ad")
    (tmp_path / "genes.txt").write_text("B\nD\n")
    from sckit.config import PrepareConfig

    config = PrepareConfig(genes=str(tmp_path / "genes.txt"))
    prepare([tmp_path / "a.h5ad"], tmp_path / "a.sckit", config=config)
    joined = prepare([tmp_path / "a.sckit", tmp_path / "b.h5ad"], tmp_path / "both.sckit")
    assert joined.genes["symbol"].tolist() == ["B", "D"]
    totals = known.sum(1)[(known[:, [1, 3]] > 0).any(1)]
    assert joined.obs["total_counts"].tolist() == [*totals, *3 * totals]
    assert joined.obs["source"].unique().tolist() == ["a", "b"]
    again = prepare(
        [tmp_path / "both.sckit"], tmp_path / "again.sckit", config=PrepareConfig(obs_filter="source=='both'")
    )
    assert again.obs["total_counts"].tolist() == joined.obs["total_counts"].tolist()
    assert "input_source" in again.obs


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("x.loom", "read_loom"),
        ("x.csv", "transpose"),
        ("x.tsv.gz", "write it as .h5ad"),
        ("x.h5mu", "RNA part"),
        ("x.rds", "writeH5AD"),
        ("x.zip", "unpack it"),
        ("x.tar.gz", "unpack it"),
    ],
)
def test_other_formats_say_how_to_convert_them(tmp_path, name, advice):
    (tmp_path / name).write_bytes(gzip.compress(b"x"))
    with pytest.raises(DataError, match=advice):
        open_sources(tmp_path / name)


def test_an_input_sets_its_own_options():
    options = ReadingConfig(layer="counts", genome="hg38")
    path, own = parse_input("a/b.h5ad::raw,genome=mm10", options)
    assert (str(path), own.raw, own.layer, own.genome) == ("a/b.h5ad", True, None, "mm10")
    assert parse_input("soma://x", options)[1] == options
    assert parse_input("x::layer=", options)[1].layer is None
    with pytest.raises(ConfigError, match=r"sets 'rwa'; behind :: stand raw or raw=false, from-log1p"):
        parse_input("x::rwa", options)


def test_an_option_of_another_kind_of_input_is_refused(tmp_path, known):
    data_of(known.astype(np.float32)).write_h5ad(tmp_path / "x.h5ad")
    with pytest.raises(ConfigError, match=r"x\.h5ad is AnnData, which does not have --measurement; leave it out"):
        open_sources(tmp_path / "x.h5ad", ReadingConfig(measurement="raw"))


@pytest.mark.parametrize("column", ["name", "gene_names"])
def test_tenx_h5_without_ids_is_read_by_symbols(tmp_path, known, dense, column):
    matrix = scipy.sparse.csr_matrix(known)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        top = file.create_group("matrix" if column == "name" else "background_removed")
        top["barcodes"] = [f"cell{i}".encode() for i in range(N_CELLS)]
        top["indptr"], top["indices"], top["data"] = matrix.indptr, matrix.indices, matrix.data
        (top.create_group("features") if column == "name" else top)[column] = [name.encode() for name in "ABCDE"]
    (source,) = open_sources(tmp_path / "x.h5")
    np.testing.assert_array_equal(dense(source), known)
    assert (source.genes.ids[0], source.genes.symbols.tolist()) == ("", list("ABCDE"))


@pytest.mark.filterwarnings("ignore")
def test_a_filter_that_is_not_installed_is_named_with_its_package(tmp_path, known):
    path = tmp_path / "x.h5ad"
    data_of(known.astype(np.float32)).write_h5ad(path, compression="lzf")
    content = path.read_bytes()
    lzf, unknown = (number.to_bytes(2, "little") for number in (32000, 32099))
    path.write_bytes(re.sub(re.escape(lzf) + rb"(?=.{0,16}lzf)", unknown, content, flags=re.DOTALL))
    with pytest.raises(DataError, match=r"HDF5 filter that is not installed .* `pip install hdf5plugin`"):
        list(open_sources(path)[0].blocks())


@pytest.mark.parametrize("dtype", [np.uint8, np.uint32, np.uint64, np.int16])
def test_cell_numbers_of_any_type_are_put_in_order(tmp_path, known, dense, dtype):
    data_of(scipy.sparse.csc_matrix(known.astype(np.float32))).write_h5ad(tmp_path / "x.h5ad")
    with h5py.File(tmp_path / "x.h5ad", "r+") as file:
        indices = file["X/indices"][:]
        del file["X/indices"]
        file["X/indices"] = indices.astype(dtype)
    np.testing.assert_array_equal(dense(*open_sources(tmp_path / "x.h5ad")), known)


@pytest.mark.filterwarnings("ignore")
def test_a_column_called_pickled_is_a_column(tmp_path, known, dense):
    data = data_of(known.astype(np.float32))
    data.obs["pickled"] = "no"
    data.write_zarr(tmp_path / "x.zarr")
    np.testing.assert_array_equal(dense(*open_sources(tmp_path / "x.zarr")), known)


def test_complex_values_are_no_counts(tmp_path, known, dense):
    data_of(known.astype(np.float32)).write_h5ad(tmp_path / "x.h5ad")
    with h5py.File(tmp_path / "x.h5ad", "r+") as file:
        del file["X"]
        file["X"] = known.astype(np.complex64)
        file["X"].attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    with pytest.raises(DataError, match="values of the type complex64 in X; counts are numbers"):
        dense(*open_sources(tmp_path / "x.h5ad"))


def write_with_column(path, known, name, values):
    """Write an h5ad with an obs column of a type that anndata itself would not write."""
    data = data_of(known.astype(np.float32))
    data.obs[name] = np.arange(N_CELLS)
    data.write_h5ad(path)
    with h5py.File(path, "r+") as file:
        attributes = dict(file[f"obs/{name}"].attrs)
        del file[f"obs/{name}"]
        file[f"obs/{name}"] = values
        file[f"obs/{name}"].attrs.update(attributes)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [np.complex128, np.dtype([("a", "i4"), ("b", "f4")])], ids=["complex", "records"])
def test_labels_of_a_kind_that_tables_do_not_have_become_text(tmp_path, known, kind):
    write_with_column(tmp_path / "x.h5ad", known, "odd", np.ones(N_CELLS, dtype=kind))
    store = prepare([tmp_path / "x.h5ad"], tmp_path / "x.sckit")
    assert set(store.obs["odd"]) == {str(np.ones(1, dtype=kind)[0])}


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int64, np.uint64])
def test_a_count_beyond_32_bits_is_refused(tmp_path, known, dtype, dense):
    matrix = known.astype(dtype)
    matrix[2, 3] = np.inf if dtype == np.float16 else 2**32  # to which float32 rounds the largest count there is
    data_of(matrix).write_h5ad(tmp_path / "x.h5ad")
    with pytest.raises(DataError, match=r"which is (too large|no number); counts are whole numbers from 0"):
        dense(*open_sources(tmp_path / "x.h5ad"))


@pytest.mark.parametrize("name", ["csr_matrix", np.bytes_(b"csr_matrix"), np.array(["csr_matrix"], dtype=object)])
def test_the_storage_of_a_matrix_may_be_bytes_or_a_list(tmp_path, known, dense, name):
    data_of(scipy.sparse.csr_matrix(known.astype(np.float32))).write_h5ad(tmp_path / "x.h5ad")
    with h5py.File(tmp_path / "x.h5ad", "r+") as file:
        file["X"].attrs["encoding-type"] = name
    np.testing.assert_array_equal(dense(*open_sources(tmp_path / "x.h5ad")), known)


def test_a_matrix_of_another_storage_is_refused(tmp_path, known):
    data_of(scipy.sparse.csr_matrix(known.astype(np.float32))).write_h5ad(tmp_path / "x.h5ad")
    with h5py.File(tmp_path / "x.h5ad", "r+") as file:
        file["X"].attrs["encoding-type"] = "coo_matrix"
    with pytest.raises(DataError, match="its matrix is stored as 'coo', not as csr, csc or dense"):
        open_sources(tmp_path / "x.h5ad")


def test_a_folder_of_inputs_names_them(tmp_path, known):
    data_of(known.astype(np.float32)).write_h5ad(tmp_path / "x.h5ad")
    (tmp_path / "sample" / "outs" / "filtered_feature_bc_matrix").mkdir(parents=True)
    with pytest.raises(DataError, match=r"without a matrix\.mtx; name those in it that are wanted \(sample, x\.h5ad\)"):
        open_sources(tmp_path)


@pytest.mark.filterwarnings("ignore")
def test_numbers_in_another_byte_order_are_labels_like_others(tmp_path, known):
    write_with_column(tmp_path / "x.h5ad", known, "age", np.arange(N_CELLS, dtype=">i4"))
    store = prepare([tmp_path / "x.h5ad"], tmp_path / "x.sckit")
    assert store.obs["age"].tolist() == [i for i in range(N_CELLS) if known[i].any()]


def test_pipes_and_gzipped_files_say_what_they_are(tmp_path, known):
    data_of(known.astype(np.float32)).write_h5ad(tmp_path / "x.h5ad")
    (tmp_path / "x.h5ad.gz").write_bytes(gzip.compress((tmp_path / "x.h5ad").read_bytes()))
    with pytest.raises(DataError, match=r"x\.h5ad\.gz is gzipped; unpack it with gunzip"):
        open_sources(tmp_path / "x.h5ad.gz")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="pipe is a pipe or a device"):
        open_sources(tmp_path / "pipe")
