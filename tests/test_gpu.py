"""On a GPU as on a CPU: every branch computes the same, taps that were kept are the live ones, runs resume to the bit.

Skipped where torch sees no CUDA device.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

from clipvid.cli.main import main
from clipvid.config.data_config import DataConfig
from clipvid.config.settings import TrainConfig
from clipvid.data import motion_shapes
from clipvid.data.records import VideoDataset
from clipvid.demo.tour import load_backbone
from clipvid.evaluation.retrieval import evaluate_retrieval
from clipvid.features import transfer
from clipvid.features.embed import embed_texts, embed_videos
from clipvid.features.memory import encode_dataset
from clipvid.features.tap_cache import TapCache
from clipvid.models.branches import BRANCHES
from clipvid.models.factory import attach, load
from clipvid.models.sliding_window import encode_windows
from clipvid.models.video_clip import VideoCLIP
from clipvid.nn.attention import attend, by_products
from clipvid.runtime.precision import autocast
from clipvid.runtime.profiling import profiled
from clipvid.search.index import VideoIndex
from clipvid.training.batches import open_batches
from clipvid.training.loop import train
from clipvid.training.objectives import Retrieval
from clipvid.training.train_batch import TrainBatch
from clipvid.training.trainer import Run

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and torch sees none")
GPU = torch.device("cuda")
MIXERS = ("attention", "conv", "conv_full", "rsa")
MADE = [("stan", {"mixer": mixer}) for mixer in MIXERS] + [(name, {}) for name in BRANCHES if name != "stan"]
DATA_CONFIG = DataConfig(frames=4, batch_size=4)


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> VideoDataset:
    return motion_shapes.write_dataset(tmp_path_factory.mktemp("shapes"), "train", 8)


@pytest.fixture(autouse=True)
def _plain_float32():
    """TF32 would hide what differs."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def made(branch: str = "stan", device: torch.device = GPU, **options) -> VideoCLIP:
    """A model whose branch says something, the same on every device."""
    torch.manual_seed(0)
    depth = {} if branch in ("mean", "posterior") else {"depth": 2}
    model = attach(load_backbone(), branch, **depth, **options)
    with torch.no_grad():
        for p in model.branch.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return model.to(device).eval()


def some_video(model: VideoCLIP, frames: int = 4) -> torch.Tensor:
    """Of the size that it is read at: devices round a resized picture apart by a grey level."""
    return torch.randint(0, 255, (3, frames, 3, *model.transform.target), dtype=torch.uint8)


def close(found: torch.Tensor, wanted: torch.Tensor, share: float) -> None:
    """No further apart than this share of the largest entry."""
    found, wanted = found.float().cpu(), wanted.float().cpu()
    assert (found - wanted).abs().max() <= share * wanted.abs().max()


@pytest.mark.parametrize(("branch", "options"), MADE)
def test_every_branch_computes_what_it_computes_on_a_cpu(branch, options):
    """Embeddings and gradients, with padding frames; float32."""
    found = {}
    for device in (torch.device("cpu"), GPU):
        model = made(branch, device, **options)
        mask = torch.tensor([[True] * 4, [True, True, True, False], [True, True, False, False]])
        embeddings = model.encode_video(some_video(model), mask=mask, normalize=False)
        learning = [p for p in model.branch.parameters() if p.requires_grad]
        grads = torch.autograd.grad(embeddings.square().sum(), learning, allow_unused=True) if learning else ()
        found[device.type] = embeddings.detach(), grads
    close(found["cuda"][0], found["cpu"][0], 1e-4)
    assert any(g is not None for g in found["cpu"][1]) or branch == "mean"
    largest = max((float(g.abs().max()) for g in found["cpu"][1] if g is not None), default=0.0)
    for got, wanted in zip(found["cuda"][1], found["cpu"][1], strict=True):
        if wanted is not None:
            assert (got.cpu() - wanted).abs().max() <= 2e-3 * max(float(wanted.abs().max()), 1e-2 * largest)


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_a_pass_in_bf16_is_autocasts_own_within_its_rounding_and_follows_every_write(activation):
    """Also writes that torch does not count, in places that a CPU would not look at; first in inference mode."""
    torch.manual_seed(0)
    vision = CLIPVisionCfg(layers=3, width=64, head_width=16, patch_size=8, image_size=32)
    text = CLIPTextCfg(context_length=12, vocab_size=99, width=32, heads=4, layers=1)
    clip = CLIP(embed_dim=16, vision_cfg=vision, text_cfg=text, quick_gelu=activation == "quick_gelu")
    model = attach(clip, "stan", depth=2).to(GPU).eval()
    visual, video = model.backbone.visual, some_video(model)
    block = visual.transformer.resblocks[0]

    def passed() -> torch.Tensor:
        with torch.no_grad(), autocast("bf16-mixed", GPU):
            return model.encode_video(video)

    with torch.inference_mode():
        exact = model.encode_video(video)
        with autocast("bf16-mixed", GPU):
            before = model.encode_video(video)
    assert torch.equal(passed(), before)
    close(before, exact, 0.03)
    for written in (block.mlp.c_fc.weight, block.mlp.c_proj.weight, block.attn.in_proj_weight, visual.conv1.weight):
        written.data.reshape(-1)[1:4] += 5.0
        after = passed()
        assert not torch.equal(after, before)
        with torch.no_grad():
            close(after, model.encode_video(video), 0.03)
        before = after


@pytest.mark.parametrize("tokens", [12, 50, 197])
def test_attention_is_the_plain_products_in_both_directions(tokens):
    made = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(4, 12, tokens, 64, generator=made, dtype=torch.float64).cuda() for _ in range(3))
    wanted = by_products(q, k, v, None)
    inputs = [x.bfloat16().requires_grad_() for x in (q, k, v)]
    exact = [x.clone().requires_grad_() for x in (q, k, v)]
    found = attend(*inputs)
    close(found, wanted, 0.02)
    found.float().square().sum().backward()
    by_products(*exact, None).square().sum().backward()
    for got, want in zip(inputs, exact, strict=True):
        close(got.grad, want.grad, 0.04)


@pytest.mark.parametrize("mode", ["taps", "first_layer"])
def test_taps_that_were_kept_are_the_live_ones(clips, tmp_path, mode):
    """Equal bits in `taps`; a trunk runs its last blocks again."""
    model = made()
    live = embed_videos(model, clips, DATA_CONFIG).video
    kept = embed_videos(model, TapCache(tmp_path, mode=mode).store(model, clips, DATA_CONFIG)).video
    assert torch.equal(kept, live) if mode == "taps" else bool((kept - live).abs().max() < 1e-3 * live.abs().max())


def test_copies_wait_for_nobody_and_readers_for_copies(clips):
    """Each copy comes late, is read later than the next one comes, and its memory is given back before that."""
    model = made()
    kept = encode_dataset(model, clips, DATA_CONFIG)
    store = replace(kept, taps=kept.taps.to("cpu"), device=model.device)
    copying, found, wanted = transfer._stream(model.device), [], []
    for rows in ([0, 1], [2, 3], [4, 5], [6, 7]):
        with torch.cuda.stream(copying):
            torch.cuda._sleep(50_000_000)
        taps = next(store.stream([rows])).features
        torch.cuda._sleep(200_000_000)
        found.append(taps.frames.double().sum())
        wanted.append(store.batch(rows).frames.double().sum())
        del taps
    torch.testing.assert_close(torch.stack(found).cpu(), torch.stack(wanted))


def test_a_feed_brings_what_lies_on_the_cpu(clips):
    model = made()
    store = encode_dataset(model, clips, DATA_CONFIG)
    config = TrainConfig(batch_size=2, captions_per_video=1, data_config=DATA_CONFIG)
    feed = open_batches(model, replace(store, taps=store.taps.to("cpu")), config, progress=False)
    busy = torch.randn(2048, 2048, device=GPU)
    for epoch in range(4):
        for rows, work in zip(feed.order(epoch), feed.batches(epoch, start=0), strict=True):
            for _ in range(20):
                busy = (busy @ busy).clamp_(-1, 1)
            assert work.video.frames.is_cuda
            wanted = store.taps.to("cpu").gather(rows)
            assert torch.equal(work.video.frames.cpu(), wanted.frames)
            assert all(torch.equal(a.cpu(), b) for a, b in zip(work.video.patches, wanted.patches, strict=True))


def test_chunks_and_recomputed_layers_give_the_gradient_of_the_whole_batch():
    """In float64, where rounding hides nothing."""
    config = TrainConfig(batch_size=6, captions_per_video=1, data_config=replace(DATA_CONFIG, precision="32-true"))
    model = made(options={"drop_path": 0.0}).train()
    text = embed_texts(model, [f"a shape number {i}" for i in range(6)], precision="32-true").double().to(GPU)
    video = torch.randint(0, 255, (6, 4, 3, *model.backbone.image_size), dtype=torch.uint8)
    model, video = model.double(), model.transform(video.to(GPU)).double()
    work = TrainBatch(0, video, mask=None, text=text, video_index=torch.arange(6, device=GPU), labels=torch.zeros(6))
    found = {}
    for name, changes, checkpointed in (
        ("whole", {}, False),
        ("chunks", {"micro_batch_size": 2}, False),
        ("checkpointed", {}, True),
    ):
        model.branch.set_activation_checkpointing(checkpointed)
        objective = Retrieval(model, replace(config, **changes))
        objective(work).backward()
        found[name] = {n: p.grad.clone() for n, p in model.branch.named_parameters() if p.grad is not None}
        model.zero_grad()
    largest = max(float(g.abs().max()) for g in found["whole"].values())
    for name in ("chunks", "checkpointed"):
        assert found[name].keys() == found["whole"].keys()
        assert all((found[name][n] - g).abs().max() < 1e-9 * largest for n, g in found["whole"].items()), name


def test_chance_in_recomputed_layers_is_drawn_again_as_it_was():
    model = made(options={"drop_path": 0.5}).train()
    taps = model.reads(some_video(model))
    grads = []
    for checkpointed in (False, True):
        model.branch.set_activation_checkpointing(checkpointed)
        torch.manual_seed(3)
        model.encode_video(taps).sum().backward()
        grads.append({n: p.grad.clone() for n, p in model.branch.named_parameters() if p.grad is not None})
        model.zero_grad()
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, rtol=1e-4, atol=1e-5)


def test_a_run_that_stopped_goes_on_to_the_bit(clips, tmp_path, monkeypatch):
    """With stochastic depth, whose random numbers are the device's; stopped in the middle of an epoch."""
    config = TrainConfig(epochs=3, batch_size=4, captions_per_video=1, checkpoint_every=1, data_config=DATA_CONFIG)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)

    def trained(name: str, *, resume: bool = False) -> dict[str, torch.Tensor]:
        model = made()
        run = {"out": tmp_path / name, "resume": resume, "progress": False, "accelerator": "cuda"}
        train(model, encode_dataset(model, clips, DATA_CONFIG), None, config, **run)
        return {n: p.detach().cpu() for n, p in model.branch.named_parameters()}

    whole = trained("whole")
    step, stops = Run.step, iter(range(3))

    def until(run: Run, work: TrainBatch) -> float:
        if next(stops, None) is None:
            raise KeyboardInterrupt
        return step(run, work)

    with monkeypatch.context() as patched:
        patched.setattr(Run, "step", until)
        with pytest.raises(KeyboardInterrupt):
            trained("resumed")
    resumed = trained("resumed", resume=True)
    assert all(torch.equal(w, resumed[n]) for n, w in whole.items())


def test_the_command_line_trains_from_a_cache_and_evaluates(clips, tmp_path, capsys):
    data, run = str(clips[0].path.parent), str(tmp_path / "run")
    made_of = ["--model", "clipvid-mini", "--depth", "1", "--data_config.frames", "4"]
    trained = ["--epochs", "1", "--batch_size", "4", "--cache", str(tmp_path / "taps"), "--out", run]
    assert main(["train", data, "--device", "cuda", *made_of, *trained]) == 0
    assert main(["eval", data, "--device", "cuda", "--model", f"{run}/best", "--profile", "true"]) == 0
    assert "tower" in capsys.readouterr().out
    model = load(f"{run}/best", device="cuda")
    assert model.device.type == "cuda"
    figures = [evaluate_retrieval(load(f"{run}/best", device=d), clips, DATA_CONFIG)["R@1"] for d in ("cuda", "cpu")]
    assert abs(figures[0] - figures[1]) <= 12.5  # one caption of eight


def test_windows_are_those_of_a_cpu(clips):
    found = []
    for device in (torch.device("cpu"), GPU):
        model = made(device=device)
        windows = encode_windows(model, clips[0].path, window=4, stride=2, precision="32-true")
        found.append(torch.cat([w.video.cpu() for w in windows]))
    close(found[1], found[0], 1e-4)


def test_an_index_finds_what_it_finds_on_a_cpu(clips):
    pytest.importorskip("faiss")
    found = []
    for device in (torch.device("cpu"), GPU):
        index = VideoIndex.build(made(device=device), [record.path for record in clips], frames=4, progress=False)
        found.append([hit.score for hit in index.search("a red circle moving left", k=3)])
    assert found[1] == pytest.approx(found[0], abs=0.02)


def test_a_profile_tells_the_stages_apart(clips):
    model = made()
    with profiled() as profile:
        embed_videos(model, clips, DATA_CONFIG)
    assert {"tower", "branch", "waiting for data"} <= profile.seconds.keys()


def test_a_compiled_branch_learns_the_same():
    """In a process of its own: the shape checks of the tests cannot be traced."""
    script = Path(__file__).parent / "compiled.py"
    done = subprocess.run([sys.executable, str(script), "gpu"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
