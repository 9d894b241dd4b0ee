"""Families of published models: what each calls differently than the class of transformers' that computes it.

May import: backbones, canvas.
"""
