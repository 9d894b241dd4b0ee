"""The one sampler: `loop.sample` fills the masked positions of a canvas, step by step, by the rules in `rules/`.

May import: canvas, config, diffusion, protocols.
"""
