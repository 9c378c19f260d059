"""The Python API does what the commands do, in as few words."""

import subprocess
import sys
from pathlib import Path
from threading import Thread

import forked
import numpy as np
import pytest
import torch
from PIL import Image
from shell import of_nobody
from tiny import STUDY, TINY

import moist
from moist.config import flat, sections
from moist.config.overrides import parse
from moist.store.runs import RunRecords, command_for


@pytest.fixture(scope="module")
def home(trained):
    return trained()


@pytest.fixture(scope="module")
def result(home):
    """The run of `TINY`, which is stored; everything is reused."""
    return moist.run(*TINY, home=str(home), quiet=True)


def test_import_is_light_and_names_are_found_on_first_use():
    code = (
        "import sys, moist; listed = dir(moist); moist.MoistError, moist.study, moist.best\n"
        "assert not {'torch', 'pandas', 'optuna'} & set(sys.modules), 'heavy'\n"
        "assert listed == moist.__all__ == sorted(listed), listed\n"
        "print(moist.__version__, *(getattr(moist, name) for name in listed))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with pytest.raises(AttributeError, match=r"has no `runn`; it has .*load"):
        moist.runn  # noqa: B018
    assert (Path(moist.__file__).parent / "py.typed").exists()


def test_errors_share_one_base():
    names = [name for name in moist.__all__ if name.endswith("Error")]
    assert all(issubclass(getattr(moist, name), moist.MoistError) for name in names)
    assert len(names) == 5


def test_a_run_is_recorded_as_the_command_records_it(home, result):
    record = RunRecords(home).find(result.key)
    assert record.report == result.report and result.command == command_for(parse(TINY))
    assert (result.accuracy, result.mflops) == (record.report.accuracy, record.report.mflops)
    assert f"{result.accuracy:.4f}" in repr(result)


@pytest.mark.parametrize(
    "keys",
    [
        {"k": 2, "student.channels": (8, 16), "distill.alpha": 0.5},
        {"k": "2", "student": {"channels": [8, 16]}, "distill": {"alpha": "0.5"}},
    ],
)
def test_keywords_mean_what_the_commands_words_mean(keys):
    from moist.api.runs import _flat, checked

    words = ["k=2", "student.channels=8,16", "distill.alpha=0.5"]
    assert flat(checked((), _flat(keys))) == flat(parse(words))
    assert checked(("k=3",), _flat(keys)).k == 2  # keywords win


@pytest.mark.parametrize(
    ("words", "keys", "message"),
    [
        ((), {"hiden_width": 3}, "did you mean `hidden_width`"),
        ((), {"k": "many"}, "`k=many`: expected"),
        ((), {"student": {"arhc": "cnn"}}, "did you mean `student.arch`"),
        ((), {"data.root": "images"}, "`data.root` has no effect"),
        (("--k",), {}, "expected KEY=VALUE"),
        ((), {"wandb": "onlin"}, "did you mean `online`"),
        ((), {"device": "gpu"}, "is no device of torch"),
    ],
)
def test_a_mistake_is_reported_before_anything_trains(tmp_path, words, keys, message):
    with pytest.raises(moist.ConfigError, match=message):
        moist.run(*words, home=tmp_path, quiet=True, **keys)
    assert not list(tmp_path.glob("objects/*"))


def test_no_config_key_has_the_name_of_an_option():
    from inspect import signature

    options = {*signature(moist.run).parameters} - {"overrides", "keys"}
    assert not options & ({*flat(parse([]))} | {*sections()})


@pytest.fixture(scope="module")
def model(result):
    return result.model()


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1), dtype=np.uint8)


def test_images_in_every_form_give_the_same_logits(model, pixels, tmp_path):
    logits_NC = model(pixels)
    assert logits_NC.shape == (5, 10) and logits_NC.dtype == torch.float32
    pictures = [Image.fromarray(one[..., 0]) for one in pixels]
    paths = []
    for i, picture in enumerate(pictures):
        picture.save(path := tmp_path / f"{i}.png")
        paths.append(path if i else str(path))
    mean, std = (torch.tensor(one)[:, None, None] for one in (model.mean, model.std))
    floats = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - mean) / std
    for images in (pictures, paths, torch.from_numpy(pixels), floats):
        torch.testing.assert_close(model(images), logits_NC, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model(pictures[0]), logits_NC[:1], rtol=1e-4, atol=1e-4)
    assert model(pixels[:0]).shape == (0, 10)


def test_images_of_another_size_are_resized_as_files_are(model, pixels, tmp_path):
    large = pixels.repeat(4, 1).repeat(3, 2).repeat(3, 3)
    Image.fromarray(large[0]).save(tmp_path / "large.png")
    torch.testing.assert_close(model(large)[:1], model(tmp_path / "large.png"))


def test_predictions_have_class_probability_and_expert(model, pixels, tmp_path):
    found = model.predict(pixels)
    assert found.probabilities.shape == (5, 10) and len(found.experts) == 5
    torch.testing.assert_close(found.probabilities, model(pixels).softmax(1))
    assert list(found.classes) == [model.classes[i] for i in found.probabilities.argmax(1)]
    assert {*found.experts} <= {0, 1, 2, 3}
    Image.fromarray(pixels[0, ..., 0]).save(tmp_path / "0.png")
    (record,) = model.records([tmp_path / "0.png"])
    assert record["class"] == found.classes[0] and record["expert"] == found.experts[0]


@pytest.mark.parametrize(
    "images",
    [np.zeros((2, 8, 8), np.uint8), np.zeros((2, 8, 8, 1)), torch.zeros(2, 8, 8, 1), [3]],
)
def test_what_are_no_images_is_reported_with_what_to_give(model, images):
    with pytest.raises(moist.DataError, match="give uint8 pixels"):
        model(images)


def test_a_study_is_queried_by_name(home):
    four = moist.study("four", home=str(home))
    table = four.frame()
    assert {"k", "hidden_width", "accuracy", "mflops", "state", "key", "command"} <= {*table}
    assert len(table) == 4 and list(table["command"]) == [one.command for one in four.trials()]
    limit = sorted(table["mflops"])[1]
    found = moist.best("four", max={"mflops": limit}, home=home)
    assert found == four.best(max={"mflops": limit}) and found.quantities["mflops"] <= limit
    assert moist.load(found.key, home=home).run.command == found.command
    assert four.best(by="mflops", min={"accuracy": 0}) in four.frontier()
    with pytest.raises(moist.ConfigError, match="did you mean `four`"):
        moist.study("fuor", home=home)
    with pytest.raises(moist.ConfigError, match="no trial keeps"):
        four.best(max={"mflops": 0})


SCRIPT = """
import moist
print("started")
found = moist.sweep({file!r}, trials=2, home={home!r}, quiet=True, threads=1)
print(len(found.trials()), found.best().key)
"""


def test_a_script_without_a_main_guard_searches(home, tmp_path):
    (tmp_path / "two.yaml").write_text(STUDY.replace("[4, 32]", "[5]"))
    script = SCRIPT.format(file=str(tmp_path / "two.yaml"), home=str(home))
    (tmp_path / "script.py").write_text(script)
    code = f"import runpy; runpy.run_path({str(tmp_path / 'script.py')!r}, run_name='__main__')"
    done = forked.run(["-c", code], env=of_nobody(tmp_path))
    assert done.returncode == 0, done.stderr
    started, count = done.stdout.splitlines()
    assert (started, count.split()[0]) == ("started", "2")
    logs = [path.read_text() for path in (home / "logs" / "two").glob("*.txt")]
    assert len(logs) == 2 and not any("started" in log for log in logs)


def test_a_search_runs_in_a_thread(home, tmp_path):
    (tmp_path / "thread.yaml").write_text(STUDY)
    found = []

    def work() -> None:
        study = moist.sweep(tmp_path / "thread.yaml", home=home, quiet=True, max={"mflops": 9})
        found.append(study)

    thread = Thread(target=work)
    thread.start()
    thread.join()
    assert {trial.state for trial in found[0].trials()} == {"complete"}
    assert len(moist.study("thread", home=home).trials()) == 4
