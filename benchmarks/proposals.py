"""Phrases a second whose proposals are picked, against torchvision's loop over them.

    python -m vg_utils benchmark proposals

Region proposal networks see one map an image; ours sees one a phrase, hundreds in a batch. The baseline
decodes them together and then suppresses overlaps phrase by phrase, as torchvision does.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from benchmarks._timing import Comparison, Report, device, finish, in_turns, options
from vg_utils.config import ClipRPNConfig
from vg_utils.models.proposals import ProposalNetwork

SIZE, STRIDE = 224, 32
ONE_BY_ONE, AT_ONCE = "torchvision, phrase by phrase", "all phrases at once"


@torch.inference_mode()
def measure(phrases: int, rounds: int) -> Report:
    """Pick the proposals of random logits and deltas."""
    torch.manual_seed(0)
    network = ProposalNetwork(8, SIZE, STRIDE, ClipRPNConfig()).eval().to(device())
    count = len(network.anchors)
    logits = torch.randn(phrases, count, device=device())
    deltas = 0.3 * torch.randn(phrases, count, 4, device=device())

    def one_by_one() -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        anchors = network.anchors.repeat(phrases, 1)
        decoded = network.rpn.box_coder.decode_single(deltas.flatten(0, 1), anchors).view(phrases, count, 4)
        return network.rpn.filter_proposals(decoded, logits, [network.shape] * phrases, [count])

    boxes, _ = network.propose(logits, deltas)
    apart = [
        (ours[: len(theirs)] - theirs).abs().max().item()
        for ours, theirs in zip(boxes, one_by_one()[0], strict=True)
    ]
    variants = {ONE_BY_ONE: one_by_one, AT_ONCE: lambda: network.propose(logits, deltas)}
    title = f"{phrases} phrases with {count} anchors each"
    comparison = Comparison(title, ONE_BY_ONE, in_turns(variants, rounds), phrases, "phrases/s")
    return Report("proposals", [comparison], {"phrases": phrases, "pixels between the boxes": max(apart)})


def main(arguments: Sequence[str] | None = None) -> Report:
    """The command."""
    parser = options("proposals", "Phrases/s of picking proposals, against torchvision's loop.")
    given = parser.parse_args(arguments)
    phrases, rounds = (12, 1) if given.tiny else (235, 5)  # 64 images of RefCOCOg have about so many
    return finish(measure(phrases, given.rounds or rounds), given.json)


if __name__ == "__main__":
    main()
