"""Scores, predictions and reports of a run; predictions of files of rows; suites of harnesses; vectors of texts.

May import: canvas, config, data, evals, model, protocols, runs, session.
"""
