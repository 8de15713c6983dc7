"""ConST-CL's parts against naive loops, torchvision and the released values: regions, decoder, heads, losses."""

from __future__ import annotations

import math
from itertools import pairwise, product

import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import roi_align

from clipvid.training.losses import region_contrastive, two_view_contrastive
from clipvid.training.selfsup import regions as regions_module
from clipvid.training.selfsup.region_decoder import EPS, ProjectionHead, RegionDecoder
from clipvid.training.selfsup.regions import LAST, context_frames, lowlevel_regions, pool_regions, random_regions


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def same(actual: torch.Tensor, expected: torch.Tensor, *, atol: float = 1e-12) -> None:
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)


def test_random_boxes_lie_inside_the_image_and_are_drawn_uniformly_and_independently():
    boxes = random_regions(2000, 10)
    assert boxes.min() >= 0
    assert boxes.max() <= LAST
    y1, x1, y2, x2 = boxes.double().unbind(-1)
    width, height = x2 - x1, y2 - y1
    aspect = height / width
    uniforms = torch.stack([x1 / (1 - width), y1 / (1 - height), (width - 0.1) / 0.4, (aspect - 0.5) / 1.5]).flatten(1)
    assert torch.corrcoef(uniforms).fill_diagonal_(0).abs().max() < 0.03
    steps = torch.linspace(0, 1, uniforms.shape[1], dtype=uniforms.dtype)
    same(uniforms.sort().values, steps.expand(4, -1), atol=0.03)


def test_random_boxes_are_decided_by_their_generator():
    first, again, other = (random_regions(2, generator=torch.Generator().manual_seed(seed)) for seed in (3, 3, 4))
    same(first, again, atol=0)
    assert (first != other).all()
    assert first.shape == (2, 8, 4)


BLOCKS = torch.tensor([[0, 0, 0.625, 0.375], [0, 0.375, 0.625, 1], [0.625, 0, 1, 0.375], [0.625, 0.375, 1, 1]])
QUARTERS = torch.tensor([[0, 0, 0.5, 0.5], [0, 0.5, 0.5, 1], [0.5, 0, 1, 0.5], [0.5, 0.5, 1, 1]])


@pytest.mark.parametrize(("height", "width"), [(64, 64), (48, 64), (192, 256)])  # the last is scaled down
def test_segments_of_plain_blocks_are_the_blocks(height, width):
    image = torch.empty(1, 3, height, width)
    for box, colour in zip(BLOCKS, ([1, 0, 0], [0, 0, 1], [0, 1, 0], [0.8, 0.8, 0.8]), strict=True):
        top, left, bottom, right = (box * torch.tensor([height, width] * 2)).int().tolist()
        image[0, :, top:bottom, left:right] = torch.tensor(colour)[:, None, None]
    same(lowlevel_regions(image, 4)[0], BLOCKS, atol=1e-6)


def test_segments_of_one_colour_or_without_pixels_are_grid_cells(monkeypatch):
    same(lowlevel_regions(torch.full((1, 3, 32, 32), 0.3), 4)[0], QUARTERS)
    monkeypatch.setattr(regions_module, "_segments", lambda points, *_, **__: torch.zeros(1, points.shape[-1]).long())
    boxes = lowlevel_regions(torch.zeros(1, 3, 8, 8), 4)[0]
    same(boxes[0], torch.tensor([0.0, 0, 1, 1]))
    same(boxes[1:], QUARTERS[1:])


def naive_segments(image: torch.Tensor, regions: int) -> torch.Tensor:
    """Run SLIC in loops: ten times, pixels choose among centres at most one expected side away, and centres move."""
    _, h, w = image.shape
    colours, side = regions_module._lab(image[None])[0], (h * w / regions) ** 0.5
    seeds = [((y1 + y2) / 2 * h, (x1 + x2) / 2 * w) for y1, x1, y2, x2 in regions_module._cells(regions, h, w).tolist()]
    centres = [(colours[:, int(y), int(x)], y - 0.5, x - 0.5) for y, x in seeds]
    for _ in range(11):
        members: list[list[tuple[int, int]]] = [[] for _ in centres]
        for y, x in product(range(h), range(w)):
            near = [r for r, (_, cy, cx) in enumerate(centres) if max(abs(y - cy), abs(x - cx)) <= side]
            distance = [
                (colours[:, y, x] - colour).square().sum() + 100 * ((y - cy) ** 2 + (x - cx) ** 2) / side**2
                for colour, cy, cx in centres
            ]
            members[min(near or range(regions), key=lambda r: float(distance[r]))].append((y, x))
        moved = [[torch.stack([colours[:, y, x] for y, x in at]).mean(dim=0), *zip(*at, strict=True)] for at in members]
        centres = [(colour, sum(ys) / len(ys), sum(xs) / len(xs)) for colour, ys, xs in moved]
    boxes = [[min(ys) / h, min(xs) / w, (max(ys) + 1) / h, (max(xs) + 1) / w] for _, ys, xs in moved]
    return torch.tensor(boxes, dtype=image.dtype)


def test_segments_of_noise_equal_slic_in_loops():
    noise = torch.rand(2, 3, 10, 12, dtype=torch.float64)
    same(lowlevel_regions(noise, 6), torch.stack([naive_segments(image, 6) for image in noise]), atol=1e-6)


def test_segments_depend_on_their_image_alone():
    noise = (torch.rand(3, 3, 40, 56) * 255).to(torch.uint8)
    boxes = lowlevel_regions(noise)
    same(lowlevel_regions(noise.float() / 255), boxes, atol=0)
    same(lowlevel_regions(noise[1:2]), boxes[1:2], atol=0)
    assert boxes.shape == (3, 8, 4)
    assert boxes.min() >= 0
    assert boxes.max() <= 1
    assert (boxes[..., 2:] > boxes[..., :2]).all()


def test_colours_equal_the_lab_tables():
    white_red_green_blue_grey = torch.tensor([[1.0, 1, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1], [0.5, 0.5, 0.5]])
    tables = [[100, 0, 0], [53.24, 80.09, 67.20], [87.73, -86.18, 83.18], [32.30, 79.19, -107.86], [53.39, 0, 0]]
    lab = regions_module._lab(white_red_green_blue_grey[:, :, None, None])[..., 0, 0]
    same(lab, torch.tensor(tables), atol=0.01)


def naive_pool(features: torch.Tensor, box: torch.Tensor, crop: int) -> torch.Tensor:
    """Return the mean (D,) of crop x crop bilinear samples of features (h, w, D), each from its four corners."""
    h, w, _ = features.shape
    y1, x1, y2, x2 = (box * torch.tensor([h, w, h, w])).tolist()
    total = torch.zeros_like(features[0, 0])
    for i, j in product(range(crop), repeat=2):
        y, x = y1 + (i + 0.5) / crop * (y2 - y1), x1 + (j + 0.5) / crop * (x2 - x1)
        for r, c in product((math.floor(y), math.floor(y) + 1), (math.floor(x), math.floor(x) + 1)):
            total += (1 - abs(y - r)) * (1 - abs(x - c)) * features[min(r, h - 1), min(c, w - 1)]
    return total / crop**2


def many_boxes() -> torch.Tensor:
    """Return boxes (2, 40, 4): ordinary, smaller than a cell, the full image, at its border, and without area."""
    drawn = random_regions(2, 20).double()
    tiny = drawn[:, :16].clone()
    tiny[..., 2:] = tiny[..., :2] + 0.04 * torch.rand(2, 16, 2)
    edges = [[0, 0, 1, 1], [0.97, 0.98, 1, 1], [0.3, 0.6, 0.3, 0.6], [1, 1, 1, 1]]
    return torch.cat([drawn, tiny, torch.tensor(edges).double().expand(2, -1, -1)], dim=1)


@pytest.mark.parametrize("crop", [1, 4, 7])
def test_pooling_equals_one_bilinear_sample_per_bin(crop):
    features, boxes = randn(2, 7, 5, 6), many_boxes()
    expected = [torch.stack([naive_pool(f, b, crop) for b in bs]) for f, bs in zip(features, boxes, strict=True)]
    same(pool_regions(features, boxes, crop=crop), torch.stack(expected))


def test_pooling_equals_aligned_roi_align_shifted_by_half_a_cell_and_legacy_roi_align_for_large_boxes_only():
    features, boxes = randn(2, 7, 5, 6), many_boxes()
    corners = boxes[..., [1, 0, 3, 2]] * torch.tensor([5.0, 7, 5, 7])

    def reference(shift: float, *, aligned: bool) -> torch.Tensor:
        rois = list((corners + shift).unbind())
        bins = roi_align(features.permute(0, 3, 1, 2), rois, 4, sampling_ratio=1, aligned=aligned)
        return bins.mean(dim=(-2, -1)).view(2, 40, 6)

    pooled = pool_regions(features, boxes)
    same(pooled, reference(0.5, aligned=True))
    legacy = (pooled - reference(0, aligned=False)).abs().amax(dim=-1)
    large = (corners[..., 2:] - corners[..., :2] >= 1).all(dim=-1)
    assert legacy[large].max() < 1e-12
    assert legacy[~large].max() > 0.1  # the legacy kind enlarges boxes below one cell


def test_pooling_a_constant_map_gives_the_constant():
    constant = randn(6)
    same(pool_regions(constant.expand(2, 7, 5, 6), many_boxes()), constant.expand(2, 40, 6))


def test_pooling_passes_gradients_and_works_in_bf16():
    features, boxes = randn(2, 3, 4, 5).requires_grad_(), random_regions(2, 3)
    assert torch.autograd.gradcheck(lambda x: pool_regions(x, boxes.double()), features)
    rough = pool_regions(features.bfloat16(), boxes)
    assert rough.dtype == torch.bfloat16
    same(rough.float(), pool_regions(features.float(), boxes), atol=0.03)


def test_context_frames_equal_the_released_ones():
    assert context_frames(8) == [2, 3, 4, 5, 6]
    assert context_frames(12, 5) == [2, 4, 6, 8, 10]
    assert context_frames(16, 5) == [2, 5, 8, 11, 14]
    assert context_frames(9, 1) == [4]


def test_context_frames_are_distinct_inside_the_clip_evenly_spaced_and_hold_its_middle():
    for frames, level in product(range(1, 70), range(1, 40, 2)):
        indices = context_frames(frames, level)
        assert len(set(indices)) == len(indices) == min(frames, level)
        assert set(indices) <= set(range(frames))
        assert frames // 2 in indices
        assert len({b - a for a, b in pairwise(indices)}) <= 1


GRID = (2, 3)


def decoder_and_inputs() -> tuple[RegionDecoder, torch.Tensor, torch.Tensor]:
    """Return a decoder and, for two videos, 5 regions and 4 context frames of 2 x 3 tokens, width 12."""
    decoder = RegionDecoder(12, layers=3, heads=3, unit=8).double()
    for parameter in decoder.parameters():  # norms and biases must matter, too
        parameter.data += 0.3 * torch.randn_like(parameter)
    return decoder, randn(2, 5, 12).requires_grad_(), randn(2, 4, 6, 12).requires_grad_()


def naive_memory(decoder: RegionDecoder, context: torch.Tensor, times: list[int]) -> torch.Tensor:
    """Return (T·N, D + 16): tokens of one video, each with its learned distance from the middle in time and space."""
    rows, (h, w) = [], GRID
    for at, i, j in product(range(len(times)), range(h), range(w)):
        distances = [times[at] - sum(times) / len(times)], [i - (h - 1) / 2, j - (w - 1) / 2]
        learned = []
        for (first, _, last), distance in zip((decoder.time, decoder.space), distances, strict=True):
            hidden = (first.weight @ first.weight.new_tensor(distance) + first.bias).clamp(min=0)
            learned.append(last.weight @ hidden + last.bias)
        rows.append(torch.cat([context[at, i * w + j], *learned]))
    return torch.stack(rows)


def naive_unit(layer: torch.nn.Module, head: int, regions: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
    """Compute one head of a layer for one video, region by region."""

    def part(linear: torch.nn.Linear, at: int, x: torch.Tensor) -> torch.Tensor:
        unit_rows = slice(at * layer.unit, (at + 1) * layer.unit)
        return linear.weight[unit_rows] @ x + linear.bias[unit_rows]

    rows = []
    keys = [part(layer.kv, head, token) for token in memory]
    values = [part(layer.kv, layer.heads + head, token) for token in memory]
    for region in regions:
        q = part(layer.q, head, region)
        shares = torch.stack([q @ key / math.sqrt(layer.unit) for key in keys]).softmax(dim=0)
        hidden = q + sum(share * value for share, value in zip(shares, values, strict=True))
        hidden = (hidden - hidden.mean()) / (hidden.var(unbiased=False) + EPS).sqrt()
        hidden = hidden * layer.norm_weight[head, 0] + layer.norm_bias[head, 0]
        hidden = layer.ffn1.weight[head] @ hidden + layer.ffn1.bias[head, 0]
        hidden = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
        rows.append(layer.ffn2.weight[head] @ hidden + layer.ffn2.bias[head, 0])
    return torch.stack(rows)


@pytest.mark.parametrize("times", [None, [2, 5, 8, 11]])
def test_the_decoder_equals_single_heads_in_loops(times):
    decoder, regions, context = decoder_and_inputs()
    predicted = decoder(regions, context, grid=GRID, frames=times)
    for b in range(2):
        x, memory = regions[b], naive_memory(decoder, context[b], times or [0, 1, 2, 3])
        for layer in decoder.layers:
            x = torch.cat([naive_unit(layer, head, x, memory) for head in range(3)], dim=-1)
        same(predicted[b], x @ decoder.out.weight.T + decoder.out.bias, atol=1e-10)


def test_the_decoder_depends_on_distances_and_not_on_the_order_of_context_tokens():
    decoder, regions, context = decoder_and_inputs()
    expected = decoder(regions, context, grid=GRID, frames=[2, 5, 8, 11])
    mixed = context[:, [3, 0, 2, 1]]
    same(decoder(regions, mixed, grid=GRID, frames=[11, 2, 8, 5]), expected)
    same(decoder(regions, context, grid=GRID, frames=[3, 6, 9, 12]), expected)
    assert (decoder(regions, mixed, grid=GRID, frames=[2, 5, 8, 11]) - expected).abs().max() > 1e-3
    weight = decoder.space[0].weight.data
    weight.copy_(weight[:, [1, 0]])  # swap rows and columns, in the weights and in the grid
    turned = context.unflatten(2, GRID).transpose(2, 3).flatten(2, 3)
    same(decoder(regions, turned, grid=GRID[::-1], frames=[2, 5, 8, 11]), expected)


def test_regions_do_not_see_each_other():
    decoder, regions, context = decoder_and_inputs()
    alone = [decoder(regions[:, [r]], context, grid=GRID) for r in range(5)]
    same(decoder(regions, context, grid=GRID), torch.cat(alone, dim=1))


def test_gradients_reach_regions_context_and_every_parameter():
    decoder, regions, context = decoder_and_inputs()
    decoder(regions, context, grid=GRID).square().sum().backward()
    assert all(tensor.grad is not None and tensor.grad.any() for tensor in (regions, context, *decoder.parameters()))


def test_every_unit_is_initialised_as_in_keras():
    decoder = RegionDecoder(64, layers=2, heads=4, unit=32)
    layer = decoder.layers[0]
    for weights, inside in ((layer.q.weight, 64), (layer.kv.weight, 80), (layer.ffn1.weight.flatten(0, 1), 32)):
        for weight in weights.split(32):
            bound = math.sqrt(6 / (inside + 32))
            assert 0.97 * bound < weight.abs().max() <= bound
    assert not any(p.any() for name, p in decoder.named_parameters() if name.endswith("bias"))


def test_parameter_counts_equal_those_of_the_released_heads():
    with torch.device("meta"):
        heads = RegionDecoder(2048), ProjectionHead(2048), ProjectionHead(2048, norm="layer")
    assert [sum(p.numel() for p in head.parameters()) for head in heads] == [6_928_356, 12_857_472, 12_857_472]


@pytest.mark.parametrize(("norm", "over"), [("batch", 0), ("layer", 1)])
def test_the_projection_is_three_normalised_layers_and_a_linear_layer(norm, over):
    head, x = ProjectionHead(6, hidden=10, out=4, norm=norm).double(), randn(7, 6)
    expected = x
    for at in (0, 3, 6):
        expected = expected @ head[at].weight.T
        expected = expected - expected.mean(dim=over, keepdim=True)
        expected = (expected / (expected.square().mean(dim=over, keepdim=True) + 1e-5).sqrt()).clamp(min=0)
    same(head(x), expected @ head[9].weight.T + head[9].bias)


def test_the_global_loss_equals_the_released_one_and_twice_nt_xent_in_either_order():
    a = torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8], [4, 3, 2, 1], [8, 7, 6, 5]])
    assert two_view_contrastive(a, a[[0, 2, 1, 3]], temperature=0.1).item() == pytest.approx(4.136947, abs=1e-6)
    a, b = randn(2, 5, 6)
    views, total = [v / v.norm() for v in (*a, *b)], 0.0
    for i, view in enumerate(views):
        scores = {j: float(view @ other) / 0.2 for j, other in enumerate(views) if j != i}
        total += math.log(sum(map(math.exp, scores.values()))) - scores[(i + 5) % 10]
    for loss in (two_view_contrastive(a, b, temperature=0.2), two_view_contrastive(3 * b, a, temperature=0.2)):
        assert loss.item() == pytest.approx(2 * total / 10, abs=1e-12)


@pytest.mark.parametrize(("temperature", "expected"), [(0.1, 1.669813), (0.2, 1.666844)])
def test_the_local_loss_equals_the_released_one_on_the_released_test_tensors(temperature, expected):
    none = [[-1.0] * 4] * 2
    low, high = [[1, 2, 3, 4], [5, 6, 7, 8]], [[4, 3, 2, 1], [8, 7, 6, 5]]
    a = torch.tensor([low + none, none + high, low + high])
    low, high = [[1.5, 2.5, 3.5, 4.5], [5.5, 6.5, 7.5, 8.5]], [[5.5, 6.5, 7.5, 8.5], [8.5, 7.5, 6.5, 5.5]]
    b = torch.tensor([low + none, none + high, [low[0], [4.5, 3.5, 2.5, 1.5], *high]])
    mask = (a != -1).any(dim=-1)
    every = torch.ones_like(mask)  # the release lets masked regions be negatives
    forward = region_contrastive(b, b, mask, every, source=a, temperature=temperature)
    backward = region_contrastive(a, a, mask, every, source=b, temperature=temperature)
    assert ((forward + backward) / 2).item() == pytest.approx(expected, abs=2e-6)


def naive_local(predicted, target, predicted_mask, target_mask, *, source, temperature) -> float:
    """Compute the local loss in three loops: over videos, their regions, and the regions of other videos."""
    predicted, target, source = (F.normalize(x, dim=-1) for x in (predicted, target, source))
    losses = []
    for i, r in product(*map(range, predicted.shape[:2])):
        candidates = [s for s in range(target.shape[1]) if target_mask[i, s]]
        if not (predicted_mask[i, r] and candidates):
            continue
        nearest = max(candidates, key=lambda s: float(source[i, r] @ target[i, s]))
        positive = float(predicted[i, r] @ target[i, nearest]) / temperature
        total = math.exp(positive)
        for p, s in product(*map(range, target.shape[:2])):
            if p != i and target_mask[p, s]:
                total += math.exp(float(predicted[i, r] @ target[p, s]) / temperature)
        losses.append(math.log(total) - positive)
    return sum(losses) / len(losses)


def local_inputs() -> dict[str, torch.Tensor]:
    """Return four videos with 5 source and 6 target regions; half of them count, and the last video has no target."""
    masks = {"predicted_mask": torch.rand(4, 5) < 0.5, "target_mask": torch.rand(4, 6) < 0.5}
    masks["target_mask"][3] = False
    return {"predicted": randn(4, 5, 7), "source": randn(4, 5, 7), "target": randn(4, 6, 7), **masks}


def test_the_local_loss_equals_the_triple_loop():
    inputs = local_inputs()
    assert inputs["target_mask"].any(dim=1).tolist() == [True, True, True, False]
    expected = naive_local(**inputs, temperature=0.2)
    assert region_contrastive(**inputs, temperature=0.2).item() == pytest.approx(expected, abs=1e-12)


def test_masked_regions_have_no_loss_and_no_influence():
    inputs = local_inputs()
    expected = region_contrastive(**inputs, temperature=0.2)
    for name, mask in (("predicted", "predicted_mask"), ("source", "predicted_mask"), ("target", "target_mask")):
        inputs[name] = inputs[name].masked_fill(~inputs[mask][..., None], 9)
    same(region_contrastive(**inputs, temperature=0.2), expected)
    inputs["predicted_mask"] = torch.zeros(4, 5, dtype=torch.bool)
    assert region_contrastive(**inputs, temperature=0.2) == 0


def test_an_added_region_changes_the_loss_of_its_video_only_if_it_is_the_nearest():
    inputs = local_inputs() | {"predicted_mask": torch.zeros(4, 5, dtype=torch.bool)}
    inputs["predicted_mask"][0] = True  # the loss of video 0 alone
    inputs["target_mask"][0] = True
    target, source = (F.normalize(inputs[name][0], dim=-1) for name in ("target", "source"))
    expected = region_contrastive(**inputs, temperature=0.2)
    inputs["target_mask"] = torch.cat([inputs["target_mask"], torch.tensor([[True], *[[False]] * 3])], dim=1)
    nearest = (source @ target.T).amax(dim=1)
    further = next(x for x in F.normalize(randn(999, 7), dim=-1) if (source @ x < nearest).all())
    for region, changes in ((target[2], False), (further, False), (source[0], True)):
        longer = torch.cat([inputs["target"], region.expand(4, 1, 7)], dim=1)
        loss = region_contrastive(**inputs | {"target": longer}, temperature=0.2)
        assert ((loss - expected).abs() > 1e-3) == changes
        assert changes or loss.item() == pytest.approx(expected.item(), abs=1e-12)


def test_gradients_reach_prediction_and_target_but_not_the_source_that_only_selects():
    inputs = local_inputs()
    predicted, target, source = (inputs[name].requires_grad_() for name in ("predicted", "target", "source"))
    region_contrastive(**inputs, temperature=0.2).backward()
    assert all(tensor.grad.isfinite().all() and tensor.grad.any() for tensor in (predicted, target))
    assert source.grad is None


ZEROS = torch.zeros(1, 7, 7, 3)
TOKENS = ZEROS.flatten(1, 2)
WRONG = {
    "batch and regions must be integers >= 1, got 2 and 0": lambda: random_regions(2, 0),
    r"RGB in \[0, 1\], got -2 to -2; segment before": lambda: lowlevel_regions(ZEROS.movedim(3, 1) - 2),
    "an image of 2x2 pixels can have 1 to 4 segments, got regions=8": lambda: lowlevel_regions(torch.zeros(1, 3, 2, 2)),
    r"compactness must be > 0, got 0\.0; larger": lambda: lowlevel_regions(ZEROS.movedim(3, 1), compactness=0.0),
    "crop must be an integer >= 1 .*, got 0": lambda: pool_regions(ZEROS, torch.zeros(1, 1, 4), crop=0),
    "frames must be an integer >= 1, got 0": lambda: context_frames(0),
    "level must be an odd integer >= 1, got -1; it": lambda: context_frames(8, -1),
    "level must be an odd integer >= 1, got 4; it": lambda: context_frames(8, 4),
    "49 tokens per frame, but grid is 6x8": lambda: RegionDecoder(3)(TOKENS, TOKENS[None], grid=(6, 8)),
    r"1 frames, but frames has 2 entries: \[1, 2\]": lambda: RegionDecoder(3)(
        TOKENS, TOKENS[None], grid=(7, 7), frames=[1, 2]
    ),
    "layers, heads and unit must be integers >= 1, got 3, 0 and 128": lambda: RegionDecoder(12, heads=0),
    "unknown norm 'group'; choose one of batch, layer": lambda: ProjectionHead(12, norm="group"),
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_values_are_named_with_what_is_allowed(message):
    with pytest.raises(ValueError, match=message):
        WRONG[message]()


@pytest.mark.parametrize("box", [[0, 0, 7, 7], [0.5, 0, 0.4, 1], [-0.1, 0, 1, 1], [0, 0, 1, math.nan]])
def test_boxes_in_pixels_or_out_of_order_are_refused(box):
    with pytest.raises(ValueError, match="and 0 <= x1 <= x2 <= 1; divide pixels by the image's sides"):
        pool_regions(ZEROS, torch.tensor([[box]]).float())
