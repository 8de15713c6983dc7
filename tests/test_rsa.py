"""RSA: the naive algebra over explicit neighbourhoods as oracle, borders, masks, sizes and costs."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from clipvid.nn.rsa import EPS, PARTS, RSA

KERNEL = (3, 3, 5)


def unit(x: torch.Tensor) -> torch.Tensor:
    return x / (x.square().sum(-1, keepdim=True) + EPS).sqrt()


def neighbourhood(x: torch.Tensor, at: tuple[int, int, int], kernel: tuple[int, ...]) -> torch.Tensor:
    """Return (M, d): the neighbours of a position of x (T, h, w, d), zeros beyond the border."""
    rows = []
    for offset in itertools.product(*(range(-(k // 2), k // 2 + 1) for k in kernel)):
        position = [a + o for a, o in zip(at, offset, strict=True)]
        inside = all(0 <= p < n for p, n in zip(position, x.shape, strict=False))
        rows.append(x[tuple(position)] if inside else x.new_zeros(x.shape[-1]))
    return torch.stack(rows)


def naive(module: RSA, x: torch.Tensor) -> torch.Tensor:
    """Compute section 2.1 with H (M d x M), P (M x d) and X_V X_V^T (M x M) in full; x is (T, h, w, C)."""
    d, m = module.d, math.prod(KERNEL)
    h2 = module.h2.view(d, m).T  # (M, d)
    q = unit((x @ module.q.weight.T).unflatten(-1, (module.queries, d)))
    v = unit(x @ module.v.weight.T)
    k = None if module.k is None else unit(x @ module.k.weight.T)
    out = torch.zeros_like(x)
    for at in itertools.product(*(range(n) for n in x.shape[:3])):
        context_v = neighbourhood(v, at, KERNEL)
        kernel = x.new_zeros(module.queries, m)
        if module.kernel_type == "V":
            kernel += q[at] @ h2.T
        if module.p1 is not None:
            kernel += q[at] @ (h2 @ module.p1.T).T  # P = H2 P1^T
        if k is not None:
            h1 = module.h1.view(-1, d, m)  # (d of K or 1, rank, M)
            full = torch.einsum("kem,ne->mkn", h1.expand(d, d, m), h2)  # H: neighbour, channel, neighbour
            pairs = q[at][:, None, :] * neighbourhood(k, at, KERNEL)  # 1 q^T . X_K: (L, M, d)
            kernel += torch.einsum("lmk,mkn->ln", pairs, full)
        context = x.new_zeros(m, d)
        if module.identity is not None:
            context += context_v @ module.identity
        if module.g is not None:
            context += context_v @ context_v.T @ module.g.view(d, m).T
        if module.g is None:
            context = context_v
        out[at] = (kernel @ context).flatten()
    return out


def build(**options) -> RSA:
    module = RSA(12, queries=3, kernel=KERNEL, **options).double()
    if module.identity is not None:
        module.identity.data += 0.1 * torch.randn(4, 4)
    return module


@pytest.mark.parametrize("form", ["hadamard", "dot"])
@pytest.mark.parametrize("context", PARTS)
@pytest.mark.parametrize("kernel", PARTS)
def test_the_factored_form_equals_the_naive_algebra(kernel, context, form):
    module = build(kernel_type=kernel, context_type=context, form=form)
    x = torch.randn(2, 3, 3, 4, 12, dtype=torch.float64)
    for b in range(2):
        torch.testing.assert_close(module(x)[b], naive(module, x[b]), atol=1e-10, rtol=0)


def test_dot_form_is_hadamard_form_with_a_constant_over_channels():
    dot, full = build(form="dot"), build()
    state = dot.state_dict()
    full.load_state_dict(state | {"h1": state["h1"].repeat(4, 1, 1, 1, 1)})
    x = torch.randn(1, 4, 3, 3, 12, dtype=torch.float64)
    torch.testing.assert_close(full(x), dot(x), atol=1e-12, rtol=0)


def test_the_full_kernel_and_context_give_the_sum_of_their_four_terms():
    module = build()
    x = torch.randn(1, 3, 3, 3, 12, dtype=torch.float64)
    expected = module(x)
    start, total = {k: v.clone() for k, v in module.state_dict().items()}, torch.zeros_like(x)
    for left_out in itertools.product(("h1", "p1"), ("g", "identity")):
        module.load_state_dict(start | {name: torch.zeros_like(start[name]) for name in left_out})
        total += module(x)
    torch.testing.assert_close(total, expected, atol=1e-12, rtol=0)


def test_single_terms_drop_the_parameters_that_the_released_code_drops():
    names = {name for name, _ in build().named_parameters()}
    assert names == {"q.weight", "k.weight", "v.weight", "h1", "h2", "g", "p1", "identity"}
    for part, dropped in (("V", {"k.weight", "h1", "p1"}), ("R", {"p1"})):
        assert names - {name for name, _ in build(kernel_type=part).named_parameters()} == dropped
    for part, dropped in (("V", {"g", "identity"}), ("R", {"identity"})):
        assert names - {name for name, _ in build(context_type=part).named_parameters()} == dropped


def test_it_is_translation_equivariant_inside_and_a_temporal_kernel_never_mixes_positions():
    module = build()
    x = torch.randn(1, 5, 5, 7, 12, dtype=torch.float64)
    moved = torch.roll(x, (1, 1, 1), dims=(1, 2, 3))
    inner = (slice(None), slice(2, 4), slice(2, 4), slice(3, 5))
    torch.testing.assert_close(module(moved)[inner], torch.roll(module(x), (1, 1, 1), dims=(1, 2, 3))[inner])
    temporal = RSA(12, queries=3, kernel=(3, 1, 1)).double()
    other = x.clone()
    other[:, :, 0, 0] = torch.randn(1, 5, 12, dtype=torch.float64)
    same = temporal(other) == temporal(x)
    assert not same[:, :, 0, 0].any()
    same[:, :, 0, 0] = True
    assert same.all()


def test_masked_frames_act_like_the_zeros_after_a_shorter_clip():
    module = build()
    x = torch.randn(1, 5, 3, 3, 12, dtype=torch.float64)
    mask = torch.tensor([[True] * 3 + [False] * 2])
    torch.testing.assert_close(module(x, mask=mask)[:, :3], module(x[:, :3]), atol=1e-12, rtol=0)


@pytest.mark.parametrize(("width", "expected"), [(64, 24_848), (128, 91_552), (256, 350_528), (512, 1_370_752)])
def test_parameters_are_those_of_the_released_network(width, expected):
    module = RSA(width, queries=8, kernel=(5, 7, 7))
    assert sum(p.numel() for p in module.parameters()) == expected


def test_macs_are_those_of_the_factored_formula():
    module = RSA(64, queries=8, kernel=(5, 7, 7)).to("meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(torch.empty(1, 16, 56, 56, 64, device="meta"))
    assert counter.get_total_flops() // 2 == 2_694_250_496


def test_wrong_options_name_the_value_and_what_is_allowed():
    with pytest.raises(ValueError, match="unknown kernel_type 'W'; choose one of V, R, VplusR"):
        build(kernel_type="W")
    with pytest.raises(ValueError, match="unknown form 'dots'"):
        build(form="dots")
    with pytest.raises(ValueError, match="width must be divisible by queries, an integer >= 1, got 12 and 5"):
        RSA(12, queries=5)
    with pytest.raises(ValueError, match=r"three odd numbers >= 1 \(time, height, width\), got \(4, 3, 3\)"):
        RSA(12, queries=3, kernel=(4, 3, 3))
