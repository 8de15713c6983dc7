"""Decoders, one per file, and their names.

Contract of a decoder: a module or an object with `read` and `probe` (and `stream`, or it cannot decode frame by frame)
as in pyav.py; all but PyAV are checked against it (judged.py). Registering them imports no decoder and no torch.
"""

from clipvid.registry import register_decoder

_HERE = __name__
register_decoder("pyav", f"{_HERE}.pyav", summary="FFmpeg's decoders by PyAV: the default, and the judge of the others")
register_decoder("decord", f"{_HERE}.decord:DECODER", summary="decord, where its frames equal PyAV's")
register_decoder("torchcodec", f"{_HERE}.torchcodec:DECODER", summary="torchcodec, where its frames equal PyAV's")
