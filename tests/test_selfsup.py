"""ConST-CL as an objective: its loss against loops, its gradients, and runs from a folder to a saved branch."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace

import pytest
import tiny
import torch
import torch.nn.functional as F

from clipvid.cli.main import main
from clipvid.config.data_config import DataConfig
from clipvid.config.selfsup import SelfSupervision
from clipvid.config.settings import TrainConfig
from clipvid.data.motion_shapes import write_dataset
from clipvid.data.open import open_dataset
from clipvid.data.records import Record, VideoDataset
from clipvid.errors import DataError
from clipvid.features.taps.memory import encode_dataset
from clipvid.models.backbone.backbone import Backbone
from clipvid.models.branches.presets import IntermediateOptions
from clipvid.models.factory import attach, load
from clipvid.training.batches import open_pairs
from clipvid.training.loop import train
from clipvid.training.objectives import held_out_loss
from clipvid.training.selfsup.objective import SelfSupervised
from clipvid.training.selfsup.regions import context_frames, lowlevel_regions, pool_regions, random_regions
from clipvid.training.train_batch import TrainBatch
from clipvid.training.trainer import Run
from clipvid.video.decode import read

DATA_CONFIG = DataConfig(frames=4, batch_size=4, precision="32-true")
SMALL = SelfSupervision(local_weight=1.0, hidden=32, out=16, regions=4)
CONFIG = TrainConfig(task="selfsup", epochs=2, batch_size=4, lr=1e-3, data_config=DATA_CONFIG, selfsup=SMALL)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def tower() -> Backbone:
    return tiny.backbone()


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> VideoDataset:
    return write_dataset(tmp_path_factory.mktemp("shapes"), "train", 12)


@pytest.fixture(scope="module")
def decoded(shapes) -> VideoDataset:
    """Return the frames of all clips in memory, for runs that would decode each of them many times."""
    return VideoDataset.from_arrays([read(record.path) for record in shapes])


def objective(clip, branch="stan", *, options=None, **changes) -> SelfSupervised:
    """Build the objective on a tiny tower; weights at zero become random, as they would pass no gradient on."""
    model = attach(clip, branch, branch_kwargs={"depth": 2, **(options or {})} if isinstance(branch, str) else None)
    for parameter in model.branch.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return SelfSupervised(model, replace(CONFIG, selfsup=replace(SMALL, **changes)))


def pairs(videos: int = 3, frames: int = 5) -> torch.Tensor:
    """Return noise clips (B, 2, T, 3, 32, 32); the two clips of a video share a colour."""
    colour = torch.randint(0, 200, (videos, 1, 1, 3, 1, 1))
    return (colour + torch.randint(0, 56, (videos, 2, frames, 3, 32, 32))).to(torch.uint8)


def train_batch(video: torch.Tensor) -> TrainBatch:
    nothing = torch.zeros(0)
    return TrainBatch(0, video, mask=None, text=nothing, video_index=nothing.long(), labels=nothing.long())


def gradients(*modules: torch.nn.Module) -> dict[str, bool]:
    """Return by parameter name whether its gradient is other than zero."""
    return {n: p.grad is not None and bool(p.grad.any()) for m in modules for n, p in m.named_parameters()}


# the loss


def naive_contrast(anchor, positive, negatives, temperature):
    """Return -log of the positive's share in the softmax, one cosine at a time."""
    cosine = [float(F.cosine_similarity(anchor, other, dim=0)) / temperature for other in (positive, *negatives)]
    return math.log(sum(math.exp(c) for c in cosine)) - cosine[0]


def naive_global(z):
    """Return the sum over both views of the mean over videos; z[b][v] is one embedding."""
    everything = [(b, v) for b in range(len(z)) for v in (0, 1)]
    total = 0.0
    for b, v in everything:
        others = [z[p][q] for p, q in everything if (p, q) not in ((b, v), (b, 1 - v))]
        total += naive_contrast(z[b][v], z[b][1 - v], others, 0.1)
    return total / len(z)


def naive_local(predicted, pooled):
    """Return the mean over both directions and all regions; each [b][v] is (R, D)."""
    losses = []
    for v in (0, 1):
        for b in range(len(pooled)):
            for region, source in zip(predicted[b][v], pooled[b][v], strict=True):
                like = max(pooled[b][1 - v], key=lambda other, source=source: F.cosine_similarity(source, other, dim=0))
                others = [r for p in range(len(pooled)) if p != b for r in pooled[p][1 - v]]
                losses.append(naive_contrast(region, like, others, 0.2))
    return sum(losses) / len(losses)


@torch.no_grad()
def test_without_a_split_the_loss_equals_the_loops_over_clips(tiny_clip):
    criterion = objective(tiny_clip, split=0).eval()
    model, video, boxes = criterion.model, pairs(), random_regions(6, 4).unflatten(0, (3, 2))
    z, pooled, dense = ([[None, None] for _ in range(3)] for _ in range(3))
    for b, v in ((b, v) for b in range(3) for v in (0, 1)):
        state = model.branch.state(model.reads(video[b, v][None]))
        z[b][v] = criterion.project(model.encode_video(video[b, v][None], normalize=False))[0]
        dense[b][v] = F.normalize(model.branch.dense(state), dim=-1)
        pooled[b][v] = pool_regions(dense[b][v][:, 2].unflatten(1, (4, 4)), boxes[b, v][None])[0]
    context = [[dense[b][1 - v][:, context_frames(5)] for v in (0, 1)] for b in range(3)]
    predicted = [
        [criterion.decoder(pooled[b][v][None], context[b][v], grid=(4, 4))[0] for v in (0, 1)] for b in range(3)
    ]
    global_loss, local_loss = criterion.parts(video, boxes=boxes)
    assert float(global_loss) == pytest.approx(naive_global(z), rel=1e-4)
    assert float(local_loss) == pytest.approx(naive_local(predicted, pooled), rel=1e-4)


def test_the_loss_is_the_weighted_sum_and_its_random_regions_follow_torchs_seed(tiny_clip):
    criterion = objective(tiny_clip, global_weight=0.5, local_weight=3.0).eval()
    video = pairs()
    torch.manual_seed(4)
    loss = criterion(train_batch(video))
    torch.manual_seed(4)
    global_loss, local_loss = criterion.parts(video)
    torch.testing.assert_close(loss, 0.5 * global_loss + 3 * local_loss, atol=0, rtol=0)
    assert criterion.parts(video)[1] != local_loss, "the next step draws other boxes"
    torch.manual_seed(4)
    drawn = random_regions(6, 4)
    assert (drawn[::2] != drawn[1::2]).all(), "the two clips have different boxes"
    torch.testing.assert_close(criterion.parts(video, boxes=drawn.unflatten(0, (3, 2)))[1], local_loss, atol=0, rtol=0)


def test_low_level_regions_come_from_the_pixels_of_the_middle_frame(tiny_clip):
    criterion, video = objective(tiny_clip, generator="lowlevel").eval(), pairs()
    boxes = lowlevel_regions(video[:, :, 2].flatten(0, 1), 4).unflatten(0, (3, 2))
    torch.testing.assert_close(criterion.parts(video), criterion.parts(video, boxes=boxes), atol=0, rtol=0)


def test_invalid_boxes_do_not_matter(tiny_clip):
    criterion, video = objective(tiny_clip).eval(), pairs()
    boxes, valid = random_regions(6, 4).unflatten(0, (3, 2)), torch.ones(3, 2, 4, dtype=torch.bool)
    valid[1, 0, 2:] = valid[:, 1, 3] = False
    other = torch.where(valid[..., None], boxes, random_regions(6, 4).unflatten(0, (3, 2)))
    torch.testing.assert_close(
        criterion.parts(video, boxes=boxes, valid=valid), criterion.parts(video, boxes=other, valid=valid)
    )
    assert criterion.parts(video, boxes=boxes)[1] != criterion.parts(video, boxes=other)[1]


def test_padding_frames_do_not_matter_to_the_global_loss(tiny_clip):
    criterion, video = objective(tiny_clip).eval(), pairs()
    mask = torch.ones(3, 2, 5, dtype=torch.bool)
    mask[1, 0, 3:] = False
    changed = video.clone()
    changed[1, 0, 3:] = 0
    torch.testing.assert_close(criterion.parts(video, mask=mask)[0], criterion.parts(changed, mask=mask)[0])
    assert criterion.parts(video)[0] != criterion.parts(changed)[0]


# the Y split


def test_both_copies_of_the_split_layers_start_equal(tiny_clip):
    criterion, video = objective(tiny_clip).eval(), pairs()
    source = criterion.model.reads(video.flatten(0, 1))
    tokens = criterion.model.branch.dense(criterion.model.branch.state(source))
    assert torch.equal(criterion._encode(source)[1], F.normalize(tokens, dim=-1))
    boxes = random_regions(6, 4).unflatten(0, (3, 2))
    unsplit = objective(tiny_clip, split=0).eval()
    unsplit.load_state_dict(criterion.state_dict(), strict=False)
    assert torch.equal(unsplit.parts(video, boxes=boxes)[1], criterion.parts(video, boxes=boxes)[1])


@pytest.mark.parametrize("split", [1, 2])
def test_each_loss_trains_one_copy_of_the_last_layers_and_the_model_holds_the_global_one(tiny_clip, split):
    criterion = objective(tiny_clip, split=split, options={"drop_path": 0.0})
    last_layers = criterion.model.branch.layers[-split:]
    for alone, moved, still in ((0, last_layers, criterion.local), (1, criterion.local, last_layers)):
        criterion.zero_grad()
        criterion.parts(pairs())[alone].backward()
        assert all(gradients(moved).values())
        assert not any(gradients(still).values())
    optimizer = torch.optim.SGD(criterion.parameters(), lr=0.1)
    optimizer.zero_grad()
    criterion(train_batch(pairs())).backward()
    optimizer.step()
    for a, b in zip(last_layers.parameters(), criterion.local.parameters(), strict=True):
        assert (a != b).any()
    source = criterion.model.reads(pairs().flatten(0, 1))
    torch.testing.assert_close(
        criterion.eval()._encode(source)[0], criterion.model.encode_video(source, normalize=False)
    )


def test_the_local_copy_trains_though_the_model_was_in_eval_mode(tiny_clip):
    criterion = SelfSupervised(attach(tiny_clip, branch_kwargs={"depth": 2}).eval(), CONFIG)
    assert all(module.training for module in criterion.local.modules())


# gradients


def test_gradients_reach_all_of_the_branch_and_none_of_the_tower(tiny_clip):
    criterion = objective(tiny_clip)
    criterion(train_batch(pairs())).backward()
    assert all(gradients(criterion.model.branch, criterion.local, criterion.decoder, criterion.project).values())
    assert all(parameter.grad is None for parameter in criterion.model.backbone.parameters())


def test_stopgrad_stops_the_target_and_nothing_else(tiny_clip):
    predicted, pooled, valid = torch.randn(3, 2, 4, 32), torch.randn(3, 2, 4, 32), torch.ones(3, 2, 4).bool()
    leaves: dict[str, list[torch.Tensor]] = {}
    losses = []
    for target in ("grad", "stopgrad"):
        leaves[target] = [x.clone().requires_grad_() for x in (predicted, pooled)]
        losses.append(objective(tiny_clip, target=target)._local_loss(*leaves[target], valid))
        losses[-1].backward()
    assert losses[0] == losses[1]
    assert torch.equal(leaves["grad"][0].grad, leaves["stopgrad"][0].grad)
    assert leaves["grad"][1].grad.any()
    assert leaves["stopgrad"][1].grad is None


@pytest.mark.parametrize(
    "branch",
    ["stan-paper", "bt-adapter", "divided", "space", "vivit1", IntermediateOptions("joint", stem="tubelet")],
    ids=str,
)
def test_every_branch_with_tokens_learns(tiny_clip, branch):
    criterion = objective(tiny_clip, branch, generator="lowlevel")
    criterion(train_batch(pairs(frames=4))).backward()
    assert any(gradients(criterion.model.branch).values())
    assert any(gradients(criterion.local).values())


# refusals


def test_branches_without_tokens_and_too_large_a_split_are_refused(tiny_clip):
    for branch in ("mean", "posterior"):
        with pytest.raises(ValueError, match=r"has no layers on the tower's tokens; choose a side branch \(stan\)"):
            SelfSupervised(attach(tiny_clip, branch), CONFIG)
    with pytest.raises(ValueError, match="split must be an integer from 0 to 2, the layers of this branch, got 3"):
        objective(tiny_clip, split=3)


def test_a_single_video_is_refused_everywhere(tiny_clip, shapes):
    model = attach(tiny_clip, branch_kwargs={"depth": 2})
    with pytest.raises(DataError, match="a batch must have at least 2 videos, got 1; ConST-CL takes its negatives"):
        objective(tiny_clip)(train_batch(pairs(1)))
    with pytest.raises(ValueError, match="got batch_size=1; take 2 or more"):
        replace(CONFIG, batch_size=1)
    with pytest.raises(DataError, match="has 1 for training; give two or more"):
        train(model, shapes.subset([0]), None, CONFIG, progress=False)
    with pytest.raises(DataError, match="has 1 for validation; give two or more"):
        train(model, shapes, shapes.subset([0]), CONFIG, progress=False)


def test_cached_taps_double_flips_and_text_training_are_refused(tiny_clip, shapes):
    with pytest.raises(ValueError, match="cannot be cached; leave out cache_taps"):
        replace(CONFIG, cache_taps=True)
    with pytest.raises(ValueError, match="as ConST-CL does; leave out flip"):
        replace(CONFIG, flip=0.5)
    model = attach(tiny_clip, branch_kwargs={"depth": 2})
    store = encode_dataset(model, shapes.subset([0, 1]), DATA_CONFIG)
    for data in ((store, None), (shapes, store)):
        with pytest.raises(ValueError, match="a TapStore holds the taps of one; give the videos"):
            train(model, *data, CONFIG, progress=False)
    with pytest.raises(ValueError, match="selfsup trains no text, got train_clip='text'"):
        train(model, shapes, None, replace(CONFIG, train_clip="text"), progress=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context": 4}, "context must be an odd integer"),
        ({"regions": 0}, "regions must be an integer >= 1, got 0"),
        ({"split": -1}, "split must be an integer >= 0, got -1"),
        ({"flip": 1.5}, r"flip must be a probability in \[0, 1\], got 1.5"),
        ({"temperature_local": 0.0}, "temperature_local must be above 0 and finite, got 0.0"),
        ({"global_weight": 0.0, "local_weight": 0.0}, "not both 0"),
    ],
)
def test_invalid_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SelfSupervision(**options)


# batches and training runs


def test_clips_are_mirrored_with_the_given_probability(tower, shapes):
    """Only the mirroring differs between the two runs: one clip is the other's mirror image, also in the loader."""
    model = attach(tower, branch_kwargs={"depth": 1})
    configs = (replace(CONFIG, selfsup=replace(SMALL, flip=flip)) for flip in (0.0, 1.0))
    plain, mirrored = (next(open_pairs(model, shapes, config).batches(0, start=0)).video for config in configs)
    assert not torch.equal(plain, plain.flip(-1))
    assert (plain.float() - mirrored.flip(-1).float()).abs().mean() < 1.0
    assert (plain.float() - mirrored.float()).abs().mean() > 3.0


def test_batches_hold_pairs_and_never_a_single_video(tower, shapes, tmp_path):
    pair_batches = open_pairs(
        attach(tower, branch_kwargs={"depth": 1}), shapes.subset(range(5)), replace(CONFIG, batch_size=2)
    )
    assert sorted(map(len, pair_batches.order(0))) == [2, 2]
    batches = list(pair_batches.batches(0, start=0))
    assert [batch.video.shape[:3] for batch in batches] == [(2, 2, 4)] * 2
    assert torch.equal(next(pair_batches.batches(0, start=1)).video, batches[1].video)
    (tmp_path / "x.mp4").write_bytes(b"not a video")
    broken = replace(shapes, records=(*shapes.records[:3], Record(tmp_path / "x.mp4")))
    skip = replace(CONFIG, batch_size=2, data_config=replace(DATA_CONFIG, unreadable="skip"))
    pair_batches = open_pairs(attach(tower, branch_kwargs={"depth": 1}), broken, skip)
    broken_batch = next(index for index, rows in enumerate(pair_batches.order(0)) if 3 in rows)
    assert [batch.index for batch in pair_batches.batches(0, start=0)] == [1 - broken_batch]
    assert [error.path.name for error in pair_batches.unreadable] == ["x.mp4"]


def test_validation_is_deterministic_and_changes_no_state(tower, decoded):
    criterion = SelfSupervised(attach(tower, branch_kwargs={"depth": 2}), CONFIG)
    source, losses = open_pairs(criterion.model, decoded.subset(range(5)), CONFIG), []
    for training in (True, False):
        torch.manual_seed(5 + training)
        before = torch.get_rng_state()
        losses.append(held_out_loss(criterion.train(training), source, seed=0))
        assert torch.equal(torch.get_rng_state(), before)
        assert {module.training for module in criterion.local.modules()} == {training}
    assert losses[0] == losses[1]
    criterion.train().local.eval()
    held_out_loss(criterion, source, seed=0)
    assert criterion.training
    assert not any(module.training for module in criterion.local.modules())


def test_the_loss_falls(tower, decoded):
    held_out = decoded.subset(range(4))
    data_config = replace(DATA_CONFIG, frames=2)
    config = replace(CONFIG, epochs=5, batch_size=12, lr=3e-3, warmup=0.5, data_config=data_config)
    result = train(attach(tower, branch_kwargs={"depth": 1}), decoded, held_out, config, progress=False)
    scores = [entry["score"] for entry in result.history]
    assert result.score_name == "negative loss"
    assert result.best_score == max(scores) > scores[0]
    assert result.history[-1]["loss"] < result.history[0]["loss"] - 0.5


def test_a_resumed_run_gives_the_bits_of_an_uninterrupted_one(tower, decoded, tmp_path, monkeypatch):
    """Batch norms are included: their running means are saved beside the weights."""
    config = replace(CONFIG, accumulate_grad_batches=2, selfsup=replace(SMALL, norm="batch"))
    data = decoded.subset(range(8)), decoded.subset(range(8, 12))

    def start(out, *, config=config, **options):
        torch.manual_seed(1)
        model = attach(tower, branch_kwargs={"depth": 2})
        return model, train(model, *data, config, out=tmp_path / out, progress=False, **options)

    uninterrupted, expected = start("uninterrupted")
    save_if_due = Run.checkpoint_if_due

    def killed(run):
        save_if_due(run)
        if run.steps == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Run, "checkpoint_if_due", killed)
        with pytest.raises(KeyboardInterrupt):
            start("killed", config=replace(config, checkpoint_every=1))  # between two batches of one optimizer step
    resumed, result = start("killed", resume=True)
    assert result.history == expected.history
    for a, b in zip(uninterrupted.branch.parameters(), resumed.branch.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_branch_trained_on_videos_alone_can_train_on_for_other_tasks(tower, shapes, tmp_path):
    model = attach(tower, branch_kwargs={"depth": 2})
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    unlabelled = VideoDataset(tuple(Record(r.path) for r in shapes.records[:6]))
    train(model, unlabelled, None, CONFIG, out=tmp_path, progress=False)
    after = model.state_dict()
    assert before.keys() == after.keys(), "the heads of self-supervision are not the model's"
    changed = {name.partition(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"branch"}
    assert model.head is None
    saved = load(tmp_path / "best", base=tower)
    assert saved.fingerprint == model.fingerprint
    for task in ("retrieval", "recognition"):
        config = TrainConfig(task=task, epochs=1, batch_size=4, data_config=DATA_CONFIG)
        result = train(load(tmp_path / "best", base=tower), shapes.subset(range(4)), None, config, progress=False)
        assert math.isfinite(result.history[0]["loss"])


def test_the_command_line_trains_on_a_plain_folder_of_videos(shapes, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for i, record in enumerate(shapes.records[:6]):
        folder = tmp_path / "videos" / ("" if i % 2 else "holiday")
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(record.path, folder)
    words = "--task selfsup --epochs 1 --batch-size 4 --depth 1 --data-config.frames 2 --selfsup.hidden 16"
    assert main(["train", "videos", *words.split(), "--val-fraction", "0.4", "--out", "run"]) == 0
    assert ", loss " in capsys.readouterr().out
    assert load("run/best").training_record["selfsup"]["hidden"] == 16
    assert main(["train", "videos", *words.split(), "--val-fraction", "0.2", "--out", "again"]) == 1
    assert "videos has 1 for validation; give two or more" in capsys.readouterr().err


def test_plain_folders_of_videos_have_neither_captions_nor_labels(tmp_path):
    for name in ("b.mp4", "deep/down/a.webm", "deep/.hidden/c.mp4", "deep/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    data = open_dataset("videos", tmp_path)
    assert [(r.path.name, r.captions, r.label) for r in data] == [("b.mp4", (), None), ("a.webm", (), None)]
    assert [r.path.name for r in open_dataset("videos", tmp_path, split="deep")] == ["a.webm"]
    with pytest.raises(DataError, match="holds no video; expected files"):
        open_dataset("videos", tmp_path, split="nowhere")
    with pytest.raises(ValueError, match="reads neither annotations nor classes"):
        open_dataset("videos", tmp_path, classes=["run"])
