"""A model's description for interactive use, instead of nn.Module's tree of every layer.

Contract: a model in, one line or a small HTML table out, without hashing or running anything. `print(model.branch)`
still shows the tree.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from clipvid.runtime.display.tables import html_table


class ShortRepr:
    """Base of a model that is shown by its base model, branch, frames and parameters."""

    backbone: Any
    branch: Any
    training_record: dict[str, Any] | None

    def __repr__(self) -> str:
        parts = [f"{name} {value}" for name, value in _description(self).items()]
        return f"{type(self).__name__}({', '.join(parts)})"

    def _repr_html_(self) -> str:
        rows = [[name, value] for name, value in _description(self).items()]
        return html_table(type(self).__name__, ["", ""], rows)


def _description(model: Any) -> dict[str, str]:
    """Return a model's base, branch, classes, number of frames and number of parameters that train."""
    base, head = model.backbone.base, model.head
    name = base.name or "an object given by the caller"
    described = {"base": name + (f" ({base.pretrained})" if base.pretrained else "")}
    described["branch"] = model.branch.options.preset()
    if head is not None:
        described["classes"] = str(len(head.classes))
    trained = (model.training_record or {}).get("data_config", {}).get("frames")
    frames = getattr(model.branch.options, "frames", None) or trained
    described["frames"] = "any number" if frames is None else str(frames)
    trainable, total = _parameters(model)
    described["trainable parameters"] = f"{trainable:,} of {total:,}"
    return described


def _parameters(model: nn.Module) -> tuple[int, int]:
    """Return the number of parameters that train, and of all."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(size for size, trains in sizes if trains), sum(size for size, _ in sizes)
