"""Draw the held-back photographs of `ladder.yaml` from the 200 training photographs of BSDS500 (BSD200), by a seed.

    python benchmarks/held_back.py BSDS500/data/images/train HeldBack50

No set was made from them, and no recipe was chosen by them.
"""

import random
import shutil
import sys
from pathlib import Path

NUMBER, SEED = 50, 20261128
IN_SET5 = "302003.jpg"  # Set5's woman is a part of it


def main(source: Path, target: Path) -> None:
    """Copy the drawn photographs from `source` to the new folder `target`."""
    names = sorted(path.name for path in source.glob("*.jpg") if path.name != IN_SET5)
    if len(names) != 199:
        sys.exit(f"{source} has {len(names)} photographs besides {IN_SET5} instead of 199: others would be drawn.")
    target.mkdir(parents=True)
    for name in sorted(random.Random(SEED).sample(names, NUMBER)):
        shutil.copy(source / name, target / name)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
