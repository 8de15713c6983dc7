"""Check that clipvid attaches to every tower that open_clip lists: shapes on the meta device, and eight small runs.

Run `python benchmarks/towers.py [--out towers.json]`. No weights are needed: shapes need none, and the real runs use
random ones. Prints `N/N` and writes JSON.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import time
from collections.abc import Callable
from pathlib import Path

import open_clip
import torch
from open_clip.model import _build_vision_tower
from torch import nn

import clipvid
from clipvid.models.backbone.backbone import Backbone
from clipvid.models.factory import attach
from clipvid.models.video_clip import VideoCLIP

FAMILIES = {  # one small model of each family
    "ViT with class token": "ViT-S-32-alt",
    "SigLIP (attention pooling, no class token)": "ViT-B-16-SigLIP",
    "ViT with mean pooling": "vit_medium_patch16_gap_256",
    "EVA (rotary)": "PE-Core-T-16-384",
    "ConvNeXt": "convnext_base",
    "FastViT": "MobileCLIP2-S0",
    "Swin": "swin_base_patch4_window7_224",
    "ResNet": "RN50",
}
FRAMES, BATCH = 3, 2
Check = Callable[[Backbone, str], str | None]


class VisualOnly(nn.Module):
    """An open_clip model without its text tower, which a branch never reads (and which some models download)."""

    def __init__(self, name: str, device: str) -> None:
        super().__init__()
        config = open_clip.get_model_config(name)
        with torch.device(device):
            self.visual = _build_vision_tower(
                config["embed_dim"], config["vision_cfg"], quick_gelu=config.get("quick_gelu", False)
            )


def check_shape(backbone: Backbone, mixer: str) -> str | None:
    """Return None if a branch attaches and embeds a clip on the meta device, or else the problem."""
    model = attach(backbone, branch_kwargs={"mixer": mixer})
    video = torch.empty(BATCH, FRAMES, 3, *model.backbone.image_size, device="meta")
    with torch.no_grad():
        return _wrong_shape(model, model.encode_video(video))


def check_run(backbone: Backbone, mixer: str) -> str | None:
    """Do the same on the CPU with random weights, and check that the embedding is finite."""
    model = attach(backbone, branch_kwargs={"mixer": mixer})
    with torch.no_grad():
        embedding = model.encode_video(torch.randn(BATCH, FRAMES, 3, *model.backbone.image_size))
    if not bool(embedding.isfinite().all()):
        return "embedding is not finite"
    return _wrong_shape(model, embedding)


def _wrong_shape(model: VideoCLIP, embedding: torch.Tensor) -> str | None:
    expected = (BATCH, model.embed_dim)
    return None if tuple(embedding.shape) == expected else f"shape {tuple(embedding.shape)}, not {expected}"


def survey(names: list[str], check: Check, mixers: tuple[str, ...], *, device: str) -> dict[str, str | None]:
    """Return None or the problem for each name, with every mixer; a failure does not end the run."""
    problem_of: dict[str, str | None] = {}
    for name in names:
        try:
            backbone = Backbone(VisualOnly(name, device))
            problems = [f"{mixer}: {problem}" for mixer in mixers if (problem := check(backbone, mixer))]
        except Exception as error:  # a survey reports whatever goes wrong
            problems = [f"{type(error).__name__}: {error}"]
        problem_of[name] = "; ".join(problems) or None
        if problems:
            print(f"  {name}: {problem_of[name]}")
    return problem_of


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--only", nargs="*", help="names to survey, instead of all")
    parser.add_argument("--no-run", action="store_true", help="shapes only, no runs with weights")
    parser.add_argument("--mixers", nargs="*", default=["attention", "conv"], help="mixers of the branch to attach")
    args = parser.parse_args()
    logging.disable(logging.WARNING)  # open_clip warns for every model that it has no weights, as intended
    mixers = tuple(args.mixers)
    start = time.perf_counter()
    names = args.only or open_clip.list_models()
    shapes = survey(names, check_shape, mixers, device="meta")
    passed = sum(problem is None for problem in shapes.values())
    seconds = time.perf_counter() - start
    print(f"{passed}/{len(shapes)} towers attach with {' and '.join(mixers)} in {seconds:.0f} s (meta device)")
    runs = {} if args.no_run else survey(list(FAMILIES.values()), check_run, mixers, device="cpu")
    if runs:
        total = time.perf_counter() - start
        ran = sum(problem is None for problem in runs.values())
        print(
            f"{ran}/{len(runs)} families run with random weights ({total - seconds:.0f} s more): {', '.join(FAMILIES)}"
        )
    if args.out:
        record = {
            "clipvid": clipvid.__version__,
            "open_clip": open_clip.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "meta_seconds": round(seconds, 1),
            "meta": shapes,
            "runs": runs,
        }
        args.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return 0 if all(p is None for p in (*shapes.values(), *runs.values())) else 1


if __name__ == "__main__":
    raise SystemExit(main())
