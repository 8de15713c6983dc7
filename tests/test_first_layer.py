"""Cache mode first_layer: one level is cached, and the tower's last blocks compute the others.

Also the differences of each number kind from live.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import timm
import torch
import torch.nn.functional as F
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from tiny import backbone

from clipvid.cli.main import main
from clipvid.config.data_config import DataConfig
from clipvid.config.settings import TrainConfig
from clipvid.data.motion_shapes import write_dataset
from clipvid.data.records import VideoDataset
from clipvid.errors import BackboneError
from clipvid.features.embed import embed_videos
from clipvid.features.tap_cache import TapCache
from clipvid.features.taps.memory import encode_dataset
from clipvid.features.taps.tap_store import TapStore
from clipvid.models.backbone.backbone import Backbone
from clipvid.models.backbone.partial import forward_from
from clipvid.models.factory import attach, create_model
from clipvid.models.video_clip import VideoCLIP
from clipvid.training.loop import train
from clipvid.video.decode import read

DATA_CONFIG = DataConfig(frames=3, batch_size=4, precision="32-true")
VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 4, "num_classes": 0}
TIMM_TOWERS = {
    "SigLIP": lambda: VisionTransformer(**VIT, class_token=False, global_pool="map"),
    "timm class token": lambda: VisionTransformer(**VIT, class_token=True, global_pool="token"),
    "registers": lambda: VisionTransformer(**VIT, class_token=True, reg_tokens=2, global_pool="token"),
    "EVA": lambda: Eva(**VIT, global_pool="token", use_rot_pos_emb=True),
    "ConvNeXt": lambda: timm.create_model("convnext_atto", num_classes=0),
}


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> VideoDataset:
    return write_dataset(tmp_path_factory.mktemp("shapes"), "test", 12)


@pytest.fixture(scope="module")
def data(many) -> VideoDataset:
    """Return the decoded frames of five clips, which are read many times."""
    records = many.records[:5]
    return VideoDataset.from_arrays(
        [read(record.path) for record in records],
        [record.captions for record in records],
        labels=[many.classes[record.label] for record in records],
        classes=many.classes,
    )


def tiny(name: str) -> CLIP:
    """Return a CLIP with this image tower of timm."""
    torch.manual_seed(0)
    text = CLIPTextCfg(context_length=12, vocab_size=99, width=32, heads=4, layers=1)
    clip = CLIP(24, CLIPVisionCfg(timm_model_name="vit_tiny_patch16_224", image_size=32), text)
    clip.visual.trunk, clip.visual.image_size = TIMM_TOWERS[name](), (32, 32)
    clip.visual.head = torch.nn.Linear(clip.visual.trunk.num_features, 24)
    return clip.eval()


def layer_scaled() -> CLIP:
    torch.manual_seed(0)
    vision = CLIPVisionCfg(layers=4, width=32, head_width=8, patch_size=8, image_size=32, ls_init_value=0.1)
    return CLIP(24, vision, CLIPTextCfg(context_length=12, vocab_size=99, width=32, heads=4, layers=1)).eval()


def with_active_branch(model: VideoCLIP) -> VideoCLIP:
    """Return the model after replacing zero weights by noise: the gate of a new branch is closed."""
    torch.manual_seed(1)
    for parameter in model.branch.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


BUILDERS = {
    "open_clip": lambda: attach(backbone(), branch_kwargs={"depth": 3}),
    "open_clip, layer scale": lambda: attach(layer_scaled(), branch_kwargs={"depth": 3}),
    "SigLIP": lambda: attach(tiny("SigLIP"), branch_kwargs={"depth": 3}),
    "timm class token": lambda: attach(tiny("timm class token"), branch_kwargs={"depth": 3}),
}


@pytest.fixture(scope="module", params=BUILDERS)
def model(request) -> VideoCLIP:
    return with_active_branch(BUILDERS[request.param]())


def unit(model: VideoCLIP, clips: VideoDataset | TapStore, data_config: DataConfig | None = None) -> torch.Tensor:
    return F.normalize(embed_videos(model, clips, data_config).video, dim=-1)


@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
def test_first_layer_cache_equals_live_in_a_fraction_of_the_space(data, tmp_path, model, precision):
    data_config = replace(DATA_CONFIG, precision=precision)
    live = unit(model, data, data_config)
    with model.branch_disabled():
        assert (unit(model, data, data_config) - live).abs().max() > 0.1, "the branch changes the embedding"
    cache = TapCache(tmp_path, mode="first_layer")
    for _ in range(2):  # first written, then read
        store = cache.store(model, data, data_config)
        assert torch.equal(unit(model, store), live)
    levels = model.branch.levels
    in_memory = encode_dataset(model, data, data_config)
    all_taps, from_first_layer = (
        in_memory.batch(range(4)),
        store.batch(range(4)),
    )  # the batch of the encoding: others may round differently
    assert from_first_layer.levels == levels
    for expected, actual in zip(
        (*all_taps.patches, *all_taps.cls, all_taps.frames),
        (*from_first_layer.patches, *from_first_layer.cls, from_first_layer.frames),
        strict=True,
    ):
        assert torch.equal(expected.to(actual.dtype), actual)
    assert torch.equal(in_memory.batch([4, 0]).frames.to(from_first_layer.frames.dtype), store.batch([4, 0]).frames)
    taps_cache = TapCache(tmp_path / "taps", kind=cache.cache_key(model, data_config).kind)
    sizes = [
        c.needs(model, data, data_config) for c in (taps_cache, TapCache(tmp_path / "first_layer", mode="first_layer"))
    ]
    assert sizes[1] < sizes[0] / len(levels) + len(data) * 3 * (4 * model.embed_dim + 1)  # plus the frame embeddings


def test_cached_taps_equal_live_to_the_bit_in_bf16(data, tmp_path, model):
    data_config = replace(DATA_CONFIG, precision="bf16-mixed")
    live = unit(model, data, data_config)
    for kind in ("bf16", "fp16", "fp32"):
        store = TapCache(tmp_path / kind, kind=kind).store(model, data, data_config)
        assert torch.equal(unit(model, store), live), kind


def test_cached_equals_live_to_the_bit_in_16_mixed(data, tmp_path, model):
    data_config = replace(DATA_CONFIG, precision="16-mixed")
    live = unit(model, data.subset(range(3)), data_config)
    for mode in ("taps", "first_layer"):
        for _ in range(2):  # first written, then read
            store = TapCache(tmp_path / mode, mode=mode).store(model, data.subset(range(3)), data_config)
            assert torch.equal(unit(model, store), live), mode


def test_every_kind_is_close_to_live_at_every_precision(data, tmp_path):
    model, data = with_active_branch(attach(backbone(), branch_kwargs={"depth": 2})), data.subset(range(2))
    for precision in ("bf16-mixed", "32-true"):
        data_config = replace(DATA_CONFIG, precision=precision)
        live = unit(model, data, data_config)
        for mode in ("taps", "first_layer"):
            for kind, tolerance in (("bf16", 2e-3), ("fp16", 5e-4), ("fp32", 0), ("int8", 0.02)):
                store = TapCache(tmp_path / f"{kind}-{mode}", kind=kind, mode=mode).store(model, data, data_config)
                assert (unit(model, store) - live).abs().max() <= tolerance, (precision, mode, kind)


def test_towers_that_cannot_resume_from_a_block_are_refused(data, tmp_path):
    for tower, reason in (("EVA", "Eva is not a plain ViT"), ("ConvNeXt", "ConvNeXt is not a plain ViT")):
        with pytest.raises(BackboneError, match=f"{reason}.*cache all levels with mode taps"):
            TapCache(tmp_path, mode="first_layer").store(
                attach(tiny(tower), branch_kwargs={"depth": 2}), data, DATA_CONFIG
            )
    with pytest.raises(BackboneError, match="register tokens, which its blocks need"):
        TapCache(tmp_path, mode="first_layer").needs(
            attach(tiny("registers"), branch_kwargs={"depth": 2}), data, DATA_CONFIG
        )
    with pytest.raises(ValueError, match="this branch reads no inner level, so there is no first layer to cache"):
        TapCache(tmp_path, mode="first_layer").store(create_model("clipvid-mini", branch="mean"), data, DATA_CONFIG)
    with pytest.raises(ValueError, match="unknown mode 'stem'; choose one of taps, first_layer"):
        TapCache(tmp_path, mode="stem")
    assert not list(tmp_path.iterdir())


def test_first_layer_has_another_key_than_taps_and_serves_every_shallower_branch(data, tmp_path):
    model = create_model("clipvid-mini", branch_kwargs={"depth": 3})
    keys = [TapCache(tmp_path, mode=mode).cache_key(model, DATA_CONFIG) for mode in ("taps", "first_layer")]
    assert keys[0].key != keys[1].key
    assert keys[1].levels == (4,)
    store = TapCache(tmp_path, mode="first_layer").store(model, data, DATA_CONFIG)
    shallow, deep = (
        attach(model.backbone, branch_kwargs={"depth": 2}),
        attach(model.backbone, branch_kwargs={"depth": 4}),
    )
    assert torch.equal(store.read_by(shallow).batch([1]).patches[0], store.batch([1]).patches[1])
    assert not store.read_by(create_model("clipvid-mini", branch="mean")).batch([1]).patches
    with pytest.raises(ValueError, match="these taps hold levels 4, 5, 6, the branch reads 3, 4, 5, 6"):
        store.read_by(deep)
    with torch.no_grad():
        model.backbone.visual.transformer.resblocks[4].ln_1.weight.mul_(1.1)
    model.backbone.trained.add("visual.transformer.resblocks.4.ln_1.weight")
    for clips in (store, store.subset([0])):
        with pytest.raises(ValueError, match=r"was trained since .* open the cache again"):
            clips.read_by(create_model("clipvid-mini", branch_kwargs={"depth": 3}))


def test_the_tower_continues_from_any_level(tiny_clip):
    backbone = Backbone(tiny_clip)
    taps = backbone(torch.rand(2, 3, 3, 32, 32), levels=(0, 1, 2, 3, 4))
    for start in range(5):
        levels = tuple(range(start, 5))
        actual, expected = forward_from(backbone, taps.select((start,)), levels=levels), taps.select(levels)
        for a, b in zip((*actual.patches, *actual.cls), (*expected.patches, *expected.cls), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
        assert not any(t.requires_grad for t in actual.patches)


@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
def test_training_from_first_layer_equals_training_from_taps(data, tmp_path, precision):
    """Use batches of one clip: on some CPUs the last bits depend on the other clips of a batch."""
    data_config, clips = replace(DATA_CONFIG, precision=precision, batch_size=1), data.subset(range(4))

    def trained(mode: str) -> tuple[dict[str, float], ...]:
        torch.manual_seed(1)
        model = attach(backbone(), branch_kwargs={"depth": 2})
        store = TapCache(tmp_path / mode, mode=mode).store(model, clips, data_config)
        config = TrainConfig(task="recognition", epochs=1, batch_size=1, data_config=data_config)
        return train(model, store, store, config, progress=False).history

    assert trained("first_layer") == trained("taps")


def test_the_command_line_trains_from_a_first_layer_cache(many, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = [
        "--task",
        "recognition",
        "--epochs",
        "1",
        "--batch-size",
        "2",
        "--data-config.frames",
        "3",
        "--depth",
        "2",
    ]
    options += ["--data-config.precision", "32-true"]
    command = [
        "train",
        str(many[0].path.parent),
        "--val-fraction",
        "0.3",
        "--cache",
        "taps",
        "--cache-mode",
        "first_layer",
    ]
    assert main([*command, *options]) == 0
    capsys.readouterr()
    assert main(["cache", "ls", "taps"]) == 0
    output = capsys.readouterr().out
    assert "12 clips" in output
    assert "levels 5, " in output
    assert ", first_layer, tower" in output
