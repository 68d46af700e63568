"""What a bundle has besides graphs: a pool of captions, and the calibration of its scores and probabilities.

`blip2rt-convert --to ours` saves them in the folder of the stage-1 checkpoint, and an export of this checkpoint puts
them back if its graphs embed alike.
"""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from blip2rt.bundle import IMAGE_EMBED, ITM, TEXT_EMBED, VISION, Bundle, FileEntry, Manifest
from blip2rt.bundle.checksum import sha256_of
from blip2rt.bundle.manifest import from_json, to_json
from blip2rt.errors import boundary

from .options import ExportPlan

_MANIFEST = "bundle_extras.json"  # of the bundle that the checkpoint is from
_MATCHING = (VISION, IMAGE_EMBED, TEXT_EMBED, ITM)


def save(source: Bundle, stage1: Path) -> None:
    """Save the extras of a bundle in the folder of its stage-1 checkpoint."""
    retrieval = source.manifest.retrieval
    assert retrieval is not None
    for name in (retrieval.pool, retrieval.mean_prefix):
        if name is not None:
            shutil.copyfile(source.file(name), stage1 / Path(name).name)
    (stage1 / _MANIFEST).write_bytes(to_json(source.manifest))


def restore(plan: ExportPlan, manifest: Manifest, folder: Path) -> tuple[Manifest, list[str]]:
    """Put saved extras into a bundle, whose other files are in `folder`. Return its manifest, and notes."""
    if plan.stage1 is None or not (plan.stage1.path / _MANIFEST).is_file() or manifest.retrieval is None:
        return manifest, []
    saved = plan.stage1.path / _MANIFEST
    with boundary(f"{saved} is damaged: convert the bundle to checkpoints again"):
        old = from_json(saved.read_bytes())
        retrieval = old.retrieval
        assert retrieval is not None
    if differences := list(_differences(old, manifest)):
        what = "its pool and the calibration of its probabilities were"
        return manifest, [f"{plan.stage1.source} is from {old.name}, but {what} left out: {'; '.join(differences)}"]
    notes, same_captions = [], plan.stage2 is None or plan.stage2.path == plan.stage1.path.parent / "stage2"
    spec = replace(manifest.retrieval, itm_weight=retrieval.itm_weight)
    if manifest.llm is not None and retrieval.mean_prefix is not None:
        shutil.copyfile(saved.parent / Path(retrieval.mean_prefix).name, folder / "mean_prefix.data")
        spec = replace(spec, likelihood_weight=retrieval.likelihood_weight, mean_prefix="mean_prefix.data")
    calibration = old.calibration
    if calibration is not None and not same_captions:
        calibration = replace(calibration, caption=None)
        notes.append(
            f"the captions' confidence was left out; fit it with blip2rt-train calibrate {manifest.name} --keep-score "
            "--data QUESTIONS.tsv --images FOLDER --out CALIBRATED"
        )
    manifest = replace(manifest, retrieval=spec, calibration=calibration)
    if manifest.llm is not None and retrieval.pool is not None:
        pool = _pool(saved.parent / Path(retrieval.pool).name, manifest, old, folder)
        manifest = replace(manifest, retrieval=replace(spec, pool=pool))
        if pool is None:
            notes.append(f"the pool of {old.name} is left out, since its language model has another tokenizer")
    return manifest, notes


def _differences(old: Manifest, new: Manifest) -> Iterator[str]:
    """Why the new graphs embed otherwise."""
    if old.image != new.image:
        yield "images have another size"
    for name in _MATCHING:
        before, after = old.components[name].precision, new.components[name].precision
        if before != after:
            group = "vision" if name == VISION else "retrieval"
            yield f"{name} is {after}, not {before}: give --precision {group}={before}"


def _pool(saved: Path, new: Manifest, old: Manifest, folder: Path) -> str | None:
    """Copy the pool, made for the new graphs. Return its name, or None if its tokens are others."""
    from blip2rt.matching.pool import restamp

    assert new.llm is not None and old.llm is not None and old.files is not None
    if sha256_of(folder / new.llm.tokenizer).hex() != old.files[old.llm.tokenizer].sha256:
        return None
    files = {name: FileEntry(0, sha256_of(folder / name).hex()) for name in (path.name for path in folder.iterdir())}
    restamp(saved, folder / "captions.pool", Bundle(folder, replace(new, files=files)))
    return "captions.pool"
