"""Objectives: what is trained (`mmdiff.protocols.Objective`).

May import: canvas, diffusion, protocols.
"""
