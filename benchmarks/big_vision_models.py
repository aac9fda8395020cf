"""Import big_vision's models from a checkout, without the parts of it that need TensorFlow."""

import sys
import types
from pathlib import Path
from types import ModuleType


def import_vit(checkout: Path) -> ModuleType:
    """The module `big_vision.models.vit`, of which only the loading of weights would need the modules replaced here."""
    sys.path.insert(0, str(checkout))
    for name in ("big_vision.utils", "flax.training.checkpoints"):
        sys.modules.setdefault(name, types.ModuleType(name))
    import big_vision

    big_vision.utils = sys.modules["big_vision.utils"]
    from big_vision.models import vit

    return vit
