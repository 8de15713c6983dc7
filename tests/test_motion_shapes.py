"""MotionShapes: symmetry in time, files that decode to the rendered frames, and the properties of its splits."""

from __future__ import annotations

import csv
import itertools

import av
import numpy as np
import pytest

from clipvid.data import motion_shapes
from clipvid.data.motion_shapes import (
    MOTIONS,
    Scene,
    draw_scene,
    render,
    render_still,
    reverse,
    write_clip,
    write_dataset,
)


def one_of_each_motion(seed: int = 3) -> list[Scene]:
    return [draw_scene(seed, "test", i) for i in range(len(MOTIONS))]


def decode(path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_a_clip_is_a_pure_function_of_seed_split_and_index():
    first, again = (render(draw_scene(5, "train", 11)) for _ in range(2))
    assert np.array_equal(first, again)
    others = [draw_scene(6, "train", 11), draw_scene(5, "val", 10), draw_scene(5, "train", 12)]
    assert all(render(other).shape != first.shape or (render(other) != first).any() for other in others)


@pytest.mark.parametrize("motion", MOTIONS)
def test_the_partner_drawn_from_the_same_seed_is_the_clip_played_backwards(motion):
    scene = Scene("red", "moon", "large", "dotted", motion, seed=(1, 2, 3))
    clip, partner = render(scene), render(scene.reversed())
    assert np.array_equal(partner, clip[::-1])
    assert not np.array_equal(partner, clip), "a clip that is its own mirror image would teach nothing"


def test_a_scene_and_its_reverse_share_every_random_choice():
    for scene in one_of_each_motion():
        plan, partner = motion_shapes._plan(scene), motion_shapes._plan(scene.reversed())
        assert (plan.height, plan.width, plan.frames, plan.fps) == (
            partner.height,
            partner.width,
            partner.frames,
            partner.fps,
        )
        for figure, mirrored in zip(plan.figures, partner.figures, strict=True):
            assert np.array_equal(figure.x, mirrored.x)
            assert np.array_equal(figure.angle, mirrored.angle)


def test_motions_go_in_the_named_direction():
    for motion, axis, sign in (("moves left", 1, -1), ("moves right", 1, 1), ("moves up", 0, -1), ("moves down", 0, 1)):
        clip = render(Scene("red", "circle", "large", "plain", motion, seed=(4,)))
        red = (clip[..., 0].astype(int) - clip[..., 1] > 120).nonzero()
        first, last = (red[1 + axis][red[0] == t].mean() for t in (0, len(clip) - 1))
        assert sign * (last - first) > 10, motion


def test_growing_grows_and_appearing_appears():
    for motion in ("grows", "appears"):
        clip = render(Scene("red", "circle", "large", "plain", motion, seed=(5,)))
        red = (clip[..., 0].astype(int) - clip[..., 1] > 120).sum(axis=(1, 2))
        assert red[-1] > 1.3 * red[0]
        assert (np.diff(red) >= -3).all()


def test_a_clockwise_turn_moves_the_dot_clockwise():
    clip = render(Scene("yellow", "circle", "large", "plain", "turns clockwise", seed=(8,)))
    angles = []
    for frame in clip:
        yellow = frame[..., 0].astype(int) - frame[..., 2] > 80
        dot = frame.max(-1) < 40
        (y, x), (dot_y, dot_x) = (mask.nonzero() for mask in (yellow | dot, dot))
        angles.append(np.arctan2(dot_y.mean() - y.mean(), dot_x.mean() - x.mean()))
    turned = np.degrees(np.diff(np.unwrap(angles)))  # y points down, so clockwise is positive
    assert turned.sum() > 100
    assert turned.min() > -2


def test_eight_frames_of_a_turn_show_its_direction():
    for i in range(200):
        scene = Scene("red", "cross", "small", "plain", "turns clockwise", seed=(9, i))
        angle = motion_shapes._plan(scene).figures[1].angle
        sampled = angle[np.round(np.linspace(0, len(angle) - 1, 8)).astype(int)]
        assert np.degrees(angle[-1] - angle[0]) < 300
        assert np.degrees(np.diff(sampled)).max() < 150  # beyond 180 a turn would look like its reverse


def test_the_distractor_differs_and_is_the_smaller_one():
    for i in range(50):
        scene = draw_scene(0, "train", i)
        other, main = motion_shapes._plan(scene).figures
        assert other.shape != main.shape
        assert other.radius.max() < main.radius.min()
        assert abs(other.colour - main.colour).max() > 20


def test_frame_sizes_lengths_and_rates_vary_within_their_bounds():
    plans = [motion_shapes._plan(draw_scene(1, "train", i)) for i in range(300)]
    for name, low, high in (("height", 64, 128), ("width", 64, 128), ("frames", 16, 40), ("fps", 10, 30)):
        values = {getattr(plan, name) for plan in plans}
        assert low <= min(values) <= max(values) <= high
        assert len(values) > 15, name
    assert all(plan.height % 2 == plan.width % 2 == 0 for plan in plans)
    assert any(plan.height != plan.width for plan in plans)


def test_the_size_word_stays_true_while_a_shape_grows():
    def radius(size: str, moment: int) -> list[float]:
        plans = [motion_shapes._plan(Scene("red", "star", size, "plain", "grows", seed=(i,))) for i in range(100)]
        return [plan.figures[1].radius[moment] / (plan.height * plan.width) ** 0.5 for plan in plans]

    assert np.median(radius("small", -1)) < min(radius("large", 0))
    for size, base in motion_shapes.SIZES.items():
        middle = np.sqrt(np.multiply(radius(size, 0), radius(size, -1)))
        assert middle == pytest.approx(base, rel=0.06), "growth is symmetric about the size that the word names"


def test_a_still_is_the_frame_of_its_clip():
    for scene in one_of_each_motion():
        clip = render(scene)
        for at, frame in ((0.0, clip[0]), (1.0, clip[-1]), (0.5, clip[round(0.5 * (len(clip) - 1))])):
            still = render_still(scene, at=at)
            # an odd number of steps has two middles, and the partner's middle is the other one
            middle = clip[len(clip) - 1 - round(0.5 * (len(clip) - 1))] if at == 0.5 else frame
            gap = min(abs(still.astype(int) - one).max() for one in (frame, middle))
            assert gap <= 1  # float32 rounds one frame differently than all at once


def test_every_shape_looks_different_from_every_other_at_any_angle():
    def mask(shape: str, seed: int) -> np.ndarray:
        figure = motion_shapes.Figure(
            shape, np.zeros(3, np.float32), *(np.array([v]) for v in (32.0, 32.0, 28.0, seed * 0.7, 1.0)), dot=False
        )
        frame = np.full((1, 64, 64, 3), 255, np.uint8)
        motion_shapes.paint(frame, figure)
        return frame[0, ..., 0] < 128

    for a, b in itertools.combinations(motion_shapes.SHAPES, 2):
        overlap = max((mask(a, 0) & mask(b, k)).sum() / (mask(a, 0) | mask(b, k)).sum() for k in range(9))
        assert overlap < 0.85, f"{a} and {b}"


def test_captions_name_object_motion_and_background():
    scene = Scene("red", "circle", "large", "striped", "moves left")
    assert scene.caption == "a large red circle moves left over a striped background"
    assert scene.reversed().caption == "a large red circle moves right over a striped background"
    assert all(reverse(reverse(motion)) == motion != reverse(motion) for motion in MOTIONS)


def test_an_unknown_word_names_the_allowed_ones():
    with pytest.raises(ValueError, match=r"unknown colour 'mauve'; choose one of red, orange"):
        Scene("mauve", "circle", "large", "plain", "grows")
    with pytest.raises(ValueError, match=r"unknown motion 'jumps'; choose one of moves left"):
        reverse("jumps")
    with pytest.raises(ValueError, match=r"unknown split 'dev'; choose one of train, val, test"):
        draw_scene(0, "dev", 0)


@pytest.mark.parametrize("split", ["val", "test"])
def test_captions_are_unique_and_each_neighbour_has_the_reversed_one(split):
    scenes = [draw_scene(7, split, i) for i in range(5120)]
    assert len({scene.caption for scene in scenes}) == 5120
    for one, other in itertools.batched(scenes, 2) if hasattr(itertools, "batched") else zip(*[iter(scenes)] * 2):  # noqa: B905
        assert one.reversed().caption == other.caption
        assert one.seed != other.seed, "in val and test the two are drawn independently"
    assert sorted(scene.motion for scene in scenes[:10]) == sorted(MOTIONS)
    with pytest.raises(ValueError, match="indices end at 5119"):
        draw_scene(7, split, 5120)


def test_a_train_pair_is_one_clip_forwards_and_backwards_and_pairs_differ():
    for i in range(0, 40, 2):
        scene, partner = draw_scene(3, "train", i), draw_scene(3, "train", i + 1)
        assert partner == scene.reversed()
    first, second = (render(draw_scene(3, "train", i)) for i in (0, 2))
    assert first.shape != second.shape or (first != second).any()


def test_train_draws_every_object_and_motion_word():
    scenes = [draw_scene(0, "train", i) for i in range(600)]
    for name, words in (("colour", motion_shapes.COLOURS), ("shape", motion_shapes.SHAPES), ("motion", MOTIONS)):
        drawn = [getattr(scene, name) for scene in scenes]
        assert min(drawn.count(word) for word in words) > 600 / len(words) / 2


def test_a_file_decodes_to_the_rendered_frames(tmp_path):
    gaps = []
    for i, scene in enumerate(one_of_each_motion()):
        frames = render(scene)
        write_clip(tmp_path / f"{i}.mp4", frames, fps=scene.fps)
        decoded = decode(tmp_path / f"{i}.mp4")
        assert decoded.shape == frames.shape
        error = abs(decoded.astype(int) - frames).mean(axis=(1, 2, 3))
        assert error.max() < 4
        gaps.append(error[0] - error[-1])
    assert abs(np.mean(gaps)) < 0.3, "the codec must treat the first and the last frame alike"


def test_a_file_is_h264_at_the_frame_rate_of_its_scene(tmp_path):
    scene = draw_scene(2, "train", 0)
    write_clip(tmp_path / "a.mp4", render(scene), fps=scene.fps)
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.average_rate == scene.fps


def test_a_dataset_has_its_captions_labels_and_files(tmp_path):
    data = write_dataset(tmp_path, "test", 4, seed=1)
    with open(tmp_path / "test" / "captions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == ["00001.mp4", "00002.mp4", "00003.mp4", "00004.mp4"]
    assert data.classes == MOTIONS
    for i, (record, row) in enumerate(zip(data.records, rows, strict=True)):
        scene = draw_scene(1, "test", i)
        assert record.path == tmp_path / "test" / row["path"]
        assert record.captions == (scene.caption,) == (row["caption"],)
        assert MOTIONS[record.label] == row["label"] == scene.motion
        assert decode(record.path).shape == render(scene).shape


def test_a_finished_folder_is_reused_and_other_content_is_refused(tmp_path, monkeypatch):
    first = write_dataset(tmp_path, "train", 4)
    stamps = [record.path.stat().st_mtime_ns for record in first.records]
    assert write_dataset(tmp_path, "train", 4) == first
    assert [record.path.stat().st_mtime_ns for record in first.records] == stamps
    with pytest.raises(ValueError, match="holds something other"):
        write_dataset(tmp_path, "train", 4, seed=1)
    monkeypatch.setattr(motion_shapes, "DEAL", motion_shapes.DEAL + 1)
    with pytest.raises(ValueError, match="holds something other"):
        write_dataset(tmp_path, "train", 4)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 100_000])
def test_a_folder_whose_list_of_contents_is_damaged_is_refused(tmp_path, content):
    write_dataset(tmp_path, "test", 2)
    (tmp_path / "test" / "content.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"holds something other than \{.*; delete it or choose another root"):
        write_dataset(tmp_path, "test", 2)


def test_an_interrupted_run_leaves_no_folder_and_resumes_where_it_stopped(tmp_path, monkeypatch):
    written, write = [], motion_shapes.write_clip

    def stop_at_the_third(path, frames, *, fps):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path.name)
        write(path, frames, fps=fps)

    monkeypatch.setattr(motion_shapes, "write_clip", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        write_dataset(tmp_path, "train", 4)
    assert not (tmp_path / "train").exists()
    (tmp_path / "train.partial" / ".00003.mp4.1.part").write_bytes(b"torn")
    monkeypatch.setattr(
        motion_shapes,
        "write_clip",
        lambda path, frames, *, fps: (written.append(path.name), write(path, frames, fps=fps)),
    )
    write_dataset(tmp_path, "train", 4)
    assert written == ["00001.mp4", "00002.mp4", "00003.mp4", "00004.mp4"]
    names = sorted(path.name for path in (tmp_path / "train").iterdir())
    assert names == ["00001.mp4", "00002.mp4", "00003.mp4", "00004.mp4", "captions.csv", "content.json"]


def test_two_processes_write_the_same_files_as_one(tmp_path):
    one, two = (write_dataset(tmp_path / str(k), "train", 8, workers=k) for k in (1, 2))
    for a, b in zip(one.records, two.records, strict=True):
        assert a.path.read_bytes() == b.path.read_bytes()


def test_a_split_of_pairs_cannot_have_an_odd_number_of_clips(tmp_path):
    with pytest.raises(ValueError, match="n must be an even integer >= 2, got 3"):
        write_dataset(tmp_path, "test", 3)
