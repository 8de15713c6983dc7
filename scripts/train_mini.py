"""Train clipvid-mini, the small open_clip model in assets/clipvid-mini, on still images of the MotionShapes world.

Contract: `python scripts/train_mini.py` writes a folder that open_clip loads as `local-dir:FOLDER` (weights in fp16,
tokenizer, config, log). Images are paired with captions that never mention motion; the text tower learns words for
motion from text alone. Takes about 15 minutes on 2 cores; the same seed gives the same data and order of steps.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import math
import os
import platform
import shutil
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from clipvid.data.motion_shapes import BACKGROUNDS, COLOURS, LOOK, MOTIONS, SHAPES, SIZES, Scene, render_still, reverse

NAMES = (tuple(SIZES), tuple(COLOURS), SHAPES, BACKGROUNDS)
OBJECTS = tuple(itertools.product(*NAMES))
SIDE, CONTEXT = 48, 16
TEMPLATES = ("{}", "{}", "{}", "a photo of {}", "a video of {}", "an image of {}")
EXTRA_WORDS = (  # noqa: SIM905 (a list would be a page long)
    "a an the of that is are in on and with one it this there no background over shape object thing figure photo "
    "image picture video clip frame film scene showing shows moving growing shrinking turning appearing disappearing "
    "move grow shrink turn appear disappear moves grows shrinks turns appears disappears left right up down clockwise "
    "counter-clockwise rotates rotating fades fading out to from first then slowly quickly big little"
).split()


@dataclasses.dataclass
class MiniConfig:
    """Training settings of clipvid-mini, stored in its train_log.json."""

    steps: int = 1500
    batch: int = 96
    """Distinct objects per step; at most 512, so that no caption is right for two images by accident."""
    pool: int = 40
    """Stills rendered for each of the 512 objects."""
    lr: float = 1.5e-3
    warmup: int = 100
    decay: float = 0.1
    families: bool = False
    """Compose batches of objects that differ only in shape, the property that is hardest to see."""
    texts: int = 48
    """Captions with motion per step, in the text-only loss."""
    text_weight: float = 0.3
    text_scale: float = 20.0
    """Fixed inverse temperature of the text-only loss; it decides the distance between reversed captions."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.batch <= len(OBJECTS):
            raise ValueError(f"batch must be between 1 and {len(OBJECTS)}, the number of objects, got {self.batch}")


def model_config(words: int) -> dict[str, object]:
    """Return open_clip's config of the model and its preprocessing."""
    return {
        "model_cfg": {
            "embed_dim": 128,
            "vision_cfg": {"image_size": SIDE, "layers": 6, "width": 128, "head_width": 32, "patch_size": 8},
            "text_cfg": {
                "context_length": CONTEXT,
                "vocab_size": words,
                "hf_tokenizer_name": "clipvid-mini",
                "width": 128,
                "heads": 4,
                "layers": 3,
            },
        },
        "preprocess_cfg": {
            "size": SIDE,
            "mode": "RGB",
            "mean": [0.5, 0.5, 0.5],
            "std": [0.25, 0.25, 0.25],
            "interpolation": "bicubic",
            "resize_mode": "squash",
            "fill_color": 0,
        },
    }


def write_tokenizer(folder: Path) -> int:
    """Save a word tokenizer for transformers' AutoTokenizer; return the size of its vocabulary."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

    words = sorted({*EXTRA_WORDS, *COLOURS, *SHAPES, *SIZES, *BACKGROUNDS})
    # CLIP pools at the highest token id, hence the end token comes last.
    ids = {word: i for i, word in enumerate(("<pad>", "<unk>", "<start>", *words, "<end>"))}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Lowercase(),
            normalizers.Replace("counterclockwise", "counter-clockwise"),
            normalizers.Replace(Regex(r"[^a-z0-9<>-]+"), " "),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[(name, ids[name]) for name in ("<start>", "<end>")]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": CONTEXT,
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "bos_token": "<start>",
        "eos_token": "<end>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    return len(ids)


# ------------------------------------------------------------------------------------------------------------- images


def render_object(index: int, *, count: int, seed: int) -> np.ndarray:
    """Return stills of one object, uint8 (count, 48, 48, 3): any motion, any moment at which it is visible."""
    size, colour, shape, background = OBJECTS[index]
    stills = []
    for k in range(count):
        rng = np.random.default_rng((seed, index, k))
        motion = MOTIONS[rng.integers(len(MOTIONS))]
        at = rng.random()
        if motion in ("appears", "disappears"):
            at = 0.5 + at / 2 if motion == "appears" else at / 2
        scene = Scene(colour, shape, size, background, motion, seed=(seed, 3, index, k))  # the splits have 0, 1, 2
        still = Image.fromarray(render_still(scene, at=at))
        stills.append(np.asarray(still.resize((SIDE, SIDE), Image.Resampling.BICUBIC)))
    return np.stack(stills)


def render_pool(count: int, *, seed: int, workers: int) -> Tensor:
    """Return stills of all objects, uint8 (512, count, 3, 48, 48)."""
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        job = partial(render_object, count=count, seed=seed)
        stills = np.stack(list(pool.map(job, range(len(OBJECTS)), chunksize=8)))
    return torch.from_numpy(stills).permute(0, 1, 4, 2, 3).contiguous()


def normalise(images: Tensor) -> Tensor:
    return (images.float() / 255 - 0.5) / 0.25


def turned(images: Tensor, *, seed: int) -> Tensor:
    """Apply another symmetry of the square to each eighth of the batch; the distribution of stills has all eight."""
    parts = []
    for k, part in enumerate(images.chunk(8)):
        part = torch.rot90(part, (k + seed) % 4, dims=(2, 3))
        parts.append(part.flip(3) if k >= 4 else part)
    return torch.cat(parts)


# --------------------------------------------------------------------------------------------------------------- text


def phrase(words: tuple[str, ...], *, keep: tuple[bool, ...] = (True,) * 5, that: bool = False) -> str:
    """Return a caption of the words that `keep` selects, e.g. "a red shape that moves left".

    `words` are (size, colour, shape, background, motion).
    """
    size, colour, shape, ground, motion = (word if shown else "" for word, shown in zip(words, keep, strict=True))
    motion = f"that {motion}" if motion and that else motion
    ground = f"over a {ground} background" if ground else ""
    return " ".join(part for part in ("a", size, colour, shape or "shape", motion, ground) if part)


def true_of(masks: list[tuple[bool, ...]], left: list[tuple[str, ...]], right: list[tuple[str, ...]]) -> Tensor:
    """Return float (len(left), len(right)): 1 where the selected words of a left scene also hold for the right one."""
    ids = {word: i for i, word in enumerate(sorted({word for words in (*left, *right) for word in words}))}
    left_ids, right_ids = (torch.tensor([[ids[word] for word in words] for words in side]) for side in (left, right))
    return ((left_ids[:, None] == right_ids[None]) | ~torch.tensor(masks)[:, None]).all(-1).float()


def still_captions(objects: list[int], rng: np.random.Generator) -> tuple[list[str], Tensor]:
    """Return a caption without motion for each object, one in four partial, and the objects that it is true of."""
    scenes = [(*OBJECTS[i], "") for i in objects]
    masks = [(*(rng.random(4) < (0.5 if rng.random() < 0.25 else 1)).tolist(), False) for _ in objects]
    captions = [
        TEMPLATES[rng.integers(len(TEMPLATES))].format(phrase(words, keep=keep))
        for words, keep in zip(scenes, masks, strict=True)
    ]
    return captions, true_of(masks, scenes, scenes)


def motion_captions(count: int, rng: np.random.Generator) -> tuple[list[str], list[str], Tensor]:
    """Return two captions per moving scene, without images: (partial or rephrased, full, which is true of which).

    Every scene comes with its reverse, and only the words for motion distinguish them.
    """
    scenes = []
    for i in rng.permutation(len(OBJECTS))[: count // 2].tolist():
        motion = MOTIONS[rng.integers(len(MOTIONS))]
        scenes += [(*OBJECTS[i], motion), (*OBJECTS[i], reverse(motion))]
    choices = ((True,) * 5, (False, False, False, False, True), (True, True, True, True, False))
    masks = [
        choices[kind]
        if (kind := rng.choice(4, p=(0.4, 0.2, 0.2, 0.2))) < 3
        else (*(rng.random(4) < 0.5).tolist(), True)
        for _ in scenes
    ]
    rephrased = []
    for words, keep in zip(scenes, masks, strict=True):
        template = ("{}", "a video of {}", "a clip of {}")[rng.integers(3)]
        rephrased.append(template.format(phrase(words, keep=keep, that=template != "{}")))
    return rephrased, [phrase(words) for words in scenes], true_of(masks, scenes, scenes)


# --------------------------------------------------------------------------------------------------------------- loss


def soft_nce(logits: Float[Tensor, "m b"], true: Float[Tensor, "m b"]) -> Tensor:
    """Return the symmetric InfoNCE loss for captions that may be true of several images."""
    rows = -(F.log_softmax(logits, 1) * true / true.sum(1, keepdim=True)).sum(1).mean()
    columns = -(F.log_softmax(logits, 0) * true / true.sum(0, keepdim=True)).sum(0).mean()
    return (rows + columns) / 2


def draw_objects(count: int, rng: np.random.Generator, *, families: bool) -> np.ndarray:
    """Return distinct objects; with `families`, each size, colour and background comes in all eight shapes."""
    if not families:
        return rng.permutation(len(OBJECTS))[:count]
    grid = np.arange(len(OBJECTS)).reshape([len(names) for names in NAMES]).transpose(0, 1, 3, 2)
    return rng.permutation(grid.reshape(-1, len(SHAPES)))[: count // len(SHAPES)].reshape(-1)


def step_loss(model: nn.Module, tokenizer, pool: Tensor, *, config: MiniConfig, step: int) -> tuple[Tensor, Tensor]:
    """Return (image-text loss, text-only loss) of one batch."""
    rng = np.random.default_rng((config.seed, 1000, step))
    objects = draw_objects(config.batch, rng, families=config.families)
    images = pool[torch.from_numpy(objects), torch.from_numpy(rng.integers(pool.shape[1], size=len(objects)))]
    captions, image_true = still_captions(objects.tolist(), rng)
    rephrased, full, full_true = motion_captions(config.texts, rng)
    image = model.encode_image(normalise(turned(images, seed=step)), normalize=True)
    text = model.encode_text(tokenizer([*captions, *rephrased, *full]), normalize=True)
    text, rephrased_text, full_text = text.split((len(captions), len(rephrased), len(full)))
    text_only = soft_nce(config.text_scale * rephrased_text @ full_text.T, full_true)
    return soft_nce(model.logit_scale.exp() * text @ image.T, image_true), text_only


# ----------------------------------------------------------------------------------------------------------- training


def fit(model: nn.Module, tokenizer, pool: Tensor, *, config: MiniConfig) -> list[dict[str, float]]:
    """Train in place; return one line of the log for every 50 steps."""
    decayed, plain = [], []
    for name, weight in model.named_parameters():
        (decayed if weight.ndim >= 2 and "embedding" not in name else plain).append(weight)
    groups = [{"params": decayed, "weight_decay": config.decay}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.98))
    start, log, sums = time.time(), [], np.zeros(2)
    for step in range(config.steps):
        progress = max(0, step - config.warmup) / max(1, config.steps - config.warmup)
        lr = config.lr * min((step + 1) / config.warmup, 0.5 + 0.5 * math.cos(math.pi * progress))
        for group in optimizer.param_groups:
            group["lr"] = lr
        losses = step_loss(model, tokenizer, pool, config=config, step=step)
        optimizer.zero_grad()
        (losses[0] + config.text_weight * losses[1]).backward()
        nn.utils.clip_grad_norm_([*decayed, *plain], 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(100))
        sums += [loss.item() for loss in losses]
        if (step + 1) % 50 == 0:
            names = ("image_text", "text_only")
            line = {"step": step + 1, **dict(zip(names, (sums / 50).round(4).tolist(), strict=True))}
            log.append({**line, "seconds": round(time.time() - start, 1)})
            print(json.dumps(log[-1]), flush=True)
            sums[:] = 0
    return log


@torch.no_grad()
def score(model: nn.Module, tokenizer, stills: Tensor) -> dict[str, float]:
    """Return zero-shot top-1 on held-out stills (512, count, 3, 48, 48), and the cosine of reversed captions."""
    model.eval()
    image = torch.cat([model.encode_image(normalise(part), normalize=True) for part in stills.flatten(0, 1).split(512)])
    objects = torch.arange(len(OBJECTS)).repeat_interleave(stills.shape[1])
    result = {}
    for part, name in enumerate(("size", "colour", "shape", "background")):
        keep, names = tuple(k == part for k in range(5)), NAMES[part]
        prompts = [phrase((word,) * 5, keep=keep) for word in names]
        answer = (image @ model.encode_text(tokenizer(prompts), normalize=True).T).argmax(1)
        truth = torch.tensor([names.index(words[part]) for words in OBJECTS])[objects]
        result[name] = (answer == truth).float().mean().item()
    still = model.encode_text(tokenizer([phrase((*words, "")) for words in OBJECTS]), normalize=True)
    result["object_of_512"] = ((image @ still.T).argmax(1) == objects).float().mean().item()
    moving = [
        model.encode_text(tokenizer([phrase((*words, motion)) for words in OBJECTS]), normalize=True)
        for motion in MOTIONS
    ]
    result["object_of_512_with_motion_words"] = ((image @ moving[0].T).argmax(1) == objects).float().mean().item()
    cosines = [(moving[k] * moving[k + 1]).sum(1).mean() for k in range(0, len(MOTIONS), 2)]
    result["cosine_of_reversed_captions"] = torch.stack(cosines).mean().item()
    return {name: round(value, 4) for name, value in result.items()}


def save(model: nn.Module, folder: Path, *, out: Path) -> None:
    """Save the weights beside the tokenizer and config, then move the finished folder to `out`."""
    from safetensors.torch import save_file

    weights = {name: weight.detach().half().contiguous() for name, weight in model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors", metadata={"format": "pt"})
    (folder / "open_clip_model.safetensors").chmod(0o644)  # safetensors makes files that only their owner can read
    if (out / "README.md").exists():
        shutil.copy(out / "README.md", folder / "README.md")
    old = out.with_name(f".{out.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        os.replace(out, old)
    os.replace(folder, out)
    shutil.rmtree(old, ignore_errors=True)


def main() -> None:
    import logging

    import open_clip

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "assets" / "clipvid-mini")
    parser.add_argument("--workers", type=int, default=2, help="processes that render")
    parser.add_argument("--threads", type=int, default=2, help="threads that train")
    parser.add_argument("--start", type=Path, help="folder of an earlier run to continue")
    for field in dataclasses.fields(MiniConfig):
        kind = {"action": "store_true"} if field.default is False else {"type": type(field.default)}
        parser.add_argument(f"--{field.name}", default=field.default, **kind)
    options = vars(parser.parse_args())
    out, workers, threads = (options.pop(name) for name in ("out", "workers", "threads"))
    earlier = options.pop("start")
    config, start = MiniConfig(**options), time.time()
    torch.set_num_threads(threads)
    torch.manual_seed(config.seed)
    folder = out.with_name(f".{out.name}.partial")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    described = model_config(write_tokenizer(folder))
    (folder / "open_clip_config.json").write_text(json.dumps(described, indent=2) + "\n")
    logging.disable(logging.WARNING)  # open_clip would warn that the folder has no weights yet
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    logging.disable(logging.NOTSET)
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    if earlier is not None:
        open_clip.load_checkpoint(model, str(earlier / "open_clip_model.safetensors"))
    pool = render_pool(config.pool, seed=config.seed, workers=workers)
    rendered = time.time()
    lines = fit(model, tokenizer, pool, config=config)
    held_out = score(model, tokenizer, render_pool(4, seed=config.seed + 1, workers=workers))
    log = {
        "config": dataclasses.asdict(config),
        "earlier": json.loads((earlier / "train_log.json").read_text()) if earlier is not None else None,
        "look": LOOK,
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "held_out": held_out,
        "seconds": {"render": round(rendered - start, 1), "total": round(time.time() - start, 1)},
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "open_clip": open_clip.__version__,
        },
        "log": lines,
    }
    (folder / "train_log.json").write_text(json.dumps(log, indent=1) + "\n")
    save(model, folder, out=out)
    print(json.dumps({"parameters": log["parameters"], **held_out, **log["seconds"]}))


if __name__ == "__main__":
    main()
