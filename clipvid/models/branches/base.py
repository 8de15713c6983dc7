"""Base classes of all branches. Knows nothing of any particular branch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from clipvid.models.backbone.backbone import Backbone
from clipvid.models.backbone.taps import Geometry, Pixels, Taps
from clipvid.models.branches.options import BranchOptions
from clipvid.nn.attention import Block
from clipvid.nn.checkpointing import checkpointed
from clipvid.registry import resolved


class Branch(nn.Module):
    """Taps in, frame embeddings (B, T, E) out; their mean over frames is the video embedding."""

    options: Any
    """Dataclass that this branch was built from and can be rebuilt from."""
    levels: tuple[int, ...]
    """Levels of the tower that the branch reads."""
    reads_pixels: bool = False
    """True for a branch with its own stem, which takes Pixels in place of Taps and has nothing to cache."""
    reads_frames: bool = True
    """True for a branch that reads CLIP's frame embeddings, which need all blocks of the tower."""
    image_size: int | None = None
    """Side of the frames that the branch reads; None for the tower's."""
    one_token: bool = False
    """True for a branch that computes one embedding per clip and repeats it for every frame."""
    copied: tuple[str, ...] = (".block.",)
    """Parts of the names of parameters that start as copies of CLIP's and train at a lower rate."""

    def keys_per_patch(self, frames: int) -> list[int]:
        """Return the number of keys per patch in each step of a layer; empty for a branch without such steps."""
        return []

    def set_activation_checkpointing(self, on: bool) -> None:
        """Switch on or off that layers run again in the backward pass, which saves the memory of their activations.

        Raises ValueError if `on` is True and the branch has no layers on the tower's tokens.
        """
        if on:
            raise ValueError(
                f"activation_checkpointing runs the layers of a branch again, and {type(self).__name__} has none on "
                "the tower's tokens; leave it out, or choose a side branch (stan) or an intermediate one (divided, "
                "vivit1)"
            )


@dataclass(frozen=True)
class State:
    """Input of a layered branch, and between its layers the class token, if there is one, and the patch tokens."""

    taps: Taps | Pixels
    cls: Float[Tensor, "b d"] | None
    patch: Float[Tensor, "b t n d"]


class LayeredBranch(Branch, ABC):
    """A branch whose layers keep tokens on the tower's grid, so that its state can be read between two layers.

    Subclasses define `start`, `advance` and `finish`; `forward` runs them in this order.
    """

    layers: nn.ModuleList
    geometry: Geometry
    """Geometry of the levels that the branch reads; its grid is that of the dense tokens."""
    width: int
    """D of the dense tokens."""
    activation_checkpointing: bool = False
    """State of activation checkpointing, set by `set_activation_checkpointing`."""

    def forward(self, taps: Taps | Pixels) -> Float[Tensor, "b t e"]:
        return self.finish(self.state(taps))

    def state(self, taps: Taps | Pixels) -> State:
        """Return the state after the last layer."""
        return self.run(self.start(taps), 0, list(self.layers))

    def run(self, state: State, first: int, layers: list[nn.Module]) -> State:
        """Run `layers`, whose indices start at `first`."""
        for k, layer in enumerate(layers, start=first):
            state = self.advance(state, k, layer)
        return state

    def set_activation_checkpointing(self, on: bool) -> None:
        self.activation_checkpointing = on

    def through(
        self, layer: nn.Module, cls: Tensor | None, patch: Float[Tensor, "b t n d"], *, mask: Tensor | None
    ) -> tuple[Tensor | None, Float[Tensor, "b t n d"]]:
        """Run one layer on the tokens, under activation checkpointing if that is on."""
        run = partial(layer, grid=self.geometry.grid, mask=mask)  # binds no tokens: the graph would keep them alive
        return (
            checkpointed(run, cls, patch)
            if self.activation_checkpointing and torch.is_grad_enabled()
            else run(cls, patch)
        )

    @abstractmethod
    def start(self, taps: Any) -> State:
        """Return the state that enters the first layer."""

    @abstractmethod
    def advance(self, state: State, k: int, layer: nn.Module) -> State:
        """Run the layer with index `k`."""

    @abstractmethod
    def finish(self, state: State) -> Float[Tensor, "b t e"]:
        """Turn the state after the last layer into frame embeddings."""

    def dense(self, state: State) -> Float[Tensor, "b t n d"]:
        """Return the patches alone, on the tower's grid."""
        return state.patch


class Borrowed:
    """Reference to the tower, for a branch that uses its weights; no submodule, so it is not trained or saved.

    In a deep copy that includes the tower it refers to the copied tower, else to the original.
    """

    def __init__(self, visual: nn.Module) -> None:
        self.visual: Any = visual

    def __deepcopy__(self, memo: dict[int, Any]) -> Borrowed:
        return Borrowed(memo.get(id(self.visual), self.visual))


def build(backbone: Backbone, options: BranchOptions) -> Branch:
    """Build the branch that `options` describe, on the backbone's device; in float32 where the tower is in half."""
    make = resolved(options.branch) if isinstance(options.branch, str) else options.branch
    with torch.device(backbone.device):
        branch = make(backbone, options)
    return branch.float() if backbone.dtype in (torch.float16, torch.bfloat16) else branch


def heads_of(copies: list[nn.Module], width: int) -> int:
    """Return the number of heads of the tower's blocks, or one per 64 channels if there are none to match."""
    if copies and isinstance(copies[0], Block):
        return copies[0].attention.heads
    return max(h for h in range(1, max(1, width // 64) + 1) if width % h == 0)
