"""A database server that does not answer is reported and given up."""

import socket
from collections.abc import Iterator

import pytest
from toy import ref

from moist.errors import StoreError
from moist.study.leases import driver_of
from moist.study.storage import load


@pytest.fixture
def silent() -> Iterator[str]:
    """The URL of a server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        yield f"postgresql+psycopg://ann@127.0.0.1:{port}/studies?connect_timeout=3"


@pytest.mark.slow
@pytest.mark.parametrize("question", [load, driver_of])
def test_a_server_that_does_not_answer_is_reported_and_given_up(
    silent, question, tmp_path, capsys
):
    study = ref(tmp_path, storage=silent)
    with pytest.raises(StoreError, match="timeout expired"):
        question(study)
    assert f"waiting for the server of `{study.shown}` to answer" in capsys.readouterr().err
