"""A MiniLM of fewer layers learns to say what the whole one says (after DistilBERT, Sanh et al. 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import torch
from torch import Tensor
from torch.nn import functional as F

from experiments.photo_weights import imagenet_names
from experiments.photo_words import EVERYDAY, PROMPTS
from vg_utils.models.minilm import MiniLM, mean_of_tokens
from vg_utils.models.wordpiece import WordPiece

RATE = 3e-4


def take_layers(whole: dict[str, Tensor], layers: Sequence[int]) -> dict[str, Tensor]:
    """Of a MiniLM's weights those of some layers, numbered anew, and all that is in none."""
    number = {f"layers.{layer}.": f"layers.{place}." for place, layer in enumerate(layers)}
    taken = {name: value for name, value in whole.items() if not name.startswith("layers.")}
    for theirs, ours in number.items():
        part = {name: value for name, value in whole.items() if name.startswith(theirs)}
        taken |= {ours + name.removeprefix(theirs): value for name, value in part.items()}
    return taken


class Phrases:
    """Draws what to learn from: captions, and names of 12,000 things with everyday words around them."""

    def __init__(self, captions: Sequence[str], chance: Random) -> None:
        self.captions, self.chance = captions, chance
        named = imagenet_names("imagenet-12k")
        self.names = [name for names in named for name in names.split(", ")[:2]]

    def __call__(self, count: int) -> list[str]:
        draw = self.chance.choice
        makers = (
            lambda: draw(self.captions),
            lambda: draw(PROMPTS).format(draw(self.names)),
            lambda: f"the {draw(EVERYDAY)} {draw(self.names)}",
            lambda: f"{draw(self.names)} {draw(EVERYDAY)} {draw(self.names)} {draw(EVERYDAY)}",
        )
        return [draw(makers)() for _ in range(count)]


def distil(student: MiniLM, teacher: MiniLM, phrases: Phrases, steps: int, batch: int = 256) -> float:
    """Teach a MiniLM to give each token, and the whole, the vector that another one gives it.

    Returns:
        mean cosine of the two's vectors of the whole, over the last tenth of the steps.
    """
    tokenize, device = WordPiece(), student.positional_embedding.device
    optimizer = torch.optim.AdamW(student.parameters(), lr=RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.1)
    near = []
    for step in range(steps):
        tokens = tokenize(phrases(batch)).to(device)
        mask = tokens != 0
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            with torch.no_grad():
                true = teacher(tokens, mask).float()
            found = student(tokens, mask).float()
        cosine = F.cosine_similarity(mean_of_tokens(found, mask), mean_of_tokens(true, mask)).mean()
        loss = F.mse_loss(found[mask], true[mask]) + 1 - cosine
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        near.append(cosine.detach())
        if step % max(1, steps // 10) == 0:
            print(f"text {step}/{steps}: loss {loss.item():.4f}, cosine {cosine.item():.4f}", flush=True)
    return torch.stack(near[-max(1, steps // 10) :]).mean().item()
