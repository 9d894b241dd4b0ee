"""Sequences written by the sampler: templates, motifs, scaffolds, binders.

May import: the core, tasks.protein.data, tasks.protein.score, tasks.protein.residues, tasks.protein.session.
"""
