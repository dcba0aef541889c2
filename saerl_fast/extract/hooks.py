"""Hook points: the names under which places in a model are known, and the module that each means in a given model.

A point is found by the structure of the block, from a short list of places per point, not by the name of the model.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from torch import nn

from saerl_fast.errors import InputError, ModelMismatchError

Point = Literal[
    "resid_pre", "resid_mid", "resid_post", "attn_out", "attn_z", "mlp_normed", "mlp_in", "mlp_out", "embed", "module"
]  # fmt: skip
Side = Literal["input", "output"]

POINTS: dict[str, Point] = {
    "hook_resid_pre": "resid_pre",
    "hook_resid_mid": "resid_mid",
    "hook_resid_post": "resid_post",
    "hook_attn_out": "attn_out",
    "attn.hook_z": "attn_z",
    "ln2.hook_normalized": "mlp_normed",
    "mlp.hook_in": "mlp_in",
    "hook_mlp_out": "mlp_out",
}
"""sae-lens name inside ``blocks.L.`` -> point."""

REFUSED = {
    "hook_mlp_in": "TransformerLens means the stream before the norm, some releases the one behind it; "
    "name the place: blocks.L.hook_resid_mid, blocks.L.ln2.hook_normalized (behind the norm, without its weights) or "
    "blocks.L.mlp.hook_in (with them)",
    "attn.hook_result": "it is one vector per head, which Hugging Face models never form",
}

EMBEDDINGS = ("hook_embed", "embed_tokens", "wte", "embed_in", "word_embeddings", "tok_embeddings")

OTHER_TOWERS = ("vision", "visual", "image", "audio", "speech")
"""What stands in the names of the parts of a multimodal model that are not run."""

_SAE_LENS = re.compile(r"blocks\.(\d+)\.((?:\w+\.)*hook_\w+)")
_EMBEDDING = re.compile(rf"(?:[a-zA-Z_]\w*\.)*(?:{'|'.join(EMBEDDINGS)})(?:\.output)?")
_IN_BLOCK = re.compile(r"((?:\w+\.)*?)(?:blocks|layers|layer|h|block)\.(\d+)((?:\.\w+)*)")


@dataclass(frozen=True)
class Hook:
    """A place in a model whose activations are read.

    point: resid_pre, resid_mid, resid_post (the residual stream before, inside and after a block), attn_out and
    mlp_out (what attention and MLP add to that stream, so behind a norm of their own where a family has one),
    attn_z (the heads side by side, before the output projection), mlp_in (what the MLP reads), mlp_normed (the same
    before the norm's own weights: where Gemma Scope's transcoders read), embed (the token embedding), or module:
    ``path`` inside the block and its ``side``.
    layer: the block, counted from 0; 0 for embed. centred: each row is read less its mean over the width, which
    is what a model whose writing weights were centred would hold there.
    """

    point: Point
    layer: int
    path: str = ""
    side: Side = "output"
    centred: bool = False

    def __str__(self) -> str:
        """One spelling per place; parse_hook reads it back (but for ``centred``)."""
        if self.point == "embed":
            name = "hook_embed"
        elif self.point == "module":
            name = f"layers.{self.layer}.{self.path}.{self.side}"
        else:
            inside = next(inside for inside, point in POINTS.items() if point == self.point)
            name = f"blocks.{self.layer}.{inside}"
        return f"{name} (centred)" if self.centred else name


def block_output(layer: int) -> Hook:
    """The residual stream after block ``layer``."""
    return Hook("resid_post", layer)


def parse_hook(name: str) -> Hook:
    """The place that a name means: sae-lens's (``blocks.14.hook_resid_post``) or a Hugging Face module path.

    A path may end in ``.input`` or ``.output`` (the default); what stands in front of the list of blocks does not
    matter (``model.layers.7``, ``transformer.h.5.mlp.c_proj.input``, ``encoder.layer.3``). The stream before block
    L > 0 is the one after block L - 1, and comes back as that.

    Raises InputError for a name of neither kind, and for points that Hugging Face models do not have.
    """
    if _EMBEDDING.fullmatch(name):
        return Hook("embed", 0)
    if (named := _SAE_LENS.fullmatch(name)) is not None:
        layer, inside = int(named[1]), named[2]
        if inside in REFUSED:
            raise InputError(f"hook {name!r} is not supported: {REFUSED[inside]}")
        if inside not in POINTS:
            raise InputError(
                f"hook {name!r} is not supported; of a block, {[*POINTS]} are. Or name a module by its path"
            )
        return _canonical(Hook(POINTS[inside], layer))
    if (found := _IN_BLOCK.fullmatch(name)) is not None:
        if any(tower in found[1] for tower in OTHER_TOWERS):
            raise InputError(f"hook {name!r} lies outside the text model, the only part of a model that is read")
        layer, path = int(found[2]), found[3].removeprefix(".")
        side: Side = "input" if path.rsplit(".", 1)[-1] == "input" else "output"
        path = re.sub(r"\.?\b(input|output)$", "", path)
        if path:
            return Hook("module", layer, path, side)
        return _canonical(Hook("resid_pre" if side == "input" else "resid_post", layer))
    raise InputError(
        f"hook {name!r} is neither a sae-lens name (blocks.L.hook_resid_post, blocks.L.attn.hook_z, hook_embed ...) "
        "nor the path of a module inside a block (model.layers.L, model.layers.L.mlp, ...). "
        "Pass layer=L for the output of block L"
    )


def _canonical(hook: Hook) -> Hook:
    if hook.point == "resid_pre" and hook.layer > 0:
        return replace(hook, point="resid_post", layer=hook.layer - 1)
    return hook


class Place(NamedTuple):
    """A module inside a block, by path, and the side of it to read.

    beside: only where the block has that too; without: only where it does not have that.
    """

    path: str
    side: Side
    beside: str = ""
    without: str = ""


PLACES: dict[Point, tuple[Place, ...]] = {
    # norms behind attention and MLP (Gemma 2, Gemma 3, OLMo 2): what is added to the stream comes out of them.
    # BERT's output modules add the stream themselves: their dense part is what is added
    "attn_out": (
        Place("post_attention_layernorm", "output", beside="post_feedforward_layernorm"),
        Place("attention.output.dense", "output"),
        Place("self_attn", "output"),
        Place("attn", "output"),
        Place("attention", "output"),
    ),
    "attn_z": (
        Place("self_attn.o_proj", "input"),
        Place("attn.c_proj", "input"),
        Place("attn.Wo", "input"),
        Place("attention.dense", "input"),
        Place("attention.output.dense", "input"),
        Place("attention.out_lin", "input"),
    ),
    # the first norm behind attention; where the norms stand behind (OLMo 2), the MLP reads the stream itself
    "resid_mid": (
        Place("pre_feedforward_layernorm", "input"),
        Place("mlp", "input", beside="post_feedforward_layernorm"),
        Place("intermediate", "input"),
        Place("ln_2", "input"),
        Place("mlp_norm", "input"),
        Place("ffn", "input", beside="sa_layer_norm"),
        Place("post_attention_layernorm", "input"),
    ),
    # the norm in front of the MLP, whose input is normed once more without its weights (norms.py)
    "mlp_normed": (
        Place("pre_feedforward_layernorm", "input"),
        Place("ln_2", "input"),
        Place("mlp_norm", "input"),
        Place("post_attention_layernorm", "input", without="post_feedforward_layernorm"),
    ),
    "mlp_in": (
        Place("mlp", "input"),
        Place("intermediate", "input"),
        Place("ffn", "input", beside="sa_layer_norm"),
    ),
    "mlp_out": (
        Place("post_feedforward_layernorm", "output"),
        Place("mlp", "output"),
        Place("output.dense", "output", beside="intermediate"),
        Place("ffn", "output", beside="sa_layer_norm"),
    ),
}


def find_module(model: nn.Module, hook: Hook) -> tuple[nn.Module, Side]:
    """The module of this model that the hook means, and which side of it is read.

    Raises ModelMismatchError, with what was found, where the model has no such place.
    """
    if getattr(model.config, "is_encoder_decoder", False):
        raise ModelMismatchError(
            f"{type(model).__name__} has an encoder and a decoder, and a hook does not say which; models of one list "
            "of blocks are read, such as T5EncoderModel"
        )
    if hook.point == "embed":
        found: nn.Module = model.get_input_embeddings()  # type: ignore[operator]
        return found, "output"
    blocks = find_blocks(model)
    if not 0 <= hook.layer < len(blocks):
        raise ModelMismatchError(
            f"layer {hook.layer} is out of range: {type(model).__name__} has blocks 0 to {len(blocks) - 1}"
        )
    block = blocks[hook.layer]
    if hook.point in ("resid_pre", "resid_post"):
        return block, "input" if hook.point == "resid_pre" else "output"
    if hook.point == "resid_mid" and getattr(block, "use_parallel_residual", False):
        raise ModelMismatchError(
            f"{hook}: attention and MLP of {type(model).__name__} run side by side; there is no stream between them"
        )
    return _find_in_block(model, block, hook)


def _find_in_block(model: nn.Module, block: nn.Module, hook: Hook) -> tuple[nn.Module, Side]:
    inside = dict(block.named_modules())
    places = (Place(hook.path, hook.side),) if hook.point == "module" else PLACES[hook.point]
    for place in places:
        fits = not place.beside or place.beside in inside
        if fits and place.path in inside and not (place.without and place.without in inside):
            return inside[place.path], place.side
    behind = ("post_feedforward_layernorm", "intermediate", "sa_layer_norm")
    if hook.point == "mlp_normed" and any(norm in inside for norm in behind):
        raise ModelMismatchError(
            f"{hook}: the norms of {type(model).__name__} stand behind attention and MLP; the MLP reads the stream as "
            "it is"
        )
    raise ModelMismatchError(
        f"{hook}: looked for {[place.path for place in places]} in a block of {type(model).__name__}, "
        f"which has {sorted(name for name in inside if name)}"
    )


def name_place(model: nn.Module, hook: Hook) -> Hook:
    """The same place by its point, where a module path leads to one: one place has one name, and what goes with it.

    Raises ModelMismatchError where the model has no such place.
    """
    find_module(model, hook)
    if hook.point != "module":
        return hook
    for point in POINTS.values():
        known = replace(hook, point=point, path="", side="output")
        # what norms.py makes of the same input is no module's
        if point != "mlp_normed" and is_same_place(model, known, hook):
            return _canonical(known)
    return hook


def is_same_place(model: nn.Module, one: Hook, other: Hook) -> bool:
    """Whether both are read at the same side of the same module of this model, in the same way."""
    try:
        alike = find_module(model, one) == find_module(model, other)
    except ModelMismatchError:
        return False
    return alike and (one.point == "mlp_normed") == (other.point == "mlp_normed")


def hook_width(model: nn.Module, hook: Hook) -> int | None:
    """The width of what is read there; None for a module whose class does not say."""
    if hook.point not in ("attn_z", "module"):
        return int(text_config(model.config).hidden_size)
    module, side = find_module(model, hook)
    names = ("in_features", "nx") if side == "input" else ("out_features", "nf")
    return next((int(getattr(module, name)) for name in names if hasattr(module, name)), None)


def find_blocks(model: nn.Module) -> nn.ModuleList:
    """The list of transformer blocks of a Hugging Face model: the module list as long as its text config says.

    Looked for in the text model alone, where a model has a vision tower beside it.
    """
    config = text_config(model.config)
    lists = [(name, module) for name, module in text_model(model).named_modules() if isinstance(module, nn.ModuleList)]
    blocks = [(name, module) for name, module in lists if len(module) == config.num_hidden_layers]
    if not blocks:
        raise ModelMismatchError(
            f"{type(model).__name__}: no list of {config.num_hidden_layers} blocks found among "
            f"{[(name, len(module)) for name, module in lists]}"
        )
    return min(blocks, key=lambda found: found[0].count("."))[1]


def text_model(model: nn.Module) -> nn.Module:
    """The text model inside a model with a head, or with a vision tower; the model itself where it is one."""
    found: nn.Module = model.get_decoder() if hasattr(model, "get_decoder") else model  # type: ignore[operator]
    return found


def text_config(config: Any) -> Any:
    """The part of a config that describes the text model (multimodal configs nest it)."""
    return config.get_text_config() if hasattr(config, "get_text_config") else config
