"""Benchmarks: one form of row, and baselines that compute what they are said to."""

import pytest
import torch
from shell import Said

from moist.bench import serving, training
from moist.bench.rows import row
from moist.bench.serving import forms, parts
from moist.env import Env
from moist.measure.multiply_adds import cost


def test_a_row_has_the_median_ratio_of_pairs_and_its_extremes() -> None:
    found = row("bench", "this", "that", [1.0, 6.0, 9.0], [1.0, 2.0, 2.0], images=3)
    assert (found.low, found.ratio, found.high, found.n) == (1.0, 3.0, 4.5, 3)
    assert (found.ms, found.baseline_ms, found.details) == (6.0, 2.0, {"images": 3})


def test_the_baseline_of_a_routed_model_computes_the_router_and_one_student() -> None:
    mixtures = [one for one in forms({}, torch.device("cpu")) if one.name != "cascade"]
    for form in mixtures:
        shape = form.data.image_shape
        apart, routed = cost(parts(form, 1), shape), cost(form.net, shape)
        assert apart.mflops == pytest.approx(routed.mflops) and routed.mflops > 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU to time on")
def test_training_and_routing_are_timed_on_a_gpu(monkeypatch) -> None:
    monkeypatch.setattr(serving, "SECONDS", 0.01)
    monkeypatch.setattr(training, "IMAGES", 20)
    keys = {"student.channels": "4,8", "teacher.arch": "resnet8", "precision": "float32"}
    env = Env(torch.device("cuda"))
    rows = [*serving.dispatch(keys, env, rounds=1), *training.train(keys, env, rounds=1)]
    assert len(rows) == 11 and all(one.ratio > 0 for one in rows)


@pytest.mark.slow
def test_benchmarks_print_records_of_one_shape(monkeypatch, capsys) -> None:
    monkeypatch.setattr(serving, "SECONDS", 0.01)
    monkeypatch.setattr(training, "IMAGES", 20)
    keys = ["teacher.arch=resnet8", "student.channels=4,8", "precision=float32"]
    found = [
        Said(capsys, "bench", name, *keys, "--rounds", 1, "--json").json
        for name in ("serve", "train")
    ]
    assert [len(records) for records in found] == [18, 2]
    assert len({tuple(one) for records in found for one in records}) == 1
    for one in found[0] + found[1]:
        assert one["n"] == 1 and one["low"] == one["ratio"] == one["high"] > 0
    assert 0 < found[1][0]["details"]["percent_of_matmul"] < 100
