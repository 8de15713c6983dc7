"""VideoCLIP: equals CLIP at step 0, never changes the frozen tower, saves and loads, and says how to fix errors."""

import copy
import json
import re
from concurrent.futures import ThreadPoolExecutor

import pytest
import timm
import torch
import torch.nn.functional as F
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from timm.models.convnext import ConvNeXt
from timm.models.eva import Eva
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from timm.models.vitamin import GeGluMlp

import clipvid
from clipvid.errors import BackboneError, CheckpointError
from clipvid.models.backbone import vit
from clipvid.models.backbone.backbone import Backbone
from clipvid.models.factory import attach, load
from clipvid.models.heads import LinearClassifier, TextClassifier
from clipvid.runtime.storage.manifest import seal
from clipvid.training.losses import classification, matching

VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 4, "num_classes": 0}
FAMILIES = {  # one tiny tower of each kind in open_clip
    "class token": lambda: {"layers": 4, "width": 32, "head_width": 8, "patch_size": 8, "image_size": 32},
    "class token, mean pooled": lambda: {
        "layers": 3,
        "width": 32,
        "head_width": 8,
        "patch_size": 8,
        "image_size": 32,
        "pool_type": "avg",
    },
    "class token, layer scale": lambda: {
        "layers": 3,
        "width": 32,
        "head_width": 8,
        "patch_size": 8,
        "image_size": 32,
        "ls_init_value": 0.1,
    },
    "attention pooled (SigLIP)": lambda: VisionTransformer(**VIT, class_token=False, global_pool="map"),
    "mean pooled": lambda: VisionTransformer(**VIT, class_token=False, global_pool="avg"),
    "class token (timm)": lambda: VisionTransformer(**VIT, class_token=True, global_pool="token"),
    "gated MLP (ViTamin)": lambda: VisionTransformer(**VIT, class_token=False, global_pool="avg", mlp_layer=GeGluMlp),
    "EVA, rotary": lambda: Eva(
        **VIT, global_pool="token", use_rot_pos_emb=True, swiglu_mlp=True, use_abs_pos_emb=False
    ),
    "EVA, post-norm": lambda: Eva(**VIT, global_pool="token", use_post_norm=True),
    "EVA, rotary, no class token": lambda: Eva(**VIT, global_pool="avg", class_token=False, use_rot_pos_emb=True),
    "ConvNeXt": lambda: ConvNeXt(depths=(1, 1, 1, 1), dims=(8, 16, 24, 32), num_classes=0),
    "FastViT": lambda: timm.create_model("fastvit_t8", num_classes=0),
    "Swin": lambda: SwinTransformer(
        img_size=32, patch_size=2, window_size=2, embed_dim=16, depths=(1, 1, 2), num_heads=(2, 2, 2), num_classes=0
    ),
    "ResNet": lambda: {"layers": [1, 1, 1, 1], "width": 16, "image_size": 64},
}


def clip_of(family):
    torch.manual_seed(0)
    text = CLIPTextCfg(context_length=12, vocab_size=99, width=32, heads=4, layers=1)
    vision = FAMILIES[family]()
    if isinstance(vision, dict):
        return CLIP(24, CLIPVisionCfg(**vision), text).eval()
    clip = CLIP(24, CLIPVisionCfg(timm_model_name="vit_tiny_patch16_224", image_size=32), text)
    clip.visual.image_size = (64, 64) if family in ("ConvNeXt", "FastViT") else (32, 32)
    clip.visual.trunk, clip.visual.head = vision, torch.nn.Linear(vision.num_features, 24)
    return clip.eval()


@pytest.fixture(scope="module")
def family(request):
    return clip_of(request.param)


families = pytest.mark.parametrize("family", list(FAMILIES), indirect=True)


@families
def test_at_step_0_and_with_the_branch_off_the_model_is_bit_equal_to_clips_frame_mean(family):
    clip = copy.deepcopy(family)
    model = attach(clip, branch_kwargs={"depth": 2})
    video = torch.randn(1, 2, 3, *model.backbone.image_size)
    with torch.no_grad():
        # The same weights in memory, since small matrix products may depend on their alignment (torch 2.7).
        frames = clip.encode_image(video.flatten(0, 1)).unflatten(0, (1, 2))
        embedding = model.encode_video(video, normalize=False)
        assert torch.equal(embedding, frames.mean(dim=1))
        assert torch.equal(model.encode_frames(video), frames)
        for p in model.branch.parameters():
            p.add_(torch.randn_like(p))
        assert not torch.equal(model.encode_video(video, normalize=False), embedding)
        model.branch.fusion.gate.weight.zero_()
        assert torch.equal(model.encode_video(video, normalize=False), embedding)
        torch.nn.init.normal_(model.branch.fusion.gate.weight)
        with model.branch_disabled():
            assert torch.equal(model.encode_video(video, normalize=False), embedding)


@families
def test_copied_blocks_compute_the_same_as_the_blocks_of_the_tower(family):
    """Check class-token towers alone, as their blocks see the same tokens as the copies."""
    visual = family.visual
    copies = vit.copy_blocks(visual, 2)
    if not vit.has_class_token(visual):
        assert len(copies) == (2 if vit.vit_blocks(visual) else 0)
        return
    backbone = Backbone(copy.deepcopy(family))
    taps = backbone(torch.rand(1, 1, 3, *backbone.image_size), levels=backbone.last_levels(3))
    for k in (1, 2):
        before, after = (torch.cat([taps.cls[i], taps.patches[i][:, 0]], dim=1) for i in (k - 1, k))
        x = before + copies[k - 1].attention_residual(before)
        x = x + copies[k - 1].mlp_residual(x)
        torch.testing.assert_close(x, after, atol=2e-5, rtol=1e-5)


def test_a_training_step_leaves_clip_bit_equal_without_gradients_or_graph(tiny_clip):
    before = {k: v.clone() for k, v in tiny_clip.state_dict().items()}
    model = attach(tiny_clip, branch_kwargs={"depth": 3}).train()
    assert not model.backbone.clip.training
    video, text = torch.randn(4, 3, 3, 32, 32), model.encode_text(torch.randint(1, 98, (4, 12)), normalize=True)
    embedding = model.encode_video(video, normalize=True)
    leaves = graph_tensors(embedding)
    assert not leaves & {id(p) for p in tiny_clip.parameters()}
    assert len(leaves) > 10
    matching(text @ embedding.T, torch.arange(4), scale=10.0).backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert all(p.grad is None and not p.requires_grad for p in tiny_clip.parameters())
    assert all(torch.equal(v, before[k]) for k, v in tiny_clip.state_dict().items())
    assert not text.requires_grad
    taps = model.taps(video)
    assert all(t.grad_fn is None and not t.requires_grad for t in (*taps.patches, *taps.cls, taps.frames))


def graph_tensors(tensor):
    """Return the ids of all leaves into which the autograd graph of `tensor` accumulates gradients."""
    leaves, stack, visited = set(), [tensor.grad_fn], set()
    while stack:
        node = stack.pop()
        if node is None or node in visited:
            continue
        visited.add(node)
        if hasattr(node, "variable"):
            leaves.add(id(node.variable))
        stack.extend(parent for parent, _ in node.next_functions)
    return leaves


def test_a_saved_model_loads_bit_equal_and_its_file_leaves_out_clip(tiny_clip, tmp_path):
    model = attach(tiny_clip, branch_kwargs={"depth": 2})
    model.head = LinearClassifier(model.embed_dim, ["cat", "dog"])
    for p in (*model.branch.parameters(), *model.head.parameters()):
        p.data.add_(0.1 * torch.randn_like(p))
    model.training_record = {"task": "recognition"}
    model.save(tmp_path / "saved")
    names = sorted(p.name for p in (tmp_path / "saved").iterdir())
    assert names == ["branch.safetensors", "config.json", "manifest.json"]
    loaded = load(tmp_path / "saved", base=copy.deepcopy(tiny_clip))
    video = torch.randn(2, 3, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded.classify(video), model.eval().classify(video))
    assert loaded.training_record == model.training_record
    assert loaded.fingerprint == model.fingerprint
    size = (tmp_path / "saved" / "branch.safetensors").stat().st_size
    trained = sum(p.numel() for p in (*model.branch.parameters(), *model.head.parameters()))
    assert size < 4 * trained + 8000


def test_the_bundled_base_model_is_saved_and_loaded_by_name(tmp_path):
    model = clipvid.create_model("clipvid-mini", branch_kwargs={"depth": 2})
    model.head = model.text_classifier(["a red circle", "a blue star"])
    model.save(tmp_path / "m")
    loaded = clipvid.load(tmp_path / "m")
    assert isinstance(loaded.head, TextClassifier)
    assert torch.equal(loaded.head.text, model.head.text)
    text = loaded.encode_text(["a red circle", "a blue star over a plain background"], normalize=True)
    torch.testing.assert_close(text.norm(dim=-1), torch.ones(2))


def test_another_base_model_is_refused_and_the_error_says_what_to_do(tiny_clip, tmp_path):
    attach(tiny_clip, branch_kwargs={"depth": 2}).save(tmp_path / "m")
    other = copy.deepcopy(tiny_clip)
    next(other.parameters()).data.add_(1e-3)
    with pytest.raises(CheckpointError, match=r"fingerprint.*load the weights it was trained on"):
        load(tmp_path / "m", base=other)
    with pytest.raises(CheckpointError, match="pass that model as base="):
        load(tmp_path / "m")


def test_damaged_saves_are_refused(tiny_clip, tmp_path):
    with pytest.raises(CheckpointError, match="not a folder"):
        load(tmp_path / "nothing")
    folder = attach(tiny_clip, branch_kwargs={"depth": 2}).save(tmp_path / "m")
    weights = (folder / "branch.safetensors").read_bytes()
    (folder / "branch.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(CheckpointError, match=r"branch\.safetensors is damaged: its bytes have changed since"):
        load(folder, base=tiny_clip)
    (folder / "branch.safetensors").write_bytes(weights)
    (folder / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match=r"is damaged: manifest\.json is missing; take a copy of the folder"):
        load(folder, base=tiny_clip)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 9}, "has format 9, this version of clipvid reads 2 and 3"),
        ({"base": {"name": 5, "pretrained": None, "fingerprint": ""}}, "Expected str | null, got int at base.name"),
        ({"clip": {}}, "missing required field text_lora at clip"),
        (
            {"branch": {"kind": "stan", "depth": "2"}},
            "has a branch that cannot be built here: depth: Expected int, got str, got '2'",
        ),
        ({"branch": {"kind": "stan", "time_size": 10**7}}, "time_size must be an integer <= 65536, got 10000000"),
        ({"similarity": "wit"}, "unknown similarity 'wit'"),
        (
            {"head": {"kind": "lineal", "classes": ["a", "b"]}},
            "does not hold a complete clipvid model: unknown head 'lineal'",
        ),
    ],
    ids=str,
)
def test_a_config_of_version_2_is_read_and_checked_field_by_field(tiny_clip, tmp_path, change, message):
    folder = attach(tiny_clip, branch_kwargs={"depth": 2}).save(tmp_path / "m")
    (folder / "manifest.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    config["format"] = config.pop("format_version") - 1
    (folder / "config.json").write_text(json.dumps(config))
    load(folder, base=tiny_clip)
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(CheckpointError, match=re.escape(message)):
        load(folder, base=tiny_clip)


def test_saving_never_deletes_a_folder_of_other_things(tiny_clip, tmp_path):
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "mine.mp4").write_text("precious")
    with pytest.raises(FileExistsError, match=r"mine\.mp4"):
        attach(tiny_clip, branch_kwargs={"depth": 2}).save(tmp_path / "videos")
    assert (tmp_path / "videos" / "mine.mp4").read_text() == "precious"
    folder = attach(tiny_clip, branch_kwargs={"depth": 2}).save(tmp_path / "m")
    attach(tiny_clip, branch_kwargs={"depth": 3}).save(folder)
    assert json.loads((folder / "config.json").read_text())["branch"]["depth"] == 3


def test_uint8_frames_of_any_size_are_preprocessed_by_the_models_transform(tiny_clip):
    model = attach(tiny_clip, branch_kwargs={"depth": 2})
    video = torch.randint(0, 256, (1, 2, 3, 40, 56), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(model.encode_video(video), model.encode_video(model.transform(video)))


def test_wrong_inputs_name_the_shape_and_the_fix(tiny_clip):
    model = attach(tiny_clip, branch_kwargs={"depth": 2})
    with pytest.raises(
        ValueError, match=r"\(B, T, 3, S, S\), got \(4, 3, 32, 32\); add a batch axis with video\[None\]"
    ):
        model.taps(torch.zeros(4, 3, 32, 32))
    with pytest.raises(ValueError, match=r"frames are \(48, 48\), this base model takes \(32, 32\)"):
        model.encode_video(torch.zeros(1, 4, 3, 48, 48))
    with pytest.raises(ValueError, match="mask must be"):
        model.encode_video(torch.zeros(1, 4, 3, 32, 32), mask=torch.zeros(1, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="attached without a tokenizer"):
        model.encode_text(["a dog"])
    with pytest.raises(ValueError, match="no classifier"):
        model.classify(torch.zeros(1, 4, 3, 32, 32))
    with pytest.raises(BackboneError, match="has no image tower"):
        attach(torch.nn.Linear(2, 2))


def test_errors_about_unknown_base_models_suggest_similar_names():
    with pytest.raises(ValueError, match=r"unknown base model 'ViT-B-33'; did you mean .*ViT-B-32"):
        clipvid.create_model("ViT-B-33", "openai")
    with pytest.raises(ValueError, match=r"ViT-B-32 needs weights: pretrained= one of .*openai"):
        clipvid.create_model("ViT-B-32")
    with pytest.raises(ValueError, match=r"neither a file nor weights of ViT-B-32; its tags are .*laion2b"):
        clipvid.create_model("ViT-B-32", "opanai")


@pytest.mark.parametrize(
    ("base", "options"),
    [
        ("clipvid-mini", {}),
        pytest.param("clipvid-mini", {"branch": "divided", "branch_kwargs": {"depth": 2}}, marks=pytest.mark.slow),
        ("ViT-B-16-SigLIP", {"branch": "vivit3"}),
    ],
)
def test_the_macs_of_a_clip_do_not_depend_on_what_is_trainable(base, options):
    model = clipvid.create_model(base, **options, device="meta")
    first = model.trainable_summary(4)
    flags = [p.requires_grad for p in model.parameters()]
    for trainable in (False, True):
        with torch.inference_mode():
            model.branch.requires_grad_(trainable)
            model.set_trainable("all" if trainable else "none")
            summary = model.trainable_summary(4)
        assert (summary.tower_macs, summary.branch_macs) == (first.tower_macs, first.branch_macs)
    assert any(flags)
    assert not all(flags)


def test_published_parameter_counts_and_macs():
    """Numbers of the papers: parameters exactly, MACs of linear layers for three views to the printed decimal."""
    expected = {4: (40_218_624, {8: 593.3, 16: 1186.5}), 6: (60_303_360, {8: 687.8, 16: 1375.5})}
    for depth, (parameters, macs) in expected.items():
        model = clipvid.create_model("ViT-B-16", branch="stan-release", branch_kwargs={"depth": depth}, device="meta")
        for frames, giga in macs.items():
            summary = model.trainable_summary(frames)
            assert summary.trainable == parameters
            assert round(3 * (summary.tower_macs.linear + summary.branch_macs.linear) / 1e9, 1) == giga
            assert f"{giga} G" in str(summary)
    large = clipvid.create_model("ViT-L-14", branch="stan-release", branch_kwargs={"depth": 4}, device="meta")
    assert sum(p.numel() for _, p in large.trainable_parameters()) == 71_450_624


def test_the_contrastive_loss_equals_open_clips_and_averages_the_captions_of_a_video():
    from open_clip.loss import ClipLoss

    video, text = F.normalize(torch.randn(5, 8), dim=-1), F.normalize(torch.randn(5, 8), dim=-1)
    ours = matching(text @ video.T, torch.arange(5), scale=7.0)
    torch.testing.assert_close(ours, ClipLoss()(video, text, torch.tensor(7.0)))
    captions = F.normalize(torch.randn(7, 8), dim=-1)
    video_index = torch.tensor([0, 0, 1, 2, 3, 4, 4])
    logits = 7.0 * captions @ video.T
    rows = sum(-logits[m].log_softmax(0)[video_index[m]] for m in range(7)) / 7
    columns = logits.log_softmax(dim=0)
    each = [sum(-columns[m, v] for m in range(7) if video_index[m] == v) / (video_index == v).sum() for v in range(5)]
    torch.testing.assert_close(matching(captions @ video.T, video_index, scale=7.0), (rows + sum(each) / 5) / 2)
    with pytest.raises(ValueError, match="video 4 of the batch has no caption"):
        matching(text[:4] @ video.T, torch.arange(4), scale=1.0)


def test_equal_captions_are_right_for_the_videos_of_all_of_them():
    """Compared with sums of probabilities over explicit sets of right answers, in float64."""
    captions = ["run", "jump", "run", "sit", "run", "jump"]
    video_index = [0, 0, 1, 2, 3, 3]
    logits = torch.randn(6, 4, dtype=torch.float64)
    rows, columns = logits.softmax(dim=1), logits.softmax(dim=0)
    videos = [{v for c, v in zip(captions, video_index, strict=True) if c == caption} for caption in captions]
    to_video = sum(-torch.log(sum(rows[m, v] for v in right)) for m, right in enumerate(videos)) / 6
    to_text = 0.0
    for video in range(4):
        mine = [m for m in range(6) if video_index[m] == video]
        equal = [[n for n in range(6) if captions[n] == captions[m]] for m in mine]
        to_text += sum(-torch.log(sum(columns[n, video] for n in group)) for group in equal) / len(mine) / 4
    numbers = torch.tensor([["run", "jump", "sit"].index(caption) for caption in captions])
    index = torch.tensor(video_index)
    loss = matching(logits, index, scale=1.0, caption_index=numbers)
    torch.testing.assert_close(loss, (to_video + to_text) / 2)
    assert not torch.isclose(loss, matching(logits, index, scale=1.0))
    different = matching(logits, index, scale=1.0, caption_index=torch.tensor([3, 1, 0, 5, 2, 4]))
    assert torch.equal(different, matching(logits, index, scale=1.0)), "without equal captions nothing changes"


def test_videos_of_equal_captions_need_not_compete():
    """Two clips with one caption, told from all others, have no loss, which negatives of each other never reach."""
    similarity = torch.tensor([[1.0, 1.0, -1.0], [1.0, 1.0, -1.0], [-1.0, -1.0, 1.0]])
    loss = matching(similarity, torch.arange(3), scale=50.0, caption_index=torch.tensor([0, 0, 1]))
    assert loss < 1e-6
    assert matching(similarity, torch.arange(3), scale=50.0) > 0.4
    similarity.requires_grad_()
    matching(similarity, torch.arange(3), scale=50.0, caption_index=torch.tensor([0, 0, 1])).backward()
    assert similarity.grad.isfinite().all()


def test_labels_without_a_class_in_the_head_are_refused():
    with pytest.raises(ValueError, match="labels run from 0 to 3, the head has 3 classes"):
        classification(torch.zeros(2, 3), torch.tensor([0, 3]))


def test_a_mask_beside_taps_is_refused(tiny_clip):
    model = attach(tiny_clip, branch_kwargs={"depth": 2})
    taps = model.taps(torch.randn(1, 3, 3, 32, 32))
    with pytest.raises(ValueError, match="Taps bring their own mask"):
        model.encode_video(taps, mask=torch.ones(1, 3, dtype=torch.bool))


def test_every_constructor_returns_a_model_in_eval_mode(tmp_path):
    """A branch with drop path is deterministic until `train()` is called."""
    dropping = {"drop_path": 0.5}
    created = clipvid.create_model("clipvid-mini", branch_kwargs={"depth": 2, **dropping})
    attached = attach(created.backbone, branch_kwargs={"depth": 2, **dropping})
    loaded = load(created.save(tmp_path / "m"))
    for model in (created, attached, loaded):
        assert not any(part.training for part in model.modules())
    torch.nn.init.normal_(created.branch.fusion.gate.weight)
    video = torch.randint(0, 255, (4, 3, 3, 48, 48), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(created.encode_video(video), created.encode_video(video))
        created.train()
        assert not torch.equal(created.encode_video(video), created.encode_video(video))


def test_branch_disabled_applies_to_one_thread_alone(tiny_clip):
    model = attach(tiny_clip, "posterior")
    torch.nn.init.normal_(list(model.branch.parameters())[-1])
    video = torch.randn(1, 3, 3, 32, 32)

    def embed() -> torch.Tensor:
        with torch.no_grad():
            return model.encode_video(video)

    with ThreadPoolExecutor(1) as other:
        on = embed()
        with model.branch_disabled():
            off = embed()
            assert torch.equal(other.submit(embed).result(), on)
            assert not model.branch_is_on
            with model.branch_disabled():
                pass
            assert torch.equal(embed(), off)
        assert torch.equal(embed(), on)
    assert not torch.equal(on, off)


def test_branch_disabled_applies_to_one_model_alone(tiny_clip):
    model, other = (
        attach(copy.deepcopy(tiny_clip), branch_kwargs={"depth": 2}),
        attach(tiny_clip, branch_kwargs={"depth": 2}),
    )
    with model.branch_disabled():
        assert other.branch_is_on
        assert copy.deepcopy(model).branch_is_on


def test_a_name_that_neither_a_folder_nor_the_hub_has_is_refused_with_the_hubs_answer(monkeypatch, tmp_path):
    import huggingface_hub

    def unreachable(name, **options):
        raise OSError("no connection\nto the hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=r"^a/b is neither an existing folder .*: no connection\); correct"):
        load("a/b")


def test_a_saved_branch_that_is_not_registered_here_says_how_to_register_it(tmp_path):
    folder = clipvid.create_model("clipvid-mini", branch="mean").save(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["branch"] = {"kind": "gru"}
    (folder / "config.json").write_text(json.dumps(config))
    seal(folder)
    message = r"unknown branch kind 'gru'; .*: import the module that registers 'gru' first, .*clipvid\.plugins"
    with pytest.raises(CheckpointError, match=message) as caught:
        load(folder)
    assert "save or copy" not in str(caught.value)
