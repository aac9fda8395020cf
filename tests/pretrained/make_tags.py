"""Write the table of timm's published networks that are supported: `python -m tests.pretrained.make_tags`."""

import csv
import io
from pathlib import Path

import pytest

import tests.upstream  # noqa: F401, which makes torchvision importable
from vit_jax.pretrained.networks import UNSUPPORTED
from vit_jax.pretrained.tags import NORMALIZATIONS

timm = pytest.importorskip("timm")

TABLE = Path(__file__).parents[2] / "vit_jax/pretrained/timm_tags.csv"
MODULES = ("convnext", "deit", "eva", "levit", "pit", "swin_transformer", "vision_transformer")


def published() -> dict:
    """timm's configuration of each supported tag."""
    names = [name for module in MODULES for name in timm.list_models(module=module, pretrained=True)]
    return {n: timm.get_pretrained_cfg(n) for n in sorted(names) if n.partition(".")[0] not in UNSUPPORTED}


def row(name: str, cfg) -> dict:
    """The row of a tag."""
    _, height, width = cfg.input_size
    (normalization,) = (name for name, value in NORMALIZATIONS.items() if value == (cfg.mean, cfg.std))
    return {
        "name": name,
        "size": height if height == width else f"{height}x{width}",
        "crop_pct": cfg.crop_pct,
        "crop_mode": cfg.crop_mode,
        "interpolation": cfg.interpolation,
        "normalization": normalization,
        "num_classes": cfg.num_classes,
        "license": cfg.license or "",
        "source": "" if cfg.hf_hub_id == f"timm/{name}" else cfg.hf_hub_id or cfg.url,
    }


def table() -> str:
    """The table as text."""
    rows = [row(name, cfg) for name, cfg in published().items()]
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


if __name__ == "__main__":
    TABLE.write_text(table())
