"""What the packages after `data` need of it, in one place; the files of this package say the rest."""

from sckit.data.genes import GeneIndex, read_gene_list, read_lines
from sckit.data.labels import choose_labels, group_values, in_quotes
from sckit.data.prepare import open_or_prepare
from sckit.data.readers.open import parse_input
from sckit.data.shards import fingerprint
from sckit.data.shared_cells import SameCells, same_cells
from sckit.data.store import Store
from sckit.data.views import as_matrix, in_blocks, indptr_of, log_values

__all__ = [
    "GeneIndex",
    "SameCells",
    "Store",
    "as_matrix",
    "choose_labels",
    "fingerprint",
    "group_values",
    "in_blocks",
    "in_quotes",
    "indptr_of",
    "log_values",
    "open_or_prepare",
    "parse_input",
    "read_gene_list",
    "read_lines",
    "same_cells",
]
