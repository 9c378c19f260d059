"""Routers: their cost by hand, and that they answer with logits."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from moist.config import RoutingConfig
from moist.errors import StageError
from moist.measure.multiply_adds import cost
from moist.nets.routers import (
    IMPOSSIBLE,
    ROUTERS,
    LinearRouter,
    OracleRouter,
    TransformerRouter,
)

CIFAR = (3, 32, 32)


def router(name: str, k: int = 3, **options: object) -> torch.nn.Module:
    return ROUTERS[name].build(CIFAR, k, **{**ROUTERS[name].options(RoutingConfig()), **options})


def test_the_cnn_router_costs_what_the_papers_layers_cost() -> None:
    found = cost(router("cnn"), CIFAR)
    assert found.macs == 6_128_000
    assert found.flops - found.macs == 2 * (32 * 32 * 32 + 64 * 16 * 16)


def test_the_linear_router_costs_what_the_papers_layers_cost() -> None:
    found = cost(router("linear"), CIFAR)
    assert found.flops == found.macs == 401_600


@pytest.mark.parametrize("k", [2, 3, 10])
def test_the_transformer_router_costs_its_linear_layers_and_its_attention(k: int) -> None:
    tokens, width, hidden = 64, 64, 256
    embed = tokens * 3 * 4 * 4 * width
    attention = tokens * width * 3 * width + 2 * tokens * tokens * width + tokens * width * width
    layer = attention + 2 * tokens * width * hidden
    assert cost(router("transformer", k), CIFAR).macs == embed + 2 * layer + width * k


@pytest.mark.parametrize(("name", "head"), [("cnn", 128), ("linear", 64), ("transformer", 64)])
def test_each_further_cluster_costs_one_more_row_of_the_head(name: str, head: int) -> None:
    assert cost(router(name, 4), CIFAR).macs - cost(router(name, 3), CIFAR).macs == head


def test_the_linear_router_without_hidden_layers_is_a_linear_map() -> None:
    net = LinearRouter((1, 2, 2), 3, widths=(), dropout=0.5)
    x_BCHW = torch.randn(4, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    weight, bias = net.state_dict().values()
    torch.testing.assert_close(net(x_BCHW), F.linear(x_BCHW.flatten(1), weight, bias))


@settings(max_examples=10)
@given(st.sampled_from(sorted(ROUTERS.keys() - {"oracle"})), st.integers(0, 2**20))
def test_a_router_answers_with_logits(name: str, seed: int) -> None:
    """What is added to its head's biases is added to its answer; no softmax in between does so."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = router(name).eval()
        x_BCHW, bias_E = torch.randn(4, *CIFAR), torch.randn(3) * 3
    head = [part for part in net.modules() if isinstance(part, nn.Linear)][-1]
    with torch.no_grad():
        plain_BE = net(x_BCHW)
        head.bias += bias_E
        found_BE = net(x_BCHW)
    torch.testing.assert_close(found_BE - plain_BE, bias_E.expand(4, 3), rtol=1e-4, atol=1e-4)
    assert not torch.isclose(found_BE.sum(1), torch.ones(4)).any()


def test_dropout_is_at_work_in_training_only() -> None:
    for name in ("cnn", "linear"):
        net = router(name, dropout=0.5)
        x_BCHW = torch.randn(3, *CIFAR, generator=torch.Generator().manual_seed(0))
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(0)
            assert not torch.equal(net.train()(x_BCHW), net(x_BCHW)), name
            assert torch.equal(net.eval()(x_BCHW), net(x_BCHW)), name


def test_the_transformer_tells_apart_where_a_patch_lies() -> None:
    net = TransformerRouter((1, 8, 8), 3).eval()
    x_BCHW = torch.zeros(1, 1, 8, 8)
    x_BCHW[:, :, :4, :4] = 3.0
    with torch.inference_mode():
        assert not torch.allclose(net(x_BCHW), net(x_BCHW.roll(4, 3)), atol=1e-5)


def test_the_transformer_pads_to_whole_patches_and_sees_the_last_pixel() -> None:
    net = TransformerRouter((1, 9, 6), 3).eval()
    x_BCHW = torch.zeros(1, 1, 9, 6)
    other = x_BCHW.clone()
    other[0, 0, 8, 5] = 5.0
    with torch.inference_mode():
        assert not torch.allclose(net(x_BCHW), net(other), atol=1e-6)


def test_an_impossible_logit_has_no_probability_and_finite_products() -> None:
    logits = torch.tensor([30.0, -30.0, IMPOSSIBLE])
    assert logits.softmax(0)[2] == 0
    assert (0 * logits.log_softmax(0)).isfinite().all()


def test_the_oracle_refuses_an_image_without_a_label() -> None:
    with pytest.raises(StageError, match="label"):
        OracleRouter(CIFAR, 3)(torch.zeros(1, *CIFAR))
