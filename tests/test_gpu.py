"""GPU results equal those of a CPU: every branch, cached taps, gradients, and runs that resume bit for bit.

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
from clipvid.features.embed import embed_texts, embed_videos
from clipvid.features.tap_cache import TapCache
from clipvid.features.taps import transfer
from clipvid.features.taps.memory import encode_dataset
from clipvid.models.factory import attach, load
from clipvid.models.sliding_window import encode_windows
from clipvid.models.video_clip import VideoCLIP
from clipvid.nn.attention import attend, by_products
from clipvid.registry import BRANCHES
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
STRUCTURES = [("stan", {"mixer": mixer}) for mixer in MIXERS] + [(name, {}) for name in BRANCHES if name != "stan"]
DATA_CONFIG = DataConfig(frames=4, batch_size=4)


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> VideoDataset:
    return motion_shapes.write_dataset(tmp_path_factory.mktemp("shapes"), "train", 8)


@pytest.fixture(autouse=True)
def _plain_float32():
    """Switch off TF32, as its rounding would hide differences."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def perturbed_model(branch: str = "stan", device: torch.device = GPU, **options) -> VideoCLIP:
    """Return a model with noise in its branch, so that the branch affects the output; the same on every device."""
    torch.manual_seed(0)
    depth = {} if branch in ("mean", "posterior") else {"depth": 2}
    model = attach(load_backbone(), branch, branch_kwargs={**depth, **options})
    with torch.no_grad():
        for p in model.branch.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return model.to(device).eval()


def some_video(model: VideoCLIP, frames: int = 4) -> torch.Tensor:
    """Return clips of the model's input size, as devices round a resized picture differently by a grey level."""
    return torch.randint(0, 255, (3, frames, 3, *model.transform.target), dtype=torch.uint8)


def close(actual: torch.Tensor, expected: torch.Tensor, share: float) -> None:
    """Check that tensors differ by no more than this share of the largest expected entry."""
    actual, expected = actual.float().cpu(), expected.float().cpu()
    assert (actual - expected).abs().max() <= share * expected.abs().max()


@pytest.mark.parametrize(("branch", "options"), STRUCTURES)
def test_every_branch_computes_the_same_as_on_a_cpu(branch, options):
    """Compare embeddings and gradients, with padding frames, in float32."""
    results = {}
    for device in (torch.device("cpu"), GPU):
        model = perturbed_model(branch, device, **options)
        mask = torch.tensor([[True] * 4, [True, True, True, False], [True, True, False, False]])
        embeddings = model.encode_video(some_video(model), mask=mask, normalize=False)
        learning = [p for p in model.branch.parameters() if p.requires_grad]
        grads = torch.autograd.grad(embeddings.square().sum(), learning, allow_unused=True) if learning else ()
        results[device.type] = embeddings.detach(), grads
    close(results["cuda"][0], results["cpu"][0], 1e-4)
    assert any(g is not None for g in results["cpu"][1]) or branch == "mean"
    largest = max((float(g.abs().max()) for g in results["cpu"][1] if g is not None), default=0.0)
    for actual, expected in zip(results["cuda"][1], results["cpu"][1], strict=True):
        if expected is not None:
            assert (actual.cpu() - expected).abs().max() <= 2e-3 * max(float(expected.abs().max()), 1e-2 * largest)


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_a_bf16_pass_equals_autocasts_within_rounding_and_follows_every_write(activation):
    """Some writes are not counted by torch and lie where a CPU would not look; the first pass is in inference mode."""
    torch.manual_seed(0)
    vision = CLIPVisionCfg(layers=3, width=64, head_width=16, patch_size=8, image_size=32)
    text = CLIPTextCfg(context_length=12, vocab_size=99, width=32, heads=4, layers=1)
    clip = CLIP(embed_dim=16, vision_cfg=vision, text_cfg=text, quick_gelu=activation == "quick_gelu")
    model = attach(clip, "stan", branch_kwargs={"depth": 2}).to(GPU).eval()
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
def test_attention_equals_plain_products_forward_and_backward(tokens):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(4, 12, tokens, 64, generator=generator, dtype=torch.float64).cuda() for _ in range(3))
    expected = by_products(q, k, v, None)
    inputs = [x.bfloat16().requires_grad_() for x in (q, k, v)]
    exact = [x.clone().requires_grad_() for x in (q, k, v)]
    actual = attend(*inputs)
    close(actual, expected, 0.02)
    actual.float().square().sum().backward()
    by_products(*exact, None).square().sum().backward()
    for leaf, exact_leaf in zip(inputs, exact, strict=True):
        close(leaf.grad, exact_leaf.grad, 0.04)


@pytest.mark.parametrize("mode", ["taps", "first_layer"])
def test_cached_taps_equal_live_ones(clips, tmp_path, mode):
    """Mode `taps` gives equal bits; mode `first_layer` runs the last blocks again."""
    model = perturbed_model()
    live = embed_videos(model, clips, DATA_CONFIG).video
    cached = embed_videos(model, TapCache(tmp_path, mode=mode).store(model, clips, DATA_CONFIG)).video
    assert torch.equal(cached, live) if mode == "taps" else bool((cached - live).abs().max() < 1e-3 * live.abs().max())


def test_copies_to_the_gpu_are_asynchronous_and_readers_wait_for_them(clips):
    """Each copy arrives late, is read after the next one arrives, and its memory is released before that."""
    model = perturbed_model()
    in_gpu = encode_dataset(model, clips, DATA_CONFIG)
    store = replace(in_gpu, taps=in_gpu.taps.to("cpu"))
    copying, sums, expected = transfer._stream(model.device), [], []
    for rows in ([0, 1], [2, 3], [4, 5], [6, 7]):
        with torch.cuda.stream(copying):
            torch.cuda._sleep(50_000_000)
        taps = next(store.stream([rows])).features
        torch.cuda._sleep(200_000_000)
        sums.append(taps.frames.double().sum())
        expected.append(store.batch(rows).frames.double().sum())
        del taps
    torch.testing.assert_close(torch.stack(sums).cpu(), torch.stack(expected))


def test_cached_batches_bring_taps_from_the_cpu_to_the_gpu(clips):
    model = perturbed_model()
    store = encode_dataset(model, clips, DATA_CONFIG)
    config = TrainConfig(batch_size=2, captions_per_video=1, data_config=DATA_CONFIG)
    source = open_batches(model, replace(store, taps=store.taps.to("cpu")), config, progress=False)
    busy = torch.randn(2048, 2048, device=GPU)
    for epoch in range(4):
        for rows, batch in zip(source.order(epoch), source.batches(epoch, start=0), strict=True):
            for _ in range(20):
                busy = (busy @ busy).clamp_(-1, 1)
            assert batch.video.frames.is_cuda
            expected = store.taps.to("cpu").gather(rows)
            assert torch.equal(batch.video.frames.cpu(), expected.frames)
            assert all(torch.equal(a.cpu(), b) for a, b in zip(batch.video.patches, expected.patches, strict=True))


def test_micro_batches_and_activation_checkpointing_give_the_gradient_of_the_full_batch():
    """Use float64, where rounding hides nothing."""
    config = TrainConfig(batch_size=6, captions_per_video=1, data_config=replace(DATA_CONFIG, precision="32-true"))
    model = perturbed_model(drop_path=0.0).train()
    text = embed_texts(model, [f"a shape number {i}" for i in range(6)], precision="32-true").double().to(GPU)
    video = torch.randint(0, 255, (6, 4, 3, *model.backbone.image_size), dtype=torch.uint8)
    model, video = model.double(), model.transform(video.to(GPU)).double()
    batch = TrainBatch(0, video, mask=None, text=text, video_index=torch.arange(6, device=GPU), labels=torch.zeros(6))
    grads = {}
    for name, changes, checkpointed in (
        ("full", {}, False),
        ("micro-batches", {"micro_batch_size": 2}, False),
        ("checkpointed", {}, True),
    ):
        model.branch.set_activation_checkpointing(checkpointed)
        objective = Retrieval(model, replace(config, **changes))
        objective(batch).backward()
        grads[name] = {n: p.grad.clone() for n, p in model.branch.named_parameters() if p.grad is not None}
        model.zero_grad()
    largest = max(float(g.abs().max()) for g in grads["full"].values())
    for name in ("micro-batches", "checkpointed"):
        assert grads[name].keys() == grads["full"].keys()
        assert all((grads[name][n] - g).abs().max() < 1e-9 * largest for n, g in grads["full"].items()), name


def test_activation_checkpointing_repeats_the_random_numbers_of_the_first_pass():
    model = perturbed_model(drop_path=0.5).train()
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


def test_an_interrupted_run_resumes_bit_for_bit(clips, tmp_path, monkeypatch):
    """Stochastic depth takes its random numbers from the device, and the run stops in the middle of an epoch."""
    config = TrainConfig(epochs=3, batch_size=4, captions_per_video=1, checkpoint_every=1, data_config=DATA_CONFIG)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)

    def trained(name: str, *, resume: bool = False) -> dict[str, torch.Tensor]:
        model = perturbed_model()
        run = {"out": tmp_path / name, "resume": resume, "progress": False, "accelerator": "cuda"}
        train(model, encode_dataset(model, clips, DATA_CONFIG), None, config, **run)
        return {name: p.detach().cpu() for name, p in model.branch.named_parameters()}

    uninterrupted = trained("uninterrupted")
    step, stops = Run.step, iter(range(3))

    def until(run: Run, batch: TrainBatch) -> float:
        if next(stops, None) is None:
            raise KeyboardInterrupt
        return step(run, batch)

    with monkeypatch.context() as patched:
        patched.setattr(Run, "step", until)
        with pytest.raises(KeyboardInterrupt):
            trained("resumed")
    resumed = trained("resumed", resume=True)
    assert all(torch.equal(weight, resumed[name]) for name, weight in uninterrupted.items())


def test_the_command_line_trains_from_a_cache_and_evaluates(clips, tmp_path, capsys):
    data, run = str(clips[0].path.parent), str(tmp_path / "run")
    model_options = ["--model", "clipvid-mini", "--depth", "1", "--data-config.frames", "4"]
    train_options = ["--epochs", "1", "--batch-size", "4", "--cache", str(tmp_path / "taps"), "--out", run]
    assert main(["train", data, "--device", "cuda", *model_options, *train_options]) == 0
    assert main(["eval", data, "--device", "cuda", "--model", f"{run}/best", "--profile"]) == 0
    assert "tower" in capsys.readouterr().out
    model = load(f"{run}/best", device="cuda")
    assert model.device.type == "cuda"
    recalls = [evaluate_retrieval(load(f"{run}/best", device=d), clips, DATA_CONFIG)["R@1"] for d in ("cuda", "cpu")]
    assert abs(recalls[0] - recalls[1]) <= 12.5  # one caption of eight


def test_windows_equal_those_of_a_cpu(clips):
    embeddings = []
    for device in (torch.device("cpu"), GPU):
        model = perturbed_model(device=device)
        windows = encode_windows(model, clips[0].path, window=4, stride=2, precision="32-true")
        embeddings.append(torch.cat([w.video.cpu() for w in windows]))
    close(embeddings[1], embeddings[0], 1e-4)


def test_search_scores_equal_those_of_a_cpu(clips):
    pytest.importorskip("faiss")
    scores = []
    for device in (torch.device("cpu"), GPU):
        index = VideoIndex.build(perturbed_model(device=device), clips, DataConfig(frames=4), progress=False)
        scores.append([hit.score for hit in index.search("a red circle moving left", k=3)])
    assert scores[1] == pytest.approx(scores[0], abs=0.02)


def test_a_profile_tells_the_stages_apart(clips):
    model = perturbed_model()
    with profiled() as profile:
        embed_videos(model, clips, DATA_CONFIG)
    assert {"tower", "branch", "waiting for data"} <= profile.seconds.keys()


def test_a_compiled_branch_trains_the_same():
    """Run in a separate process, as torch cannot trace the shape checks of the tests."""
    script = Path(__file__).parent / "compiled.py"
    done = subprocess.run([sys.executable, str(script), "gpu"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
