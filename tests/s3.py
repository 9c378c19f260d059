"""An S3 server on this machine."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

BUCKET = "shared"


@contextmanager
def serving() -> Iterator[Mapping[str, str]]:
    """Serve an empty bucket; yield the environment in which clients find it."""
    import s3fs
    from moto.core.base_backend import BackendDict
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    BackendDict.reset()  # a process has one state for all its servers, and keeps its clients
    s3fs.S3FileSystem.clear_instance_cache()
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    keys = {"key": "someone", "secret": "s3cret-p4ssword"}
    address = f"http://{host}:{port}"
    s3fs.S3FileSystem(**keys, endpoint_url=address, skip_instance_cache=True).mkdir(BUCKET)
    try:
        yield {
            "AWS_ENDPOINT_URL": address,
            "AWS_ACCESS_KEY_ID": keys["key"],
            "AWS_SECRET_ACCESS_KEY": keys["secret"],
            "AWS_DEFAULT_REGION": "us-east-1",
        }
    finally:
        server.stop()
