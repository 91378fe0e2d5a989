"""Deal the demo task's rows to sites, a file each: what a real site has by itself.

    python docker/shards.py --folder /data --sites site-a site-b site-c

Files that are there already stay as they are.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from fedtuners.config import compose
from fedtuners.tasks import load, partition


def main() -> None:
    """Write <folder>/<site>/rows.jsonl for every site."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--sites", nargs="+", required=True)
    parser.add_argument("--rows", type=int, default=6000, help="of all sites together")
    parser.add_argument("--conf", type=Path, default=Path("conf"))
    parsed = parser.parse_args()
    config = compose(["data=demo"], parsed.conf)
    rows = load(replace(config.data, train_rows=parsed.rows), config.seed).train
    for number, site in enumerate(parsed.sites):
        path = parsed.folder / site / "rows.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            partition(rows, config.partition, len(parsed.sites), number).to_json(path)
            print(f"wrote {path}")


if __name__ == "__main__":
    main()
