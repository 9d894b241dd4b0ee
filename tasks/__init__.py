"""Tasks, a room each: how a row becomes a canvas, and a canvas a prediction (`mmdiff.protocols.Task`).

They share `dialogue` and never import each other. May import: nothing.
"""
