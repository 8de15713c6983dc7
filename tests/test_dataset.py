"""Items of a ClipDataset: the requested frames, the same in every process; unreadable files are raised or listed."""

from __future__ import annotations

import itertools
import pickle
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from clipvid.data.batches.batch import NO_LABEL, Batch, collate, describe_unreadable
from clipvid.data.batches.views import Pair, Views
from clipvid.data.dataset import ClipDataset
from clipvid.data.loader import batches_of
from clipvid.data.records import Record, VideoDataset
from clipvid.errors import VideoError
from clipvid.video.decode import read
from clipvid.video.sampling import linspace, uniform
from clipvid.video.transforms import VideoTransform

TRANSFORM = VideoTransform(size=16)
SHARED = Path(__file__).parents[2] / "shared" / "data"


def write_video(path, frames, *, fps=10):
    """Write the given uint8 (H, W, 3) pictures to a lossless file."""
    with av.open(str(path), "w", format="matroska") as container:
        stream = container.add_stream("ffv1", rate=fps)
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], "bgr0"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(format="bgr0")))
        container.mux(stream.encode())
    return Path(path)


def grey(level):
    return np.full((24, 32, 3), level, dtype=np.uint8)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Return three captioned clips of 20 frames; the grey level is 10 times the frame's number plus the clip's."""
    folder = tmp_path_factory.mktemp("clips")
    records = []
    for clip in range(3):
        path = write_video(folder / f"{clip}.mkv", [grey(10 * frame + clip) for frame in range(20)])
        captions = tuple(f"clip {clip} caption {number}" for number in range(5 * clip))
        records.append(Record(path, captions, label=None if clip == 0 else clip - 1))
    return VideoDataset(tuple(records), ("run", "walk"))


def frames_of(clip):
    """Return the frame numbers of a clip, from its grey levels."""
    return [round(level / 10) for level in clip.video.float().mean(dim=(1, 2, 3)).tolist()]


def test_an_item_holds_the_sampled_and_resized_frames_and_the_label_of_its_record(data):
    for sampler, rule in (("uniform", uniform), ("linspace", linspace)):
        clip = ClipDataset(data, frames=4, transform=TRANSFORM, sampler=sampler)[1]
        assert (clip.video.shape, clip.video.dtype) == ((4, 3, 16, 16), torch.uint8)
        assert frames_of(clip) == rule(20, 4)
        assert clip.mask.all()
        assert (clip.label, clip.index) == (0, 1)


def test_short_videos_repeat_their_last_frame_and_mask_it(data):
    clip = ClipDataset(data, frames=25, transform=TRANSFORM, sampler="linspace")[0]
    assert frames_of(clip) == [*range(20), *[19] * 5]
    assert clip.mask.tolist() == [True] * 20 + [False] * 5
    repeated = ClipDataset(data, frames=25, transform=TRANSFORM, sampler="uniform")[0]
    assert repeated.mask.all()


def test_start_and_end_cut_the_clip(data):
    part = VideoDataset((Record(data[0].path, start=0.5, end=0.9),))
    assert frames_of(ClipDataset(part, frames=4, transform=TRANSFORM, sampler="linspace")[0]) == [5, 6, 7, 8]


def test_random_items_depend_on_seed_epoch_and_index_alone(data):
    def sampled_frames(seed=0, epoch=0, order=(0, 1, 2)):
        dataset = ClipDataset(data, frames=6, transform=TRANSFORM, random=True, seed=seed)
        dataset.set_epoch(epoch)
        items = {index: dataset[index] for index in order}
        return [frames_of(items[index]) for index in range(3)]

    reference = sampled_frames(epoch=3)
    assert sampled_frames(epoch=3, order=(2, 0, 1)) == reference
    assert sampled_frames(epoch=4) != reference
    assert sampled_frames(seed=1, epoch=3) != reference
    assert len({tuple(frames) for frames in reference}) == 3  # every clip has its own random numbers


def test_random_frames_stay_in_order_and_vary_over_epochs(data):
    dataset = ClipDataset(data, frames=6, transform=TRANSFORM, random=True)
    choices = set()
    for epoch in range(10):
        dataset.set_epoch(epoch)
        frames = frames_of(dataset[0])
        assert frames == sorted(frames)
        choices.add(tuple(frames))
    assert len(choices) > 5


@pytest.mark.parametrize("context", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_give_the_same_clips_as_the_main_process_in_every_epoch(data, context):
    dataset = ClipDataset(data, frames=4, transform=TRANSFORM, random=True)
    loader = DataLoader(
        dataset, 2, num_workers=2, collate_fn=collate, persistent_workers=True, multiprocessing_context=context
    )
    for epoch in (0, 1):  # the workers outlive the first epoch
        dataset.set_epoch(epoch)
        plain = list(DataLoader(dataset, 2, collate_fn=collate))
        for batch, expected in zip(loader, plain, strict=True):
            assert torch.equal(batch.video, expected.video)
    del loader


def test_a_pickled_dataset_remembers_its_epoch(data):
    dataset = ClipDataset(data, frames=4, transform=TRANSFORM, random=True)
    dataset.set_epoch(7)
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy.epoch == 7
    assert torch.equal(copy[0].video, dataset[0].video)


def test_an_augmentation_is_one_crop_for_the_whole_clip_and_another_in_the_next_epoch(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    data = VideoDataset((Record(write_video(tmp_path / "still.mkv", [picture] * 8)),))
    transform = VideoTransform(size=16, crop_scale=(0.2, 1.0), flip=0.5)
    dataset = ClipDataset(data, frames=4, transform=transform, random=True)
    clips = []
    for epoch in range(4):
        dataset.set_epoch(epoch)
        video = dataset[0].video
        assert (video == video[:1]).all()
        clips.append(video)
    assert all(not torch.equal(one, other) for one, other in itertools.pairwise(clips))
    fixed = ClipDataset(data, frames=4, transform=transform)[0].video
    assert torch.equal(fixed, VideoTransform(size=16).fit(torch.tensor(picture).permute(2, 0, 1)).expand(4, -1, -1, -1))


def test_a_batch_has_the_label_and_the_index_of_each_clip(data):
    batch = collate([ClipDataset(data, frames=2, transform=TRANSFORM)[index] for index in (2, 0, 1)])
    assert batch.labels.tolist() == [1, NO_LABEL, 0]
    assert batch.index.tolist() == [2, 0, 1]


@pytest.fixture
def broken(data, tmp_path):
    (tmp_path / "text.mp4").write_text("not a video")
    records = (data[0], Record(tmp_path / "text.mp4", ("a",)), data[1], Record(tmp_path / "gone.mp4", ("b",)))
    return VideoDataset(records, data.classes)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_error_of_an_unreadable_file_is_raised_unchanged(broken, workers):
    dataset = ClipDataset(broken, frames=2, transform=TRANSFORM)
    with pytest.raises(VideoError) as caught:
        list(DataLoader(dataset, 4, num_workers=workers, collate_fn=collate))
    with pytest.raises(VideoError) as direct:
        dataset[1]
    assert str(caught.value) == str(direct.value)
    assert caught.value.path == broken[1].path
    assert (caught.value.reason, caught.value.backend) == (direct.value.reason, "pyav")


@pytest.mark.parametrize("workers", [0, 2])
def test_skipped_files_are_listed_in_their_batch_and_never_replaced(broken, workers):
    dataset = ClipDataset(broken, frames=2, transform=TRANSFORM, unreadable="skip")
    first, last = DataLoader(dataset, 3, num_workers=workers, collate_fn=collate)
    assert first.index.tolist() == [0, 2]
    assert [error.path.name for error in first.unreadable] == ["text.mp4"]
    assert (len(last), last.video.shape[0], last.labels.numel()) == (0, 0, 0)
    assert [error.path.name for error in last.unreadable] == ["gone.mp4"]
    assert "1 unreadable" in repr(last)


def test_the_report_of_skipped_files_gives_count_names_and_reasons(broken):
    dataset = ClipDataset(broken, frames=2, transform=TRANSFORM, unreadable="skip")
    errors = collate([dataset[1], dataset[3]]).unreadable
    lines = describe_unreadable(errors).splitlines()
    assert lines[0].startswith("2 videos could not be read")
    assert ["text.mp4" in lines[1], "gone.mp4" in lines[2]] == [True, True]
    assert describe_unreadable(errors[:1]).startswith("1 video could")
    assert describe_unreadable(()) == ""


def test_all_tensors_of_a_batch_move_to_a_device(data):
    batch = collate([ClipDataset(data, frames=2, transform=TRANSFORM)[1]])
    moved = batch.to("meta")
    assert isinstance(moved, Batch)
    assert {t.device.type for t in (moved.video, moved.labels, moved.index, moved.mask)} == {"meta"}
    assert repr(batch) == "Batch(video (1, 2, 3, 16, 16))"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="page-locked memory needs a GPU")
def test_a_loader_can_pin_batches(data):
    dataset = ClipDataset(data, frames=2, transform=TRANSFORM)
    (batch,) = DataLoader(dataset, 3, collate_fn=collate, pin_memory=True)
    assert batch.video.is_pinned()
    assert batch.to("cuda", non_blocking=True).mask.is_cuda


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampler": "unifrom"}, "sampler must be one of uniform, linspace, dense, got 'unifrom'"),
        ({"backend": "cv2"}, "unknown backend 'cv2'; choose one of pyav"),
        ({"unreadable": "zeros"}, "unreadable must be one of raise, skip"),
        ({"frames": 0}, "frames must be an integer >= 1, got 0"),
    ],
)
def test_wrong_options_are_refused_at_once(data, options, message):
    with pytest.raises(ValueError, match=message):
        ClipDataset(data, **{"frames": 4, "transform": TRANSFORM, **options})


def test_an_index_out_of_range_ends_iteration_and_a_negative_one_counts_from_the_end(data):
    dataset = ClipDataset(data, frames=2, transform=TRANSFORM, random=True)
    assert torch.equal(dataset[-1].video, dataset[2].video)
    assert dataset[-1].index == 2
    with pytest.raises(IndexError):
        dataset[3]


# arrays


@pytest.fixture(scope="module")
def in_memory(tmp_path_factory):
    """Return data sets of two clips of different sizes and lengths: as files, and as arrays in both layouts."""
    rng, folder, records = np.random.default_rng(0), tmp_path_factory.mktemp("noise"), []
    for number, (length, height, width) in enumerate([(9, 24, 32), (3, 50, 20)]):
        frames = [rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for _ in range(length)]
        records.append(Record(write_video(folder / f"{number}.mkv", frames), label=number))
    files = VideoDataset(tuple(records), ("run", "walk"))
    decoded = [read(record.path) for record in files]
    channels_last = [np.ascontiguousarray(clip.permute(0, 2, 3, 1)) for clip in decoded]
    options = {"labels": [0, 1], "classes": ["run", "walk"]}
    return files, [VideoDataset.from_arrays(clips, **options) for clips in (decoded, channels_last)]


@pytest.mark.parametrize(
    ("options", "transform"),
    [
        ({}, VideoTransform(size=16)),
        ({"sampler": "linspace"}, VideoTransform(size=16, interpolation="bilinear")),
        ({"views": Views(2, 3)}, VideoTransform(size=16)),
        ({"random": True, "seed": 3}, VideoTransform(size=16, crop_scale=(0.2, 1.0), flip=0.5, rand_layers=2)),
        ({"random": True, "views": Pair(stride=1)}, VideoTransform(size=16)),
    ],
)
def test_arrays_of_a_decoded_file_give_the_clip_of_the_file_to_the_bit(in_memory, options, transform):
    files, arrays = in_memory
    expected = collate([ClipDataset(files, frames=6, transform=transform, **options)[i] for i in range(2)])
    for data in arrays:
        batch = collate([ClipDataset(data, frames=6, transform=transform, **options)[i] for i in range(2)])
        assert torch.equal(batch.video, expected.video)
        assert torch.equal(batch.mask, expected.mask)
        assert torch.equal(batch.labels, expected.labels)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_loader_reads_arrays_as_it_reads_files(in_memory, workers):
    files, arrays = in_memory
    order = [[1], [0, 1]]
    expected = list(batches_of(ClipDataset(files, frames=4, transform=TRANSFORM), order))
    batches = list(batches_of(ClipDataset(arrays[0], frames=4, transform=TRANSFORM), order, workers=workers))
    assert [batch.index.tolist() for batch in batches] == order
    for batch, other in zip(batches, expected, strict=True):
        assert torch.equal(batch.video, other.video)


def test_arrays_are_pickled_with_their_pixels_and_may_be_read_only(in_memory):
    clip = np.full((4, 24, 32, 3), 90, dtype=np.uint8)
    clip.setflags(write=False)
    dataset = ClipDataset(VideoDataset.from_arrays([clip[::-1]]), frames=4, transform=TRANSFORM)
    copy = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(copy[0].video, dataset[0].video)
    assert (copy[0].video == 90).all()


@pytest.mark.shared_data("hostile")
def test_hostile_files_are_read_or_listed_but_never_stop_a_skipping_loader():
    paths = sorted(path for path in (SHARED / "hostile").iterdir() if path.suffix != ".csv" and "huge" not in path.name)
    data = VideoDataset(tuple(Record(path) for path in paths))
    dataset = ClipDataset(data, frames=2, transform=TRANSFORM, unreadable="skip")
    batches = list(DataLoader(dataset, 8, num_workers=2, collate_fn=collate))
    n_read = sum(len(batch) for batch in batches)
    unreadable = {error.path.name for batch in batches for error in batch.unreadable}
    assert n_read + len(unreadable) == len(paths)
    assert {"zero_bytes.mp4", "text_renamed.mp4", "random_bytes.mp4", "audio_only.mp4"} <= unreadable
    assert "UPPERCASE.MP4" not in unreadable
