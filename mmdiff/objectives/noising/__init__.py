"""What noise may do beside masking targets at random: scopes before the masks, changes after them, emphasis on tokens.

May import: canvas, diffusion.
"""
