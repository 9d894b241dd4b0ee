"""Packaged configurations: flat YAML files, each opening with the command that runs it."""
