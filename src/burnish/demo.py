"""`make demo`: the main job, small. AR-GRPO on the embedded world with exact truth as the reward, and what came of it.

Ends with one line: verified success on held-out prompts before and after, and the difference with its interval.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

RECIPE = "scenes/ar_grpo_verified"
STEPS = 60  # of the recipe's 80: under ten minutes also on two slow cores


def main() -> None:
    """Run the demo into runs/demo; an earlier one is kept beside it, an unfinished one is gone on with."""
    from burnish.cli.main import run

    folder = Path("runs/demo")
    resume = (folder / "recipe.yaml").exists() and not (folder / "summary.json").exists()
    if folder.exists() and not resume:
        folder.rename(_free(folder))
    status = run(
        ["train", RECIPE, f"steps={STEPS}", "evaluate_every=0", "--run", "demo", *(["--resume"] if resume else [])]
    )
    if status:
        sys.exit(status)
    facts = json.loads((folder / "summary.json").read_text())
    print(sentence(facts))


def sentence(facts: dict[str, float]) -> str:
    """Held-out verified success before, after, difference, 95 % paired interval."""
    base, tuned, difference, low, high = (
        100 * facts[name] for name in ("base", "tuned", "difference", "ci_low", "ci_high")
    )
    return (
        f"held-out verified success: {base:.1f} % before, {tuned:.1f} % after, {difference:+.1f} points "
        f"(95 % paired interval {low:+.1f} to {high:+.1f}) in {facts['seconds']:.0f} s; see runs/demo/report.html"
    )


def _free(folder: Path) -> Path:
    number = 1
    while (other := folder.with_name(f"{folder.name}-{number}")).exists():
        number += 1
    return other


if __name__ == "__main__":
    main()
