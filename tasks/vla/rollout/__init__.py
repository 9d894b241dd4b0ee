"""Policies in simulated worlds: episodes, success rates, ablations, recording, replay, the report.

May import: the core, tasks.vla.codecs, tasks.vla.data, tasks.vla.task, tasks.vla.worlds.
"""
