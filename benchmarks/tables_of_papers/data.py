"""CIFAR-10 shards, and image-caption shards with one JSON file of captions per image. Never copied."""

import io
import json
import tarfile
import tempfile
from pathlib import Path

from expunge.unlearning.catalog import EncoderSpec
from expunge.unlearning.data.image_set import ImageSet, load_for


def load(spec: EncoderSpec, folder: Path, part: str, *, shards: int | None = None) -> ImageSet:
    """All shards named `part`-NN.tar of the folder, or the first so many."""
    paths = sorted(folder.glob(f"{part}-*.tar"))[:shards]
    if not paths:
        raise SystemExit(f"no {part}-*.tar in the folder that was given")
    if spec.pairing != "caption":
        return load_for(spec, paths)
    with tempfile.TemporaryDirectory() as scratch:
        return load_for(spec, [_with_lines(path, Path(scratch)) for path in paths])


def _with_lines(path: Path, folder: Path) -> Path:
    """The shard with all captions of a sample in its .txt, one a line, in place of the .json."""
    target = folder / path.name
    with (
        tarfile.open(path) as source,
        tarfile.open(target, "w", format=tarfile.USTAR_FORMAT) as out,
    ):
        members = source.getmembers()
        listed = {m.name.rpartition(".")[0] for m in members if m.name.endswith(".json")}
        for member in members:
            stem, _, suffix = member.name.rpartition(".")
            if suffix == "txt" and stem in listed:
                continue
            file = source.extractfile(member)
            content = file.read() if file else b""
            name = member.name
            if suffix == "json":
                captions = json.loads(content)["captions"]
                content = "\n".join(" ".join(each.split()) for each in captions).encode()
                name = f"{stem}.txt"
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            out.addfile(entry, io.BytesIO(content))
    return target
