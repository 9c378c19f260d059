"""A study is continued by its own search and by no other."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import toy

from moist.errors import ConfigError, StoreError
from moist.results.objectives import DEFAULT, parse_objectives
from moist.results.report import Machine
from moist.study.ledger import opened
from moist.study.spec import FACTS, Content, StudySpec, continued, study_spec
from moist.study.storage import EARLIER_RUN, RUN, load, trials_of
from moist.sweepfile import Parameter, Sweep

SWEEP = Sweep("some", Path("some.yaml"), "grid", None, {}, (Parameter("k", "int", low=2, high=9),))
TIMED = parse_objectives(["accuracy", "latency_ms"])
HERE = Machine(device="some processor", threads=1, torch="2", system="x")


REF = toy.ref(Path("home"), "some")
OWN = "moist sweep optuna some.yaml"


def spec(machine: Machine | None = None, command: str = OWN) -> StudySpec:
    found = study_spec(SWEEP, TIMED if machine else DEFAULT, 0, command)
    facts = found.facts.model_copy(update={"machine": machine})
    return found.model_copy(update={"facts": facts})


def content(text: str) -> Content:
    return Content(key=f"digest of {text}", text=text)


def kept(facts: dict[str, Any] | None, *trials: object) -> optuna.Study:
    """A study that remembers these facts."""
    study = optuna.create_study(study_name="some")
    if facts is not None:
        study.set_user_attr(FACTS, facts)
    for _ in trials:
        study.enqueue_trial({})
    return study


def test_a_study_keeps_its_first_date_and_the_latest_command():
    first = spec().model_copy(update={"created": "long ago", "moist": "0.1"})
    again = continued(REF, kept(first.model_dump(mode="json")), spec(command="moist again"))
    assert again == first.model_copy(update={"command": "moist again"})


@pytest.mark.parametrize(
    ("name", "other"),
    [("device", "a faster one"), ("threads", 2), ("torch", "3"), ("system", "y")],
)
def test_a_study_that_selects_by_a_time_is_not_continued_on_another_machine(name, other):
    study = kept(spec(HERE).model_dump(mode="json"))
    assert continued(REF, study, spec(HERE)).facts.machine == HERE
    with pytest.raises(ConfigError) as refused:
        continued(REF, study, spec(HERE.model_copy(update={name: other})))
    message = str(refused.value)
    assert str(getattr(HERE, name)) in message and str(other) in message
    assert "`--threads 1`" in message and "`--devices`" in message and "`--study NAME`" in message


def test_a_study_of_before_machines_were_kept_is_continued_and_keeps_its_machine_from_then_on():
    facts = spec(HERE).model_dump(mode="json")
    del facts["facts"]["machine"]
    assert StudySpec.model_validate(facts).facts.machine is None
    assert continued(REF, kept(facts), spec(HERE)).facts.machine == HERE


def test_a_study_is_resumed_where_a_key_is_now_fixed_at_its_default_and_keeps_its_facts():
    first = spec()
    sweep = replace(SWEEP, fixed={"system": "moist", "hidden_width": 256})
    again = study_spec(sweep, DEFAULT, 0, OWN)
    assert continued(REF, kept(first.model_dump(mode="json")), again).facts == first.facts
    other = study_spec(replace(SWEEP, fixed={"hidden_width": 128}), DEFAULT, 0, OWN)
    with pytest.raises(ConfigError, match="`hidden_width` was 256; now it is 128\n"):
        continued(REF, kept(first.model_dump(mode="json")), other)


K = SWEEP.parameters[0]
WIDTH = Parameter("hidden_width", "int", low=8, high=64, log=True)
ROUTERS = Parameter("router", "categorical", ("linear", "cnn"))
LOG = "`hidden_width` was 8 to 64, drawn by its logarithm; now it is"


@pytest.mark.parametrize(
    ("seed", "changed", "said"),
    [
        (1, {}, ["`--seed` was 0; now it is 1"]),
        (0, {"parameters": (replace(K, high=6), replace(WIDTH, log=False))},
         ["`k` was 2 to 9; now it is 2 to 6", f"{LOG} 8 to 64"]),
        (0, {"parameters": (replace(K, kind="categorical", choices=(2, 4)), WIDTH)},
         ["`k` was 2 to 9; now it is one of 2, 4"]),
        (0, {"parameters": (K,), "fixed": {"hidden_width": 32}}, [f"{LOG} 32"]),
        (0, {"parameters": (K, WIDTH, ROUTERS)},
         ["`router` was cnn; now it is one of linear, cnn"]),
        (0, {"parameters": (K, replace(WIDTH, when={"k": (2, 3)}))},
         [f"{LOG} 8 to 64, drawn by its logarithm, when k=2 or 3"]),
        (0, {"parameters": (WIDTH, K)}, ["its parameters were in another order"]),
    ],
)  # fmt: skip
def test_another_search_is_explained_parameter_by_parameter(seed, changed, said):
    made = replace(SWEEP, parameters=(K, WIDTH))
    study = kept(study_spec(made, DEFAULT, 0, OWN).model_dump(mode="json"))
    assert _said(study, replace(made, **changed), DEFAULT, seed) == said


def test_other_objectives_are_another_search():
    study = kept(spec().model_dump(mode="json"))
    assert _said(study, SWEEP, TIMED, 0) == [
        "`--objective` was accuracy:max, mflops:min; now it is accuracy:max, latency_ms:min"
    ]


def _said(study: optuna.Study, sweep: Sweep, objectives, seed: int) -> list[str]:
    with pytest.raises(ConfigError) as refused:
        continued(REF, study, study_spec(sweep, objectives, seed, "moist other"))
    assert "`moist sweep optuna some.yaml`" in refused.value.hint
    head, *lines = refused.value.args[0].splitlines()
    assert head == "study `some` was made for another search:"
    return [line.strip() for line in lines]


def test_a_study_of_another_program_is_rejected_and_an_empty_one_of_a_lost_driver_is_begun():
    mine = spec()
    assert continued(REF, kept(None), mine) is mine
    with pytest.raises(ConfigError, match="`some` was not made by moist"):
        continued(REF, kept(None, "a trial"), spec())


def test_a_study_is_not_continued_on_other_data_or_weights():
    made = spec().model_copy(
        update={"content": {"data": content("3 classes"), "teacher.weights": content("ab12")}}
    )
    study = kept(made.model_dump(mode="json"))
    assert continued(REF, study, made) == made
    assert continued(REF, study, spec()).content == made.content  # as `moist sweep retry` does
    for name, value, now in (
        ("data", "5 classes", "5 classes"),
        ("teacher.weights", None, "none"),
    ):
        others = (
            {**made.content, name: content(value)} if value else {"data": made.content["data"]}
        )
        with pytest.raises(ConfigError) as refused:
            continued(REF, study, made.model_copy(update={"content": others}))
        message = str(refused.value)
        assert f"other {name}: {made.content[name].text}; now {now}" in message
        assert "`--study NAME`" in message


def test_a_study_is_not_continued_with_other_versions_of_the_stages_that_it_called():
    made = spec().model_copy(update={"stages": {"evaluate": 2, "route": 1}})
    study = kept(made.model_dump(mode="json"))
    same = spec().model_copy(update={"installed": {"evaluate": 2, "route": 1, "merge": 9}})
    assert continued(REF, study, same).stages == made.stages
    assert continued(REF, study, spec()).stages == made.stages  # as `moist sweep retry` does
    other = same.model_copy(update={"installed": {"evaluate": 3}})
    with pytest.raises(ConfigError) as refused:
        continued(REF, study, other)
    assert "`evaluate` was version 2, is 3; `route` was version 1, is gone" in str(refused.value)
    assert "`--study NAME`" in refused.value.hint


def test_a_study_stores_the_versions_of_the_stages_that_its_trials_call(tmp_path):
    installed = {"evaluate": 3, "merge": 9}
    found = spec().model_copy(update={"installed": installed})
    with opened(toy.ref(tmp_path, "some"), found) as ledger:
        ledger.note_stages(["evaluate"])
        ledger.note_stages(["evaluate", "unknown"])
    stored = load(toy.ref(tmp_path, "some"))[0]
    assert (stored.stages, stored.installed) == ({"evaluate": 3}, {})


def test_a_study_of_an_earlier_version_takes_the_content_of_its_next_search():
    stored = spec().model_dump(mode="json", exclude={"content"})
    found = spec().model_copy(update={"content": {"data": content("3 classes")}})
    assert continued(REF, kept(stored), found).content == {"data": content("3 classes")}


def test_an_empty_study_made_elsewhere_is_adopted_only_with_the_directions_of_the_search(tmp_path):
    storage = f"sqlite:///{tmp_path}/studies.db"
    optuna.create_study(storage=storage, study_name="one")  # Optuna's default is to minimize
    optuna.create_study(storage=storage, study_name="two", directions=["maximize", "minimize"])
    with (
        pytest.raises(ConfigError, match="directions: minimize; this search needs maximize"),
        opened(toy.ref(tmp_path, "one"), spec()),
    ):
        pass
    with opened(toy.ref(tmp_path, "two"), spec()) as ledger:
        assert ledger.trials() == []


def test_content_is_compared_by_its_digest_however_it_was_described():
    made = spec().model_copy(update={"content": {"data": Content(key="ab", text="3 classes")}})
    now = spec().model_copy(update={"content": {"data": Content(key="ab", text="three classes")}})
    assert continued(REF, kept(made.model_dump(mode="json")), now).content == now.content


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"quantities": {"accuracy": math.nan}}, "`quantities.accuracy` can't be `nan`"),
        ({"future": 3}, "`future` is unknown to this version"),
    ],
)
@pytest.mark.parametrize(
    ("attribute", "name"), [("system_attrs", RUN), ("user_attrs", EARLIER_RUN)]
)
def test_a_trial_that_can_not_be_read_is_named_in_a_sentence(changed, said, attribute, name):
    study = kept(None)
    study.add_trial(optuna.trial.create_trial(value=0.5, **{attribute: {name: changed}}))
    with pytest.raises(StoreError, match=f"^can't read trial 0: {said}\nhint: it is damaged, or"):
        trials_of(study, DEFAULT)


def test_a_study_of_a_later_version_is_named_in_a_sentence():
    study = kept(spec().model_dump(mode="json") | {"future": 1})
    said = "^can't read the search of study `some`: `future` is unknown to this version\nhint: it"
    with pytest.raises(StoreError, match=said):
        continued(REF, study, spec())
