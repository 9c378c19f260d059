import hashlib
import json
from typing import Annotated

import pytest
from pydantic import ConfigDict, Field, PlainSerializer

from moist.config import Config, flat
from moist.errors import ConfigError, StoreError
from moist.reporting.run_tables import print_models
from moist.results.report import Baselines, Machine, Measures, Report
from moist.store import runs
from moist.store.keys import canonical
from moist.store.objects import ChecksummedRecord
from moist.store.runs import RunRecords

MEASURES = {
    "accuracy": 1 / 3, "val_accuracy": None, "loss": 0.1 + 0.2, "ece": 1e-17,
    "per_class_accuracy": {"cat": 0.5}, "mflops": 2.5, "mmacs": 2.25, "params": 7, "bytes": 28,
    "latency_ms": {"batch_1": 0.1}, "latency_p95_ms": {"batch_1": 0.3},
    "latency_n": {"batch_1": 9},
}  # fmt: skip
ONE = Measures(**MEASURES)


def report(key: str, k: int = 2) -> Report:
    return Report(
        **MEASURES, upper_bound=False, routing_accuracy=0.5, per_cluster_accuracy=(0.1, 0.2),
        per_cluster_routing_accuracy=(0.3, 0.4), k=k, clusters=(("cat",), ("dog",)),
        sent={"cat": (1, 2)}, silhouette={"2": 0.4}, n_test=3, n_val=0,
        baselines=Baselines(teacher=ONE, student=ONE, oracle=ONE), key=key, seconds=1.5,
        stage_seconds={"train_teacher": 1.25},
        machine=Machine(device="cpu", threads=1, torch="2", system="x"),
    )  # fmt: skip


def save(home, key, **config):
    return RunRecords(home).save(
        command=f"moist run seed={key}", config=Config(**config), report=report(key),
        artifacts={"train_teacher": ("ab12",)},
    )  # fmt: skip


def test_a_run_comes_back_as_it_was_saved(tmp_path):
    saved = save(tmp_path, "ab12", k="auto")
    assert RunRecords(tmp_path).all() == [saved]
    assert saved.config == flat(Config(k="auto"))
    assert saved.report == report("ab12") and saved.moist == runs.version()
    assert saved.created.endswith("+00:00")
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["ab12.json"]


def test_saving_a_run_again_replaces_its_record(tmp_path):
    first, second = save(tmp_path, "ab"), save(tmp_path, "ab", seed=4)
    assert RunRecords(tmp_path).all() == [second] != [first]


def test_runs_are_listed_newest_first(tmp_path):
    for key in ("b", "a", "c"):
        save(tmp_path, key)
    assert [run.key for run in RunRecords(tmp_path).all()] == ["c", "a", "b"]
    assert RunRecords(tmp_path / "nowhere").all() == []


def test_a_run_is_found_by_the_start_of_its_key(tmp_path):
    for key in ("ab12", "ab34", "cd56"):
        save(tmp_path, key)
    assert RunRecords(tmp_path).find("c").key == "cd56"
    assert RunRecords(tmp_path).find("ab1").key == "ab12"
    assert (
        RunRecords(tmp_path).find("last").key == RunRecords(tmp_path).find("latest").key == "cd56"
    )


def test_an_ambiguous_or_unknown_key_is_an_error_that_lists_candidates(tmp_path):
    with pytest.raises(ConfigError, match="there are no runs yet"):
        RunRecords(tmp_path).find("last")
    for key in ("ab12", "ab34"):
        save(tmp_path, key)
    with pytest.raises(ConfigError, match=r"2 runs start with `ab`.*`ab34`.*`ab12`"):
        RunRecords(tmp_path).find("ab")
    with pytest.raises(ConfigError, match=r"(?s)no runs .* `x`.*`ab34`"):
        RunRecords(tmp_path).find("x")


@pytest.mark.parametrize("damage", ["", "{}", '{"key": 1', "\0\xff"])
def test_a_damaged_record_is_skipped_with_a_warning(tmp_path, damage, capsys):
    save(tmp_path, "ab"), save(tmp_path, "cd")
    path = tmp_path / "runs" / "ab.json"
    path.write_text(damage, encoding="latin-1")
    warnings = []
    assert [run.key for run in RunRecords(tmp_path, warnings.append).all()] == ["cd"]
    assert len(warnings) == 1 and str(path) in warnings[0]
    assert RunRecords(tmp_path).find("last").key == "cd"
    out, err = capsys.readouterr()
    assert not out and "can't be read" in err


def test_a_record_under_another_name_is_damaged(tmp_path):
    save(tmp_path, "ab")
    (tmp_path / "runs" / "ab.json").rename(tmp_path / "runs" / "cd.json")
    warnings = []
    assert RunRecords(tmp_path, warnings.append).all() == [] and "run `ab`" in warnings[0]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"loss": float("nan")}, "it has NaN where a number must be"),
        ({"loss": -float("inf")}, "it has -Infinity where a number must be"),
        ({"loss": None}, "`report.loss` can't be `None`"),
        ({"k": "two", "loss": None}, "`report.loss` can't be `None`, and 1 more"),
        ({"future": 1}, "`report.future` is unknown to this version"),
    ],
)
def test_a_record_that_is_intact_and_can_not_be_read_is_skipped_in_a_sentence(
    tmp_path, changed, said
):
    save(tmp_path, "ab12")
    (path,) = (tmp_path / "runs").iterdir()
    body = json.loads(path.read_text())
    del body["checksum"]
    body["report"] |= changed
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    signed = body | {"checksum": hashlib.sha256(text.encode()).hexdigest()}
    path.write_text(json.dumps(signed, sort_keys=True, indent=1))
    warnings = []
    assert RunRecords(tmp_path, warnings.append).all() == []
    assert warnings == [f"skipped run record `{path}`, which can't be read: {said}"]


def test_a_damaged_record_that_is_asked_for_is_named(tmp_path):
    for key in ("ab12", "cd34"):
        save(tmp_path, key)
    RunRecords(tmp_path).path("cd34").write_text("{}")
    records = RunRecords(tmp_path, warn=lambda _: None)
    assert records.find("last").key == "ab12"
    with pytest.raises(StoreError, match="run `cd34` is damaged\nhint: `moist rm cd34`"):
        records.find("cd")
    with pytest.raises(ConfigError, match="no runs have a key that starts with `ef`"):
        records.find("ef")
    RunRecords(tmp_path).path("ab12").unlink()
    with pytest.raises(StoreError, match="`cd34` is damaged"):
        records.find("last")


SINCE = ("system", "merge.", "mixture.", "ensemble.", "cascade.")


def test_a_record_of_before_there_were_other_systems_is_read_and_printed(tmp_path, capsys):
    """It lacks the fields and keys that came since; its checksum is that of what it has."""
    save(tmp_path, "ab12", k=2)
    (path,) = (tmp_path / "runs").iterdir()
    body = json.loads(path.read_text())
    del body["checksum"]
    body["config"] = {k: v for k, v in body["config"].items() if not k.startswith(SINCE)}
    assert not {"deferral", "model_key"} & body["report"].keys()
    signed = body | {"checksum": hashlib.sha256(canonical(body)).hexdigest()}
    path.write_text(json.dumps(signed, sort_keys=True, indent=1))
    (run,) = RunRecords(tmp_path).all()
    assert run.report.deferral is None and run.report.model_key is None
    print_models(run.report, run.config)
    assert "MoIST k=2, cnn router" in capsys.readouterr().out


class Before(ChecksummedRecord):
    asked: float
    gone: int = 1


class OneWay(ChecksummedRecord):
    value: Annotated[int, PlainSerializer(lambda value: f"{value} images")]


def test_a_record_that_could_not_be_read_back_is_not_written():
    with pytest.raises(StoreError, match="can't record this result"):
        OneWay(value=3).to_bytes()


def test_a_record_that_can_not_be_written_leaves_the_one_before(tmp_path):
    before = save(tmp_path, "ab")
    damaged = report("ab").model_copy(update={"loss": float("nan")})
    with pytest.raises(StoreError, match="can't record"):
        RunRecords(tmp_path).save(command="", config=Config(), report=damaged, artifacts={})
    assert RunRecords(tmp_path).all() == [before]


class After(ChecksummedRecord):
    model_config = ConfigDict(validate_by_name=True)
    deferral_rate: float = Field(alias="asked")
    new: str = "default"


def test_a_record_is_verified_as_it_was_written_whatever_its_fields_are_called_since():
    data = Before(asked=1 / 3).to_bytes()
    record = After.from_bytes(data)
    assert record == After(deferral_rate=1 / 3) and record.to_bytes() == data
    damaged = data.replace(b"0.333", b"0.334")
    assert damaged != data
    with pytest.raises(ValueError, match="checksum differs"):
        After.from_bytes(damaged)
    with pytest.raises(ValueError, match="checksum differs"):
        After.from_bytes(data + b"\n")


def test_a_home_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "runs").touch()
    with pytest.raises(StoreError, match="can't write in"):
        save(tmp_path, "ab")


def test_all_runs_make_one_flat_table(tmp_path):
    save(tmp_path, "ab", k="auto"), save(tmp_path, "cd", k=3)
    table = runs.frame(RunRecords(tmp_path).all())
    assert list(table["key"]) == ["cd", "ab"] and list(table["k"]) == [3, "auto"]
    assert set(flat(Config())) <= set(table.columns)
    row = table.iloc[0]
    assert row["accuracy"] == 1 / 3 and row["mflops"] == 2.5 and row["clusters_k"] == 2
    assert row["latency_ms.batch_1"] == 0.1 and row["baselines.teacher.loss"] == 0.1 + 0.2
    assert row["stage_seconds.train_teacher"] == 1.25 and row["machine.device"] == "cpu"
    cells = table.to_dict("list").values()
    assert not any(isinstance(cell, dict | list) for column in cells for cell in column)
    assert runs.frame([]).empty
    assert table["seed"].dtype == "int64" and table["accuracy"].dtype == "float64"
