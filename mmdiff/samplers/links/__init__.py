"""What stands between the sampler and the model, each a Denoise made of a Denoise (`chain.py`).

May import: canvas, config, diffusion, protocols, samplers.
"""
