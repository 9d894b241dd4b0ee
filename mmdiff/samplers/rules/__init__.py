"""Rules of a step: propose tokens, score them, select the positions to commit, revise what was committed.

A configuration names one by its dotted path. May import: config, diffusion, samplers.unmask_schedule.
"""
