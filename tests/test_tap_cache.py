"""The tap cache: cached equals live, damage is reported, moved files are recognised, and sizes are predicted."""

from __future__ import annotations

import re
import resource
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from clipvid.cli.main import main
from clipvid.config.data_config import DataConfig
from clipvid.config.settings import TrainConfig
from clipvid.data.motion_shapes import write_dataset
from clipvid.data.records import Record, VideoDataset
from clipvid.errors import CacheError
from clipvid.features import tap_cache
from clipvid.features.embed import embed_videos
from clipvid.features.encode import LiveSource
from clipvid.features.tap_cache import TapCache
from clipvid.features.taps import codec
from clipvid.features.taps.memory import encode_dataset
from clipvid.models.backbone.taps import Taps
from clipvid.models.factory import attach, create_model
from clipvid.runtime.files import write_tensors
from clipvid.training.loop import train
from clipvid.video.decode import read

DATA_CONFIG = DataConfig(frames=3, batch_size=4, precision="32-true")
SMALL = {"depth": 1, "width": 32, "heads": 2}
HALF = replace(DATA_CONFIG, precision="bf16-mixed")
all_precisions = pytest.mark.parametrize(
    "data_config", [DATA_CONFIG, HALF], ids=lambda data_config: data_config.precision
)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> VideoDataset:
    return write_dataset(tmp_path_factory.mktemp("shapes"), "test", 12)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return create_model("clipvid-mini", branch_kwargs={"depth": 2}).eval()


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


@all_precisions
def test_cached_equals_live_to_the_bit(model, data, tmp_path, data_config):
    live = embed_videos(model, data, data_config)
    for _ in range(2):  # first written, then read
        store = TapCache(tmp_path).store(model, data, data_config)
        assert torch.equal(embed_videos(model, store).video, live.video)
    assert len(files(tmp_path)) == 3
    assert list(store.data) == list(data)


def test_arrays_are_cached_under_their_pixels(model, data, tmp_path):
    few, config = data.subset(range(4)), replace(DATA_CONFIG, batch_size=2)
    clips = [read(record.path) for record in few]
    live, cache = embed_videos(model, few, config), TapCache(tmp_path)
    assert torch.equal(
        embed_videos(model, cache.store(model, VideoDataset.from_arrays(clips), config)).video, live.video
    )
    before = files(tmp_path)
    again = VideoDataset.from_arrays([clips[3].clone(), *clips[:3]], names=["w", "x", "y", "z"])
    assert cache.needs(model, again, config) == 0
    assert torch.equal(embed_videos(model, cache.store(model, again, config)).video, live.video[[3, 0, 1, 2]])
    assert files(tmp_path) == before
    clips[0] = clips[0].flip(0)
    assert cache.needs(model, VideoDataset.from_arrays(clips), config) > 0


@pytest.mark.parametrize(("precision", "kind"), [("bf16-mixed", "bf16"), ("16-mixed", "fp16"), ("32-true", "fp32")])
def test_the_kind_follows_the_precision_unless_one_is_given(model, tmp_path, precision, kind):
    data_config = replace(DATA_CONFIG, precision=precision)
    for mode in ("taps", "first_layer"):
        assert TapCache(tmp_path, mode=mode).cache_key(model, data_config).kind == kind
        assert TapCache(tmp_path, mode=mode).origin(model, data_config) == f"a tap cache of kind {kind} and mode {mode}"
    for chosen in codec.KINDS:
        assert TapCache(tmp_path, kind=chosen).cache_key(model, data_config).kind == chosen


@pytest.mark.parametrize(("native", "kind"), [("0", "fp32"), ("1", "bf16")])
def test_the_kind_follows_the_precision_that_auto_resolves_to(model, tmp_path, monkeypatch, native, kind):
    monkeypatch.setenv("CLIPVID_NATIVE_BF16", native)
    assert TapCache(tmp_path).cache_key(model, replace(DATA_CONFIG, precision="auto")).kind == kind


def test_values_beyond_float16_are_refused_in_half_precision_too(model, tmp_path):
    cache_key = TapCache(tmp_path, kind="fp16").cache_key(model, replace(DATA_CONFIG, precision="16-mixed"))
    patches = tuple(
        torch.full((1, 3, 4, 8), 1e6) for _ in cache_key.levels
    )  # in float32, like the outputs of timm's ViTs
    large = Taps(cache_key.levels, patches, (), torch.zeros(1, 3, 8))
    with pytest.raises(ValueError, match="beyond float16"):
        tap_cache._as_tensors(tap_cache._for_cache(large, cache_key), cache_key)


def test_int8_taps_are_close_and_take_half_the_space(model, data, tmp_path):
    data = data.subset(range(6))
    exact = TapCache(tmp_path / "bf16").store(model, data, HALF)
    int8 = TapCache(tmp_path / "int8", kind="int8").store(model, data, HALF)
    exact_taps, int8_taps = exact.batch([5]), int8.batch([5])
    for tap, quantised in zip(
        (*exact_taps.patches, *exact_taps.cls), (*int8_taps.patches, *int8_taps.cls), strict=True
    ):
        step = tap.float().abs().amax(dim=-1, keepdim=True) / 127
        assert ((tap.float() - quantised.float()).abs() <= 0.5 * step + 2**-8 * tap.float().abs() + 1e-6).all()
    assert torch.equal(exact_taps.frames, int8_taps.frames)
    sizes = [sum(path.stat().st_size for path in files(tmp_path / kind)) for kind in ("bf16", "int8")]
    assert sizes[1] < 0.6 * sizes[0]
    cosine = torch.nn.functional.cosine_similarity(embed_videos(model, exact).video, embed_videos(model, int8).video)
    assert cosine.min() > 0.999


def test_sizes_are_estimated_before_encoding(model, data, tmp_path, monkeypatch):
    data = data.subset(range(6))
    for kind in codec.KINDS:
        cache = TapCache(tmp_path / kind, kind=kind)
        estimated = cache.needs(model, data, DATA_CONFIG)
        cache.store(model, data, DATA_CONFIG)
        written = sum(path.stat().st_size for path in files(tmp_path / kind))
        assert estimated < written < estimated + 4096 * 2
        assert cache.needs(model, data, DATA_CONFIG) == 0
    monkeypatch.setattr(tap_cache.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(CacheError, match=r"needs .* for clips that are not cached yet, the disk has 0\.0 MiB; choose"):
        TapCache(tmp_path / "new").store(model, data, DATA_CONFIG)
    assert not (tmp_path / "new").exists()


def test_only_new_and_changed_files_are_encoded_and_moved_ones_are_recognised(model, data, tmp_path, monkeypatch):
    folder = tmp_path / "videos"
    folder.mkdir()
    moved = [replace(r, path=Path(shutil.copy(r.path, folder))) for r in data]
    cache = TapCache(tmp_path / "taps")
    cache.store(model, data, DATA_CONFIG)
    encoded: list[int] = []
    monkeypatch.setattr(
        tap_cache, "LiveSource", lambda m, d, *a, **k: encoded.append(len(d)) or LiveSource(m, d, *a, **k)
    )
    again = cache.store(model, replace(data, records=tuple(moved)), DATA_CONFIG)
    assert not encoded
    assert [r.path for r in again.data] == [r.path for r in moved]
    shutil.copy(data[0].path, moved[3].path)  # the same name, but another video
    shutil.copy(data[1].path, folder / "more.mp4")
    (folder / "more.mp4").write_bytes((folder / "more.mp4").read_bytes() + b"\0")
    more = replace(data, records=(*moved, Record(folder / "more.mp4", ("x",), 0)))
    store = cache.store(model, more, DATA_CONFIG)
    assert encoded == [1]
    assert torch.equal(store.batch([3]).frames, store.batch([0]).frames)
    part = replace(moved[5], end=0.4)
    cache.store(model, replace(data, records=(part,)), DATA_CONFIG)
    assert encoded == [1, 1], "a segment of a clip is another clip"


def test_the_cache_key_depends_on_data_config_model_and_kind(model, data, tmp_path):
    torch.manual_seed(3)
    other = create_model("clipvid-mini", branch_kwargs={"depth": 2})
    with torch.no_grad():
        other.backbone.visual.conv1.weight.mul_(1.01)
    changed = attach(other.backbone.clip, branch_kwargs={"depth": 2})
    cache, keys = TapCache(tmp_path), set()
    for a_model, data_config in (
        (model, DATA_CONFIG),
        (model, replace(DATA_CONFIG, frames=4)),
        (model, replace(DATA_CONFIG, sampler="linspace")),
        (model, HALF),
        (changed, DATA_CONFIG),
        (create_model("clipvid-mini", branch_kwargs={"depth": 3}), DATA_CONFIG),
    ):
        keys.add(cache.cache_key(a_model, data_config).key)
    keys.add(TapCache(tmp_path, kind="int8").cache_key(model, DATA_CONFIG).key)
    assert len(keys) == 7
    without_effect = replace(DATA_CONFIG, batch_size=2, workers=1, backend="decord", tokens=9)
    assert cache.cache_key(model, without_effect) == cache.cache_key(model, DATA_CONFIG)


@pytest.mark.parametrize(
    ("kind", "mode"), [("fp32", "taps"), ("fp32", "first_layer"), ("int8", "taps"), ("int8", "first_layer")]
)
def test_clips_cached_as_another_kind_or_mode_are_reported(model, data, tmp_path, kind, mode):
    TapCache(tmp_path, kind=kind, mode=mode).store(model, data.subset(range(5)), DATA_CONFIG)
    advice = rf"to read those give --cache-kind {kind} --cache-mode {mode} \(in Python kind and mode\)$"
    if kind == "int8":  # a coarser kind is never recommended
        advice = "int8 is coarser, so they are encoded again$"
    message = (
        rf"3 of the 3 clips to encode are in {tmp_path} as kind {kind}, mode {mode}, not as kind bf16, mode taps; "
    )
    cache = TapCache(tmp_path, kind="bf16")
    with pytest.warns(UserWarning, match=message + advice) as warned:
        cache.store(model, data.subset(range(3)), DATA_CONFIG)
    assert len(warned) == 1
    cache.store(model, data, DATA_CONFIG)  # no second warning: it would be an error in tests
    TapCache(tmp_path, kind="bf16").store(model, data, DATA_CONFIG)  # nothing to encode, no warning


def test_clips_cached_as_a_coarser_kind_than_the_precision_are_reported(model, data, tmp_path):
    TapCache(tmp_path, kind="bf16").store(model, data.subset(range(3)), DATA_CONFIG)
    with pytest.warns(UserWarning, match="not as kind fp32, mode taps; bf16 is coarser, so they are encoded again$"):
        TapCache(tmp_path).store(model, data.subset(range(3)), DATA_CONFIG)


def test_no_warning_for_clips_of_another_data_config_or_for_other_clips(model, data, tmp_path):
    TapCache(tmp_path, kind="int8").store(model, data, replace(DATA_CONFIG, frames=2))
    TapCache(tmp_path, kind="fp16").store(model, data.subset([0, 1]), DATA_CONFIG)
    TapCache(tmp_path).store(model, data.subset([2, 3]), DATA_CONFIG)


def test_damaged_files_of_another_kind_do_no_harm(model, data, tmp_path):
    data = data.subset(range(4))
    TapCache(tmp_path, kind="int8").store(model, data, DATA_CONFIG)
    for path in files(tmp_path):
        path.write_bytes(b"cut")
    assert len(TapCache(tmp_path).store(model, data, DATA_CONFIG)) == 4


@pytest.mark.filterwarnings("default")
def test_the_command_line_reports_another_kind_in_one_line(data, tmp_path, capsys):
    command = [
        "embed",
        str(data[0].path.parent),
        "--out",
        str(tmp_path / "e.safetensors"),
        "--cache",
        str(tmp_path / "t"),
    ]
    command += ["--data-config.precision", "32-true"]
    command += ["--data-config.frames", "1"]
    assert main([*command, "--cache-kind", "int8"]) == 0
    capsys.readouterr()
    (tmp_path / "e.safetensors").write_text("an earlier file")
    assert main([*command, "--overwrite"]) == 0
    assert (tmp_path / "e.safetensors").stat().st_size > 12 * 128 * 4
    notes = [line for line in capsys.readouterr().err.splitlines() if "clips to encode" in line]
    assert len(notes) == 1
    assert notes[0].startswith("note: 12 of the 12 clips to encode are in ")
    assert notes[0].endswith(
        "as kind int8, mode taps, not as kind fp32, mode taps; int8 is coarser, so they are encoded again"
    )


@pytest.mark.parametrize("damage", ["flip", "cut", "foreign", "empty"])
def test_damaged_files_are_named_and_not_used(model, data, tmp_path, damage):
    data = data.subset(range(8))
    cache = TapCache(tmp_path)
    cache.store(model, data, DATA_CONFIG)
    path = files(tmp_path)[1]
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[-700] ^= 4
    path.write_bytes({"flip": content, "cut": content[:-9], "foreign": b"hello" * 9, "empty": b""}[damage])
    with pytest.raises(CacheError, match=f"{path.name} is damaged.*clipvid cache prune"):
        embed_videos(model, TapCache(tmp_path).store(model, data, DATA_CONFIG))


def test_taps_of_a_changed_tower_are_refused_as_stale(data, tmp_path):
    cache, model = TapCache(tmp_path), create_model("clipvid-mini", branch_kwargs={"depth": 2})
    store, old_key = cache.store(model, data, DATA_CONFIG), cache.cache_key(model, DATA_CONFIG).key
    other = create_model("clipvid-mini", branch_kwargs={"depth": 2})
    with torch.no_grad():
        other.backbone.visual.conv1.weight[0, 0, 0, 0] += 1e-3
    changed = attach(other.backbone.clip, branch_kwargs={"depth": 2})
    with pytest.raises(ValueError, match=r"made by a tower with fingerprint \w+, this model's is \w+; encode"):
        embed_videos(changed, store)
    assert cache.needs(model, data, DATA_CONFIG) == 0
    assert cache.needs(changed, data, DATA_CONFIG) > 0
    new_key = cache.cache_key(changed, DATA_CONFIG).key
    shutil.copytree(tmp_path / old_key, tmp_path / new_key)  # the folder's name alone does not count
    with pytest.raises(CacheError, match=rf"\w+\.safetensors is stale: it was written for {old_key}, .*clipvid cache"):
        cache.store(changed, data, DATA_CONFIG)


def test_unreadable_videos_are_left_out_if_the_data_config_skips_them(model, data, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"nothing")
    records = (Record(tmp_path / "broken.mp4", ("a",), 0), Record(tmp_path / "gone.mp4", ("b",), 0), *data.records[:3])
    with_unreadable = replace(data, records=records)
    store = TapCache(tmp_path / "taps").store(model, with_unreadable, replace(DATA_CONFIG, unreadable="skip"))
    assert [e.path.name for e in store.unreadable] == ["broken.mp4", "gone.mp4"]
    assert [r.path for r in store.data] == [r.path for r in data.records[:3]]


@pytest.mark.parametrize("data_config", [pytest.param(DATA_CONFIG, marks=pytest.mark.slow), HALF])
def test_training_from_disk_equals_training_from_memory(model, data, tmp_path, data_config):
    clips = data.subset(range(6))

    def trained(store):
        torch.manual_seed(1)
        fresh = attach(model.backbone, branch_kwargs={"depth": 2})
        config = TrainConfig(task="recognition", epochs=2, batch_size=4, data_config=data_config)
        return train(fresh, store, store, config, progress=False).history

    assert trained(TapCache(tmp_path).store(model, clips, data_config)) == trained(
        encode_dataset(model, clips, data_config)
    )


@all_precisions
def test_a_store_on_disk_supports_subsets_levels_and_reordering(model, data, tmp_path, data_config):
    data = data.subset(range(8))
    from_disk, in_memory = TapCache(tmp_path).store(model, data, data_config), encode_dataset(model, data, data_config)
    rows, order = [7, 2, 2], torch.tensor([[2, 0, 1]]).repeat(8, 1)
    for a, b in (
        (from_disk.subset(rows).batch([0, 2]), in_memory.subset(rows).batch([0, 2])),
        (from_disk.reordered(order).batch([4]), in_memory.reordered(order).batch([4])),
    ):
        assert all(torch.equal(x, y) for x, y in zip(a.patches, b.patches, strict=True))
    shallow = attach(model.backbone, branch_kwargs={"depth": 1})
    assert torch.equal(
        from_disk.read_by(shallow).batch([1]).patches[0], in_memory.read_by(shallow).batch([1]).patches[0]
    )
    with pytest.raises(ValueError, match="these taps hold levels 5, 6, the branch reads 4, 5, 6"):
        from_disk.read_by(attach(model.backbone, branch_kwargs={"depth": 3}))


def test_a_full_disk_raises_a_clear_error(model, data, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # less than a batch needs
    try:
        with pytest.raises(OSError, match=r"cannot be written .*make room, or choose another folder"):
            write_tensors(tmp_path / "a.safetensors", {"a": torch.zeros(100_000)})
        with pytest.raises(CacheError, match=r"cannot be written .*stored so far remain valid, and the next run cont"):
            TapCache(tmp_path / "taps").store(model, data, DATA_CONFIG)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.rglob("*.safetensors*"))
    assert len(TapCache(tmp_path / "taps").store(model, data, DATA_CONFIG)) == 12


def test_wrong_kinds_and_branches_without_taps_are_refused(data, tmp_path):
    with pytest.raises(ValueError, match="unknown kind 'fp8'; choose one of auto, bf16, fp16, fp32, int8"):
        TapCache(tmp_path, kind="fp8")
    with pytest.raises(ValueError, match="has no taps to cache"):
        TapCache(tmp_path).store(
            create_model("clipvid-mini", branch="timesformer", branch_kwargs=SMALL), data, DATA_CONFIG
        )
    with pytest.raises(ValueError, match="beyond float16"):
        codec.packed(torch.tensor([[1e6]]), "fp16")


def test_the_command_line_trains_from_a_cache_and_lists_verifies_and_prunes_it(data, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = [
        "--task",
        "recognition",
        "--epochs",
        "1",
        "--batch-size",
        "2",
        "--data-config.frames",
        "1",
        "--depth",
        "1",
    ]
    options += ["--data-config.precision", "32-true"]
    command = ["train", str(data[0].path.parent), "--val-fraction", "0.3", "--cache", "taps", *options]
    assert main([*command, "--out", "a"]) == 0
    assert main([*command, "--out", "b"]) == 0
    scores = re.findall(r"top-1 [\d.]+", capsys.readouterr().out)
    assert len(scores) == 2
    assert scores[0] == scores[1]
    assert main([*command, "--out", "a", "--resume", "--cache-kind", "int8"]) == 1
    assert (
        "a/checkpoint.pt was trained from a tap cache of kind fp32 and mode taps, this run reads"
        in capsys.readouterr().err
    )
    assert main([*command, "--out", "a", "--resume"]) == 0
    assert scores[0] in capsys.readouterr().out
    assert main(["cache", "ls", "taps"]) == 0
    assert "12 clips" in capsys.readouterr().out
    assert main(["cache", "verify", "taps"]) == 0
    path = files(tmp_path / "taps")[0]
    content = bytearray(path.read_bytes())
    content[-300] ^= 1
    path.write_bytes(content)
    (path.parent / ".left.part").write_bytes(b"half")
    assert main(["cache", "verify", "taps"]) == 1
    output = capsys.readouterr()
    assert f"{path.name} is damaged: the bytes of clip" in output.out
    assert "1 file of taps is damaged; clipvid cache prune taps removes it" in output.err
    assert main(["cache", "prune", "taps"]) == 0
    assert "2 removed" in capsys.readouterr().out
    assert main([*command, "--out", "c"]) == 0
    capsys.readouterr()
    assert main(["cache", "ls", "taps"]) == 0
    assert "12 clips" in capsys.readouterr().out
    assert main(["cache", "prune", "taps", "--tower", create_model("clipvid-mini").backbone.tower_fingerprint[:9]]) == 0
    assert main(["cache", "ls", "taps"]) == 1
    assert "taps holds no tap cache" in capsys.readouterr().err
