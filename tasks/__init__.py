"""Tasks, a room each: how a row becomes a canvas, and a canvas an answer (`mmdiff.protocols.Task`).

May import: mmdiff and encoders; tasks share `dialogue` and never import each other.
"""
