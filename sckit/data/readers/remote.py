"""Inputs by address: where they lie, how TileDB reaches them, and what happens when the network fails."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from pathlib import Path, PosixPath
from typing import Any, TypeVar
from urllib.parse import unquote

from sckit.errors import ConfigError, DataError, SckitError, UnreachableError, said

T = TypeVar("T")

_PAUSES_S = (0.5, 2.0, 8.0)
"""How long to wait before each further try to read something over the network."""

_LIMITS = {
    "vfs.s3.connect_timeout_ms": "10000",
    "vfs.s3.request_timeout_ms": "10000",  # without a byte
    "vfs.s3.connect_max_tries": "3",
}
"""How TileDB itself waits and tries again within one try."""

_GONE = re.compile(r"Response Code: 404|NoSuchBucket|not a valid TileDB|does not exist")
_FORBIDDEN = re.compile(r"Response Code: 40[13]|AccessDenied|SignatureDoesNotMatch|InvalidAccessKeyId")
_ELSEWHERE = re.compile(r"Response Code: 30[17]|PermanentRedirect|AuthorizationHeaderMalformed")


class Address(PosixPath):
    """An s3:// address, where the code has a path; it stands for nothing on this machine."""

    def __str__(self) -> str:
        """Return the address with both slashes, of which a path keeps one."""
        return super().__str__().replace(":/", "://", 1)

    def resolve(self, strict: bool = False) -> Address:  # noqa: FBT001, FBT002
        """Return the address: it is whole already."""
        return self


def located(given: Path | str) -> Path:
    """Return the path or the `Address` that was given; file:// is a path, and soma:// may stand before either.

    Raises `ConfigError` for an address of another kind.
    """
    text = str(given).removeprefix("soma://")
    scheme, separator, rest = text.partition("://")
    if not separator or "/" in scheme:
        return Path(text)
    if scheme == "s3" and rest.strip("/"):
        return Address(text)
    if scheme == "file" and rest.removeprefix("localhost").startswith("/"):
        return Path(unquote(rest.removeprefix("localhost")))
    raise ConfigError(
        f"{given} is no address that can be read; give s3://BUCKET/KEY, file:///PATH, or either with soma:// in front."
    )


def tiledb_config(path: Path, *, region: str | None, anonymous: bool) -> dict[str, Any]:
    """Return the settings with which TileDB reaches a path; credentials come from the usual places of AWS.

    AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL names a server that is not of AWS, as it does for AWS's own tools.
    """
    if not isinstance(path, Address):
        return {}
    config: dict[str, Any] = dict(_LIMITS)
    if region:
        config["vfs.s3.region"] = region
    if anonymous:
        config["vfs.s3.no_sign_request"] = "true"
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if endpoint:
        config |= {"vfs.s3.endpoint_override": endpoint, "vfs.s3.use_virtual_addressing": "false"}
    return config


def is_experiment(path: Path, config: dict[str, Any]) -> bool:
    """Return whether there is a SOMA object at a path; raises `UnreachableError` where the network does not tell."""
    import tiledbsoma

    def opens() -> bool:
        try:
            context = tiledbsoma.SOMATileDBContext(tiledb_config=config) if config else None
            tiledbsoma.open(str(path), context=context).close()
        except (RuntimeError, tiledbsoma.SOMAError) as error:
            if _GONE.search(str(error)):
                return False
            raise
        return True

    return attempt(opens, path)


def attempt(read: Callable[[], T], path: Path) -> T:
    """Call `read`, and at an `Address` call it again after pauses when the network fails.

    Raises `UnreachableError` after the last try, and `DataError` at once for what no other try would change: there is
    nothing at the address, or it may not be read.
    """
    if not isinstance(path, Address):
        return read()
    for pause_s in (*_PAUSES_S, None):
        try:
            return read()
        except SckitError:
            raise
        except (RuntimeError, OSError, _tiledb_error()) as error:
            _refuse_what_stays(error, path)
            if pause_s is None:
                raise UnreachableError(
                    f"{path} could not be read in {len(_PAUSES_S) + 1} tries ({_short(error)}); check the network, and "
                    "give the same command again: it goes on from what is written."
                ) from error
            time.sleep(pause_s)
    raise AssertionError  # the last round returns or raises


def _refuse_what_stays(error: Exception, path: Path) -> None:
    if _GONE.search(str(error)):
        raise DataError(f"{path} does not exist, or is no SOMA experiment; check the address.") from error
    if _FORBIDDEN.search(str(error)):
        raise DataError(
            f"{path} must not be read: the server refuses it ({_short(error)}); give --anonymous for public data, or "
            "the keys in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
        ) from error
    if _ELSEWHERE.search(str(error)):
        raise DataError(f"{path} lies in another region ({_short(error)}); give it with --region.") from error


def _short(error: Exception) -> str:
    """Return the part of TileDB's long message that says what the server or the connection did."""
    found = re.search(r"curlCode: \d+, ([^;]+)|HTTP Response Code: (\d\d\d)", str(error))
    return said(error) if found is None else found[1] or f"HTTP status {found[2]}"


def _tiledb_error() -> type[Exception]:
    import tiledbsoma

    return tiledbsoma.SOMAError
