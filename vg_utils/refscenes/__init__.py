"""RefScenes, the embedded data set: scenes of solids are planned, drawn, and described by phrases."""

from vg_utils.refscenes.grammar import execute, fits_nothing, judge, mirror
from vg_utils.refscenes.scenes import make_scenes, write_scenes

__all__ = ["execute", "fits_nothing", "judge", "make_scenes", "mirror", "write_scenes"]
