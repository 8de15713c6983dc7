"""Several views of one clip, from file to score: their pixels, a single pass over the file, and their averages."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as nnF
from torch.utils.data import DataLoader
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from clipvid.config.data_config import DataConfig
from clipvid.config.settings import TrainConfig
from clipvid.data.batches.batch import collate
from clipvid.data.batches.views import Pair, Views
from clipvid.data.dataset import ClipDataset
from clipvid.data.records import Record, VideoDataset
from clipvid.errors import VideoError
from clipvid.evaluation.recognition import average_views, evaluate_recognition
from clipvid.evaluation.retrieval import evaluate_retrieval
from clipvid.features.embed import embed_texts, embed_videos
from clipvid.features.encode import LiveSource, clip_dataset, clips_per_batch
from clipvid.features.source import stream_in_order
from clipvid.features.taps.memory import encode_dataset
from clipvid.models.factory import create_model
from clipvid.models.heads import LinearClassifier
from clipvid.training.batches import open_batches
from clipvid.video.augment import ContrastiveView
from clipvid.video.backends import pyav
from clipvid.video.container.colour import Converter
from clipvid.video.decode import read, read_video
from clipvid.video.sampling import sample_views, temporal_views, two_clips
from clipvid.video.transforms import VideoTransform

TRANSFORM = VideoTransform(size=16)
UNCHANGED = ContrastiveView(
    crop_scale=(1.0, 1.0), aspect=(4 / 3, 4 / 3), flip=0.0, jitter=0.0, grey=0.0, blur=0.0, solarise=0.0
)


@pytest.fixture(scope="module")
def data(tmp_path_factory, write_video) -> VideoDataset:
    """Four clips of 20 to 23 frames, wider than high, whose brightness rises by 10 per frame and from left to right."""
    folder, records = tmp_path_factory.mktemp("views"), []
    for clip in range(4):
        x = np.arange(64)[None, None, :, None] // 2
        frames = (10 * np.arange(20 + clip)[:, None, None, None] + x + np.zeros((1, 48, 1, 3))).astype(np.uint8)
        frames[:, : 12 * clip] //= 2
        path = write_video(folder / f"{clip}.mkv", frames, codec="ffv1")
        records.append(Record(path, (f"clip {clip}", f"number {clip}"), clip % 2))
    return VideoDataset(tuple(records), ("even", "odd"), "rising")


# Items and batches


def test_one_view_has_no_view_axis_and_equals_read_video(data):
    for sampler in ("uniform", "linspace", "dense"):
        clip = ClipDataset(data, frames=25, transform=TRANSFORM, sampler=sampler)[1]
        expected = read_video(data[1].path, 25, sampler=sampler, fit=TRANSFORM.fit)
        assert clip.video.shape == (25, 3, 16, 16)
        assert torch.equal(clip.video[: len(expected)], expected)
        assert clip.mask.tolist() == [True] * len(expected) + [False] * (25 - len(expected))


@pytest.mark.parametrize("sampler", ["uniform", "dense"])
def test_views_are_ordered_by_time_then_by_crop(data, sampler):
    clip = ClipDataset(data, frames=4, transform=TRANSFORM, sampler=sampler, views=Views(2, 3))[1]
    expected = []
    for indices in sample_views(sampler, 21, 4, views=2):
        expected += list(TRANSFORM.crops(read(data[1].path, indices), 3))
    assert torch.equal(clip.video, torch.stack(expected))
    assert clip.mask.shape == (6, 4)
    assert clip.mask.all()
    left, middle, right = clip.video.float().mean(dim=(1, 2, 3, 4))[:3]
    assert left < middle < right


def test_crops_of_a_short_video_are_padded_and_masked_alike(data):
    clip = ClipDataset(data, frames=25, transform=TRANSFORM, sampler="linspace", views=Views(1, 3))[0]
    assert clip.video.shape == (3, 25, 3, 16, 16)
    assert (clip.video[:, 20:] == clip.video[:, 19:20]).all()
    assert clip.mask.tolist() == [[True] * 20 + [False] * 5] * 3


def test_start_and_end_limit_every_view(data):
    part = VideoDataset((Record(data[0].path, start=0.2, end=0.6),))  # frames 5 to 14 at 25 per second
    clip = ClipDataset(part, frames=3, transform=TRANSFORM, views=Views(2))[0]
    expected = [TRANSFORM.fit(read(data[0].path, [5 + i for i in view])) for view in temporal_views(10, 3, views=2)]
    assert torch.equal(clip.video, torch.stack(expected))


def test_a_file_is_decoded_once_for_all_views_and_each_frame_is_converted_once(data, monkeypatch):
    decoded, pictures = [], []
    decode, convert = pyav._decode, Converter.__call__
    monkeypatch.setattr(pyav, "_decode", lambda *a, **k: decoded.append(1) or decode(*a, **k))
    monkeypatch.setattr(Converter, "__call__", lambda *a: pictures.append(1) or convert(*a))
    _ = ClipDataset(data, frames=6, transform=TRANSFORM, views=Views(4, 3))[0]
    union = {index for view in temporal_views(20, 6, views=4) for index in view}
    assert (len(decoded), len(pictures)) == (1, len(union))
    decoded.clear()
    pictures.clear()
    dataset = ClipDataset(data, frames=6, transform=TRANSFORM, random=True, views=Pair())
    _ = dataset[0]
    union = {index for view in two_clips(20, 6, rng=dataset._draw("frames", 0)) for index in view}
    assert (len(decoded), len(pictures)) == (1, len(union))


def test_a_batch_has_the_view_axis_after_the_clip_axis(data):
    dataset = ClipDataset(data, frames=4, transform=TRANSFORM, views=Views(2, 3))
    batch = collate([dataset[0], dataset[2]])
    assert (batch.video.shape, batch.mask.shape) == ((2, 6, 4, 3, 16, 16), (2, 6, 4))
    assert torch.equal(batch.video[1], dataset[2].video)
    assert batch.index.tolist() == [0, 2]
    assert batch.to("meta").mask.shape == (2, 6, 4)
    assert "in 2 temporal x 3 spatial views" in repr(dataset)


def test_an_unreadable_file_has_no_views(data, tmp_path):
    (tmp_path / "x.mp4").write_text("not a video")
    broken = VideoDataset((Record(data[0].path), Record(tmp_path / "x.mp4")))
    for options in ({"views": Views(2, 3)}, {"views": Pair(), "random": True}):
        with pytest.raises(VideoError, match=r"x\.mp4"):
            ClipDataset(broken, frames=2, transform=TRANSFORM, **options)[1]
        skipping = ClipDataset(broken, frames=2, transform=TRANSFORM, unreadable="skip", **options)
        batch = collate([skipping[0], skipping[1]])
        assert (batch.index.tolist(), len(batch.unreadable)) == ([0], 1)


# Pairs


def test_a_pair_depends_only_on_seed_epoch_and_index(data):
    def pairs(seed=0, epoch=0, order=(0, 1, 2)):
        dataset = ClipDataset(data, frames=4, transform=TRANSFORM, random=True, views=Pair(), seed=seed)
        dataset.set_epoch(epoch)
        items = {index: dataset[index].video for index in order}
        return torch.stack([items[index] for index in range(3)])

    reference = pairs(epoch=3)
    assert torch.equal(pairs(epoch=3, order=(2, 0, 1)), reference)
    assert not torch.equal(pairs(epoch=4), reference)
    assert not torch.equal(pairs(seed=1, epoch=3), reference)


def test_workers_give_the_same_pairs_as_the_main_process(data):
    dataset = ClipDataset(data, frames=4, transform=TRANSFORM, random=True, views=Pair())
    plain = collate([dataset[i] for i in range(4)])
    (batch,) = DataLoader(dataset, 4, num_workers=2, collate_fn=collate)
    assert batch.video.shape == (4, 2, 4, 3, 16, 16)
    assert torch.equal(batch.video, plain.video)
    assert batch.mask.all()


def test_the_clips_of_a_pair_are_sampled_at_its_stride(data):
    dataset = ClipDataset(data, frames=4, transform=TRANSFORM, random=True, views=Pair(3, (UNCHANGED, UNCHANGED)))
    starts = set()
    for epoch in range(20):
        dataset.set_epoch(epoch)
        clip = dataset[0]
        drawn = two_clips(20, 4, stride=3, rng=dataset._draw("frames", 0))
        for view, indices in zip(clip.video, drawn, strict=True):
            frames = read(data[0].path, indices)
            assert torch.equal(view, F.resize(frames, [16, 16], InterpolationMode.BICUBIC, antialias=True))
        starts.add((drawn[0][0], drawn[1][0]))
    assert len(starts) > 10


@pytest.fixture
def still(tmp_path, write_video) -> VideoDataset:
    picture = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    return VideoDataset((Record(write_video(tmp_path / "still.mkv", np.stack([picture] * 12), codec="ffv1")),))


@pytest.mark.parametrize(
    "augmentation", [replace(UNCHANGED, crop_scale=(0.1, 0.9)), replace(UNCHANGED, jitter=1.0)], ids=["crop", "colour"]
)
def test_each_clip_of_a_pair_is_augmented_separately_and_its_frames_alike(still, augmentation):
    dataset = ClipDataset(
        still, frames=4, transform=TRANSFORM, random=True, views=Pair(augmentations=(augmentation, augmentation))
    )
    for epoch in range(5):
        dataset.set_epoch(epoch)
        first, second = dataset[0].video
        assert (first == first[:1]).all()
        assert (second == second[:1]).all()
        assert not torch.equal(first, second)


def test_the_recipes_of_a_pair_apply_to_the_clips_in_order(still):
    augmentations = (replace(UNCHANGED, solarise=1.0), replace(UNCHANGED, flip=1.0))
    dataset = ClipDataset(still, frames=2, transform=TRANSFORM, random=True, views=Pair(augmentations=augmentations))
    frame = F.resize(read(still[0].path, [0]), [16, 16], InterpolationMode.BICUBIC, antialias=True)[0]
    first, second = dataset[0].video[:, 0]
    assert torch.equal(first, torch.where(frame < 128, frame, 255 - frame))
    assert torch.equal(second, frame.flip(-1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"views": Pair()}, "random must be True for a Pair, got False"),
        ({"views": Pair(), "random": True, "transform": VideoTransform(16, flip=0.5)}, "must not augment a Pair"),
        (
            {"views": Views(2), "random": True},
            "views must be a single view if random, got 2 temporal x 1 spatial views",
        ),
        ({"views": Views(2), "sampler": "linspace"}, "linspace.* got 2; choose uniform or dense"),
        ({"views": Views(1, 3), "transform": VideoTransform(16, resize_mode="squash")}, "3 crops need .* got 'squash'"),
    ],
)
def test_impossible_views_are_refused_before_a_file_is_opened(data, options, message):
    with pytest.raises(ValueError, match=message):
        ClipDataset(data, **{"frames": 4, "transform": TRANSFORM, **options})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Views(0), "temporal must be an integer >= 1 and spatial must be 1 or 3, got 0 and 1"),
        (lambda: Pair(stride=0), "stride must be an integer >= 1, got 0"),
        (lambda: DataConfig(temporal_views=0), "temporal_views must be an integer >= 1, got 0; give 1 or more"),
        (lambda: DataConfig(spatial_views=2), "spatial_views must be 1 or 3, got 2; 3 are crops"),
        (
            lambda: DataConfig(sampler="linspace", temporal_views=2),
            "which spans the whole video, got 2; choose sampler",
        ),
        (lambda: DataConfig(average="votes"), "unknown average 'votes'; choose one of logits, probabilities"),
        (lambda: average_views(torch.zeros(1, 2, 3), "votes"), "unknown average 'votes'; choose one of"),
    ],
)
def test_wrong_settings_are_refused_with_value_and_choices(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# Evaluation

DATA_CONFIG = DataConfig(frames=3, batch_size=4, precision="32-true")


@pytest.fixture
def model():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = create_model("clipvid-mini", branch_kwargs={"depth": 1})
        model.head = LinearClassifier(model.embed_dim, ("even", "odd"))
    model.transform = replace(model.transform, resize_mode="shortest")  # squash, the mode of clipvid-mini, has no crops
    return model.eval()


@torch.no_grad()
def one_by_one(model, data, data_config, index: int) -> torch.Tensor:
    """Return embeddings (V, E) of the views of a clip, each encoded alone, not normalised."""
    rows = []
    total = 20 + index
    for indices in temporal_views(total, data_config.frames, views=data_config.temporal_views):
        for crop in model.transform.crops(read(data[index].path, indices), data_config.spatial_views):
            rows.append(model.encode_video(crop[None], normalize=False)[0])
    return torch.stack(rows)


def test_embeddings_of_views_equal_those_of_each_view_alone(model, data):
    data_config = replace(DATA_CONFIG, temporal_views=2, spatial_views=3)
    embeddings = embed_videos(model, data, data_config)
    assert embeddings.views.shape == (4, 6, model.embed_dim)
    for index in (0, 3):
        expected = one_by_one(model, data, data_config, index)
        torch.testing.assert_close(embeddings.views[index], expected, atol=1e-4, rtol=1e-4)
        assert expected.std(dim=0).max() > 1e-3, "equal views would prove nothing"
    expected_mean = nnF.normalize(embeddings.views, dim=-1).mean(dim=1)
    assert torch.equal(embeddings.video, expected_mean)


@pytest.mark.parametrize("average", ["logits", "probabilities"])
def test_recognition_averages_over_the_views(model, data, average, monkeypatch):
    from clipvid.evaluation import recognition

    scored, metrics = [], recognition.recognition_metrics
    monkeypatch.setattr(recognition, "recognition_metrics", lambda s, *a, **k: scored.append(s) or metrics(s, *a, **k))
    data_config = replace(DATA_CONFIG, temporal_views=2, spatial_views=3, average=average)
    result = evaluate_recognition(model, data, data_config)
    for index in (0, 3):
        with torch.no_grad():
            logits = [model.head(view[None])[0] for view in one_by_one(model, data, data_config, index)]
        mean_of = {"logits": sum(logits) / 6, "probabilities": (sum(row.softmax(dim=-1) for row in logits) / 6).log()}
        torch.testing.assert_close(scored[0][index], mean_of[average], atol=1e-4, rtol=1e-4)
    assert f"rising: 4 videos; 3 frames x 2 temporal x 3 spatial views, {average} averaged, 32-true" in str(result)
    stored = result.to_dict()["data_config"]
    assert (stored["temporal_views"], stored["spatial_views"], stored["average"]) == (2, 3, average)


def test_retrieval_ranks_by_the_mean_of_unit_embeddings_of_views(model, data, monkeypatch):
    from clipvid.evaluation import retrieval

    scored, metrics = [], retrieval.retrieval_metrics
    monkeypatch.setattr(retrieval, "retrieval_metrics", lambda s, *a, **k: scored.append(s) or metrics(s, *a, **k))
    data_config = replace(DATA_CONFIG, temporal_views=3)
    result = evaluate_retrieval(model, data, data_config)
    text = embed_texts(model, [c for r in data for c in r.captions], precision="32-true")
    video = torch.stack([nnF.normalize(one_by_one(model, data, data_config, i), dim=-1).mean(dim=0) for i in range(4)])
    expected = text @ nnF.normalize(video, dim=-1).T
    scores = torch.from_numpy(scored[0].rows(slice(0, len(text))))
    torch.testing.assert_close(scores, expected, atol=1e-4, rtol=1e-4)
    assert "3 frames x 3 temporal x 1 spatial views, embeddings averaged" in str(result)


def test_averages_of_logits_and_of_probabilities_equal_their_formulas_and_may_disagree():
    # One view is confident, two are not.
    logits = torch.tensor([[[9.0, 0.0, 0.0], [-3.0, 0.0, -9.0], [-3.0, 0.0, -9.0]]])
    by_logits, by_probabilities = (average_views(logits, how)[0] for how in ("logits", "probabilities"))
    torch.testing.assert_close(by_logits, logits[0].mean(dim=0))
    torch.testing.assert_close(by_probabilities.exp(), logits[0].softmax(dim=-1).mean(dim=0))
    assert (int(by_logits.argmax()), int(by_probabilities.argmax())) == (0, 1)


def test_classes_with_probabilities_below_float_range_keep_their_order():
    scores = average_views(torch.tensor([[[0.0, -200.0, -300.0], [0.0, -200.0, -300.0]]]), "probabilities")[0]
    assert scores.tolist() == sorted(scores.tolist(), reverse=True)
    assert len(set(scores.tolist())) == 3


def test_one_view_scores_and_prints_as_without_views(model, data):
    embeddings = embed_videos(model, data, DATA_CONFIG)
    batch = collate([clip_dataset(model, data, DATA_CONFIG)[i] for i in range(4)])
    with torch.no_grad():
        expected = model.encode_video(batch.video, normalize=False)
    assert torch.equal(embeddings.video, expected)
    logits = torch.randn(5, 1, 3)
    assert all(torch.equal(average_views(logits, how), logits[:, 0]) for how in ("logits", "probabilities"))
    assert "4 videos; 3 frames, 32-true" in str(evaluate_recognition(model, data, DATA_CONFIG))


def test_padding_is_masked_in_every_view(model, data):
    """A video of 20 frames read as 25 has the embedding of its 20 frames."""
    data_config = replace(DATA_CONFIG, frames=25, sampler="linspace", spatial_views=3)
    frames = model.transform.crops(read(data[0].path), 3)
    with torch.no_grad():
        expected = model.encode_video(frames, normalize=False)
    embeddings = embed_videos(model, data.subset([0]), data_config).views[0]
    torch.testing.assert_close(embeddings, expected, atol=1e-4, rtol=1e-4)


def test_a_pass_of_the_tower_holds_at_most_batch_size_views(model, data):
    for batch_size, rows in ((7, [6, 6]), (2, [3] * 4)):  # three views per clip; a clip is never divided
        data_config = replace(DATA_CONFIG, batch_size=batch_size, temporal_views=3)
        source = LiveSource(model, data, data_config, read=model.reads)
        batches = stream_in_order(source, clips_per_batch(data_config))
        assert [len(batch.features.patches[0]) for batch in batches] == rows


def test_a_store_holds_no_views_and_training_samples_one(model, data):
    data_config = replace(DATA_CONFIG, temporal_views=2, spatial_views=3)
    with pytest.raises(ValueError, match="a TapStore holds no views for evaluation, got temporal_views=2 and spatial"):
        encode_dataset(model, data, data_config)
    store = encode_dataset(model, data, DATA_CONFIG)
    with pytest.raises(ValueError, match="crop_scale, flip change pixels, and a TapStore has none;"):
        open_batches(
            model, store, TrainConfig(data_config=DATA_CONFIG, crop_scale=(0.5, 1.0), flip=0.5), progress=False
        )
    live = open_batches(
        model, data, TrainConfig(data_config=data_config, rand_augment=2, rand_magnitude=7), progress=False
    )
    assert live.source.clips.views == Views()
    assert (live.source.clips.transform.rand_layers, live.source.clips.transform.rand_magnitude) == (2, 7)
    (batch,) = live.batches(0, start=0)
    assert batch.video.shape[:2] == (4, 3)
    pair = clip_dataset(model, data, data_config, random=True, pair=Pair())
    assert pair[0].video.shape[:2] == (2, 3)


def test_crops_unsupported_by_the_base_model_are_refused_before_training(model, data):
    model.transform = replace(model.transform, resize_mode="squash")
    with pytest.raises(ValueError, match=r"3 crops need .* got 'squash'"):
        open_batches(model, data, TrainConfig(data_config=replace(DATA_CONFIG, spatial_views=3)), progress=False)
