"""Every branch with every mixer on a ViT with a class token and on a SigLIP-style ViT, mostly for one task each.

Branch, mixer, tower and task occur in every pair. Each model trains one step through the public `train`, is saved and
loaded, and then gives the same embedding; combinations that cannot work are refused with the reason.
"""

import numpy as np
import pytest
import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from timm.models.vision_transformer import VisionTransformer
from tiny import Tokenizer

from clipvid.config.data_config import DataConfig
from clipvid.config.settings import TrainConfig
from clipvid.data.records import Record, VideoDataset
from clipvid.errors import BackboneError
from clipvid.features.taps.memory import encode_dataset
from clipvid.models.backbone.backbone import Backbone
from clipvid.models.branches.options import choose
from clipvid.models.factory import attach, load
from clipvid.models.video_clip import VideoCLIP
from clipvid.nn.similarity import SIMILARITIES
from clipvid.registry import BRANCHES, MIXERS
from clipvid.training.loop import train

FRAMES, SIDE = 4, 32
DATA_CONFIG = DataConfig(frames=FRAMES, batch_size=4, precision="32-true")
SMALL = {"image_size": SIDE, "patch": 8, "width": 16, "depth": 2, "heads": 2, "frames": FRAMES}
STANDALONE = [name for name in BRANCHES if name.startswith(("timesformer", "vivit-"))]
ON_CLIP = [name for name in BRANCHES if name not in STANDALONE]
TOWERS = ("class token", "SigLIP")
TASKS = ("retrieval", "recognition")
PUBLISHED = ("stan-release", "stan-paper", "bt-adapter")  # these end in CLIP's class token, norm and projection
CASES = {  # name -> (branch, changed options)
    **{name: (name, {"depth": 2} if name != "mean" else {"hidden": 8}) for name in ON_CLIP},
    **{f"stan {mixer}": ("stan", {"depth": 2, "mixer": mixer}) for mixer in MIXERS},
    **{f"divided {mixer}": ("divided", {"depth": 2, "mixer": mixer}) for mixer in MIXERS},
    **{f"{name} {mixer}": (name, {"depth": 2, "mixer": mixer}) for name in PUBLISHED for mixer in MIXERS},
    **{name: (name, SMALL) for name in STANDALONE if name not in ("timesformer-hr", "timesformer-l")},
    "divided, own frames": ("divided", {"stem": "frame"}),
    "factorised, own tubelets": ("vivit3", {"stem": "tubelet"}),
    "all blocks": ("joint", {"depth": None}),
}


def class_token_clip():
    vision = CLIPVisionCfg(layers=3, width=32, head_width=8, patch_size=8, image_size=SIDE)
    return CLIP(16, vision, CLIPTextCfg(context_length=12, vocab_size=99, width=16, heads=2, layers=2))


def siglip_clip():
    clip = class_token_clip()
    trunk = VisionTransformer(
        img_size=SIDE, patch_size=8, embed_dim=32, depth=3, num_heads=4, num_classes=0, class_token=False,
        global_pool="map",
    )  # fmt: skip
    timm_config = CLIPVisionCfg(timm_model_name="vit_tiny_patch16_224", image_size=SIDE)
    clip.visual = CLIP(
        16, timm_config, CLIPTextCfg(context_length=12, vocab_size=99, width=16, heads=2, layers=1)
    ).visual
    clip.visual.trunk, clip.visual.head, clip.visual.image_size = trunk, torch.nn.Linear(32, 16), (SIDE, SIDE)
    return clip


@pytest.fixture(scope="module", params=TOWERS)
def tower(request, tmp_path_factory, write_video):
    """Kind of tower, its backbone, four clips with captions and labels, and their taps by level."""
    torch.manual_seed(0)
    clip = class_token_clip() if request.param == "class token" else siglip_clip()
    backbone = Backbone(clip.eval(), tokenizer=Tokenizer())
    folder = tmp_path_factory.mktemp("clips")
    rng = np.random.default_rng(0)
    records = []
    for i in range(4):
        frames = rng.integers(0, 255, (6, SIDE, SIDE, 3), dtype=np.uint8)
        path = write_video(folder / f"{i}.mp4", frames)
        records.append(Record(path, captions=(f"clip {'x' * i} of noise",), label=i % 2))
    data = VideoDataset(tuple(records), classes=("even", "odd"), name="noise")
    encoder = attach(backbone, "stan", branch_kwargs={"depth": 3})
    store = encode_dataset(encoder, data, DATA_CONFIG)
    stem = encode_dataset(attach(backbone, choose("joint", {"depth": None})), data, DATA_CONFIG)
    low = encode_dataset(attach(backbone, "joint", branch_kwargs={"depth": 2}), data, DATA_CONFIG)
    return request.param, backbone, data, {(1, 2, 3): store, (0,): stem, (1,): low}


def store_with(stores, levels):
    """Return the stored taps that contain these levels."""
    return next(store for key, store in stores.items() if set(levels) <= set(key))


def tasks_of(kind, case):
    """Return the tasks to train for, so that each branch and each mixer is trained for both, and on both towers."""
    if case == "stan" or (kind == "class token" and case in PUBLISHED):
        return TASKS
    branch, _, mixer = case.partition(" ")
    if branch in PUBLISHED:
        return TASKS[(PUBLISHED.index(branch) + list(MIXERS).index(mixer)) % 2 :][:1]
    return TASKS[kind == "SigLIP" :][:1]


@pytest.mark.parametrize("case", list(CASES))
def test_each_branch_trains_a_step_and_loads_bit_equal(tower, case, tmp_path):
    kind, backbone, data, stores = tower
    branch, changes = CASES[case]
    options = choose(branch, changes)
    if kind == "SigLIP" and branch in PUBLISHED:
        with pytest.raises(BackboneError, match="choose branch stan"):
            attach(backbone, options)
        return
    for task in tasks_of(kind, case):
        model = attach(backbone, options)
        before = {k: v.clone() for k, v in model.branch.state_dict().items()}
        source = data if model.branch.reads_pixels else store_with(stores, model.branch.levels)
        config = TrainConfig(task=task, epochs=1, batch_size=4, warmup=0.0, lr=1e-2, data_config=DATA_CONFIG)
        train(model, source, None, config, progress=False)
        after = model.branch.state_dict()
        assert any(not torch.equal(before[k], after[k]) for k in before)
        assert all(v.isfinite().all() for v in after.values())
        loaded = load(model.save(tmp_path / task), base=backbone)
        clip = torch.randint(0, 255, (1, FRAMES, 3, SIDE, SIDE), dtype=torch.uint8)
        output = VideoCLIP.classify if task == "recognition" else VideoCLIP.encode_video
        with torch.no_grad():
            assert torch.equal(output(loaded, clip), output(model, clip))
        assert loaded.fingerprint == model.fingerprint


GATES = {  # name -> (branch, options, the parameter that starts at zero)
    "stan": ("stan", {"depth": 2}, "fusion.gate.weight"),
    "posterior": ("posterior", {"depth": 1}, "refine.gate.weight"),
    "vivit2": ("vivit2", {"depth": 2, "temporal_depth": 1}, "over_frames.gate.weight"),
    "mean": ("mean", {"hidden": 8}, "refine.2.weight"),
    "divided": ("divided", {"depth": 2}, "layers.0.steps.0.out.weight"),
    "vivit3": ("vivit3", {"depth": 2}, "layers.0.steps.0.attention.out.weight"),
}
IS_CLIP = (
    "stan",
    "posterior",
    "mean",
)  # exact at step 0; copied blocks of other branches equal CLIP's up to rounding, or are new


@pytest.mark.parametrize("name", list(GATES))
def test_the_zero_initialised_gate_hides_the_branch_and_gets_a_gradient(tower, name):
    _, backbone, _, _ = tower
    torch.manual_seed(0)
    branch, changes, zeroed = GATES[name]
    model = attach(backbone, branch, branch_kwargs=changes).eval()
    weight = dict(model.branch.named_parameters())[zeroed]
    assert not weight.any()
    clip = torch.randint(0, 255, (2, FRAMES, 3, SIDE, SIDE), dtype=torch.uint8)
    frames = model.encode_frames(clip)
    with model.branch_disabled(), torch.no_grad():
        clip_frames = model.encode_frames(clip)
    if name in IS_CLIP:
        assert torch.equal(frames, clip_frames), "the identity is exact"
    elif name != "divided":  # divided has one class token per clip, so it never equals CLIP
        torch.testing.assert_close(frames, clip_frames, atol=2e-6, rtol=1e-5)
    text = torch.nn.functional.normalize(torch.randn(2, model.embed_dim), dim=-1)
    model.match(text, frames).diagonal().sum().backward()
    assert weight.grad is not None
    assert weight.grad.norm() > 1e-6


TOKEN_WISE = [  # every pair of branch and similarity on one of the towers, so that both occur on both towers
    (TOWERS[(i + j) % 2], branch, similarity)
    for i, branch in enumerate(("stan", "posterior", "space", "vivit3"))
    for j, similarity in enumerate(SIMILARITIES)
]


@pytest.mark.parametrize(("tower", "branch", "similarity"), TOKEN_WISE, indirect=["tower"])
def test_token_wise_similarities_train_and_load_bit_equal(tower, branch, similarity, tmp_path):
    _, backbone, _, stores = tower
    model = attach(backbone, branch, branch_kwargs={"depth": 2}, similarity=similarity)
    before = {k: v.clone() for k, v in model.matcher.state_dict().items()}
    config = TrainConfig(epochs=1, batch_size=4, warmup=0.0, lr=1e-2, data_config=DATA_CONFIG)
    train(model, store_with(stores, model.branch.levels), None, config, progress=False)
    assert all(not torch.equal(before[k], v) for k, v in model.matcher.state_dict().items())
    loaded = load(model.save(tmp_path / "m"), base=backbone)
    clip = torch.randint(0, 255, (2, FRAMES, 3, SIDE, SIDE), dtype=torch.uint8)
    texts = ["a clip", "some more words here"]
    with torch.no_grad():
        scores = [m.match(m.text_features(texts), *m.encode_clip(clip)[:1]) for m in (model, loaded)]
    assert torch.equal(*scores)


def test_token_wise_similarity_needs_one_embedding_per_frame(tower):
    kind, backbone, _, _ = tower
    if kind == "class token":
        with pytest.raises(ValueError, match="makes one embedding for the whole clip"):
            attach(backbone, "divided", branch_kwargs={"depth": 2}, similarity="wti")
    else:  # a tower without a class token pools each frame separately
        assert attach(backbone, "divided", branch_kwargs={"depth": 2}, similarity="wti").matcher is not None


def test_branches_that_need_vit_blocks_refuse_a_convolutional_tower():
    vision = CLIPVisionCfg(layers=[1, 1, 1, 1], width=16, image_size=64)
    clip = CLIP(16, vision, CLIPTextCfg(context_length=12, vocab_size=99, width=16, heads=2, layers=1))
    backbone = Backbone(clip.eval())
    for name in ("space", "divided", "vivit4"):
        with pytest.raises(BackboneError, match="is no plain ViT, so it has no blocks to copy"):
            attach(backbone, name)
    assert attach(backbone, "posterior").encode_video(torch.randn(1, 2, 3, 64, 64)).shape == (1, 16)
