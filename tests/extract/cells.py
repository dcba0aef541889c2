"""What holds of a family's model at a hook point: one cell of the table in docs/models.md.

Truth is the model in float64, one text at a time, seen by hooks of the test's own. Whatever lays several texts out may
be at most twice as far from it as float32 is with one text at a time (and once the rounding of float32, where one text
alone happens to be exact).
"""

from __future__ import annotations

import copy
from functools import lru_cache

import numpy as np
import torch

from saerl_fast.extract.capture import Capture
from saerl_fast.extract.hooks import Hook, parse_hook
from saerl_fast.extract.packing import OWN_MASKS, Layout
from saerl_fast.extract.tokens import TokenizedText
from tests import families

LAYER = 2
LENGTHS = [23, 1, 9, 17, 2, 23]  # longer and shorter than the windows of 8
NAMES = {**families.SAE_LENS, "mlp_normed": "ln2.hook_normalized"}
POINTS = [*NAMES, "embed"]
KERNELS = ["text_by_text", "flex"]
"""Those of packing that run on a CPU."""
CPU = torch.device("cpu")


def some_texts(*lengths: int, seed: int = 0) -> list[TokenizedText]:
    generator = np.random.default_rng(seed)
    return [TokenizedText(generator.integers(3, 400, length), np.ones(length, dtype=bool), "ok") for length in lengths]


def named(point: str, layer: int = LAYER) -> Hook:
    return parse_hook("hook_embed" if point == "embed" else f"blocks.{layer}.{NAMES[point]}")


class Watch:
    """The full forward of a family's model, with a hook of the test's own on every place."""

    def __init__(self, family: str, model: torch.nn.Module | None = None, layer: int = LAYER) -> None:
        self.model, self.seen, self.handles = model or families.model(family), {}, []
        block = self.model.get_submodule(f"{families.blocks_path(family)}.{layer}")
        for point in families.SAE_LENS:
            if (place := families.PLACES[family][point]) is not None:
                self._watch(point, block.get_submodule(place[0]), place[1])
        if family in families.NORMS:
            self._watch_normed(block, *families.NORMS[family])
        self._watch("embed", self.model.get_input_embeddings(), "output")

    def _watch(self, point, module, side):
        def keep(value):
            self.seen.setdefault(point, (value[0] if isinstance(value, tuple) else value).clone())

        if side == "output":
            handle = module.register_forward_hook(lambda m, i, o: keep(o))
        else:
            handle = module.register_forward_pre_hook(lambda m, a, k: keep(a or k["hidden_states"]), with_kwargs=True)
        self.handles.append(handle)

    def _watch_normed(self, block, path, plus):
        """What goes into the norm, through a copy of it whose weights change nothing."""
        norm = block.get_submodule(path)
        bare = copy.deepcopy(norm)
        with torch.no_grad():
            bare.weight.fill_(1 - plus)
            if getattr(bare, "bias", None) is not None:
                bare.bias.zero_()

        def keep(_, given):
            self.seen.setdefault("mlp_normed", bare(given[0]))

        self.handles.append(norm.register_forward_pre_hook(keep))

    def run(self, text: TokenizedText) -> tuple[dict[str, torch.Tensor], list[torch.Tensor]]:
        """point -> [T, D] for one text; and what transformers calls hidden_states."""
        self.seen.clear()
        ids = torch.from_numpy(text.input_ids)[None]
        with torch.inference_mode():
            found = self.model(input_ids=ids, attention_mask=torch.ones_like(ids), output_hidden_states=True)
        kept = {point: value.reshape(len(text), -1) for point, value in self.seen.items()}
        return kept, [state[0] for state in found.hidden_states]

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()


def read(model, hook, texts, *, kernel=None, side="right", pad=2) -> torch.Tensor:
    """[tokens, D] of the texts in their order, by Capture: padded, or packed by a kernel."""
    layout = Layout(kernel, "")
    with Capture(model, hook) as capture, layout.on(model):
        batch = layout.collate(texts, pad, side, CPU)
        hidden = capture(batch)
    return hidden.reshape(-1, hidden.shape[-1]).index_select(0, batch.kept)


class Truth:
    """What one family's model holds at every point, text by text, in float64 and in float32."""

    def __init__(self, family: str) -> None:
        self.family, self.model = family, families.model(family)
        self.texts = some_texts(*LENGTHS)
        wide = copy.deepcopy(self.model).double()
        if family == "qwen3_moe":
            wide.set_experts_implementation("eager")  # the grouped product of torch has no float64
        self.exact, self.alone = self._read(wide), self._read(self.model)

    def _read(self, model) -> dict[str, torch.Tensor]:
        with Watch(self.family, model) as watch:
            rows = [watch.run(text)[0] for text in self.texts]
        return {point: torch.cat([row[point] for row in rows]) for point in rows[0]}

    def exits_with_the_same_bits(self, point: str) -> bool:
        """The forward that ends at the place, against the full one."""
        rows = [read(self.model, named(point), [text]) for text in self.texts]
        return torch.equal(torch.cat(rows), self.alone[point])

    def excess(self, point: str, **layout) -> float:
        """How far all texts in one batch are from the truth, as a multiple of what the rule allows."""
        found = read(self.model, named(point), self.texts, **layout)
        return float((found.double() - self.exact[point]).abs().max()) / self.allowed(point)

    def allowed(self, point: str) -> float:
        exact = self.exact[point]
        return 2 * float((self.alone[point].double() - exact).abs().max()) + 2**-22 * float(exact.abs().max())


@lru_cache
def truth(family: str) -> Truth:
    return Truth(family)


LAYOUTS = {
    "b": [{"side": "right"}, {"side": "left"}, {"side": "right", "kernel": OWN_MASKS}],
    "p": [{"kernel": kernel} for kernel in KERNELS],
}


def marks(family: str, point: str) -> str:
    """e where the early exit has the bits of the full forward, b where batched is single, p where packed is unpacked.

    What does not hold is there with its figure instead.
    """
    found = truth(family)
    held = ["e" if found.exits_with_the_same_bits(point) else "NOT e: other bits than the full forward"]
    for mark, layouts in LAYOUTS.items():
        worst = max(found.excess(point, **layout) for layout in layouts)
        held.append(mark if worst <= 1 else f"NOT {mark}: {worst:.2g} times what is allowed")
    return " ".join(held)
