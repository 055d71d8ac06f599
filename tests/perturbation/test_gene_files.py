"""The three options that take a file of genes read it alike, however untidy it is."""

from dataclasses import replace

import anndata
import numpy as np
import pandas as pd
import pytest

from sckit.config.finetune import FinetuneConfig
from sckit.config.prepare import PrepareConfig
from sckit.data.prepare import prepare
from sckit.errors import ConfigError
from sckit.perturbation.examples import fixed_panel
from sckit.perturbation.screen import read_screen

CONFIG = FinetuneConfig("condition", "control", task="partial", min_cells=4)
CONDITIONS = ("A", "B", "C")
WANTED = ["GENE2", "GENE5", "GENE7"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """24 cells, controls and three conditions, of twelve genes with versioned ids."""
    counts = np.random.default_rng(0).poisson(2.0, (24, 12)).astype(np.float32)
    obs = pd.DataFrame({"condition": np.tile(["control", *CONDITIONS], 6)}, index=[f"cell{i}" for i in range(24)])
    var = pd.DataFrame({"gene_ids": [f"ENSG{g:011d}.1" for g in range(12)]}, index=[f"GENE{g}" for g in range(12)])
    path = tmp_path_factory.mktemp("genes") / "screen.h5ad"
    anndata.AnnData(counts, obs=obs, var=var).write_h5ad(path)
    return path


def listed(data, path, folder):
    store = prepare([data], folder / "store.sckit", config=PrepareConfig(genes=str(path)))
    return store.genes["symbol"].tolist()


def revealed(data, path, _):
    config = replace(CONFIG, panel=str(path))
    screen = read_screen(data, config, on_event=lambda *_: None)
    return screen.genes["symbol"][fixed_panel(screen, config)].tolist()


def targeted(data, path, _):
    screen = read_screen(data, replace(CONFIG, target_map=str(path)), on_event=lambda *_: None)
    left_out = [screen.genes["symbol"][~row].tolist() for row in screen.scored(np.arange(len(screen.units)))]
    return [gene for genes in left_out for gene in genes]


OPTIONS = {"--genes": listed, "--panel": revealed, "--target-map": targeted}


def write(path, option, genes, *, before="", line="{}\n", encoding="utf-8"):
    """One gene per line, with its condition in front of it for a target map."""
    named = [f"{c}\t{g}" for c, g in zip(CONDITIONS, genes, strict=False)] if option == "--target-map" else genes
    path.write_bytes((before + "".join(line.format(name) for name in named)).encode(encoding))
    return path


IDS = ["ENSG00000000002", "ENSG00000000005", "ENSG00000000007"]
UNTIDY = {
    "symbols": (WANTED, {}),
    "ids": (IDS, {}),
    "versions of ids": ([f"{name}.{i}" for i, name in enumerate(IDS)], {}),
    "byte order mark": (WANTED, {"encoding": "utf-8-sig"}),
    "line ends of Windows": (IDS, {"line": "{}\r\n"}),
    "comments": (WANTED, {"before": "# markers, 2024\n", "line": "{}\n# GENE1\n  # GENE3\n"}),
    "empty lines": (WANTED, {"before": "\n  \n", "line": "{}\n\n \t \n"}),
    "spaces around": (IDS, {"line": "  {}  \n"}),
    "no end of the last line": (WANTED, {"before": "", "line": "\n{}"}),
    "everything": (
        [IDS[0] + ".9", "GENE5", IDS[2]],
        {"before": "# a\r\n", "line": " {} \r\n\r\n  #\r\n", "encoding": "utf-8-sig"},
    ),
}


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("untidy", UNTIDY)
def test_the_same_genes_are_found_in_an_untidy_file(data, tmp_path, option, untidy):
    genes, how = UNTIDY[untidy]
    path = write(tmp_path / "file", option, genes, **how)
    assert OPTIONS[option](data, path, tmp_path) == WANTED


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_a_file_that_is_not_utf_8_is_refused_in_one_sentence(data, tmp_path, option, encoding):
    path = write(tmp_path / "file", option, ["GENE2", "G\u00e8ne", "GENE5"], encoding=encoding)
    with pytest.raises(ConfigError) as caught:
        OPTIONS[option](data, path, tmp_path)
    assert str(caught.value).startswith(f"{option} {path} cannot be read (")
    assert str(caught.value).endswith("as UTF-8 text.")
    assert "\n" not in str(caught.value)
