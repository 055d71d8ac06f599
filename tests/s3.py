"""A server that speaks the protocol of S3, in a process of its own, and a proxy in front of it that breaks things."""

import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing, contextmanager, suppress

KEYS = {"AWS_ACCESS_KEY_ID": "name", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1"}


def _free_port():
    with closing(socket.socket()) as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@contextmanager
def s3_server():
    """Yield the port of a moto server. It must not share a process with TileDB, which holds Python's lock meanwhile."""
    port = _free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline_s = time.monotonic() + 60
        while True:
            with suppress(OSError), closing(socket.create_connection(("127.0.0.1", port))):
                break
            assert server.poll() is None, "the S3 server ended"
            assert time.monotonic() < deadline_s
            time.sleep(0.1)
        yield port
    finally:
        server.terminate()
        server.wait()


def upload(port, folder, bucket, *, public):
    """Put a folder into a bucket, under its own name; anybody may read what is public."""
    import boto3

    access = "public-read" if public else "private"
    client = boto3.client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{port}",
        region_name="us-east-1",
        aws_access_key_id="name",
        aws_secret_access_key="secret",
    )
    client.create_bucket(Bucket=bucket, ACL=access)
    for path in folder.rglob("*"):
        if path.is_file():
            key = str(path.relative_to(folder.parent))
            client.put_object(Bucket=bucket, Key=key, Body=path.read_bytes(), ACL=access)


class Proxy:
    """Pass connections on to a port; those from `first` on, `number` of them, meet a fault of a kind.

    Kinds: "refuse" closes them at once, "break" closes them in the middle of an answer, and "stall" never answers.
    """

    def __init__(self, to_port):
        self._to_port = to_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.requests = 0
        self.faults = 0
        self._wanted = ("", 0, 0)
        self._lock = threading.Lock()
        self._ended = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def fail(self, kind, *, first=1, number=1):
        """Meet requests from now on with a fault, the `first` of them being 1."""
        with self._lock:
            self.requests = self.faults = 0
            self._wanted = (kind, first, number)

    def close(self):
        self._ended.set()
        self._listener.close()

    def _accept(self):
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _fault(self):
        with self._lock:
            self.requests += 1
            kind, first, number = self._wanted
            meets = first <= self.requests < first + number
            self.faults += meets
            return kind if meets else ""

    def _serve(self, client):
        """Answer the requests of one connection, each on a connection of its own to the server."""
        with suppress(OSError), closing(client):
            while request := _message(client):
                kind = self._fault()
                if kind == "refuse":
                    return
                if kind == "stall":
                    self._ended.wait(60)
                    return
                with closing(socket.create_connection(("127.0.0.1", self._to_port))) as server:
                    server.sendall(request.replace(b"\r\n", b"\r\nConnection: close\r\n", 1))
                    answer = b"".join(iter(lambda server=server: server.recv(65536), b""))
                client.sendall(answer[: len(answer) // 2] if kind == "break" else answer)
                return  # a connection serves one request, so that what is sent on it is not mixed up


def _message(client):
    """Read one request without a body."""
    found = b""
    while b"\r\n\r\n" not in found:
        more = client.recv(65536)
        if not more:
            return b""
        found += more
    return found


def environment(url):
    """Return the environment of a process that reads from the server at a URL."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    return own | KEYS | {"AWS_ENDPOINT_URL": url}
