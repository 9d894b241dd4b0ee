"""Objectives: what is trained (`mmdiff.protocols.Objective`).

May import: canvas, config, diffusion, protocols.
"""
