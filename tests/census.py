"""A small experiment with the columns of the CELLxGENE Census."""

import numpy as np
import pyarrow as pa
import tiledbsoma

ASSAYS = ["10x 3' v3", "10x 5' v1", "Smart-seq2", "Drop-seq"]


def categories(values):
    names, codes = np.unique(values, return_inverse=True)
    return pa.DictionaryArray.from_arrays(pa.array(codes.astype(np.int32)), pa.array(names.tolist(), pa.string()))


def write_census(path, n_cells=300, n_genes=40, *, seed=0):
    """Write counts [n_cells, n_genes], and return them with the obs table as pandas."""
    rng = np.random.default_rng(seed)
    joinids = np.arange(n_cells) * 2 + 5  # with gaps, as after a selection
    obs = pa.table(
        {
            "soma_joinid": joinids,
            "dataset_id": categories(rng.choice(["d1", "d2", "d3"], n_cells)),
            "assay": categories(rng.choice(ASSAYS, n_cells, p=[0.5, 0.2, 0.2, 0.1])),
            "is_primary_data": rng.random(n_cells) < 0.6,
            "cell_type": categories(rng.choice(["T cell", "B cell"], n_cells)),
            "tissue": categories(rng.choice(["blood", "lung", "eye's lens"], n_cells)),
            "observation_joinid": pa.array([f"j{i}" for i in range(n_cells)], pa.large_string()),
            "age": pa.array([None if i % 7 == 0 else i % 50 for i in range(n_cells)], pa.int64()),
            "score": rng.random(n_cells),
        }
    )
    var = pa.table(
        {
            "soma_joinid": np.arange(n_genes),
            "feature_id": pa.array([f"ENSG{i:011d}" for i in range(n_genes)], pa.large_string()),
            "feature_name": pa.array([f"GENE{i}" for i in range(n_genes)], pa.large_string()),
        }
    )
    counts = rng.poisson(0.4, (n_cells, n_genes))
    cells, genes = np.nonzero(counts)
    entries = {"soma_dim_0": joinids[cells], "soma_dim_1": genes, "soma_data": counts[cells, genes].astype(np.float32)}
    last = int(joinids[-1])
    with tiledbsoma.Experiment.create(str(path)) as experiment:
        experiment.add_new_dataframe("obs", schema=obs.schema, domain=[[0, last]])
        rna = experiment.add_new_collection("ms").add_new_collection("RNA", tiledbsoma.Measurement)
        rna.add_new_dataframe("var", schema=var.schema, domain=[[0, n_genes - 1]]).write(var)
        matrix = rna.add_new_collection("X").add_new_sparse_ndarray("raw", type=pa.float32(), shape=(last + 1, n_genes))
        matrix.write(pa.table(entries))
    with tiledbsoma.open(str(path / "obs"), "w") as table:  # categories are written to what is there already
        table.write(obs)
    return counts, obs.to_pandas()
