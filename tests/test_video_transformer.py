"""TimeSformer and ViViT without a base model: equal to `transformers`, sizes, costs, starts from image models."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clipvid.errors import CheckpointError
from clipvid.models.branches.presets import StandaloneOptions
from clipvid.models.branches.standalone import video_transformer
from clipvid.models.convert_hf import load_image_weights, load_video_weights
from clipvid.nn.pooling import resized
from clipvid.nn.stem import Stem, evenly, inflated, resized_space, tiled
from clipvid.registry import BRANCHES
from clipvid.runtime.operation_counts import count_macs

TINY = {"image_size": 32, "patch": 8, "width": 24, "depth": 3, "heads": 2, "frames": 4}


def perturbed(module, scale=0.2):
    with torch.no_grad():
        for p in module.parameters():
            p.add_(scale * torch.randn_like(p))
    return module.double().eval()  # float32 rounding alone would come close to the tolerance


def timesformer_of_transformers(attention_type):
    from transformers import TimesformerConfig, TimesformerModel

    config = TimesformerConfig(
        image_size=32, patch_size=8, num_frames=4, hidden_size=24, num_hidden_layers=3, num_attention_heads=2,
        intermediate_size=96, attention_type=attention_type,
    )  # fmt: skip
    return perturbed(TimesformerModel(config))


@pytest.mark.parametrize(("scheme", "kind"), [("joint", "joint_space_time"), ("divided", "divided_space_time")])
def test_timesformer_equals_transformers(scheme, kind):
    oracle = timesformer_of_transformers(kind)
    ours = video_transformer(StandaloneOptions(scheme, **TINY)).double().eval()
    load_video_weights(ours, oracle.state_dict())
    video = torch.randn(2, 4, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        expected = oracle(video).last_hidden_state
        cls, patch = ours.tokens(video)
        torch.testing.assert_close(ours(video), expected[:, 0], atol=1e-6, rtol=1e-6)
        tokens = ours.norm(
            torch.cat([cls[:, None], patch.transpose(1, 2).flatten(1, 2)], dim=1)
        )  # transformers orders tokens (n t)
        torch.testing.assert_close(tokens, expected, atol=1e-6, rtol=1e-6)


def test_space_only_timesformer_equals_transformers_with_the_mean_of_frames_before_the_norm():
    oracle = timesformer_of_transformers("space_only")
    ours = video_transformer(StandaloneOptions("space", table="space", **TINY)).double().eval()
    load_video_weights(ours, oracle.state_dict())
    video = torch.randn(2, 4, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        hidden = oracle(video, output_hidden_states=True).hidden_states[-1]
        frames = hidden.unflatten(0, (2, -1))[:, :, 0] if len(hidden) != 2 else hidden[:, :1]
        expected = oracle.layernorm(frames.mean(dim=1))
        torch.testing.assert_close(ours(video), expected, atol=1e-6, rtol=1e-6)


def test_vivit_model_1_equals_transformers():
    from transformers import VivitConfig, VivitModel

    config = VivitConfig(
        image_size=32, num_frames=4, tubelet_size=[2, 8, 8], hidden_size=24, num_hidden_layers=3, num_attention_heads=2,
        intermediate_size=96,
    )  # fmt: skip
    oracle = perturbed(VivitModel(config))
    options = StandaloneOptions("joint", tubelet=2, table="token", activation="gelu_tanh", **TINY)
    ours = video_transformer(options).double().eval()
    load_video_weights(ours, oracle.state_dict())
    video = torch.randn(2, 4, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        expected = oracle(video).last_hidden_state
        cls, patch = ours.tokens(video)
        tokens = ours.norm(torch.cat([cls[:, None], patch.flatten(1, 2)], dim=1))
    torch.testing.assert_close(tokens, expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(ours(video), expected[:, 0], atol=1e-5, rtol=1e-5)


def test_vivit_model_2_equals_a_loop_over_frames_and_then_over_time():
    options = StandaloneOptions("space", tubelet=2, table="space", temporal_depth=2, activation="gelu_tanh", **TINY)
    ours = perturbed(video_transformer(options))
    video = torch.randn(2, 4, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        got = ours(video)
        for b in range(2):
            frames = []
            for first in (0, 2):
                volume = F.conv3d(
                    video[b, first : first + 2].transpose(0, 1)[None], ours.stem.conv.weight, ours.stem.conv.bias,
                    stride=(2, 8, 8),
                )  # fmt: skip
                x = torch.cat([ours.stem.cls[None], volume[0].flatten(1).T], dim=0) + ours.stem.space
                for layer in ours.blocks:
                    x = layer.block(x[None])[0]
                frames.append(ours.norm(x)[0])
            x = torch.stack([ours.temporal.cls + ours.temporal.cls_position, *frames])
            x[1:] += ours.temporal.position
            for block in ours.temporal.blocks:
                x = block(x[None])[0]
            torch.testing.assert_close(got[b], ours.temporal.norm(x)[0], atol=1e-6, rtol=1e-6)


def count(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("scheme", "published"),
    [
        ("space", 85_932_462),
        ("joint", 85_938_606),
        ("divided", 121_392_558),
        ("local_global", 121_392_558),
        ("axial", 156_846_510),
    ],
)
def test_timesformer_with_174_classes_has_exactly_the_published_parameters(scheme, published):
    table = "space" if scheme == "space" else "space_time"
    with torch.device("meta"):
        network = video_transformer(StandaloneOptions(scheme, table=table))
    assert count(network) + 174 * 768 + 174 == published


@pytest.mark.parametrize(
    ("preset", "published"),
    [
        ("vivit-b1", 88_954_000),
        ("vivit-b2", 115_062_928),
        ("vivit-b3", 117_319_312),
        ("vivit-b4", 88_952_464),
    ],
)
def test_vivit_with_400_classes_has_exactly_the_published_parameters(preset, published):
    with torch.device("meta"):
        network = video_transformer(BRANCHES[preset])
    assert count(network) + 400 * 768 + 400 == published


def macs(preset, frames):
    with torch.device("meta"):
        network = video_transformer(BRANCHES[preset]).eval()
    side = BRANCHES[preset].image_size
    return sum(count_macs(lambda: network(torch.empty(1, frames, 3, side, side, device="meta"))).values())


@pytest.mark.parametrize(
    ("preset", "tera"), [("timesformer", 0.587490), ("timesformer-hr", 5.108056), ("timesformer-l", 7.139570)]
)
def test_macs_of_the_timesformer_variants_for_three_crops(preset, tera):
    assert 3 * macs(preset, BRANCHES[preset].frames) / 1e12 == pytest.approx(tera, rel=1e-3)


@pytest.mark.parametrize(
    ("preset", "giga"), [("vivit-b1", 451.52), ("vivit-b2", 283.34), ("vivit-b3", 371.09), ("vivit-b4", 276.18)]
)
def test_macs_of_the_vivit_models(preset, giga):
    assert macs(preset, 32) / 1e9 == pytest.approx(giga, rel=1e-3)


def test_a_central_kernel_reads_the_middle_frame_and_an_inflated_one_the_mean():
    kernel = torch.randn(6, 3, 4, 4, dtype=torch.float64)
    clip = torch.randn(2, 6, 3, 8, 8, dtype=torch.float64)
    for tubelet in (2, 3):
        grouped = clip.unflatten(1, (-1, tubelet))
        for how, frame in (("central", grouped[:, :, tubelet // 2]), ("inflate", grouped.mean(dim=2))):
            got = F.conv3d(clip.transpose(1, 2), inflated(kernel, tubelet, how=how), stride=(tubelet, 4, 4))
            expected = F.conv2d(frame.flatten(0, 1), kernel, stride=4).unflatten(0, frame.shape[:2]).transpose(1, 2)
            torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-5)
    drawn = inflated(kernel, 2, how="random")
    assert drawn.shape == (6, 3, 2, 4, 4)
    assert not torch.equal(drawn[:, :, 0], kernel)


def test_tiled_positions_are_equal_in_all_frames():
    space = torch.randn(5, 3)
    assert torch.equal(tiled(space, 4).unflatten(0, (4, 5)), space.expand(4, 5, 3))


def test_tables_are_resized_linearly_with_fixed_ends():
    time, space = torch.randn(5, 3, dtype=torch.float64), torch.randn(12, 2, dtype=torch.float64)

    def along_rows(table, rows):  # equals scipy.ndimage.zoom of order 1
        positions = np.linspace(0, len(table) - 1, rows)
        return np.stack(
            [np.interp(positions, range(len(table)), column) for column in table.reshape(len(table), -1).T], axis=1
        )

    torch.testing.assert_close(resized(time, 9), torch.from_numpy(along_rows(time.numpy(), 9)), atol=1e-12, rtol=0)
    assert resized(time, len(time)) is time
    tall = along_rows(space.numpy().reshape(3, 4, 2), 6).reshape(6, 4, 2)
    expected = along_rows(tall.transpose(1, 0, 2), 6).reshape(6, 6, 2).transpose(1, 0, 2)
    got = resized_space(space, (3, 4), (6, 6), mode="bilinear").unflatten(0, (6, 6))
    torch.testing.assert_close(got, torch.from_numpy(expected.copy()), atol=1e-12, rtol=0)
    assert resized_space(space, (3, 4), (3, 4)) is space


def test_uniform_frame_sampling_reads_only_the_frames_of_vivit():
    assert evenly(32, 8) == [4, 7, 11, 14, 18, 21, 25, 28]
    stem = Stem(6, patch=(4, 4), grid=(2, 2), frames=3, keep=3)
    clip = torch.randn(1, 10, 3, 8, 8)
    changed = clip.clone()
    changed[:, [i for i in range(10) if i not in evenly(10, 3)]] += 1
    assert torch.equal(stem(clip)[1], stem(changed)[1])
    with pytest.raises(ValueError, match="keep must be an integer from 1 to 2, the frames of the clip, got 3"):
        stem(clip[:, :2])


def test_frames_of_another_size_are_refused():
    stem = Stem(6, patch=(4, 4), grid=(2, 3), frames=2, table="token")
    assert stem(torch.randn(1, 2, 3, 8, 12))[1].shape == (1, 2, 6, 6)
    with pytest.raises(ValueError, match=r"frames are \(12, 8\), this stem takes \(8, 12\); use model.transform"):
        stem(torch.randn(1, 2, 3, 12, 8))


def test_sampling_only_padding_frames_is_refused():
    stem = Stem(6, patch=(4, 4), grid=(2, 2), frames=3, keep=3)
    mask = torch.ones(2, 10, dtype=torch.bool)
    mask[1, 2:] = False
    assert torch.equal(stem.frame_mask(mask[:1]), torch.ones(1, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="keep=3 selects only padding frames of a shorter clip"):
        stem.frame_mask(mask)


def test_the_temporal_table_of_vivit_is_resized_to_the_number_of_frames():
    temporal = video_transformer(StandaloneOptions("space", table="space", temporal_depth=1, **TINY)).temporal
    assert temporal.position.shape[0] == TINY["frames"]
    temporal.blocks = torch.nn.ModuleList()  # only the table is left
    temporal.norm = torch.nn.Identity()
    for frames, last in ((2, -1), (4, -1), (7, -1), (1, 0)):
        _, added = temporal(torch.zeros(1, frames, TINY["width"]))
        torch.testing.assert_close(added[0, 0], temporal.position[0])
        torch.testing.assert_close(added[0, -1], temporal.position[last])
    three_frames = video_transformer(StandaloneOptions("space", table="space", temporal_depth=1, keep=3, **TINY))
    assert three_frames.temporal.position.shape[0] == 3


def test_files_written_by_transformers_are_read(tmp_path):
    """The attention of ViViT has other names in its files than in its state dict."""
    from transformers import VivitConfig, VivitForVideoClassification

    config = VivitConfig(
        image_size=32, num_frames=4, tubelet_size=[2, 8, 8], hidden_size=24, num_hidden_layers=3, num_attention_heads=2,
        intermediate_size=96,
    )  # fmt: skip
    oracle = VivitForVideoClassification(config)
    oracle.save_pretrained(tmp_path)
    options = StandaloneOptions("joint", tubelet=2, table="token", activation="gelu_tanh", **TINY)
    from_file, from_memory = video_transformer(options), video_transformer(options)
    load_video_weights(from_file, tmp_path / "model.safetensors")
    load_video_weights(from_memory, oracle.state_dict())
    for name, value in from_memory.state_dict().items():
        assert torch.equal(from_file.state_dict()[name], value), name


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ({"heads": 0}, "heads must be an integer >= 1, got 0"),
        ({"patch": 0}, "patch must be an integer >= 1, got 0"),
        ({"depth": 0}, "depth must be an integer >= 1, got 0"),
        ({"width": 30}, "width must be a multiple of heads, got 30 and 12"),
        ({"frames": 3, "tubelet": 2}, "must be a multiple of tubelet, got 3 and 2"),
        ({"drop_path": 1.5}, r"drop_path must be a probability in \[0, 1\), got 1.5"),
        ({"eps": 0.0}, "eps must be above 0"),
        ({"keep": 0}, "keep must be an integer >= 1, got 0"),
    ],
)
def test_invalid_options_are_refused(wrong, complaint):
    with pytest.raises(ValueError, match=complaint):
        StandaloneOptions(**wrong)


def test_frames_that_do_not_fill_tubelets_are_refused():
    stem = Stem(6, patch=(4, 4), grid=(2, 2), frames=4, tubelet=2)
    with pytest.raises(ValueError, match="multiple of the tubelet length, got 5 frames for tubelets of 2"):
        stem(torch.randn(1, 5, 3, 8, 8))


def test_masked_frames_change_nothing():
    for scheme in ("joint", "divided", "local_global", "axial", "factorised", "dot_product"):
        ours = perturbed(video_transformer(StandaloneOptions(scheme, **TINY)))
        video = torch.randn(1, 4, 3, 32, 32, dtype=torch.float64)
        other = video.clone()
        other[:, 2:] = torch.randn(1, 2, 3, 32, 32, dtype=torch.float64)
        mask = torch.tensor([[True, True, False, False]])
        with torch.no_grad():
            torch.testing.assert_close(ours(video, mask=mask), ours(other, mask=mask), atol=1e-5, rtol=1e-5)


def image_model(side=32):
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(
        image_size=side, patch_size=8, hidden_size=24, num_hidden_layers=3, num_attention_heads=2,
        intermediate_size=96, layer_norm_eps=1e-6,
    )  # fmt: skip
    return perturbed(ViTModel(config, add_pooling_layer=False))


@pytest.mark.parametrize("scheme", ["space", "divided", "joint"])
def test_initialised_from_an_image_model_a_single_frame_gives_the_same_output(scheme):
    """Both models can read a single frame; the steps of scheme divided across frames start as identities."""
    oracle = image_model()
    ours = video_transformer(StandaloneOptions(scheme, **TINY)).double().eval()
    load_image_weights(ours, oracle.state_dict())
    frame = torch.randn(2, 1, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        expected = oracle(frame[:, 0]).last_hidden_state[:, 0]
        torch.testing.assert_close(ours(frame), expected, atol=1e-6, rtol=1e-6)
        if scheme == "space":  # the mean over equal frames is the same
            torch.testing.assert_close(ours(frame.expand(-1, 4, -1, -1, -1)), expected, atol=1e-6, rtol=1e-6)
    step = next(iter(ours.blocks[0].steps), None)
    if step is not None:
        assert torch.equal(step.attention.qkv.weight, ours.blocks[0].block.attention.qkv.weight)
        assert not step.out.weight.any()


def test_initialisation_from_an_image_model_resizes_and_repeats_positions_and_inflates_the_kernel(tmp_path):
    oracle = image_model(side=48)  # 6x6 positions, resized to 4x4
    oracle.save_pretrained(tmp_path)
    options = StandaloneOptions("joint", tubelet=2, table="token", activation="gelu_tanh", **TINY)
    ours = video_transformer(options).double()
    load_image_weights(ours, tmp_path / "model.safetensors")
    table, original = ours.stem.space, oracle.state_dict()["embeddings.position_embeddings"][0]
    frames = table[1:].unflatten(0, (2, 16))
    assert torch.equal(frames[0], frames[1])
    assert torch.equal(table[0], original[0])
    torch.testing.assert_close(frames[0], resized_space(original[1:], (6, 6), (4, 4)))
    kernel = ours.stem.conv.weight
    assert not kernel[:, :, 0].any()
    assert torch.equal(kernel[:, :, 1], oracle.state_dict()["embeddings.patch_embeddings.projection.weight"])
    without = video_transformer(StandaloneOptions("dot_product", class_token=False, table="token", **TINY)).double()
    load_image_weights(without, oracle.state_dict())
    assert torch.equal(without.stem.space[:16], without.stem.space[16:32])
    with pytest.raises(CheckpointError, match=r"build it with the width, depth, heads and patch of the image model"):
        load_image_weights(video_transformer(StandaloneOptions("joint", **{**TINY, "depth": 2})), oracle.state_dict())


def test_weights_of_another_variant_are_refused_by_name():
    oracle = timesformer_of_transformers("divided_space_time")
    with pytest.raises(CheckpointError, match=r"blocks\.0\.steps\.0"):
        load_video_weights(video_transformer(StandaloneOptions("joint", **TINY)), oracle.state_dict())
