"""Counts of multiply-accumulates: equal to those of torch's own counter."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from clipvid.nn.attention import Block
from clipvid.runtime.operation_counts import count_macs


def counts_of_torch(run):
    with torch.enable_grad(), FlopCounterMode(display=False) as counter:
        run()
    return {op.__name__: flops // 2 for op, flops in counter.get_flop_counts()["Global"].items()}


@pytest.mark.parametrize("trainable", [True, False])
def test_macs_equal_those_of_torchs_counter(trainable):
    """Layers of one shape repeat, as in a tower, and the same layers run on two lengths."""
    with torch.device("meta"):
        stem, blocks = nn.Conv2d(3, 32, 4, stride=4, bias=False), nn.ModuleList(Block(32, 4) for _ in range(3))
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        images, mask = torch.empty(2, 3, 16, 16), torch.ones(2, 16, dtype=torch.bool)
    for module in (stem, *blocks, layer):
        module.requires_grad_(trainable)

    def run() -> Tensor:
        tokens = stem(images).flatten(2).mT
        for block in blocks:
            tokens = block(tokens, mask=mask)
        tokens = layer(torch.cat([tokens, tokens.roll(1, 1)], dim=1))
        for block in blocks:
            tokens = block(tokens)
        return tokens

    counts = count_macs(run)
    assert counts == counts_of_torch(run)
    assert counts["convolution"] == 2 * 16 * 32 * 3 * 16


def test_repeated_operations_keep_the_shape_the_order_in_memory_and_the_type_of_their_results():
    x = torch.empty(2, 3, 3, device="meta", dtype=torch.int64)
    results = []
    count_macs(
        lambda: results.extend([x * 2, x * 2.0, x.mT * 2, x * 2, x.half() * 2, x.max(dim=1)[1], x.max(dim=1)[1]])
    )
    first, other_type, transposed, again, half, *indices = results
    assert (first.dtype, other_type.dtype, half.dtype) == (torch.int64, torch.float32, torch.float16)
    assert (again.dtype, again.shape, again.stride()) == (first.dtype, first.shape, first.stride())
    assert transposed.stride() == (9, 1, 3)
    assert [index.shape for index in indices] == [(2, 3)] * 2
    assert again is not first


def test_operations_in_place_are_run_each_time():
    tensors = [torch.empty(4, device="meta") for _ in range(3)]
    count_macs(lambda: [tensor.unsqueeze_(0) for tensor in tensors])
    assert [tensor.shape for tensor in tensors] == [(1, 4)] * 3
