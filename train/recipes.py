"""Named settings, each with its command, its source, and the accuracy and cost to expect."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from train.config import Augment, Config, Data, Optim, UserError


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Settings under a name. `model_args` are for the models named there, and "" for all others."""

    command: str
    source: str
    expected: str
    settings: Mapping[str, Any]
    model_args: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)


RECIPES = {
    "digits": Recipe(
        command="python -m train.main --model=t2t",
        source="ours",
        expected="97 % to 99 % of 360 test images in a minute on two CPU cores",
        settings=dict(
            data=Data(name="digits"),
            epochs=60.0,
            batch_size=64,
            eval_epochs=5.0,
            label_smoothing=0.1,
            augment=Augment(crop_padding=1),
            optim=Optim(lr=2e-3, warmup_epochs=5.0, weight_decay=0.05),
        ),
        # An 8x8 image needs smaller patches than the tiny presets have for 32x32.
        model_args={
            "": ("patch_size=2",),
            "t2t": ("t2t_layers=((3, 1), (3, 1))",),
        },
    ),
}


def base_config(recipe: str | None, model: str, data: str | None) -> Config:
    """The config that the command line overrides: the named recipe's, or the one that goes with the data.

    Raises UserError for an unknown recipe.
    """
    if recipe is None and data in (None, "digits"):
        recipe = "digits"
    if recipe is None:
        return Config(model=model)
    if recipe not in RECIPES:
        raise UserError(f"--recipe {recipe}: expected one of {', '.join(RECIPES)}")
    chosen = RECIPES[recipe]
    arguments = chosen.model_args.get(model.partition("/")[0], chosen.model_args.get("", ()))
    return Config(model=model, recipe=recipe, model_args=arguments, **chosen.settings)
