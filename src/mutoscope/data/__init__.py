"""Where frames come from: video files, folders of clips, the built-in world of moving shapes, cached tokens.

Nothing is imported here, so that reading a video does not need torch and training on shapes does not need PyAV.
"""
