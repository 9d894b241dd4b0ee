"""Tasks, one file each: how a row becomes a canvas, and a canvas an answer. See `mmdiff.protocols.Task`."""
