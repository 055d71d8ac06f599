"""Experiments on a server that speaks the protocol of S3: read as from a folder, whatever breaks on the way."""

import subprocess
import sys
from pathlib import Path

import pytest

from sckit.config.prepare import PrepareConfig
from sckit.config.reading import ReadingConfig
from sckit.data.prepare import prepare
from sckit.data.readers.open import open_sources
from sckit.data.readers.remote import Address, attempt, located, tiledb_config
from sckit.errors import ConfigError, DataError, UnreachableError

from ..census import write_census
from ..s3 import Proxy, environment, s3_server, upload

ROOT = Path(__file__).parents[2]
CONFIG = {"obs_filter": "is_primary_data", "cells_per_shard": 5}


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    """The port of a server with an experiment, open to all and not, and the store that is made of its folder."""
    pytest.importorskip("moto.server", reason="the S3 server of the tests is not installed (sckit[test])")
    folder = tmp_path_factory.mktemp("s3")
    write_census(folder / "cells", 200, 30)
    straight = prepare([folder / "cells"], folder / "straight.sckit", config=PrepareConfig(**CONFIG))
    with s3_server() as port:
        upload(port, folder / "cells", "public", public=True)
        upload(port, folder / "cells", "private", public=False)
        yield port, straight


@pytest.fixture
def proxy(bucket):
    one = Proxy(bucket[0])
    yield one
    one.close()


PREPARE = """
import sys
from sckit.config.prepare import PrepareConfig
from sckit.data.prepare import prepare
from sckit.data.readers import remote, soma
from sckit.errors import SckitError
remote._PAUSES_S = (0.1, 0.2, 0.4)
remote._LIMITS = {name: "1000" if name.endswith("ms") else "1" for name in remote._LIMITS}
remote._LIMITS |= {"vfs.s3.connect_scale_factor": "1", "vfs.read_ahead_cache_size": "0"}
soma._CELLS_PER_BLOCK = soma._CELLS_PER_READ = 10
address, out, *options = sys.argv[1:]
config = PrepareConfig(obs_filter="is_primary_data", cells_per_shard=5, **dict(one.split("=") for one in options))
try:
    prepare([address], out, config=config)
except SckitError as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


def read(url, address, out, *options, keys=True):
    """Prepare in a process of its own; return what it says when it fails."""
    variables = {name: value for name, value in environment(url).items() if keys or "_KEY" not in name}
    command = [sys.executable, "-c", PREPARE, address, out, *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=variables).stderr.strip()


@pytest.fixture(scope="module")
def undisturbed(bucket, tmp_path_factory, folder_bytes):
    """The files of the store without any fault, and the number of requests that it took."""
    proxy, out = Proxy(bucket[0]), tmp_path_factory.mktemp("undisturbed") / "s.sckit"
    assert read(proxy.url, "s3://private/cells", out) == ""
    proxy.close()
    return folder_bytes(out), proxy.requests


def test_what_is_on_a_server_is_read_as_from_a_folder(bucket, undisturbed, tmp_path, folder_bytes):
    port, straight = bucket
    url, out = f"http://127.0.0.1:{port}", tmp_path / "s.sckit"
    assert read(url, "soma://s3://public/cells", out, "anonymous=true", "region=eu-west-1", keys=False) == ""
    public, private = folder_bytes(out), undisturbed[0]
    assert {name for name in public if public[name] != private[name]} == {"manifest.json"}  # the options, the address
    assert b'"path": "s3://public/cells"' in public["manifest.json"]
    local = folder_bytes(straight.path)
    assert {name for name in local if local[name] != private[name]} == {"manifest.json"}


@pytest.mark.parametrize("kind", ["refuse", "break", "stall"])
def test_a_fault_that_passes_is_not_seen(proxy, undisturbed, tmp_path, folder_bytes, kind):
    proxy.fail(kind, first=undisturbed[1] - 2, number=2)  # while counts are read
    assert read(proxy.url, "s3://private/cells", tmp_path / "s.sckit") == ""
    assert proxy.faults == 2
    assert folder_bytes(tmp_path / "s.sckit") == undisturbed[0]


@pytest.mark.parametrize("kind", ["refuse", "break", "stall"])
def test_a_fault_that_stays_is_one_sentence_and_work_goes_on_later(proxy, undisturbed, tmp_path, folder_bytes, kind):
    out = tmp_path / "s.sckit"
    proxy.fail(kind, first=undisturbed[1] - 3, number=10_000)
    said = read(proxy.url, "s3://private/cells", out)
    assert said.startswith("UnreachableError: s3://private/cells could not be read in 4 tries (")
    assert said.endswith("give the same command again: it goes on from what is written.")
    assert "\n" not in said
    assert 4 <= proxy.faults <= 40
    assert list((tmp_path / "s.sckit.partial" / "work").glob("*.npz"))
    assert not out.exists()
    proxy.fail("")
    assert read(proxy.url, "s3://private/cells", out) == ""
    assert folder_bytes(out) == undisturbed[0]


@pytest.mark.parametrize(
    ("address", "anonymous", "sentence"),
    [
        (
            "private/cells",
            True,
            r"private/cells must not be read: the server refuses it \(HTTP status 403\); give --anon",
        ),
        ("private/nothing", False, "s3://private/nothing does not exist, or is no SOMA experiment; check the address"),
        ("nothing/cells", False, "s3://nothing/cells does not exist, or is no SOMA experiment; check the address"),
    ],
)
def test_what_no_other_try_would_change_is_said_at_once(bucket, monkeypatch, address, anonymous, sentence):
    monkeypatch.setattr("sckit.data.readers.remote._PAUSES_S", (60.0,))
    for name, value in environment(f"http://127.0.0.1:{bucket[0]}").items():
        monkeypatch.setenv(name, value)
    with pytest.raises(DataError, match=sentence):
        open_sources(f"s3://{address}", ReadingConfig(anonymous=anonymous))


def test_addresses():
    address = located("soma://s3://bucket/a/b.soma/")
    assert isinstance(address, Address)
    assert (str(address), address.name, str(address.parent)) == ("s3://bucket/a/b.soma", "b.soma", "s3://bucket/a")
    assert address.resolve() == address
    assert located("file:///a%20b/c") == located("soma:///a b/c") == Path("/a b/c")
    assert located("a/b::c") == Path("a/b::c")
    for wrong in ("http://x/y", "s3://", "file://host/x", "gs://bucket/x"):
        with pytest.raises(ConfigError, match=f"{wrong} is no address that can be read; give s3://BUCKET/KEY"):
            located(wrong)


def test_where_tiledb_reads(monkeypatch):
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    assert tiledb_config(Path("x"), region="r", anonymous=True) == {}
    config = tiledb_config(Address("s3://b/x"), region="r", anonymous=True)
    assert (config["vfs.s3.region"], config["vfs.s3.no_sign_request"]) == ("r", "true")
    assert "vfs.s3.endpoint_override" not in config
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    config = tiledb_config(Address("s3://b/x"), region=None, anonymous=False)
    assert config["vfs.s3.endpoint_override"] == "http://127.0.0.1:9"
    assert "vfs.s3.region" not in config


def test_tries_are_counted(monkeypatch):
    monkeypatch.setattr("sckit.data.readers.remote._PAUSES_S", (0.0, 0.0))
    calls = []

    def fails(message, times):
        def read():
            calls.append(message)
            if len(calls) <= times:
                raise RuntimeError(message)
            return "counts"

        calls.clear()
        return read

    assert attempt(fails("curlCode: 28, Timeout was reached; Details", 2), Address("s3://b/x")) == "counts"
    with pytest.raises(UnreachableError, match=r"s3://b/x could not be read in 3 tries \(Timeout was reached\)"):
        attempt(fails("curlCode: 28, Timeout was reached; Details", 9), Address("s3://b/x"))
    assert len(calls) == 3
    with pytest.raises(DataError, match=r"lies in another region .HTTP status 301.; give it with --region"):
        attempt(fails("[HTTP Response Code: 301]", 9), Address("s3://b/x"))
    assert len(calls) == 1
    with pytest.raises(RuntimeError, match="Timeout"):
        attempt(fails("Timeout", 1), Path("x"))
