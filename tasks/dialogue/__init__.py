"""What tasks share: rows of questions and answers, chat templates, multiple choice, controls.

May import: the core.
"""
