"""What a person starts with: packages of their own (`mmdiff new`), and completion in a shell.

May import: commands.arguments, config, experiments.
"""
