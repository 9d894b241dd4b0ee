"""Runs beside the first of them: settings, figures with intervals, curves, and predictions that changed.

May import: config, evaluation, experiments.figures, runs.
"""
