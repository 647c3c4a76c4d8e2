"""From a video file to frames: probing, time stamps, frame sampling, decoding in guarded processes."""
