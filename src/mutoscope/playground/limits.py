"""How much of the machine the server gives away."""

from dataclasses import dataclass

from mutoscope.checks import COUNT, POSITIVE, check_fields

RANGES = {
    "active_sessions": COUNT,
    "waiting_sessions": COUNT,
    "connections": COUNT,
    "loaded_models": COUNT,
    "unused_seconds": POSITIVE,
    "idle_seconds": POSITIVE,
    "remembered_frames": COUNT,
    "upload_bytes": COUNT,
    "upload_pixels": COUNT,
    "upload_seconds": POSITIVE,
    "decode_seconds": POSITIVE,
    "decode_bytes": COUNT,
    "kept_files": COUNT,
    "kept_bytes": COUNT,
    "kept_seconds": POSITIVE,
}


@dataclass(frozen=True)
class Limits:
    """Bounds of one server. All memory that clients can fill is bounded by them."""

    active_sessions: int = 8
    """sessions that generate in turns; further ones wait"""
    waiting_sessions: int = 56
    """sessions that wait for a place; further ones are turned away"""
    connections: int = 600
    """open sockets"""
    loaded_models: int = 4
    """models in memory; the one unused for longest is dropped for the next"""
    unused_seconds: float = 900.0
    """after which an unused model is dropped"""
    idle_seconds: float = 300.0
    """after which a session that wants nothing loses its place"""
    remembered_frames: int = 1_200
    """frames of a played stream that can be rewound to and saved; older ones are forgotten"""
    upload_bytes: int = 64 * 2**20
    """of one uploaded file"""
    upload_pixels: int = 4_096 * 4_096
    """of one frame of it"""
    upload_seconds: float = 600.0
    """playing time of it; only the first frames are read"""
    decode_seconds: float = 20.0
    """processor time for reading it"""
    decode_bytes: int = 2 * 2**30
    """address space of the process that reads it"""
    kept_files: int = 64
    """uploads and results that wait to be used or fetched"""
    kept_bytes: int = 512 * 2**20
    """of all of these together"""
    kept_seconds: float = 3_600.0
    """after which these are dropped"""

    def __post_init__(self) -> None:
        check_fields(self, RANGES)
