"""STAN on CLIP as in its released code, reimplemented in plain PyTorch without clipvid, for comparisons.

It has separate linears for query, key and value, attention weights as a tensor, the tower's hidden states in a list,
and autograd through everything that requires gradients. Its parameters have the names of the released checkpoint, so
`clipvid.load_stan_checkpoint` reads its `state_dict()`, and equal outputs can be checked before any timing.
Source of the algorithm: Liu et al., STAN (CVPR 2023), section 3, and the released code (T module before S module, class
token averaged over frames between attention and MLP, `ln_post` on the sum).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Size:
    """Sizes of a CLIP ViT and its branch; the default is B/32 with K = 4."""

    width: int = 768
    heads: int = 12
    layers: int = 12
    patch: int = 32
    image: int = 224
    embed: int = 512
    depth: int = 4
    times: int = 64


class Attention(nn.Module):
    """Self-attention that computes the attention weights as a tensor."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width) for _ in range(3))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        rows, length, width = x.shape

        def split(y: Tensor) -> Tensor:
            y = y.view(rows, length, self.heads, width // self.heads).transpose(1, 2).contiguous()
            return y.view(rows * self.heads, length, width // self.heads)

        q, k, v = split(self.q_proj(x) * self.scale), split(self.k_proj(x)), split(self.v_proj(x))
        weights = torch.softmax(torch.bmm(q, k.transpose(1, 2)), dim=-1)
        mixed = torch.bmm(weights, v).view(rows, self.heads, length, width // self.heads)
        return self.out_proj(mixed.transpose(1, 2).reshape(rows, length, width))


class MLP(nn.Module):
    """Linear, QuickGELU, linear."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        return self.fc2(x * torch.sigmoid(1.702 * x))


class Layer(nn.Module):
    """A pre-norm transformer layer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.layer_norm1, self.self_attn = nn.LayerNorm(width), Attention(width, heads)
        self.layer_norm2, self.mlp = nn.LayerNorm(width), MLP(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class SpatialLayer(Layer):
    """The S module: attention within each frame and the class token, which is then averaged over the frames."""

    def forward(self, cls: Tensor, patch: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        b, t, n, d = patch.shape
        x = torch.cat([cls[:, None].expand(b, t, 1, d), patch], dim=2).reshape(b * t, 1 + n, d)
        residual = self.self_attn(self.layer_norm1(x)).view(b, t, 1 + n, d)
        of_cls, of_patch = residual[:, :, :1].mean(dim=1), residual[:, :, 1:].reshape(b, t * n, d)
        x = torch.cat([cls, patch.reshape(b, t * n, d)], dim=1) + torch.cat([of_cls, of_patch], dim=1)
        x = x + self.mlp(self.layer_norm2(x))
        return x[:, :1], x[:, 1:].view(b, t, n, d)


class TemporalLayer(nn.Module):
    """The T module: attention along time for each patch position, followed by a linear that starts at zero."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.layer_norm1, self.self_attn = nn.LayerNorm(width), Attention(width, heads)
        self.temporal_fc = nn.Linear(width, width)
        nn.init.zeros_(self.temporal_fc.weight)
        nn.init.zeros_(self.temporal_fc.bias)

    def forward(self, patch: Tensor) -> Tensor:
        b, t, n, d = patch.shape
        x = patch.transpose(1, 2).reshape(b * n, t, d)
        x = self.temporal_fc(self.self_attn(self.layer_norm1(x)))
        return patch + x.view(b, n, t, d).transpose(1, 2)


class Vision(nn.Module):
    """The tower and the branch beside it, in one module as released."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        n = (size.image // size.patch) ** 2
        self.class_embedding = nn.Parameter(torch.randn(size.width) * size.width**-0.5)
        self.patch_embedding = nn.Conv2d(3, size.width, size.patch, stride=size.patch, bias=False)
        self.position_embedding = nn.Embedding(n + 1, size.width)
        self.pre_layrnorm, self.post_layernorm = nn.LayerNorm(size.width), nn.LayerNorm(size.width)  # spelt as released
        self.layers = nn.ModuleList(Layer(size.width, size.heads) for _ in range(size.layers))
        self.STAN_S_layers = nn.ModuleList(SpatialLayer(size.width, size.heads) for _ in range(size.depth))
        self.STAN_T_layers = nn.ModuleList(TemporalLayer(size.width, size.heads) for _ in range(size.depth))
        self.STAN_time_embed = nn.Embedding(size.times, size.width)

    def forward(self, video: Tensor) -> Tensor:
        """Return the frames' class tokens plus the branch's (B, T, D) for preprocessed frames (B, T, 3, S, S)."""
        b, t = video.shape[:2]
        hidden = self.tower(video.flatten(0, 1))
        frame_cls = hidden[-1].view(b, t, *hidden[-1].shape[1:])[:, :, 0]
        return self.post_layernorm(frame_cls + self.branch(hidden, b, t))

    def tower(self, images: Tensor) -> list[Tensor]:
        """Return the hidden states (B·T, 1 + N, D) before the first layer and after each layer."""
        patches = self.patch_embedding(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(images), 1, -1), patches], dim=1)
        hidden = [self.pre_layrnorm(x + self.position_embedding.weight)]
        for layer in self.layers:
            hidden.append(layer(hidden[-1]))
        return hidden

    def branch(self, hidden: list[Tensor], b: int, t: int) -> Tensor:
        """Return the branch's class token (B, 1, D) after its last layer."""
        cls = patch = None
        positions = self.position_embedding.weight
        taps = hidden[-len(self.STAN_S_layers) :]
        for tap, spatial, temporal in zip(taps, self.STAN_S_layers, self.STAN_T_layers, strict=True):
            tap = tap.view(b, t, *tap.shape[1:])
            level_cls, level_patch = tap[:, :, 0].mean(dim=1, keepdim=True), tap[:, :, 1:]
            if cls is None:
                cls = (level_cls + self.class_embedding + positions[0]) / 2
                patch = level_patch + positions[1:] + self.STAN_time_embed.weight[:t, None]
            else:
                cls, patch = cls + level_cls, patch + level_patch
            cls, patch = spatial(cls, temporal(patch))
        assert cls is not None
        return cls


class PlainSTAN(nn.Module):
    """Tower, branch and projection: frames in, clip embeddings out (the mean over frames, not normalised)."""

    def __init__(self, size: Size | None = None) -> None:
        super().__init__()
        size = size or Size()
        self.backbone = Vision(size)
        self.visual_projection = nn.Linear(size.width, size.embed, bias=False)

    def forward(self, video: Tensor) -> Tensor:
        """Return embeddings (B, E) of preprocessed clips (B, T, 3, S, S)."""
        return self.visual_projection(self.backbone(video)).mean(dim=1)

    def freeze_tower(self) -> None:
        """Train only the branch, like the released option: no other parameter requires gradients."""
        for name, parameter in self.named_parameters():
            parameter.requires_grad_("STAN" in name)
