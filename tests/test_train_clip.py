"""Training parts of CLIP: the mode selects them, clip_lr is their learning rate, and saved models include them."""

import copy
import json

import pytest
import tiny
import torch

from clipvid.config.data_config import DataConfig
from clipvid.config.settings import TrainConfig
from clipvid.data.records import Record, VideoDataset
from clipvid.errors import BackboneError, CheckpointError
from clipvid.features.embed import embed_videos
from clipvid.features.taps.memory import encode_dataset
from clipvid.models import factory
from clipvid.models.factory import attach, create_model
from clipvid.runtime.storage.archive import seal_archive
from clipvid.runtime.storage.manifest import seal
from clipvid.training.loop import train
from clipvid.training.optim import parameter_groups
from clipvid.training.trainer import Run

DATA_CONFIG = DataConfig(frames=2, batch_size=4, precision="32-true")
TEXT = ["a red circle moves up"]


@pytest.fixture(scope="module")
def clips(tmp_path_factory, write_video):
    import numpy as np

    folder = tmp_path_factory.mktemp("clips")
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 255, (4, 48, 48, 3), dtype=np.uint8) for _ in range(4)]
    names = ("a red circle", "a blue square", "a green star", "a pink ring")
    records = [Record(write_video(folder / f"{i}.mp4", f), (names[i],), i % 2) for i, f in enumerate(frames)]
    return VideoDataset(tuple(records), ("even", "odd"), "noise")


def make(branch="stan", *, depth=1, **options):
    return attach(tiny.backbone(), branch, branch_kwargs={"depth": depth}, **options)


def load(folder):
    return factory.load(folder, base=tiny.backbone())


@pytest.fixture
def model():
    return make()


def config(**changes):
    return TrainConfig(
        **{"epochs": 1, "batch_size": 4, "warmup": 0.0, "lr": 1e-3, "data_config": DATA_CONFIG, **changes}
    )


def clip_weights(model):
    return {name: p.detach().clone() for name, p in model.backbone.clip.named_parameters()}


def changed(model, before):
    return {name for name, p in model.backbone.clip.named_parameters() if not torch.equal(p, before[name])}


def visual(names):
    return {name for name in names if name.startswith("visual.")}


@pytest.mark.parametrize("mode", ["none", "text", "last:1", "all"])
def test_training_changes_exactly_the_weights_that_the_mode_names(model, clips, mode):
    before, _ = clip_weights(model), model.backbone.tower_fingerprint
    hashed = model.backbone._hashes._values["visual"]
    rate = {} if mode == "none" else {"clip_lr": 1e-3}
    train(model, clips, None, config(train_clip=mode, **rate), progress=False)
    moved = changed(model, before)
    everything = set(before) - {"logit_scale"}
    if mode == "none":
        assert not moved
        assert model.backbone._hashes._values["visual"] is hashed, "a frozen tower is not hashed again"
    elif mode == "text":
        assert moved
        assert not visual(moved)
    elif mode == "all":
        assert len(moved) > 0.9 * len(everything)
    else:
        blocks = {name for name in moved if ".resblocks." in name}
        assert blocks
        assert {name.split("resblocks.")[1].split(".")[0] for name in visual(blocks)} == {"2"}
        assert {name.split("resblocks.")[1].split(".")[0] for name in blocks - visual(blocks)} == {"0"}
        rest = {"visual.ln_post.weight", "visual.ln_post.bias", "visual.proj", "ln_final.weight", "ln_final.bias"}
        assert moved - blocks <= rest | {"text_projection"}
        assert "visual.proj" in moved
    assert not any(p.requires_grad for p in model.backbone.parameters()), "training leaves no parameter trainable"


def test_recognition_never_trains_the_text_tower(model, clips):
    before = clip_weights(model)
    train(model, clips, None, config(task="recognition", train_clip="all", clip_lr=1e-3), progress=False)
    assert changed(model, before) == visual(changed(model, before)) != set()
    with pytest.raises(ValueError, match="recognition trains no text, got train_clip='text'"):
        train(model, clips, None, config(task="recognition", train_clip="text"), progress=False)


def test_trained_clip_weights_are_saved_with_the_branch_and_loaded_back(model, clips, tmp_path):
    original = make()
    train(model, clips, None, config(train_clip="last:2", clip_lr=1e-3), progress=False)
    loaded = load(model.save(tmp_path / "m"))
    clip = torch.randint(0, 255, (1, 2, 3, 48, 48), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(loaded.encode_video(clip), model.encode_video(clip))
        assert torch.equal(loaded.encode_text(TEXT), model.encode_text(TEXT))
        assert not torch.equal(loaded.encode_text(TEXT), original.encode_text(TEXT))
    assert loaded.fingerprint == model.fingerprint != original.fingerprint
    assert loaded.backbone.fingerprint == original.backbone.fingerprint, (
        "the backbone keeps the fingerprint of its base"
    )
    again = load(loaded.save(tmp_path / "again"))
    assert again.fingerprint == model.fingerprint
    size_of_all = 4 * sum(p.numel() for p in model.parameters())
    assert (tmp_path / "m" / "branch.safetensors").stat().st_size < 0.9 * size_of_all, "frozen weights are not saved"


def test_clip_trains_at_a_separate_learning_rate(model):
    model.set_trainable("all")
    objective = torch.nn.Module()
    objective.model = model
    groups = parameter_groups(objective, config(train_clip="all", lr=1e-3, clip_lr=2e-6))
    peaks = {id(p): group["peak"] for group in groups for p in group["params"]}
    assert {peaks[id(p)] for p in model.backbone.parameters() if p.requires_grad} == {2e-6}
    assert peaks[id(model.branch.fusion.gate.weight)] == 1e-3
    assert peaks[id(model.branch.layers[0].block.attention.qkv.weight)] == pytest.approx(1e-4)


def test_a_run_that_trains_clip_resumes_bit_for_bit(clips, tmp_path):
    torch.manual_seed(0)
    state = make().branch.state_dict()
    ends = []
    for out, stops in ((tmp_path / "a", (2,)), (tmp_path / "b", (1, 2))):
        for epochs in stops:
            model = make()
            model.branch.load_state_dict(state)
            settings = config(epochs=2, train_clip="all", clip_lr=1e-3)
            if epochs < 2:
                _interrupted(model, clips, settings, out)
            else:
                train(model, clips, None, settings, out=out, resume=len(stops) > 1, progress=False)
        ends.append({**clip_weights(model), **dict(model.branch.named_parameters())})
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


def _interrupted(model, clips, settings, out):
    """Train and stop after the first epoch, as Ctrl-C would."""
    end_epoch = Run.end_epoch

    def end_and_stop(self, val_data):
        end_epoch(self, val_data)
        raise KeyboardInterrupt

    Run.end_epoch = end_and_stop
    try:
        with pytest.raises(KeyboardInterrupt):
            train(model, clips, None, settings, out=out, progress=False)
    finally:
        Run.end_epoch = end_epoch


def test_cached_taps_are_refused_when_the_tower_trains(model, clips):
    store = encode_dataset(model, clips, DATA_CONFIG)
    with pytest.raises(ValueError, match="cached taps would be outdated"):
        train(model, store, None, config(train_clip="last:1"), progress=False)
    with pytest.raises(ValueError, match="whose taps cannot be cached"):
        config(train_clip="all", cache_taps=True)
    train(model, store, None, config(train_clip="text", cache_taps=True), progress=False)


def test_taps_of_another_tower_are_refused(model, clips):
    store = encode_dataset(model, clips, DATA_CONFIG)
    other = make()
    before = embed_videos(other, store).video
    train(other, clips, None, config(train_clip="last:1", clip_lr=1e-3), progress=False)
    assert other.backbone.fingerprint == model.backbone.fingerprint, "the base is the same, but its tower was trained"
    for read in (lambda: embed_videos(other, store), lambda: train(other, store, None, config(), progress=False)):
        with pytest.raises(ValueError, match=r"the taps of noise were made by a tower with fingerprint \w{12}, this"):
            read()
    assert not torch.equal(embed_videos(other, encode_dataset(other, clips, DATA_CONFIG)).video, before)


def test_the_summary_lists_what_trains_and_whether_taps_can_be_cached(model):
    branch = sum(p.numel() for p in model.branch.parameters())
    assert f"{branch:,} parameters: branch and heads" in str(model.trainable_summary())
    model.set_trainable("text")
    assert "branch and heads, text tower" in str(model.trainable_summary())
    assert "MiB in bf16" in str(model.trainable_summary())
    model.set_trainable("last:2")
    assert "cannot be cached: the visual tower trains" in str(model.trainable_summary())
    model.set_trainable("all")
    assert model.trainable_summary().trainable == branch + sum(
        p.numel() for n, p in model.backbone.clip.named_parameters() if n != "logit_scale"
    )


def test_info_needs_only_shapes_to_report_what_would_train(capsys):
    from clipvid.cli.main import main

    command = ["info", "ViT-B-32", "--branch", "divided", "--train-clip", "last:6"]
    assert main([*command, "--text-lora", "8"]) == 0
    output = capsys.readouterr().out
    assert "LoRA of rank 8 on the text tower" in output
    assert "reads:                     level 8, 7x7 patches, width 768" in output
    assert "keys per patch:            12 + 50" in output
    assert "visual tower (blocks 7 to 8 of 12)" in output


@pytest.mark.parametrize("mode", ["last:4", "all"])
@pytest.mark.parametrize(
    ("branch", "options"),
    [
        ("stan", {}),
        *((name, {"depth": 2}) for name in ("divided", "stan-release", "stan-paper", "bt-adapter")),
        ("space", {"stem": "frame"}),
    ],
)
def test_every_trainable_parameter_gets_a_gradient(branch, options, mode):
    model = create_model("clipvid-mini", branch=branch, branch_kwargs=options)
    if mode == "last:4" and branch == "space":
        with pytest.raises(ValueError, match="blocks of the visual tower that do not run"):
            model.set_trainable(mode, text=False)
        return
    model.set_trainable(mode, text=False)
    if branch != "space":
        named = model.backbone.clip.named_parameters(prefix="backbone.clip")
        trained = {name for name, p in named if p.requires_grad}
        assert all(name.startswith("backbone.clip.visual.") for name in trained)
    if branch == "stan":
        torch.nn.init.normal_(model.branch.fusion.gate.weight)
    model.encode_video(torch.randint(0, 255, (2, 2, 3, 48, 48), dtype=torch.uint8)).sum().backward()
    grads = {name: p.grad for name, p in model.backbone.clip.named_parameters() if p.requires_grad}
    assert bool(grads) is (branch != "space"), "a branch with its own stem runs no part of the tower"
    assert not [name for name, grad in grads.items() if grad is None]


@pytest.mark.parametrize("branch", ["stan-release", "bt-adapter"])
def test_the_published_fusion_shares_clips_norm_projection_and_tables_during_training(branch, clips, tmp_path):
    torch.manual_seed(0)
    model = make(branch, depth=2)
    visual, fusion, position = model.backbone.visual, model.branch.fusion.clip, model.branch.position.clip
    assert fusion.visual is position.visual is visual
    backbone_ids = {id(p) for p in model.backbone.parameters()}
    assert not [name for name, p in model.branch.named_parameters() if id(p) in backbone_ids], (
        "the branch must not register the weights that it shares"
    )
    copied = copy.deepcopy(model)
    assert copied.branch.fusion.clip.visual is copied.backbone.visual is not visual
    assert copy.deepcopy(model.branch).fusion.clip.visual is visual
    before = visual.proj.detach().clone()
    train(model, clips, None, config(train_clip="all", clip_lr=1e-3), progress=False)
    assert not torch.equal(visual.proj, before)
    loaded = load(model.save(tmp_path / "m"))
    assert loaded.branch.fusion.clip.visual is loaded.backbone.visual
    clip = torch.randint(0, 255, (1, 2, 3, 48, 48), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(loaded.encode_video(clip), model.encode_video(clip))


def test_a_trained_backbone_is_refused_as_the_base_of_another_model(model, clips, tmp_path):
    folder = model.save(tmp_path / "m")
    train(model, clips, None, config(train_clip="last:1", clip_lr=1e-3), progress=False)
    with pytest.raises(
        CheckpointError, match=r"changed since it was loaded: \d+ weights trained \(first .*newly loaded"
    ):
        factory.load(folder, base=model.backbone)
    again = factory.load(model.save(tmp_path / "n"), base=model.backbone)
    assert again.fingerprint == model.fingerprint, "the save records which weights were trained"


def test_trainable_weights_that_never_changed_count_as_untrained(model, clips, tmp_path):
    plain = model.save(tmp_path / "plain")
    model.set_trainable("last:1")
    model.set_trainable("none")
    assert not model.backbone.trained
    store = encode_dataset(model, clips, DATA_CONFIG)
    with pytest.raises(ValueError, match="cached taps would be outdated"):
        train(model, store, None, config(train_clip="last:1"), progress=False)
    assert not model.backbone.trained
    assert factory.load(plain, base=model.backbone).fingerprint == model.fingerprint
    model.set_trainable("last:1")
    with torch.no_grad():
        model.backbone.visual.proj.mul_(2)
    model.set_trainable("none")
    assert model.backbone.trained == {"visual.proj"}, "only weights that were written to count as trained"
    model.set_trainable("last:1")
    model.backbone.visual.ln_post.weight.data.mul_(2)  # some optimisers write like this, and torch does not count it
    model.set_trainable("none")
    assert model.backbone.trained == {"visual.proj", "visual.ln_post.weight"}


def test_a_model_loaded_onto_a_given_backbone_stays_on_its_device(model, tmp_path):
    folder = model.save(tmp_path / "m")
    model.backbone.to("meta")
    with pytest.warns(UserWarning, match="no-op"):  # loading into meta tensors does nothing
        loaded = factory.load(folder, base=model.backbone)  # the fingerprint was computed while there were weights
    assert str(model.backbone.device) == str(next(loaded.branch.parameters()).device) == "meta"


def test_a_checkpoint_keeps_the_loss_scale_of_half_precision(model, clips, tmp_path, monkeypatch):
    """Fabric offers 16-mixed on a GPU only; its precision plugin is called in the same way on both devices."""
    from lightning_fabric.plugins.precision import Precision

    restored: list[dict] = []
    monkeypatch.setattr(Precision, "state_dict", lambda _: {"scale": 3.0})
    monkeypatch.setattr(Precision, "load_state_dict", lambda _, state: restored.append(state))
    _interrupted(model, clips, config(epochs=2), tmp_path)
    train(make(), clips, None, config(epochs=2), out=tmp_path, resume=True)
    assert restored == [{"scale": 3.0}]


def test_a_run_resumes_only_with_the_clip_weights_that_it_started_with(clips, tmp_path):
    """An earlier run trained CLIP's text tower and this run freezes it, so the checkpoint cannot restore it."""
    torch.manual_seed(0)
    model = make()
    train(model, clips, None, config(train_clip="text", clip_lr=1e-3), progress=False)
    start = model.save(tmp_path / "started")
    settings = config(epochs=2)
    _interrupted(model, clips, settings, tmp_path / "run")
    torch.manual_seed(0)
    with pytest.raises(CheckpointError, match="whose frozen weights differ from earlier training"):
        train(make(), clips, None, settings, out=tmp_path / "run", resume=True)
    train(load(start), clips, None, settings, out=tmp_path / "run", resume=True, progress=False)


@pytest.mark.parametrize(
    ("task", "changes", "similarity"),
    [
        ("recognition", {"mixup": 0.3, "label_smoothing": 0.1}, "mean"),
        ("retrieval", {"text_lora": 2}, "mean"),
        ("retrieval", {"train_clip": "text", "clip_lr": 1e-3}, "wti"),
    ],
)
def test_runs_of_every_kind_resume_bit_for_bit(clips, tmp_path, task, changes, similarity):
    ends = []
    for out, stops in ((tmp_path / "a", (2,)), (tmp_path / "b", (1, 2))):
        for epochs in stops:
            torch.manual_seed(0)
            model = make(similarity=similarity)
            settings = config(task=task, epochs=2, batch_size=2, **changes)
            if epochs < 2:
                _interrupted(model, clips, settings, out)
            else:
                train(model, clips, None, settings, out=out, resume=len(stops) > 1, progress=False)
        ends.append({name: p.detach().clone() for name, p in model.named_parameters()})
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


def test_more_last_blocks_than_the_tower_has_are_refused(model):
    with pytest.raises(ValueError, match="the visual tower has 3 blocks, mode 'last:99' asks for 99"):
        model.set_trainable("last:99")


def test_unknown_modes_and_last_blocks_of_a_resnet_are_refused(model):
    with pytest.raises(ValueError, match="mode must be none, text, all, or last:N with N >= 1, got 'half'; it names"):
        model.set_trainable("half")
    with pytest.raises(ValueError, match=r"mode must be .*, got 'last:N'"):
        model.set_trainable("last:N")
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    text = CLIPTextCfg(context_length=12, vocab_size=99, width=16, heads=2, layers=1)
    resnet = CLIP(16, CLIPVisionCfg(layers=[1, 1, 1, 1], width=16, image_size=64), text)
    with pytest.raises(BackboneError, match="so no last 1; choose all"):
        attach(resnet, "posterior").set_trainable("last:1")


def test_lora_changes_nothing_at_first_then_trains_alone_and_is_loaded_back(model, clips, tmp_path):
    pytest.importorskip("peft")
    with torch.no_grad():
        before = model.encode_text(TEXT)
    model.set_trainable(text_lora=4)
    with torch.no_grad():
        torch.testing.assert_close(model.encode_text(TEXT), before, atol=1e-6, rtol=0)
    assert {n for n, p in model.backbone.named_parameters() if p.requires_grad} == {
        n for n, _ in model.backbone.named_parameters() if "lora_" in n
    }
    assert "LoRA of rank 4 on the text tower" in str(model.trainable_summary())
    weights = clip_weights(model)
    for _ in range(2):  # at the first step only the half that starts at zero has a gradient
        train(model, clips, None, config(text_lora=4, lr=1e-2), progress=False)
    moved = changed(model, weights)
    assert moved
    assert all("lora_" in name for name in moved)
    loaded = load(model.save(tmp_path / "m"))
    with torch.no_grad():
        assert torch.equal(loaded.encode_text(TEXT), model.encode_text(TEXT))
        assert not torch.equal(loaded.encode_text(TEXT), before)
    assert loaded.fingerprint == model.fingerprint
    with pytest.raises(ValueError, match="rank must be 4, the rank of the existing LoRA, got 8"):
        loaded.set_trainable(text_lora=8)


def test_lora_after_the_text_tower_was_trained_is_refused(model):
    pytest.importorskip("peft")
    model.set_trainable("text")
    with pytest.raises(ValueError, match="the text tower was trained already"):
        model.set_trainable(text_lora=4)


def test_saved_weights_that_fit_no_parameter_are_refused(model, clips, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = model.save(tmp_path / "m")
    state = load_file(folder / "branch.safetensors")
    save_file({**state, "clip.visual.nonsense": torch.zeros(3)}, folder / "branch.safetensors")
    seal(folder)
    with pytest.raises(CheckpointError, match=r"no place for visual\.nonsense"):
        load(folder)


def test_set_trainable_says_which_parts_train_and_how_large_they_are(model):
    def size(*starts: str) -> int:
        return sum(p.numel() for n, p in model.named_parameters() if n.startswith(starts) and "logit_" not in n)

    summary = model.set_trainable("all")
    clip, tower = size("backbone.clip."), size("backbone.clip.visual.")
    assert summary.parts == {"branch": size("branch."), "visual tower": tower, "text tower": clip - tower}
    assert sum(summary.parts.values()) == sum(p.numel() for _, p in model.trainable_parameters())
    assert str(summary).startswith("all: branch (")
    assert str(model.set_trainable("text")).endswith(f"text tower ({clip - tower:,} parameters)")
    assert model.set_trainable().parts == {"branch": size("branch.")}


@pytest.mark.parametrize("name", ["visual.proj", "text_projection", "logit_scale"])
def test_clip_weights_that_were_set_to_train_by_hand_are_refused_by_name(model, clips, name):
    """The towers run without gradients unless set_trainable says otherwise, so these weights would never change."""
    model.set_trainable("text" if name == "visual.proj" else "none")
    model.backbone.clip.get_parameter(name).requires_grad_(True)
    for read in (
        model.trainable_parameters,
        model.trainable_summary,
        lambda: train(model, clips, None, config(), progress=False),
    ):
        with pytest.raises(ValueError, match=rf"got requires_grad on {name} \(1 in all\); call model.set_trainable"):
            read()
    model.set_trainable("none")
    assert all(n.startswith("branch.") for n, _ in model.trainable_parameters())


def test_training_records_of_older_models_get_todays_setting_names(model, tmp_path):
    model.training_record = {"task": "retrieval", "freeze": "visual"}
    assert load(model.save(tmp_path / "m")).training_record == {"task": "retrieval", "train_clip": "text"}


def test_a_checkpoint_with_the_old_setting_is_refused_by_name(model, clips, tmp_path):
    _interrupted(model, clips, config(epochs=2), tmp_path)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    settings = json.loads(state["config"])
    settings["freeze"] = {"none": "all"}[settings.pop("train_clip")]
    torch.save({**state, "config": json.dumps(settings)}, tmp_path / "checkpoint.pt")
    seal_archive(tmp_path / "checkpoint.pt")
    with pytest.raises(CheckpointError, match=r"another config .*freeze: all saved"):
        train(model, clips, None, config(epochs=2), out=tmp_path, resume=True, progress=False)


def test_training_leaves_the_model_in_eval_mode_even_when_interrupted(model, clips, tmp_path):
    _interrupted(model, clips, config(epochs=2), tmp_path)
    assert not any(part.training for part in model.modules())
    train(model, clips, None, config(epochs=2), out=tmp_path, resume=True, progress=False)
    assert not any(part.training for part in model.modules())


@pytest.mark.parametrize("fingerprint_first", [True, False])
def test_weights_of_clip_from_load_state_dict_are_saved_and_change_the_fingerprint(model, tmp_path, fingerprint_first):
    trained, target = copy.deepcopy(model), copy.deepcopy(model)
    trained.set_trainable("last:1")
    with torch.no_grad():
        for _, weight in trained.trainable_parameters():
            weight.add_(0.01)
    original = target.fingerprint if fingerprint_first else model.fingerprint
    target.load_state_dict(trained.state_dict())
    assert target.fingerprint == trained.fingerprint != original
    again = load(target.save(tmp_path / "model"))
    assert again.fingerprint == target.fingerprint
    assert again.backbone.tower_fingerprint == trained.backbone.tower_fingerprint
    assert again.backbone.text_fingerprint == trained.backbone.text_fingerprint


def test_load_state_dict_with_equal_weights_of_clip_counts_none_as_trained(model):
    target = copy.deepcopy(model)
    target.load_state_dict(model.state_dict())
    assert not target.backbone.trained
