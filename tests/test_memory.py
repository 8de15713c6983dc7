"""Memory for time: chunks of a batch and recomputed layers give the gradients of what keeps everything."""

import copy
import weakref
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from clipvid.config.data_config import DataConfig
from clipvid.config.settings import TrainConfig
from clipvid.data.records import Record, VideoDataset
from clipvid.features.memory import encode_dataset
from clipvid.features.tap_store import TapStore
from clipvid.models.backbone.text import TextTokens
from clipvid.models.factory import attach, create_model
from clipvid.models.video_clip import VideoCLIP
from clipvid.training import objectives
from clipvid.training.batches import open_batches
from clipvid.training.loop import train
from clipvid.training.objectives import Retrieval
from clipvid.training.train_batch import CachedClips, TrainBatch
from clipvid.training.trainer import Run

DATA_CONFIG = DataConfig(frames=3, batch_size=4, precision="32-true")
WORDS = ("a red circle moves", "a blue square", "a green star of many words", "a ring", "noise", "a dot", "bars")


@pytest.fixture(scope="module")
def base():
    return create_model("clipvid-mini", depth=1).backbone


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


def made(base, branch="stan", *, drop=0.0, similarity="mean", train_clip="none", **options) -> VideoCLIP:
    """A model in training mode whose branch says something, and whose layers are left out with probability `drop`."""
    torch.manual_seed(1)
    depth = {} if branch in ("mean", "posterior") else {"depth": 2}
    dropping = {"options": {"drop_path": drop, **options}} if depth else {}
    model = attach(base, branch, similarity=similarity, **depth, **dropping)
    for name, parameter in model.branch.named_parameters():
        if "gate" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    model.set_trainable(train_clip)
    return model.train()


def asked(**changes) -> TrainConfig:
    return replace(
        TrainConfig(epochs=1, batch_size=7, lr=1e-3, captions_per_video=0, data_config=DATA_CONFIG), **changes
    )


def first_batch(model, data, config) -> TrainBatch:
    return next(iter(open_batches(model, data, config, progress=False).batches(0, start=0)))


def gradients(model, data, config) -> dict[str, Tensor]:
    """Of every parameter that trains, for one batch: of TrainBatch, or of the first one of a data set."""
    objective = Retrieval(model, config)
    work = data if isinstance(data, TrainBatch) else first_batch(model, data, config)
    torch.manual_seed(2)
    objective(work).backward()
    trained = {name: p for name, p in objective.named_parameters() if p.requires_grad}
    found = {name: p.grad for name, p in trained.items() if p.grad is not None}
    for parameter in trained.values():
        parameter.grad = None
    return found


def largest(gradients: dict[str, Tensor]) -> float:
    return max(float(g.abs().max()) for g in gradients.values())


def apart(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    """Largest difference, relative to the largest entry of all."""
    assert got.keys() == wanted.keys()
    return largest({name: got[name] - g for name, g in wanted.items()}) / largest(wanted)


def apart_each(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    """Largest difference in a parameter, relative to that parameter's own largest entry (or 1e-3 of that of all)."""
    least = 1e-3 * largest(wanted)
    return max(largest({"": got[name] - g}) / max(least, largest({"": g})) for name, g in wanted.items())


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
def test_chunks_give_the_gradient_of_the_whole_batch(base, clips, case):
    """Two captions a clip, so that captions and clips are cut at different places; the temperature trains too.

    In float32 the whole batch's own rounding is up to 1e-4 of a parameter's largest entry; float64 tells each apart.
    """
    model, config = made(base, **CASES[case]), asked(learn_temperature=True)
    work = first_batch(model, clips, config)
    whole = gradients(model, work, config)
    assert {"log_scale"} < set(whole)
    assert CASES[case].get("train_clip", "none") == "none" or any("ln_final" in name for name in whole)
    assert apart(gradients(model, work, replace(config, micro_batch_size=3)), whole) < 1e-5
    exact = doubled(model)
    text = work.text.double() if work.text.is_floating_point() else work.text
    work = TrainBatch(
        0, model.transform(work.video).double(), mask=None, text=text, video_index=work.video_index, labels=work.labels
    )
    assert (
        apart_each(gradients(exact, work, replace(config, micro_batch_size=3)), gradients(exact, work, config)) < 1e-6
    )


def doubled(model: VideoCLIP) -> VideoCLIP:
    """A copy in float64."""
    return copy.deepcopy(model).double()


def test_from_stored_taps_too_of_which_a_chunk_alone_is_read_at_a_time(base, clips, monkeypatch):
    model = made(base)
    store = encode_dataset(model, clips, DATA_CONFIG)
    whole = gradients(model, store, asked())
    sizes: list[int] = []
    read = TapStore.batch
    monkeypatch.setattr(TapStore, "batch", lambda self, rows: sizes.append(len(rows)) or read(self, rows))
    assert apart(gradients(model, store, asked(micro_batch_size=3)), whole) < 1e-5
    assert sizes == [3, 3, 1, *sizes[3:]]
    assert sorted(sizes[3:]) == [1, 3, 3], "and once more, backwards"


def test_padding_frames_are_left_out_whichever_chunk_they_are_in(base):
    model = made(base)
    mask = torch.ones(5, 3, dtype=torch.bool)
    mask[4, 1:] = False
    video, text = torch.randint(0, 255, (5, 3, 3, 48, 48), dtype=torch.uint8), model.encode_text(list(WORDS[:5]))
    video_index = torch.arange(5)
    given = {"mask": mask, "text": text, "video_index": video_index, "labels": video_index}
    store = TapStore(model.taps(video, mask=mask), VideoDataset(()), DATA_CONFIG, "")
    sources = [(video, mask), (model.taps(video, mask=mask), None), (CachedClips(store, range(5), video.device), None)]
    whole = Retrieval(model, asked())(TrainBatch(0, video, **given))
    for source, own in sources:
        loss = Retrieval(model, asked(micro_batch_size=2))(TrainBatch(0, source, **{**given, "mask": own}))
        torch.testing.assert_close(loss, whole, atol=1e-5, rtol=0)
    unmasked = Retrieval(model, asked())(TrainBatch(0, video, **{**given, "mask": None}))
    assert float((unmasked - whole).detach().abs()) > 1e-4


@pytest.mark.parametrize("activation_checkpointing", [False, True])
def test_what_a_layer_leaves_out_at_random_it_leaves_out_again(base, clips, monkeypatch, activation_checkpointing):
    """Against the same chunks with everything kept: what chunks draw differs from what the whole batch would."""
    model = made(base, drop=0.5, train_clip="text")
    config = asked(micro_batch_size=2, learn_temperature=True)
    model.branch.set_activation_checkpointing(activation_checkpointing)
    got = gradients(model, clips, config)
    state = torch.get_rng_state()
    model.branch.set_activation_checkpointing(False)
    monkeypatch.setattr(objectives, "checkpointed", lambda run, *given: run(*given))
    kept = gradients(model, clips, config)
    assert torch.equal(torch.get_rng_state(), state), "the second pass leaves no trace in the generator"
    assert apart(got, kept) < 1e-5
    monkeypatch.setattr(torch, "manual_seed", lambda seed: torch.default_generator.manual_seed(seed + 1))
    assert apart(gradients(model, clips, config), kept) > 0.1, "chance matters here"


def test_chunks_add_their_gradients_up_in_float32_also_where_they_compute_in_bf16(base, clips):
    model = made(base)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        whole, got = (gradients(model, clips, asked(micro_batch_size=chunk)) for chunk in (0, 1))
    name = "model.branch.layers.1.block.mlp.0.weight"
    rounded = [float((g[name] == g[name].bfloat16()).float().mean()) for g in (whole, got)]
    assert rounded[0] == 1, "of a batch in one pass it comes in bf16"
    assert rounded[1] < 0.5


class Live(TorchDispatchMode):
    """Bytes of all tensors that were made within the block and are still held, and the most there were at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.held: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else (made,):
            if isinstance(tensor, Tensor) and (at := tensor.untyped_storage().data_ptr()) not in self.held:
                size = tensor.untyped_storage().nbytes()
                self.held.add(at)
                self.now += size
                self.peak = max(self.peak, self.now)
                weakref.finalize(tensor.untyped_storage(), self._freed, at, size)
        return made

    def _freed(self, at: int, size: int) -> None:
        self.held.discard(at)
        self.now -= size


def peak(model, store, *, size: int, chunk: int = 0) -> int:
    """Bytes that loss and gradient of so many stored clips need at once, their gradient among them."""
    config, places = asked(batch_size=size, micro_batch_size=chunk), list(range(size))
    video_index = torch.arange(size)
    clips = CachedClips(store, places, model.device)
    given = {"mask": None, "text": torch.eye(size, model.embed_dim), "video_index": video_index, "labels": video_index}
    with Live() as live:
        work = TrainBatch(0, clips if chunk else clips.gather(places), **given)
        Retrieval(model, config)(work).backward()
    model.zero_grad()
    return live.peak


@pytest.mark.parametrize("activation_checkpointing", [False, True])
def test_a_large_batch_in_chunks_needs_the_memory_of_a_chunk_and_of_its_embeddings(base, activation_checkpointing):
    """And the gradient of the weights, which is there while the second chunk and all further ones run."""
    model = made(base)
    video = torch.randint(0, 255, (24, 3, 3, 48, 48), dtype=torch.uint8)
    store = TapStore(model.taps(video), VideoDataset(()), DATA_CONFIG, "")
    model.branch.set_activation_checkpointing(activation_checkpointing)
    whole, small, large = (peak(model, store, size=size, chunk=chunk) for size, chunk in ((24, 0), (4, 0), (24, 4)))
    gradient = sum(p.nbytes for p in model.branch.parameters())
    embeddings = 24 * DATA_CONFIG.frames * model.embed_dim * 4
    assert large <= small + gradient + 4 * embeddings
    assert large < whole / (2 if activation_checkpointing else 3)


def test_recomputed_layers_keep_what_goes_into_them_alone(base):
    model = made(base)
    taps = model.taps(torch.randint(0, 255, (8, 3, 3, 48, 48), dtype=torch.uint8))
    store = TapStore(taps, VideoDataset(()), DATA_CONFIG, "")
    kept = peak(model, store, size=8)
    model.branch.set_activation_checkpointing(True)
    assert peak(model, store, size=8) < 0.7 * kept


def test_pixels_become_floats_a_chunk_at_a_time(base, clips, monkeypatch):
    model = made(base)
    sizes: list[int] = []
    prepare = VideoCLIP._prepared
    monkeypatch.setattr(VideoCLIP, "_prepared", lambda self, v, *a: sizes.append(len(v)) or prepare(self, v, *a))
    gradients(model, clips, asked(micro_batch_size=2))
    assert sorted(sizes) == [1, 1, 2, 2, 2, 2, 2, 2], "each clip passes twice"


def test_a_run_in_chunks_has_the_losses_of_one_without(base, clips):
    losses = []
    for chunk in (0, 2):
        model = made(base)
        config = asked(
            epochs=4, batch_size=4, warmup=0.0, micro_batch_size=chunk, learn_temperature=True, cache_taps=True
        )
        losses.append([entry["loss"] for entry in train(model, clips, None, config, progress=False).history])
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)  # four epochs let the order of sums grow
    assert losses[0][0] - losses[0][-1] > 0.1


def test_a_run_in_chunks_that_broke_off_ends_in_the_bits_of_one_that_did_not(base, clips, tmp_path, monkeypatch):
    config = asked(
        epochs=2,
        batch_size=3,
        micro_batch_size=2,
        activation_checkpointing=True,
        checkpoint_every=1,
        captions_per_video=1,
    )

    def run(out, *, resume=False):
        torch.manual_seed(5)
        model = made(base, drop=0.5)
        train(model, clips, None, config, out=out, resume=resume, progress=False)
        return {name: p.detach().clone() for name, p in model.branch.named_parameters()}

    whole = run(tmp_path / "whole")
    save = Run.save

    def save_and_break(self):
        save(self)
        if self.steps == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(Run, "save", save_and_break)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "broken")
    again = run(tmp_path / "broken", resume=True)
    assert all(torch.equal(again[name], value) for name, value in whole.items())


@pytest.mark.parametrize("branch", ["stan", "divided", "vivit3"])
def test_recomputed_layers_give_the_same_gradients_to_the_bit(base, clips, branch):
    model = made(base, branch, drop=0.5)
    kept = gradients(model, clips, asked())
    state = torch.get_rng_state()
    model.branch.set_activation_checkpointing(True)
    got = gradients(model, clips, asked())
    assert kept.keys() == got.keys()
    assert all(torch.equal(got[name], value) for name, value in kept.items())
    assert torch.equal(torch.get_rng_state(), state)


def test_recompute_is_switched_by_training_and_back(base, clips):
    model = made(base)
    train(model, clips, None, asked(activation_checkpointing=True), progress=False)
    assert model.branch.activation_checkpointing
    train(model, clips, None, asked(), progress=False)
    assert not model.branch.activation_checkpointing


def test_captions_of_unequal_length_are_filled_up_with_tokens_that_do_not_count():
    parts = [TextTokens(torch.randn(2, n, 4), torch.ones(2, n, dtype=torch.bool)) for n in (3, 5)]
    whole = TextTokens.joined(parts)
    assert whole.features.shape == (4, 5, 4)
    assert whole.mask.sum(dim=1).tolist() == [3, 3, 5, 5]
    assert torch.equal(whole[:2].shortened().features, parts[0].features)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"task": "recognition"}, "'recognition' is a mean over clips: lower batch_size and raise"),
        ({"task": "selfsup"}, "'selfsup' compares regions across the batch"),
        ({"batch_size": 2}, "micro_batch_size must be below batch_size 2, got 2; lower it, or give 0"),
        ({"micro_batch_size": -1}, "micro_batch_size must be an integer >= 0, got -1"),
    ],
)
def test_chunks_that_make_no_sense_are_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        TrainConfig(**{"micro_batch_size": 2, "batch_size": 4, **changes})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"micro_batch_size": 2},
            "compile and micro_batch_size do not go together: a compiled second pass draws other random numbers; drop",
        ),
        ({"activation_checkpointing": True}, "compile and activation_checkpointing do not go together"),
        ({"task": "selfsup"}, "selfsup runs the branch in parts, which compile does not fuse; leave out compile"),
    ],
)
def test_compiling_what_runs_twice_or_in_parts_is_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        TrainConfig(batch_size=4, compile=True, **changes)


def test_a_branch_without_layers_has_none_to_recompute(base, clips):
    with pytest.raises(ValueError, match="Posterior has none on the tower's tokens; leave it out, or choose a side"):
        train(made(base, "posterior"), clips, None, asked(activation_checkpointing=True), progress=False)
