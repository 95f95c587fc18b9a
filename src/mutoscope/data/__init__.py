"""Sources of frames: video files, folders of clips, the synthetic dataset "shapes", cached tokens.

This file imports nothing, so that reading a video does not need torch and training on shapes does not need PyAV.
"""
