"""Sequences written by the sampler: templates, motifs, scaffolds, binders.

May import: tasks.protein.score and below.
"""
