"""Dotted paths of 0.1 and of earlier days of 0.2, and what they are called since the modules have rooms.

Saved models and configurations name classes by dotted path; those that were written before the move still load. The
table goes in 0.3.
"""

from __future__ import annotations

import re
from typing import Any

MOVED = {  # below `mmdiff.`; modules, and classes of a module that was split
    "backbones.esm": "backbones.families.esm",
    "backbones.llada": "backbones.families.llada",
    "diffusion.levels": "diffusion.mask_rates",
    "encoders.action": "tasks.vla.codecs.bins",
    "encoders.fast": "tasks.vla.codecs.fast",
    "encoders.statistics": "tasks.vla.codecs.normalise",
    "heads": "objectives.heads",
    "objectives.companion": "objectives.extras.augmented",
    "objectives.expanding": "objectives.replacing.expanding",
    "objectives.hybrid": "objectives.replacing.hybrid",
    "objectives.insertion": "objectives.replacing.insertion",
    "objectives.latent": "objectives.extras.variational",
    "samplers.drafts": "samplers.deliberation",
    "samplers.drafts.LowConfidence": "samplers.deliberation.MaskLeastConfident",
    "samplers.drafts.Random": "samplers.deliberation.MaskRandom",
    "samplers.drafts.SemiAutoregressive": "samplers.deliberation.MaskChunks",
    "samplers.groups": "samplers.rules.hierarchical",
    "samplers.maskgit": "samplers.rules.maskgit",
    "samplers.rules.Everything": "samplers.rules.select.Everything",
    "samplers.rules.Factor": "samplers.rules.select.Factor",
    "samplers.rules.LowConfidence": "samplers.rules.score.LowConfidence",
    "samplers.rules.Margin": "samplers.rules.score.Margin",
    "samplers.rules.NegativeEntropy": "samplers.rules.score.NegativeEntropy",
    "samplers.rules.Quota": "samplers.rules.select.Quota",
    "samplers.rules.Random": "samplers.rules.score.Random",
    "samplers.rules.RunningConfidence": "samplers.rules.revise.RunningConfidence",
    "samplers.rules.Threshold": "samplers.rules.select.Threshold",
    "tasks.act_client": "tasks.vla.serve.client",
    "tasks.alignments": "tasks.protein.data.alignments",
    "tasks.asr_demo": "tasks.asr.demo",
    "tasks.audio_templates": "tasks.dialogue.audio_templates",
    "tasks.augment": "tasks.vla.data.augment",
    "tasks.choice": "tasks.dialogue.choice",
    "tasks.controls": "tasks.dialogue.controls",
    "tasks.ctc": "tasks.asr.ctc",
    "tasks.fasta": "tasks.protein.data.fasta",
    "tasks.hypotheses": "tasks.asr.data.hypotheses",
    "tasks.lerobot": "tasks.vla.data.dataset",
    "tasks.libero": "tasks.vla.worlds.libero",
    "tasks.llava": "tasks.vqa.llava",
    "tasks.manifests": "tasks.asr.data.manifests",
    "tasks.manifests.KaldiDir": "tasks.asr.data.kaldi.KaldiDir",
    "tasks.manifests.LibriSpeech": "tasks.asr.data.librispeech.LibriSpeech",
    "tasks.markov": "tasks.protein.data.markov",
    "tasks.metaworld": "tasks.vla.worlds.metaworld",
    "tasks.motifs": "tasks.protein.design.motifs",
    "tasks.opened": "tasks.protein.data.masked",
    "tasks.opened.Opened": "tasks.protein.data.masked.Masked",
    "tasks.policies": "tasks.vla.rollout.policies",
    "tasks.protein_demo": "tasks.protein.cli.demo",
    "tasks.protein_questions": "tasks.protein.data.questions",
    "tasks.reach": "tasks.vla.worlds.reach",
    "tasks.residue_policies": "tasks.protein.data.policies",
    "tasks.scenes": "tasks.vqa.scenes",
    "tasks.sequence_tables": "tasks.protein.data.tables",
    "tasks.speech": "tasks.asr.data.commands",
    "tasks.speech.tokenizer": "tasks.asr.data.grammar.tokenizer",
    "tasks.templates": "tasks.dialogue.templates",
    "tasks.utterances": "tasks.asr.data.utterances",
    "tasks.vla_demo": "tasks.vla.cli.demo",
    "tasks.vla_mt10": "tasks.vla.cli.mt10",
    "tasks.vla_tables": "tasks.vla.cli.tables",
    "tasks.vla.words": "tasks.vla.worlds.metaworld",
    "tasks.vla_words": "tasks.vla.worlds.metaworld",
    "tasks.vqa_demo": "tasks.vqa.demo",
    "tasks.worlds": "tasks.vla.worlds.world",
    "vocab": "canvas.vocab",
}
KEYS = {"keep_read": "sample_cache_mb"}  # of settings
ARGUMENTS = {  # of a target, under its name of today
    "mmdiff.objectives.denoise.Denoise": {"views": "copies"},
    "mmdiff.tasks.protein.data.markov.Markov": {"open": "masked"},
}
DOTTED = re.compile(r"mmdiff(?:\.\w+)+")


def renewed(tree: Any) -> Any:
    """Returns `tree`, of mappings, lists and values, with the dotted paths and keys of 0.1 replaced by today's."""
    if isinstance(tree, dict):
        target = tree.get("target")
        keys = KEYS | (ARGUMENTS.get(today(target), {}) if isinstance(target, str) else {})
        return {keys.get(key, key): renewed(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [renewed(value) for value in tree]
    return today(tree) if isinstance(tree, str) and DOTTED.fullmatch(tree) else tree


def today(path: str) -> str:
    """Returns today's name of a dotted path below `mmdiff.`; a path that has not moved is returned as it is."""
    parts = path.split(".")[1:]
    for n in range(len(parts), 0, -1):
        new = MOVED.get(".".join(parts[:n]))
        if new is not None:
            return ".".join(["mmdiff", new, *parts[n:]])
    return path
