"""The benchmark of starts times commands to their end, or until they have trained an epoch."""

import pytest
from tiny import TINY

from moist.bench.start import first_epoch, timed, whole
from moist.errors import StageError


@pytest.mark.slow
def test_a_command_is_timed_whole_or_until_its_first_epoch(tmp_path):
    run = ["run", *TINY, "joint.epochs=1000", "--wandb", "off", "--home", str(tmp_path)]
    rows = timed(
        {"version": lambda: whole(["--version"]), "run": lambda: first_epoch(run, tmp_path)},
        rounds=1,
    )
    assert [row.measured for row in rows] == ["version", "run"]
    assert all(row.n == 1 and row.ms > 0 < row.baseline_ms for row in rows)
    with pytest.raises(StageError, match="failed: Usage"):
        whole(["nothing"])
    with pytest.raises(StageError, match="trained nothing"):
        first_epoch(["--version"], tmp_path)
