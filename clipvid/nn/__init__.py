"""Layers that know only tensors: attention, the pre-norm block, cross-frame mixers. No CLIP, no video, no files."""
