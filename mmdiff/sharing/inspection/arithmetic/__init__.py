"""Models without torch: the shapes of their parameters and the bytes of their forwards, by arithmetic; and tokenizers.

May import: backbones, sharing.inspection.figures, sharing.inspection.strict.
"""
