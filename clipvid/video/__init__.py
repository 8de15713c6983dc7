"""Files of video to tensors of frames: which frames (sampling), their pixels (decode), their size (transforms).

Contract: uint8 RGB (T, 3, H, W), upright, in presentation order. Knows nothing of models, captions or data sets.
"""

from clipvid.video.decode import BACKENDS, PICTURE_SUFFIXES, VideoInfo, pictures_in, probe, read, read_video
from clipvid.video.sampling import SAMPLERS, sample, temporal_views
from clipvid.video.transforms import VideoTransform

__all__ = [
    "BACKENDS",
    "PICTURE_SUFFIXES",
    "SAMPLERS",
    "VideoInfo",
    "VideoTransform",
    "pictures_in",
    "probe",
    "read",
    "read_video",
    "sample",
    "temporal_views",
]
