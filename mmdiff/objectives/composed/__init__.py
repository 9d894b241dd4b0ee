"""Objectives that are made of others: sums of them, pairs of copies, mixtures of diffusion with other orders.

May import: canvas, diffusion, objectives, protocols.
"""
