"""Many runs beside each other: listed, compared, and swept over settings of training and of sampling.

May import: config, evaluation, model, protocols, runs, samplers, session.
"""
