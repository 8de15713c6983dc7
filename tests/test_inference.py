"""Inference passes restore the training mode of every module, also when many threads run them at once."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from clipvid.models.factory import attach
from clipvid.runtime.inference import _PASSES, evaluating, inference


def flags(model):
    return [part.training for part in model.modules()]


@pytest.fixture
def network():
    """A model in training mode with one submodule that its user keeps in eval mode."""
    model = nn.Sequential(nn.Dropout(0.5), nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5)))
    model.train()
    model[1][0].eval()
    return model


def test_each_module_gets_its_own_mode_back(network):
    before = flags(network)
    with evaluating(network):
        assert not any(flags(network))
        with evaluating(network[1]):
            assert not any(flags(network))
        assert not any(flags(network))
    assert flags(network) == before
    with pytest.raises(ZeroDivisionError), evaluating(network):
        raise ZeroDivisionError
    assert flags(network) == before
    assert not _PASSES


def test_a_model_in_eval_mode_stays_so_and_an_object_without_modes_is_accepted(network):
    network.eval()
    with evaluating(network), evaluating(object()):
        assert not any(flags(network))
    assert not any(flags(network))


def test_a_pass_that_ends_keeps_eval_mode_for_passes_that_still_run(network):
    before = flags(network)
    first, second = evaluating(network), evaluating(network[1])
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not any(flags(network[1]))
    assert network[0].training
    second.__exit__(None, None, None)
    assert flags(network) == before


def test_many_threads_never_see_dropout_and_the_modes_are_restored(network):
    x, before = torch.randn(8, 4), flags(network)
    start = threading.Barrier(16)
    with inference_mode_of(network):
        serial = network(x)

    def work(_):
        start.wait()
        same = []
        for _ in range(200):
            with evaluating(network), torch.no_grad():
                same.append(torch.equal(network(x), serial))
        return all(same)

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(work, range(16)))
    assert flags(network) == before
    assert not _PASSES


def inference_mode_of(network):
    network.device = torch.device("cpu")
    return inference(network, "32-true")


def test_a_pass_has_no_gradients_and_the_requested_precision(network):
    network.device = torch.device("cpu")
    with inference(network, "bf16-mixed"):
        assert not torch.is_grad_enabled()
        assert torch.get_autocast_dtype("cpu") == torch.bfloat16
        assert torch.is_autocast_enabled("cpu")
    with inference(network, "32-true"):
        assert not torch.is_autocast_enabled("cpu")
    assert torch.is_grad_enabled()


def test_concurrent_threads_each_get_the_tap_of_their_own_clip(tiny_clip):
    model = attach(tiny_clip, "divided").eval()
    assert 0 in model.branch.levels
    clips = [torch.randn(1, 2, 3, 32, 32) for _ in range(8)]
    with torch.no_grad():
        serial = [model.encode_video(clip) for clip in clips]
    start = threading.Barrier(8)

    def work(number):
        start.wait()
        with torch.no_grad():
            return all(torch.equal(model.encode_video(clips[number]), serial[number]) for _ in range(5))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))
