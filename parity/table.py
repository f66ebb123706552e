"""The measured differences, as a table of case and check."""

from collections.abc import Mapping, Sequence

# Largest differences that are allowed.
BOUNDS = {
    # Of logits in float32, padded on either side; attention at once.
    "logits": 1e-4,
    # Attention block by block.
    "logits, blocks": 1e-4,
    "logits, 600 tokens": 1e-4,
    # Of a masked cross-entropy, over the largest of the same parameter; remat is 'none'.
    "gradients": 1e-3,
    # Remat is 'dots'.
    "gradients, dots": 1e-3,
    # Remat is 'full', attention block by block.
    "gradients, full, blocks": 1e-3,
    # Of the sampler's log-probabilities and entropies from a full pass, ours and torch's.
    "decode": 1e-4,
    # The cache block by block.
    "decode, blocks": 1e-4,
    # Of logits, as a root mean square over that of the logits, from torch's in float32 with the
    # same rounded parameters.
    "bfloat16": 0.03,
    # Of the sampler's log-probabilities and entropies from our own full pass.
    "bfloat16, decode": 0.2,
}
# Tokens that are those of `generate`.
GREEDY = "greedy"
CHECKS = (*BOUNDS, GREEDY)


def markdown(cases: Sequence[str], found: Mapping[tuple[str, str], str]) -> str:
    """All cases that something is known of; the first row has the bounds.

    Args:
      cases: their names, in order.
      found: by case and check: a difference, or how many tokens are equal of how many.
    """
    rows = [["", *CHECKS], ["---", *["---:"] * len(CHECKS)]]
    rows.append(["bound", *(f"{bound:g}" for bound in BOUNDS.values()), "all"])
    for case in cases:
        cells = [found.get((case, check), "") for check in CHECKS]
        if any(cells):
            rows.append([case, *cells])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)
