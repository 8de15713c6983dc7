"""Gradient caching and activation checkpointing: less memory, and the gradients of one pass that stores everything."""

import copy
import weakref
from dataclasses import replace

import pytest
import tiny
import torch
from torch import Tensor
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

from clipvid.config.data_config import DataConfig
from clipvid.config.settings import TrainConfig
from clipvid.data.records import Record, VideoDataset
from clipvid.features.source import CachedClips
from clipvid.features.taps.memory import encode_dataset
from clipvid.features.taps.tap_store import TapStore
from clipvid.models.backbone import trainable
from clipvid.models.backbone.backbone import Backbone
from clipvid.models.backbone.text import TextTokens
from clipvid.models.factory import attach
from clipvid.models.video_clip import VideoCLIP
from clipvid.training import objectives
from clipvid.training.batches import open_batches
from clipvid.training.loop import train
from clipvid.training.objectives import Retrieval
from clipvid.training.train_batch import TrainBatch
from clipvid.training.trainer import Run

DATA_CONFIG = DataConfig(frames=3, batch_size=4, precision="32-true")
WORDS = ("a red circle moves", "a blue square", "a green star of many words", "a ring", "noise", "a dot", "bars")


@pytest.fixture(scope="module")
def base() -> Backbone:
    return tiny.backbone()


@pytest.fixture(scope="module")
def clips(tmp_path_factory, write_video) -> VideoDataset:
    """Seven short videos of noise with two captions each."""
    import numpy as np

    folder, rng = tmp_path_factory.mktemp("clips"), np.random.default_rng(0)
    records = []
    for i in range(7):
        path = write_video(folder / f"{i}.mp4", rng.integers(0, 255, (4, 48, 48, 3), dtype=np.uint8))
        records.append(Record(path, (WORDS[i], f"{WORDS[i]} again"), i % 2))
    return VideoDataset(tuple(records), ("even", "odd"), "noise")


def make_model(base, branch="stan", *, drop=0.0, similarity="mean", train_clip="none", **options) -> VideoCLIP:
    """Return a model in training mode whose gates are not zero and whose layers are dropped with probability `drop`."""
    torch.manual_seed(1)
    changes = {} if branch in ("mean", "posterior") else {"depth": 2, "drop_path": drop, **options}
    model = attach(base, branch, similarity=similarity, branch_kwargs=changes)
    for name, parameter in model.branch.named_parameters():
        if "gate" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    model.set_trainable(train_clip)
    return model.train()


def settings(**changes) -> TrainConfig:
    return replace(
        TrainConfig(epochs=1, batch_size=7, lr=1e-3, captions_per_video=0, data_config=DATA_CONFIG), **changes
    )


def first_batch(model, data, config) -> TrainBatch:
    return next(iter(open_batches(model, data, config, progress=False).batches(0, start=0)))


def gradients(model, data, config) -> dict[str, Tensor]:
    """Return the gradients of every trainable parameter for one TrainBatch, or for the first batch of a data set."""
    objective = Retrieval(model, config)
    batch = data if isinstance(data, TrainBatch) else first_batch(model, data, config)
    torch.manual_seed(2)
    objective(batch).backward()
    trained = {name: p for name, p in objective.named_parameters() if p.requires_grad}
    grads = {name: p.grad for name, p in trained.items() if p.grad is not None}
    for parameter in trained.values():
        parameter.grad = None
    return grads


def largest(gradients: dict[str, Tensor]) -> float:
    return max(float(g.abs().max()) for g in gradients.values())


def difference(got: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Return the largest difference, relative to the largest gradient entry of all."""
    assert got.keys() == expected.keys()
    return largest({name: got[name] - g for name, g in expected.items()}) / largest(expected)


def difference_by_parameter(got: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Return the largest difference, relative to the parameter's largest entry, but at least 1e-3 of that of all."""
    least = 1e-3 * largest(expected)
    return max(largest({"": got[name] - g}) / max(least, largest({"": g})) for name, g in expected.items())


CASES = {
    "stan": {},
    "text tower": {"train_clip": "text"},
    "both towers": {"train_clip": "all"},
    "wti": {"similarity": "wti", "train_clip": "text"},
    "mug": {"similarity": "mug", "train_clip": "text"},
    "posterior": {"branch": "posterior"},
    "divided": {"branch": "divided"},
}


@pytest.mark.parametrize("case", CASES)
def test_micro_batches_give_the_gradient_of_the_full_batch(base, clips, case):
    """Each clip has two captions, so captions and clips are split at different rows; the temperature trains too.

    In float32 the rounding of the full batch is up to 1e-4 of a parameter's largest entry; float64 resolves each one.
    """
    model, config = make_model(base, **CASES[case]), settings(learn_temperature=True)
    batch = first_batch(model, clips.subset(range(5)), config)
    model_float64 = doubled(model)
    text = batch.text.double() if batch.text.is_floating_point() else batch.text
    batch = TrainBatch(
        0,
        model.transform(batch.video).double(),
        mask=None,
        text=text,
        video_index=batch.video_index,
        labels=batch.labels,
    )
    expected = gradients(model_float64, batch, config)
    assert {"log_scale"} < set(expected)
    assert CASES[case].get("train_clip", "none") == "none" or any("ln_final" in name for name in expected)
    got = gradients(model_float64, batch, replace(config, micro_batch_size=3))
    assert got.keys() == expected.keys()
    assert difference_by_parameter(got, expected) < 1e-6


def doubled(model: VideoCLIP) -> VideoCLIP:
    """Return a copy of the model in float64."""
    return copy.deepcopy(model).double()


def test_micro_batches_of_cached_taps_are_read_one_at_a_time_and_give_the_same_gradient(base, clips, monkeypatch):
    model = make_model(base)
    store = encode_dataset(model, clips, DATA_CONFIG)
    expected = gradients(model, store, settings())
    sizes: list[int] = []
    read = TapStore.batch
    monkeypatch.setattr(TapStore, "batch", lambda self, rows: sizes.append(len(rows)) or read(self, rows))
    assert difference(gradients(model, store, settings(micro_batch_size=3)), expected) < 1e-5
    assert sizes == [3, 3, 1, *sizes[3:]]
    assert sorted(sizes[3:]) == [1, 3, 3], "each is read once more for its backward pass"


def test_padding_frames_are_masked_in_every_micro_batch(base):
    model = make_model(base)
    mask = torch.ones(5, 3, dtype=torch.bool)
    mask[4, 1:] = False
    video, text = torch.randint(0, 255, (5, 3, 3, 48, 48), dtype=torch.uint8), model.encode_text(list(WORDS[:5]))
    video_index = torch.arange(5)
    fields = {"mask": mask, "text": text, "video_index": video_index, "labels": video_index}
    store = TapStore(model.taps(video, mask=mask), VideoDataset(()), DATA_CONFIG, "")
    sources = [(video, mask), (model.taps(video, mask=mask), None), (CachedClips(store, range(5), video.device), None)]
    expected = Retrieval(model, settings())(TrainBatch(0, video, **fields))
    for source, source_mask in sources:
        loss = Retrieval(model, settings(micro_batch_size=2))(TrainBatch(0, source, **{**fields, "mask": source_mask}))
        torch.testing.assert_close(loss, expected, atol=1e-5, rtol=0)
    unmasked = Retrieval(model, settings())(TrainBatch(0, video, **{**fields, "mask": None}))
    assert float((unmasked - expected).detach().abs()) > 1e-4


@pytest.mark.parametrize("activation_checkpointing", [False, True])
def test_the_second_pass_drops_the_same_layers_as_the_first(base, clips, monkeypatch, activation_checkpointing):
    """The reference runs the same micro-batches without checkpointing, as the full batch would draw other numbers."""
    model, clips = make_model(base, drop=0.5, train_clip="text"), clips.subset(range(4))
    config = settings(micro_batch_size=2, learn_temperature=True)
    model.branch.set_activation_checkpointing(activation_checkpointing)
    checkpointed = gradients(model, clips, config)
    state = torch.get_rng_state()
    model.branch.set_activation_checkpointing(False)
    monkeypatch.setattr(objectives, "checkpointed", lambda run, *args: run(*args))
    stored = gradients(model, clips, config)
    assert torch.equal(torch.get_rng_state(), state), "the second pass must restore the generator"
    assert difference(checkpointed, stored) < 1e-5
    monkeypatch.setattr(torch, "manual_seed", lambda seed: torch.default_generator.manual_seed(seed + 1))
    assert difference(gradients(model, clips, config), stored) > 0.1, "another seed must change the gradients"


def test_gradients_of_micro_batches_are_summed_in_float32_even_under_bf16_autocast(base, clips):
    model = make_model(base)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        full, summed = (gradients(model, clips.subset(range(4)), settings(micro_batch_size=size)) for size in (0, 1))
    name = "model.branch.layers.1.block.mlp.0.weight"
    rounded = [float((g[name] == g[name].bfloat16()).float().mean()) for g in (full, summed)]
    assert rounded[0] == 1, "one pass over the batch gives a bf16 gradient"
    assert rounded[1] < 0.5


class Live(TorchDispatchMode):
    """Counter of the bytes of live tensors made within the block (`now`), and of their maximum (`peak`)."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.held: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor) and (address := tensor.untyped_storage().data_ptr()) not in self.held:
                size = tensor.untyped_storage().nbytes()
                self.held.add(address)
                self.now += size
                self.peak = max(self.peak, self.now)
                weakref.finalize(tensor.untyped_storage(), self._freed, address, size)
        return result

    def _freed(self, address: int, size: int) -> None:
        self.held.discard(address)
        self.now -= size


def peak(model, store, *, size: int, micro_batch_size: int = 0) -> int:
    """Return the peak bytes of loss and gradient for `size` cached clips, including the gradient itself."""
    config, rows = settings(batch_size=size, micro_batch_size=micro_batch_size), list(range(size))
    video_index = torch.arange(size)
    clips = CachedClips(store, rows, model.device)
    fields = {"mask": None, "text": torch.eye(size, model.embed_dim), "video_index": video_index, "labels": video_index}
    with Live() as live:
        batch = TrainBatch(0, clips if micro_batch_size else clips.gather(rows), **fields)
        Retrieval(model, config)(batch).backward()
    model.zero_grad()
    return live.peak


@pytest.mark.parametrize("activation_checkpointing", [False, True])
def test_a_large_batch_needs_the_memory_of_a_micro_batch_and_of_its_embeddings(base, activation_checkpointing):
    """The gradient of the weights counts too: it exists while the second and all further micro-batches run."""
    model = make_model(base)
    video = torch.randint(0, 255, (24, 3, 3, 48, 48), dtype=torch.uint8)
    store = TapStore(model.taps(video), VideoDataset(()), DATA_CONFIG, "")
    model.branch.set_activation_checkpointing(activation_checkpointing)
    full, small, large = (
        peak(model, store, size=size, micro_batch_size=micro_batch_size)
        for size, micro_batch_size in ((24, 0), (4, 0), (24, 4))
    )
    gradient = sum(p.nbytes for p in model.branch.parameters())
    embeddings = 24 * DATA_CONFIG.frames * model.embed_dim * 4
    assert large <= small + gradient + 4 * embeddings
    assert large < full / (2 if activation_checkpointing else 3)


def test_checkpointed_layers_store_their_inputs_alone(tiny_clip):
    model = make_model(Backbone(tiny_clip))
    taps = model.taps(torch.randint(0, 255, (8, 3, 3, 48, 48), dtype=torch.uint8))
    store = TapStore(taps, VideoDataset(()), DATA_CONFIG, "")
    plain = peak(model, store, size=8)
    model.branch.set_activation_checkpointing(True)
    assert peak(model, store, size=8) < 0.7 * plain


def test_pixels_are_converted_to_floats_one_micro_batch_at_a_time(base, clips, monkeypatch):
    model = make_model(base)
    sizes: list[int] = []
    prepare = VideoCLIP._prepared
    monkeypatch.setattr(VideoCLIP, "_prepared", lambda self, v, *a: sizes.append(len(v)) or prepare(self, v, *a))
    gradients(model, clips, settings(micro_batch_size=2))
    assert sorted(sizes) == [1, 1, 2, 2, 2, 2, 2, 2], "each clip is encoded twice"


def test_a_run_in_micro_batches_has_the_losses_of_a_run_without(base, clips):
    losses = []
    for micro_batch_size in (0, 2):
        model = make_model(base)
        config = settings(
            epochs=4,
            batch_size=4,
            warmup=0.0,
            micro_batch_size=micro_batch_size,
            learn_temperature=True,
            cache_taps=True,
        )
        losses.append([entry["loss"] for entry in train(model, clips, None, config, progress=False).history])
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)  # rounding of the sums grows over four epochs
    assert losses[0][0] - losses[0][-1] > 0.1


def test_an_interrupted_run_in_micro_batches_resumes_to_bit_equal_weights(base, clips, tmp_path, monkeypatch):
    config = settings(
        epochs=2,
        batch_size=3,
        micro_batch_size=2,
        activation_checkpointing=True,
        captions_per_video=1,
    )

    def run(out, *, config=config, resume=False):
        torch.manual_seed(5)
        model = make_model(base, drop=0.5)
        train(model, clips, None, config, out=out, resume=resume, progress=False)
        return {name: p.detach().clone() for name, p in model.branch.named_parameters()}

    expected = run(tmp_path / "uninterrupted")
    save = Run.save

    def save_and_interrupt(self):
        save(self)
        if self.steps == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Run, "save", save_and_interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "interrupted", config=replace(config, checkpoint_every=1))
    resumed = run(tmp_path / "interrupted", resume=True)
    assert all(torch.equal(resumed[name], value) for name, value in expected.items())


@pytest.mark.parametrize("branch", ["stan", "divided", "vivit3"])
def test_checkpointed_layers_give_bit_equal_gradients(base, clips, branch):
    model = make_model(base, branch, drop=0.5)
    plain = gradients(model, clips, settings())
    state = torch.get_rng_state()
    model.branch.set_activation_checkpointing(True)
    checkpointed = gradients(model, clips, settings())
    assert plain.keys() == checkpointed.keys()
    assert all(torch.equal(checkpointed[name], value) for name, value in plain.items())
    assert torch.equal(torch.get_rng_state(), state)


def test_train_switches_activation_checkpointing_on_and_off(base, clips):
    model = make_model(base)
    train(model, clips, None, settings(activation_checkpointing=True), progress=False)
    assert model.branch.activation_checkpointing
    train(model, clips, None, settings(), progress=False)
    assert not model.branch.activation_checkpointing


def timm_base() -> Backbone:
    """Return a CLIP whose visual tower is timm's ViT."""
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    torch.manual_seed(0)
    vision = CLIPVisionCfg(timm_model_name="test_vit", timm_pool="", timm_proj="linear", image_size=32)
    text = CLIPTextCfg(context_length=12, vocab_size=99, width=32, heads=4, layers=2)
    return Backbone(CLIP(embed_dim=16, vision_cfg=vision, text_cfg=text).eval(), tokenizer=tiny.Tokenizer())


def step_of(
    base, *, branch: str, train_clip: str, on: bool, precision: torch.dtype
) -> tuple[dict[str, Tensor], int, int]:
    """Return the gradients of one step, the number of passes through modules, and the peak of the step's bytes."""
    model = make_model(base, branch, train_clip=train_clip)
    trainable.set_activation_checkpointing(model.backbone, on=on)
    video = torch.randint(0, 255, (6, 3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    rows, passes = torch.arange(6), []
    handle = register_module_forward_pre_hook(lambda module, _: passes.append(module))
    with Live() as live, torch.autocast("cpu", dtype=precision, enabled=precision != torch.float32):
        text = model.backbone.tokenize(WORDS[:6])
        batch = TrainBatch(0, video, mask=None, text=text, video_index=rows, labels=rows)
        grads = gradients(model, batch, settings())
    handle.remove()
    return grads, len(passes), live.peak


@pytest.mark.parametrize(
    ("tower", "branch", "train_clip", "precision"),
    [
        ("open_clip", "stan", "all", torch.float32),
        ("open_clip", "posterior", "last:3", torch.float32),
        ("open_clip", "mean", "text", torch.float32),
        ("open_clip", "posterior", "all", torch.bfloat16),
        ("timm", "posterior", "all", torch.float32),
    ],
)
def test_checkpointed_blocks_of_clip_give_bit_equal_gradients_in_less_memory(
    base, tower, branch, train_clip, precision
):
    base = base if tower == "open_clip" else timm_base()
    setting = {"branch": branch, "train_clip": train_clip, "precision": precision}
    fingerprint = base.tower_fingerprint
    plain, passes, stored = step_of(base, on=False, **setting)
    checkpointed, more_passes, less = step_of(base, on=True, **setting)
    assert plain.keys() == checkpointed.keys()
    assert any("backbone" in name for name in plain)
    assert all(torch.equal(checkpointed[name], value) for name, value in plain.items())
    assert more_passes > passes
    assert train_clip == "text" or less < 0.9 * stored, "the text tower has two small blocks, less than its gradient"
    assert base.tower_fingerprint == fingerprint


def test_train_checkpoints_the_towers_that_train_and_switches_that_off(clips, monkeypatch):
    base, step = tiny.backbone(), Run.step
    switched: list[bool] = []

    def watched_step(run, batch):
        switched.append(base.visual.transformer.grad_checkpointing)
        return step(run, batch)

    monkeypatch.setattr(Run, "step", watched_step)
    config = settings(train_clip="all", activation_checkpointing=True)
    train(make_model(base, "posterior"), clips, None, config, progress=False)
    train(make_model(base, "posterior"), clips, None, settings(train_clip="all"), progress=False)
    assert switched == [True, False]
    assert not base.visual.transformer.grad_checkpointing
    assert not base.clip.transformer.grad_checkpointing


def test_captions_of_unequal_length_are_padded_with_masked_tokens():
    parts = [TextTokens(torch.randn(2, n, 4), torch.ones(2, n, dtype=torch.bool)) for n in (3, 5)]
    joined_tokens = TextTokens.joined(parts)
    assert joined_tokens.features.shape == (4, 5, 4)
    assert joined_tokens.mask.sum(dim=1).tolist() == [3, 3, 5, 5]
    assert torch.equal(joined_tokens[:2].shortened().features, parts[0].features)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "recognition"}, "'recognition' is a mean over clips: lower batch_size and raise"),
        ({"task": "selfsup"}, "'selfsup' compares regions across the batch"),
        ({"batch_size": 2}, "micro_batch_size must be below batch_size 2, got 2; lower it, or give 0"),
        ({"micro_batch_size": -1}, "micro_batch_size must be an integer >= 0, got -1"),
    ],
)
def test_invalid_micro_batch_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**{"micro_batch_size": 2, "batch_size": 4, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"micro_batch_size": 2},
            "compile and micro_batch_size do not go together: a compiled second pass draws other random numbers; drop",
        ),
        ({"activation_checkpointing": True}, "compile and activation_checkpointing do not go together"),
        ({"task": "selfsup"}, "selfsup runs the branch in parts, which compile does not fuse; leave out compile"),
    ],
)
def test_compiling_a_branch_that_runs_twice_or_in_parts_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(batch_size=4, compile=True, **changes)


def test_activation_checkpointing_of_a_branch_without_layers_is_refused(base, clips):
    with pytest.raises(ValueError, match="Posterior has none on the tower's tokens; leave it out, or choose a side"):
        train(make_model(base, "posterior"), clips, None, settings(activation_checkpointing=True), progress=False)
