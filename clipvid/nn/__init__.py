"""Tensor-only layers: attention, the pre-norm block, cross-frame mixers. No CLIP, no video, no files."""
