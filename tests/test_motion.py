"""LocalMotion: equals a loop over patches and frames; masks, single frames, order of frames."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from clipvid.nn.motion import LocalMotion

GRID = (2, 3)


def noisy(width: int = 6, features: int = 5) -> LocalMotion:
    module = LocalMotion(width, features).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module


def clip(frames: int, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, frames, 6, 6, dtype=torch.float64)


def test_it_equals_a_loop_over_patches_and_neighbouring_frames():
    module, x = noisy(), clip(4)
    for b in range(2):
        total = torch.zeros(5, dtype=torch.float64)
        for t in range(3):

            def change(row: int, column: int, *, b: int = b, t: int = t) -> torch.Tensor:
                inside = 0 <= row < 2 and 0 <= column < 3
                patch = 3 * row + column
                return x[b, t + 1, patch] - x[b, t, patch] if inside else torch.zeros(6, dtype=torch.float64)

            for row in range(2):
                for column in range(3):
                    features = (
                        x[b, t, 3 * row + column] + x[b, t + 1, 3 * row + column],
                        change(row, column),
                        change(row, column + 1) - change(row, column - 1),
                        change(row + 1, column) - change(row - 1, column),
                    )
                    parts = [norm(s) for norm, s in zip(module.norms, features, strict=True)]
                    total += F.gelu(module.mix(torch.cat(parts))) / 18
        torch.testing.assert_close(module(x, grid=GRID)[b], module.norm(total), atol=1e-12, rtol=0)


def test_masked_frames_contribute_nothing_and_their_neighbours_are_not_paired():
    module, x = noisy(), clip(5)
    mask = torch.tensor([[True, True, True, False, False], [True] * 5])
    output = module(x, grid=GRID, mask=mask)
    torch.testing.assert_close(output[0], module(x[:1, :3], grid=GRID)[0], atol=1e-12, rtol=0)
    torch.testing.assert_close(output[1], module(x, grid=GRID)[1], atol=1e-12, rtol=0)
    gap = torch.tensor([[True, True, False, True, True]])
    garbage = x[:1].clone()
    garbage[:, 2] = torch.inf
    assert torch.equal(module(x[:1], grid=GRID, mask=gap), module(garbage, grid=GRID, mask=gap))
    # Without the norm, the output is the average over the pairs (0, 1) and (3, 4); there is no pair (1, 3).
    module.norm = torch.nn.Identity()
    parts = (module(x[:1, :2], grid=GRID) + module(x[:1, 3:], grid=GRID)) / 2
    torch.testing.assert_close(module(x[:1], grid=GRID, mask=gap), parts, atol=1e-12, rtol=0)


def test_a_single_frame_gives_the_norm_of_zeros():
    module, x = noisy(), clip(1)
    expected = module.norm(torch.zeros(2, 5, dtype=torch.float64))
    assert torch.equal(module(x, grid=GRID), expected)
    assert torch.equal(module(x, grid=GRID, mask=torch.ones(2, 1, dtype=torch.bool)), expected)


def test_frame_order_and_grid_layout_change_the_output():
    module, x = noisy(), clip(4)
    assert not torch.allclose(module(x, grid=GRID), module(x.flip(1), grid=GRID), atol=1e-3)
    assert not torch.allclose(module(x, grid=GRID), module(x, grid=(3, 2)), atol=1e-3)
