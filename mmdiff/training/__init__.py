"""The training loop: a run from its first stage to its last (`train.py`), one stage (`stage.py`).

May import: backbones, canvas, config, data, diffusion, model, objectives, protocols, runs.
"""
