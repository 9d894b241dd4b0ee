"""What may stand at a position: allow-sets (`allowed`), and grammars, which hold in any order of unmasking.

`pattern`, `schema` and `ebnf` write a language as a regular expression; `automaton` turns that into an automaton over
ids; `paths` finds a string of it under the model's logits; `constraint` does so at every step of a generation.

May import: backbones, canvas, config, diffusion, samplers.
"""
