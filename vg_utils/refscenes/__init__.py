"""RefScenes, the embedded data set: scenes of solids are planned, drawn, and described by phrases."""
