"""The unmodified wandb client, its commands and its agents do their work on the stand-in."""

import json
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wandb_standin import Client, Run, Server, Sweep, checked, history, runs, search
from wandb_standin.queries import matches

pytestmark = pytest.mark.slow
HISTORY = "wandb-history.jsonl"


@pytest.fixture
def client(wandb_server: Server, tmp_path: Path) -> Client:
    return Client(wandb_server, tmp_path, WANDB_PROJECT="p")


def post(server: Server, path: str, body: Any) -> Any:
    with urlopen(Request(server.address + path, json.dumps(body).encode())) as response:
        return json.load(response)


def test_an_online_run_arrives_whole(wandb_server: Server, client: Client) -> None:
    client.python("""
import wandb
with wandb.init(
    id="r1", name="trial-1", group="g", job_type="trial", tags=["a", "b"],
    config={"lr": 0.1, "data.batch": 8, "model": {"width": 3}},
    settings=wandb.Settings(console="wrap"),
) as run:
    print("so far so good")
    for step in range(5):
        run.log({"loss": 1 / (step + 1)}, step=step)
    run.summary["objective/loss"] = 0.2
wandb.init(id="r2").finish(exit_code=3)
""")
    run = wandb_server.runs["tester", "p", "r1"]
    assert run.config == {"lr": 0.1, "data.batch": 8, "model": {"width": 3}}
    assert [row["loss"] for row in run.history] == [1, 1 / 2, 1 / 3, 1 / 4, 1 / 5]
    assert [row["_step"] for row in run.history] == [0, 1, 2, 3, 4]
    assert (run.summary["objective/loss"], run.summary["loss"]) == (0.2, 0.2)
    assert (run.display_name, run.group, run.job_type) == ("trial-1", "g", "trial")
    assert sorted(run.tags) == ["a", "b"]
    assert any("so far so good" in line for line in run.output)
    assert "config.yaml" in run.files
    assert (run.state, run.exit_code) == ("finished", 0)
    failed = wandb_server.run("r2")
    assert (failed.state, failed.exit_code) == ("failed", 3)


def test_a_resumed_run_goes_on_where_it_was(wandb_server: Server, client: Client) -> None:
    output = client.python("""
import wandb
for rows in (range(3), range(3, 5)):
    with wandb.init(id="r1", resume="allow", config={"part": rows[0]}) as run:
        print(run.resumed, run.starting_step, wandb.Api().run(run.path).state)
        for step in rows:
            run.log({"loss": step}, step=step)
""")
    assert output.splitlines() == ["False 0 running", "True 3 running"]
    run = wandb_server.run("r1")
    assert [row["loss"] for row in run.history] == [0, 1, 2, 3, 4]
    assert run.summary["loss"] == 4


def test_sync_brings_an_offline_run(wandb_server: Server, tmp_path: Path) -> None:
    client = Client(wandb_server, tmp_path, WANDB_PROJECT="p", WANDB_MODE="offline")
    client.python("""
import wandb
with wandb.init(id="off", group="g", job_type="trial", config={"lr": 0.1}) as run:
    for step in range(4):
        run.log({"loss": step}, step=step)
""")
    assert wandb_server.operations == []
    client.wandb("sync", *map(str, (tmp_path / "wandb_dir/wandb").glob("offline-run-*")))
    run = wandb_server.run("off")
    assert (run.group, run.job_type, run.config) == ("g", "trial", {"lr": 0.1})
    assert [row["loss"] for row in run.history] == [0, 1, 2, 3]
    assert (run.state, run.exit_code) == ("finished", 0)


def test_two_agents_share_a_grid(wandb_server: Server, client: Client) -> None:
    (client.home / "train.py").write_text("""
import wandb
with wandb.init() as run:
    run.log({"loss": run.config.lr})
""")
    path = client.sweep("""
program: train.py
method: grid
metric: {name: loss, goal: minimize}
parameters: {lr: {values: [0.1, 0.2]}, opt: {value: adam}}
""")
    agents(client, path, 2)
    sweep = wandb_server.sweeps[path.split("/")[-1]]
    found = [wandb_server.run(name) for name in sweep.started]
    points = sorted((run.config["lr"], run.config["opt"]) for run in found)
    assert points == [(0.1, "adam"), (0.2, "adam")]
    assert (sweep.state, {run.state for run in found}) == ("FINISHED", {"finished"})
    assert all(agent.given for agent in wandb_server.agents.values())
    output = client.python(f"""
import json, wandb
sweep = wandb.Api().sweep("{path}")
print(json.dumps([
    sweep.state, sweep.expected_run_count, len(sweep.runs), sweep.best_run().config
]))
""")
    assert json.loads(output) == ["FINISHED", 2, 2, {"lr": 0.1, "opt": "adam"}]


def agents(client: Client, path: str, count: int) -> None:
    """`wandb agent`, `count` times at once, until each has left by itself."""
    with ExitStack() as stack:
        started = [stack.enter_context(client.background("agent", path)) for _ in range(count)]
        assert [agent.wait(60) for agent in started] == [0] * count


def test_hyperband_stops_the_run_that_is_behind(wandb_server: Server, client: Client) -> None:
    (client.home / "train.py").write_text("""
import signal, sys, wandb
signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
signal.alarm(60)  # a test that fails must not hang
with wandb.init() as run:
    for _ in range(4):
        run.log({"loss": run.config.loss})
    if run.config.loss > 0.5:
        signal.pause()  # until it is stopped
""")
    path = client.sweep("""
program: train.py
method: grid
metric: {name: loss, goal: minimize}
early_terminate: {type: hyperband, min_iter: 2, eta: 2}
parameters: {loss: {values: [0.1, 0.9]}}
""")
    agents(client, path, 2)
    sweep = wandb_server.sweeps[path.split("/")[-1]]
    good, bad = (wandb_server.run(name) for name in sweep.started)
    assert (good.state, good.stop) == ("finished", False)
    assert (bad.state, bad.stop, bad.exit_code) == ("killed", True, 1)
    assert [row["loss"] for row in bad.history] == [0.9] * 4


def test_the_scheduler_searches_two_objectives(wandb_server: Server, client: Client) -> None:
    (client.home / "study.py").write_text("""
import optuna

def make_study(sweep):
    sampler = optuna.samplers.NSGAIISampler(seed=0)
    return optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)

def space(trial):
    config = {"opt": trial.suggest_categorical("opt", ["adam", "sgd"])}
    if config["opt"] == "sgd":
        config["momentum"] = trial.suggest_float("momentum", 0, 1)
    return config
""")
    (client.home / "train.py").write_text("""
import wandb
with wandb.init() as run:
    run.log({"loss": run.config.get("momentum", 2), "size": 1})
""")
    path = client.sweep("""
program: train.py
method: custom
metrics: [{name: loss, goal: minimize}, {name: size, goal: minimize}]
scheduler: {engine: optuna, source: study.py, optimizer: make_study, search_space: space}
run_cap: 2
""")
    command = ("sweep-scheduler", path, "--batch-size", "2", "--poll-interval", "0.5")
    with client.background(*command) as scheduler:
        agents(client, path, 2)
        assert scheduler.wait(60) == 0
        log = scheduler.err + scheduler.out
    sweep = wandb_server.sweeps[path.split("/")[-1]]
    found = [wandb_server.run(name) for name in sweep.started]
    assert (sweep.state, [run.state for run in found]) == ("FINISHED", ["finished"] * 2)
    assert all(("momentum" in run.config) == (run.config["opt"] == "sgd") for run in found)
    for number, run in enumerate(found):
        values = [run.summary["loss"], run.summary["size"]]
        assert f"finished with value: {values}" in log, number
    assert {"EnqueueSweepRun", "SweepWatchedRuns"} <= set(wandb_server.operations)


def test_the_api_filters_orders_and_pages(wandb_server: Server, client: Client) -> None:
    for number in range(5):
        run = Run("tester", "p", f"r{number}", f"trial-{number}", group="g" if number else "h")
        run.wrapped = {"data.batch": {"value": number}}
        run.summary = {"objective/loss": 10 - number} if number < 4 else {}
        run.lines[HISTORY] = {at: json.dumps({"_step": at, "loss": at}) for at in range(3)}
        run.files = {"best.txt": b"good"}
        wandb_server.runs[run.key] = run
    wandb_server.made("tester", "p")
    output = client.python("""
import json, wandb
def names(filters, order="+created_at", per_page=2):
    return [r.name for r in wandb.Api().runs("tester/p", filters, order, per_page, lazy=False)]
run = wandb.Api().run("tester/p/r1")
print(json.dumps([
    names({"group": "g"}),
    names({"$and": [{"group": "g"}, {"config.data.batch.value": {"$gte": 3}}]}),
    names({"$or": [{"displayName": "trial-0"}, {"name": {"$in": ["r2"]}}]}),
    names({}, "+summary_metrics.objective/loss"),
    names({"display_name": {"$regex": "-[01]$"}}, "-config.data.batch.value"),
    [row["loss"] for row in run.history(keys=["loss"], pandas=False)],
    [row["loss"] for row in run.scan_history()],
    run.config, run.group, run.state, [file.name for file in run.files()],
]))
run.tags.append("front")
run.update()
run.stop()
""")
    assert json.loads(output) == [
        ["trial-1", "trial-2", "trial-3", "trial-4"],
        ["trial-3", "trial-4"],
        ["trial-0", "trial-2"],
        ["trial-3", "trial-2", "trial-1", "trial-0", "trial-4"],
        ["trial-1", "trial-0"],
        [0, 1, 2],
        [0, 1, 2],
        {"data.batch": 1},
        "g",
        "running",
        ["best.txt"],
    ]
    changed = wandb_server.run("r1")
    assert (changed.tags, changed.stop, changed.state) == (["front"], True, "running")
    assert wandb_server.operations.count("Runs") == 8  # in pages of two


def test_artifacts_and_tables_go_up_and_come_back(wandb_server: Server, client: Client) -> None:
    output = client.python("""
import pathlib, wandb
with wandb.init(id="r1") as run:
    pathlib.Path("w.bin").write_bytes(b"weights")
    artifact = wandb.Artifact("best", "model")
    artifact.add_file("w.bin")
    run.log_artifact(artifact, aliases=["front"]).wait()
    run.log({"trials": wandb.Table(columns=["a", "b"], data=[[1, 2], [3, 4]])})
with wandb.init(id="r2") as run:
    folder = run.use_artifact("best:front").download("down")
    print((pathlib.Path(folder) / "w.bin").read_bytes())
    better = wandb.Artifact("best", "model")
    pathlib.Path("w.bin").write_bytes(b"better")
    better.add_file("w.bin")
    run.log_artifact(better, aliases=["front"]).wait()
api = wandb.Api()
print([artifact.name for artifact in api.run("tester/p/r1").logged_artifacts()])
print([artifact.name for artifact in api.run("tester/p/r2").used_artifacts()])
""")
    held = ["b'weights'", "['best:v0', 'run-r1-trials:v0']", "['best:v0']"]
    assert output.splitlines() == held
    best, table, better = wandb_server.artifacts
    assert (best.type, best.name, best.aliases) == ("model", "best", ["v0"])
    assert (better.aliases, better.files) == (["front", "latest", "v1"], {"w.bin": b"better"})
    assert (best.files, best.state) == ({"w.bin": b"weights"}, "COMMITTED")
    assert (best.run, best.used_by) == ("r1", ["r2"])
    assert (table.type, table.state) == ("run_table", "COMMITTED")
    rows = json.loads(table.files["trials.table.json"])
    assert (rows["columns"], rows["data"]) == (["a", "b"], [[1, 2], [3, 4]])
    logged = wandb_server.run("r1").summary["trials"]
    assert (logged["_type"], logged["nrows"]) == ("table-file", 2)


def test_a_workspace_is_saved_and_read_back(wandb_server: Server, client: Client) -> None:
    output = client.python("""
import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws
panels = [wr.LinePlot(y=["loss"]), wr.ScatterPlot(x="a", y="b")]
saved = ws.Workspace("tester", "p", name="study", sections=[ws.Section("s", panels=panels)])
saved.save()
saved.save()
print(len(ws.Workspace.from_url(saved.url).sections[0].panels))
report = wr.Report("p", "tester", title="front", blocks=[wr.H1("front")])
report.save(draft=True)
print(wr.Report.from_url(report.url).title)
""")
    assert output.splitlines() == ["2", "front"]
    workspace, report = wandb_server.views
    assert (workspace.type, workspace.display_name) == ("project-view", "study")
    assert workspace.spec["section"]["panelBankConfig"]["sections"][0]["name"] == "s"
    assert (report.type, report.display_name) == ("runs/draft", "front")


QUERY = "query Q { viewer { entity %s } }"


@pytest.mark.parametrize(
    ("path", "body", "output"),
    [
        ("/nowhere", {}, "unknown path"),
        ("/graphql", {"query": QUERY % "shoe"}, "Cannot query field 'shoe'"),
        ("/graphql", {"query": QUERY % "", "operationName": "Other"}, "Unknown operation"),
        ("/graphql", {"query": "query {"}, "Syntax Error"),
    ],
)
def test_what_violates_the_api_is_rejected_and_fails_the_test(
    path: str, body: Any, output: str
) -> None:
    def against() -> None:
        with checked() as server, pytest.raises(HTTPError, match="400"):
            post(server, path, body)

    with pytest.raises(AssertionError, match=output):
        against()


def test_an_operation_name_that_is_empty_is_none(wandb_server: Server) -> None:
    answer = post(wandb_server, "/graphql", {"query": QUERY % "", "operationName": ""})
    assert answer == {"data": {"viewer": {"entity": "tester"}}}
    assert wandb_server.operations == ["Q"]


def test_a_made_up_sweep_is_not_found_and_no_violation(wandb_server: Server) -> None:
    query = 'mutation { upsertBucket(input: {name: "r", sweep: "fake"}) { inserted } }'
    with pytest.raises(HTTPError, match="404"):
        post(wandb_server, "/graphql", {"query": query})


def test_a_run_that_is_to_stop_is_notified(wandb_server: Server) -> None:
    wandb_server.runs["tester", "p", "r"] = Run("tester", "p", "r")
    stream = "/files/tester/p/r/file_stream"
    assert post(wandb_server, stream, {}) == {"limits": {}}
    wandb_server.stop_run("tester", "p", "r")
    assert post(wandb_server, stream, {}) == {"limits": {}, "stopped": True}


def test_lines_that_are_sent_twice_are_there_once() -> None:
    state = Server()
    run = state.runs["e", "p", "r"] = Run("e", "p", "r")
    lines = [json.dumps({"_step": step}) for step in range(4)]
    for start, end in ((0, 2), (1, 4), (0, 2)):
        chunk = {"offset": start, "content": lines[start:end]}
        runs.stream(state, run.key, {"files": {HISTORY: chunk}})
    assert [row["_step"] for row in run.history] == [0, 1, 2, 3]


def test_sampled_history_is_thinned_and_has_the_keys_asked_for() -> None:
    run = Run("e", "p", "r")
    rows = [{"_step": step, "loss": step} for step in range(6)] + [{"_step": 6, "other": 1}]
    run.lines[HISTORY] = {at: json.dumps(row) for at, row in enumerate(rows)}
    thin, whole = history.sampled(run, None, ['{"keys": ["loss"], "samples": 3}', "{}"])
    assert (thin, whole) == ([{"loss": 1}, {"loss": 3}, {"loss": 5}], rows)


def test_an_agent_gets_commands_to_start_wait_stop_or_exit(wandb_server: Server) -> None:
    def ask(command: str) -> Any:
        return post(wandb_server, "/graphql", {"query": f"mutation {{ {command} }}"})["data"]

    def beat(*alive: str) -> Any:
        told = json.dumps(json.dumps(dict.fromkeys(alive, True)))
        beaten = ask(f'agentHeartbeat(input: {{id: "{id}", runState: {told}}}) {{ commands }}')
        return [told["type"] for told in json.loads(beaten["agentHeartbeat"]["commands"])]

    where = 'entityName: "tester", projectName: "p"'
    config = "{method: random, parameters: {x: {values: [1]}}}"
    made = ask(f'upsertSweep(input: {{config: "{config}", {where}}}) {{ sweep {{ name }} }}')
    sweep = wandb_server.sweeps[made["upsertSweep"]["sweep"]["name"]]
    agent = (
        f'createAgent(input: {{host: "h", {where}, sweep: "{sweep.name}"}}) {{ agent {{ id }} }}'
    )
    id = ask(agent)["createAgent"]["agent"]["id"]
    assert beat() == ["run"]
    first = wandb_server.run(sweep.started[0])
    assert (beat(first.name), first.state) == ([], "pending")
    sweep.state = "PAUSED"
    assert (beat(), first.state) == ([], "crashed")  # it ended without a word
    sweep.state = "RUNNING"
    assert beat() == ["run"]
    wandb_server.stop_run("tester", "p", sweep.started[1])
    assert beat(sweep.started[1]) == ["stop"]
    sweep.state = "STOPPED"
    assert (beat(), wandb_server.run(sweep.started[1]).state) == (["exit"], "killed")
    del wandb_server.sweeps[sweep.name]
    with pytest.raises(HTTPError, match="404"):
        beat()


def test_while_it_is_down_no_one_listens_and_the_state_stays(wandb_server: Server) -> None:
    ask: Callable[[], Any] = lambda: post(wandb_server, "/graphql", {"query": QUERY % ""})  # noqa: E731
    before = wandb_server.address
    with wandb_server.down(), pytest.raises(URLError, match="refused"):
        ask()
    with wandb_server.failing(503), pytest.raises(HTTPError, match="503"):
        ask()
    assert ask()["data"] and wandb_server.address == before


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ({}, True),
        ({"tags": "a"}, True),
        ({"tags": {"$nin": ["a"]}}, False),
        ({"group": None}, True),
        ({"group": {"$ne": None}}, False),
        ({"config.model.value.width": {"$lt": 4}}, True),
        ({"config.model.width": 3}, True),
        ({"config.lr": {"$gt": "text"}}, False),
        ({"summary_metrics.val.loss": 0.5}, True),
        ({"summary_metrics.absent": {"$lte": 1}}, False),
    ],
)
def test_a_filter_reads_columns_config_and_summary(query: dict[str, Any], found: bool) -> None:
    run = Run("e", "p", "r", tags=["a", "b"], summary={"val.loss": 0.5})
    run.wrapped = {"lr": {"value": 0.1}, "model": {"value": {"width": 3}}}
    assert matches(run, query) is found


def test_an_unknown_filter_is_an_error() -> None:
    with pytest.raises(KeyError):
        matches(Run("e", "p", "r"), {"colour": "red"})
    with pytest.raises(KeyError):
        matches(Run("e", "p", "r"), {"name": {"$near": 1}})


bounds = st.tuples(st.integers(1, 50), st.integers(51, 100))


@given(bounds, st.sampled_from(["uniform", "int_uniform", "log_uniform_values"]), st.randoms())
def test_samples_stay_within_their_bounds(
    bounds: tuple[int, int], distribution: str, random: Any
) -> None:
    low, high = bounds
    spec = {"min": low, "max": high, "distribution": distribution}
    drawn = search.sample({"x": spec, "c": {"value": 7}}, random)
    assert low - 1e-9 <= drawn["x"]["value"] <= high + 1e-9
    assert drawn["c"] == {"value": 7}


def test_a_sweep_ends_at_its_cap_or_its_last_point() -> None:
    config: dict[str, Any] = {"method": "grid", "parameters": {"x": {"values": [1, 2, 3]}}}
    sweep = Sweep("e", "p", "s", config)
    assert [search.nth(sweep, at) for at in (0, 2, 3)] == [{"x": {"value": 1}}, {"x": {"value": 3}}, None]  # fmt: skip  # noqa: E501
    sweep.config = config | {"run_cap": 2, "method": "random"}
    assert search.nth(sweep, 1) and search.nth(sweep, 2) is None


@pytest.mark.parametrize(
    ("rule", "longest", "found"),
    [
        ({"min_iter": 3}, 30, [3, 9, 27]),
        ({"min_iter": 2, "eta": 2}, 7, [2, 4]),
        ({"max_iter": 27, "s": 2}, 100, [3, 9]),
    ],
)
def test_hyperband_compares_at_its_bands(
    rule: dict[str, Any], longest: int, found: list[int]
) -> None:
    assert search.bands(rule, longest) == found


def losses(name: str, *values: float) -> Run:
    run = Run("e", "p", name)
    run.lines[HISTORY] = {at: json.dumps({"loss": value}) for at, value in enumerate(values)}
    return run


@pytest.mark.parametrize(("strict", "found"), [(False, {"c"}), (True, {"b", "c"})])
def test_hyperband_keeps_the_best_part(strict: bool, found: set[str]) -> None:
    rule = {"type": "hyperband", "min_iter": 1, "eta": 3, "strict": strict}
    metric = {"name": "loss", "goal": "minimize"}
    sweep = Sweep("e", "p", "s", {"early_terminate": rule, "metric": metric})
    late = losses("b", 9, 9, 1)  # behind at the first band, ahead at the second
    assert search.behind(sweep, [losses("a", 1, 2, 3), late, losses("c", 9)]) == found
    assert search.behind(Sweep("e", "p", "s", {}), [late]) == set()
