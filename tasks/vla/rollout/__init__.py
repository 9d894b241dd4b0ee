"""Policies in simulated worlds: episodes, success rates, ablations, recording, replay, the report.

May import: tasks.vla.worlds, data, codecs and task.
"""
