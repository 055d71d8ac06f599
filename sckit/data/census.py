"""The CELLxGENE Census as an input: where a version of it lies, and which of its cells are wanted."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sckit.config.prepare import PrepareConfig
from sckit.data.readers.remote import is_experiment, located, tiledb_config
from sckit.errors import ConfigError, DataError

ADDRESS = "SCKIT_CENSUS"
"""Variable of the environment with another address than that of the public bucket, for a copy."""

COLUMNS = (
    *("dataset_id", "assay", "suspension_type", "cell_type", "tissue", "tissue_general", "disease"),
    *("development_stage", "sex", "donor_id"),
)
"""What is kept of obs by default: labels, of which there are few, without their ontology ids."""

_PUBLIC = "s3://cellxgene-census-public-us-west-2/cell-census/{version}/soma/census_data/{organism}"
_REGION = "us-west-2"
_PRIMARY = "is_primary_data == True"


def with_census(inputs: Sequence[Path | str], config: PrepareConfig) -> tuple[Sequence[Path | str], PrepareConfig]:
    """Return the inputs with that of --census behind them, and the options that go with it.

    A cell of the Census that several datasets hold is primary in one of them; the others are left out.
    Raises `ConfigError` for what is no version, `DataError` for a version that is not there.
    """
    version = config.census
    if version is None:
        return inputs, config
    if not re.fullmatch(r"\d{4}-\d\d-\d\d", version):
        raise ConfigError(
            f"--census {version} is no version; give the date of one, such as 2025-11-08, which always means the same."
        )
    template = os.environ.get(ADDRESS, _PUBLIC)
    address = template.replace("{version}", version).replace("{organism}", config.organism)
    primary = _PRIMARY if config.obs_filter is None else f"{_PRIMARY} and ({config.obs_filter})"
    config = replace(
        config,
        region=config.region or (_REGION if template == _PUBLIC else None),
        anonymous=config.anonymous or template == _PUBLIC,
        obs_filter=primary,
        obs_columns=config.obs_columns or COLUMNS,
    )
    path = located(address)
    if not is_experiment(path, tiledb_config(path, region=config.region, anonymous=config.anonymous)):
        raise DataError(
            f"The Census has no version {version} of {config.organism} (there is nothing at {path}); give the date of "
            "a release that is still kept, such as 2025-11-08."
        )
    return [*inputs, address], config
