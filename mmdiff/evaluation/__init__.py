"""Scores, predictions and reports of a run; predictions of files of rows; vectors of texts.

May import: canvas, config, data, model, protocols, runs, session.
"""
