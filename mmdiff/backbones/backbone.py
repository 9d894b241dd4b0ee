"""`Backbone`: a stock transformers model that attends in both directions, with the facts diffusion needs of it.

The one switch is `config.is_causal = False` (transformers >= 5.2): the model then builds bidirectional masks and calls
every attention function with it. The `is_causal` of the attention modules alone does neither once a row is padded.

Shape letters: R rows, L canvas length, D width, V rows of the embedding table.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mmdiff.canvas.pattern import Coordinates, Pattern, Visibility
from mmdiff.canvas.patterns import Full
from mmdiff.canvas.vocab import Vocab
from mmdiff.errors import ConfigError

from .families.tokenizers import save_generation, save_tokenizer
from .family import Facts, find_family
from .shares import Share
from .weights import write_weights

if TYPE_CHECKING:
    from .memory import Memory


class Backbone(nn.Module):
    """A module from token ids or embeddings to hidden states or logits. `load_backbone` and `new_backbone` make one.

    model: a transformers class as it is, with `config.is_causal=False`; adapters may be injected into it.
    family: the `model_type` its folder is saved under.
    node: the node that makes it again from a saved folder, see `mmdiff.config.saveable`.
    """

    def __init__(self, model: Any, facts: Facts, vocab: Vocab, family: str, node: dict[str, Any]) -> None:
        super().__init__()
        self.model = model
        self.facts = facts
        self.vocab = vocab
        self.family = family
        self.node = node
        self.dim: int = model.config.hidden_size
        self.vocab_size: int = model.config.vocab_size
        self.compiled = False  # whether the layers are run as graphs now, see mmdiff.backbones.compiled
        model.generate = _no_generate
        model.register_forward_pre_hook(_no_labels, with_kwargs=True)

    def embed(self, ids_RL: Tensor, attend_RL: Tensor | None = None) -> Tensor:
        """Returns embeddings (R, L, D). attend_RL: as in `hidden`; ESM's token dropout counts its masks."""
        return find_family(self.family).embed(self.model, ids_RL, attend_RL)

    def hidden(
        self,
        x_RLD: Tensor,
        attend_RL: Tensor | None = None,
        position_ids_RL: Tensor | None = None,
        visibility: Visibility | None = None,
        memory: Memory | None = None,
        noised_RL: Tensor | None = None,
        soft_RLD: Tensor | None = None,
    ) -> Tensor:
        """Returns the last hidden states (R, L, D), after the final norm; the head is not run.

        attend_RL: bool, False on padding. None: every position is attended and no mask is made, so fast kernels are
            used.
        position_ids_RL: int64; None: 0, 1, ... (rotary positions are relative, so padding on the left needs none).
        visibility: who sees whom (`mmdiff.canvas.pattern`); None: every position sees every other. It alone keeps the
            documents of a packed row apart: position ids that start again do not, where attention is bidirectional.
        memory: takes in the keys and values of these positions. Where it is set to a part of the canvas, they attend to
            all that it holds, and `attend_RL` (R, K) and `visibility` cover the whole canvas.
        noised_RL: bool, which positions of the whole canvas are noised. soft_RLD: what stands beside the embeddings
            there (`soft`). Only families that run noise otherwise than context look at them.
        Raises ConfigError for a mask of pairs under a flash attention, for several canvases in a row of such a family,
            and for a memory with a family of encoders.
        """
        family = find_family(self.family)
        if memory is not None and not family.CACHES:
            raise ConfigError(f"backbone: {self.family} runs all positions of a canvas; keys and values cannot be kept")
        attention = self.model.config._attn_implementation
        mask = attend_RL if visibility is None else visibility.mask(x_RLD, attend_RL, attention)
        if attend_RL is not None and mask is attend_RL and memory is None and "sdpa" in attention and not self.windows:
            # of a mask of rows the device would be asked whether all is True
            mask = attend_RL[:, None, None].expand(-1, 1, attend_RL.shape[1], -1)
        key = visibility.key if self.tells_noise and visibility is not None else Coordinates()
        noise = {"noised_RL": noised_RL, "soft_RQD": soft_RLD, "block_RK": key.block} if self.tells_noise else {}
        if not (isinstance(key.document, int) and isinstance(key.stream, int)):
            raise ConfigError(
                f"backbone: {self.family} has one canvas per row, expected no pack and no clean copy beside"
            )
        out = family.run(self.model, x_RLD, mask, attend_RL, position_ids_RL, False, memory, **noise)
        hidden_RLD: Tensor = out.last_hidden_state
        return hidden_RLD

    def layers(
        self, x_RLD: Tensor, attend_RL: Tensor | None = None, position_ids_RL: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """Returns the hidden states (R, L, D) of all layers: first the embeddings, last what `hidden` returns."""
        out = find_family(self.family).run(self.model, x_RLD, attend_RL, attend_RL, position_ids_RL, True)
        return (*out.hidden_states[:-1], out.last_hidden_state)

    @property
    def windows(self) -> bool:
        """True where some layers see a window only: transformers then makes their masks, of a mask of rows."""
        return "sliding_attention" in (getattr(self.model.config, "layer_types", None) or ())

    @property
    def tells_noise(self) -> bool:
        """True where noised positions are run otherwise than context, with an earlier prediction beside their ids."""
        return bool(getattr(find_family(self.family), "NOISED", False))

    def soft(self, logits_PV: Tensor) -> Tensor:
        """Returns (P, D), what `hidden` takes as `soft_RLD` for a prediction of the step before.

        Raises ConfigError for a family that takes none.
        """
        if not self.tells_noise:
            raise ConfigError(
                f"sampler.process.conditioning: {self.family} takes no earlier prediction, expected false"
            )
        return find_family(self.family).soft(self.model, logits_PV)  # type: ignore[attr-defined]

    @property
    def caches(self) -> bool:
        """True where `hidden` takes a memory."""
        return find_family(self.family).CACHES

    def memory(self, slots: int, length: int) -> Memory:
        """Returns an empty memory for so many canvases of that length."""
        from .memory import Memory

        return Memory(self.model.config.num_hidden_layers, slots, length)

    def head(self, h: Tensor, ids_K: Tensor | None = None) -> Tensor:
        """Returns logits (..., V) of hidden states (..., D), in the dtype of the weights.

        ids_K: only the logits (..., K) of these ids; the other rows of the head are not multiplied.
        """
        return find_family(self.family).head(self.model, h, ids_K)

    @property
    def linear_head(self) -> tuple[Tensor, Tensor | None] | None:
        """(V, D) and (V,) or None, what a head that does nothing else multiplies and adds; None for another one.

        Sharded weights are whole only while the head runs, so they are none here.
        """
        layer = self.model.get_output_embeddings() if getattr(find_family(self.family), "LINEAR", False) else None
        if type(layer) is not nn.Linear or hasattr(layer.weight, "placements"):  # an adapter, or a shard
            return None
        return layer.weight, layer.bias

    def forward(self, ids_RL: Tensor, attend_RL: Tensor | None = None, position_ids_RL: Tensor | None = None) -> Tensor:
        """Returns logits (R, L, V) of every position; a caller applies `facts.shift`."""
        return self.head(self.hidden(self.embed(ids_RL, attend_RL), attend_RL, position_ids_RL))

    def gradient_checkpointing(self, on: bool) -> None:
        """Recompute each layer in the backward pass (in training mode), or keep its activations."""
        renamed = hasattr(self.model, "activation_checkpointing_enable")  # later in transformers 5; the old name warns
        name = "activation_checkpointing" if renamed else "gradient_checkpointing"
        arguments = ({"use_reentrant": False},) if on else ()
        getattr(self.model, f"{name}_{'enable' if on else 'disable'}")(*arguments)

    def save_pretrained(self, folder: str | Path, *, original_format: bool = False, weights: bool = True) -> None:
        """Write config.json, the tokenizer and, unless `weights` is False, safetensors.

        Tensors get the names of the transformers class, or with `original_format` those of the family's published
        checkpoints, and config.json its fields. `load_backbone` reads both.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        own, config = find_family(self.family), self.model.config
        published = own.published_names(config)
        if not original_format:
            published = {share.ours: (Share(share.ours),) for shares in published.values() for share in shares}
        if original_format:
            fields = own.published_config(config, self.facts)
            if own.CACHES:  # encoders have no code that generates
                save_generation(self.facts, folder)
        else:
            fields = json.loads(config.to_json_string(use_diff=False)) | {
                "architectures": [type(self.model).__name__],
                "model_type": self.family,
                "is_causal": False,
                "mask_token_id": self.facts.mask_id,
                "eos_token_id": self.facts.eos_id,
                "pad_token_id": self.facts.pad_id if config.pad_token_id is None else config.pad_token_id,
                "bos_token_id": self.facts.bos_id,
                "reserve": self.node.get("reserve"),
                **own.fields_of(self.facts),
            }
        (folder / "config.json").write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        save_tokenizer(self.vocab.tokenizer, folder)
        if weights:
            write_weights(self.model, folder, published)


@torch.no_grad()
def check_attention(backbone: Backbone, pattern: Pattern | None = None) -> None:
    """Raise ConfigError unless the attention is the declared pattern, in whole rows and in padded ones.

    Every position of a small canvas changes in turn, which must move the states of all that see it and of nothing else.
    pattern: None: every position sees every other, which is looked at in any case: parts of a canvas are run so. A
    pattern that numbers blocks is looked at with two, whatever it makes of a canvas.
    """
    training = backbone.training
    backbone.eval()  # dropout would move everything
    for one in dict.fromkeys((Full(), pattern or Full())):
        for name, rows in (("a whole row", [[1, 1, 1, 1]]), ("a padded row", [[0, 1, 1, 1], [1, 1, 1, 0]])):
            _check_rows(backbone, one, name, torch.tensor(rows, dtype=torch.bool, device=backbone.model.device))
    backbone.train(training)


def _check_rows(backbone: Backbone, pattern: Pattern, name: str, attend_CL: Tensor) -> None:
    """attend_CL: bool, C canvases of one length; each gives L rows, in which one position changes."""
    length, device, facts = attend_CL.shape[1], attend_CL.device, backbone.facts
    attend_RL = attend_CL.repeat_interleave(length, 0)
    changing_RL = torch.eye(length, dtype=torch.bool, device=device).repeat(len(attend_CL), 1)
    ids_RL = torch.full_like(changing_RL, facts.eos_id, dtype=torch.int64)
    other_id = next(i for i in range(backbone.vocab_size) if i not in (facts.eos_id, facts.mask_id, facts.pad_id))
    numbers = isinstance(pattern.blocks(changing_RL, attend_RL), Tensor)
    block_RL = torch.arange(length, device=device).expand(attend_RL.shape) * 2 // length
    key = Coordinates(block=block_RL if numbers else 0)
    padding_RL = None if attend_RL.all() else attend_RL
    before_RLD, after_RLD = (
        backbone.hidden(backbone.embed(ids, padding_RL), padding_RL, None, Visibility(pattern, key))
        for ids in (ids_RL, ids_RL.masked_fill(changing_RL, other_id))
    )
    moved_RL = (after_RLD - before_RLD).abs().amax(-1)
    noise = 8 * torch.finfo(before_RLD.dtype).eps * before_RLD.abs().max()  # of kernels that rows of a batch share
    changed = Coordinates(block=block_RL[changing_RL][:, None] if numbers else 0)
    seen_RL = changing_RL | (pattern.sees(key, changed) & (attend_RL & changing_RL).any(1, keepdim=True))
    for wrong_RL, does in ((seen_RL & (moved_RL == 0), "does not see"), (~seen_RL & (moved_RL > noise), "sees")):
        for row, query in (wrong_RL & attend_RL).nonzero().tolist():
            raise ConfigError(
                f"backbone: position {query} of {name} {does} position {row % length}, unlike {pattern}: the attention "
                f"is another one; transformers below 5.2 is always causal (this is {version('transformers')})"
            )


def _no_generate(*args: Any, **kwargs: Any) -> Any:
    raise ConfigError("generate() of a causal LM makes no sense for a diffusion model: use the mmdiff sampler")


def _no_labels(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if kwargs.get("labels") is not None or len(args) > 5:  # the sixth argument of a transformers causal LM is `labels`
        raise ConfigError("labels= is the shifted loss of a causal LM: use an mmdiff objective with a diffusion model")
