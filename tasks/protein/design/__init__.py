"""Sequences sampled by a model: templates, motifs, scaffolds, binders.

May import: the core, tasks.protein.data, tasks.protein.score, tasks.protein.residues, tasks.protein.session,
tasks.protein.task.
"""
