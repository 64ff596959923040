"""A local S3 server for tests."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

import pytest

NEEDS_S3 = pytest.mark.skipif(
    find_spec("moto") is None or find_spec("flask") is None or find_spec("s3fs") is None,
    reason="moto[server] or s3fs is not installed",
)

# A process of its own: DALI holds Python's lock while it waits for the server.
_SERVER = """
import logging, sys
from moto.server import ThreadedMotoServer
logging.getLogger("werkzeug").setLevel(logging.ERROR)
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""


@contextmanager
def s3_server() -> Iterator[dict[str, str]]:
    """A local S3 server; the environment under which s3:// is that server."""
    environment = {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    with subprocess.Popen(
        [sys.executable, "-c", _SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    ) as server:
        assert server.stdout is not None
        try:
            yield {**environment, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{int(server.stdout.readline())}"}
        finally:
            server.kill()
