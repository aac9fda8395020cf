"""Classification accuracy of an encoder's features; `train.probe` is the command."""

import dataclasses
import sys
from collections.abc import Iterator

import jax
import numpy as np
import rich.progress
from jaxtyping import Array, Float, Int

from train.build import DataInfo
from train.config import Data
from train.data import Dataset, eval_batches, load_dataset
from train.data.augment import normalize
from train.errors import UserError
from train.probe import Options
from train.run.stored import load_run
from train.trunk import Trunk, trunk_of
from vit_jax.objectives.features import pooled

Split = tuple[Float[np.ndarray, "_ d"], Int[np.ndarray, "_"]]


def probe(options: Options) -> dict[str, float]:
    """Probe an encoder.

    Args:
        options: The encoder and the data.

    Returns:
        Accuracy of the nearest-neighbour classifier as "knn", and of the linear classifier as "linear".

    Raises:
        UserError: If the run or the dataset is unsuitable.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    run = load_run(options.workdir)
    data = data_of(run.config.data, options.data, run.info)
    if data.target != "class":
        raise UserError(f"--data {data.name} has --data.target={data.target}: a probe needs one class for each image")
    dataset = load_dataset(data)
    if dataset.image_shape != run.info.image_shape:
        raise UserError(
            f"--data has images of {dataset.image_shape}: the encoder was trained on {run.info.image_shape}"
        )
    if not 1 <= options.neighbours <= len(dataset.train):
        raise UserError(f"--neighbours is {options.neighbours}; expected 1 to {len(dataset.train)}, all images")
    trunk = trunk_of(run)
    if options.untrained:
        variables = jax.jit(trunk.module.init)(jax.random.key(options.seed), run.info.images)
        trunk = trunk._replace(variables=variables)

    train, evaluation = splits(trunk, dataset, data, options.batch_size)
    knn = KNeighborsClassifier(options.neighbours, metric="cosine", weights="distance")
    linear = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    return {name: float(method.fit(*train).score(*evaluation)) for name, method in dict(knn=knn, linear=linear).items()}


def data_of(data: Data, name: str | None, info: DataInfo) -> Data:
    """The dataset `name`, or the run's `data` if None, preprocessed as in the run."""
    seen = dict(image_size=info.image_shape[:2], mean=info.mean, std=info.std, pixels=info.pixels)
    if name is None:
        return dataclasses.replace(data, **seen)
    prepared = {key: getattr(data, key) for key in ("eval_crop", "crop_mode", "interpolation", "dir")}
    return Data(name=name, channels=info.image_shape[2], **prepared, **seen)


def splits(trunk: Trunk, dataset: Dataset, data: Data, batch_size: int) -> tuple[Split, Split]:
    """Features and labels of the training images and of the evaluation images, without augmentation."""

    @jax.jit
    def features(pixels: Array) -> Float[Array, "b d"]:
        outputs = trunk.module.apply(trunk.variables, normalize(pixels, dataset.mean, dataset.std))
        return pooled(trunk.module, outputs).astype(np.float32)

    def batches(source: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        whole = dataclasses.replace(dataset, eval=getattr(dataset, source))
        size = min(batch_size, len(whole.eval))
        steps = -(-len(whole.eval) // size)
        every = eval_batches(whole, data, size)
        title, silent = f"features, {source}", not sys.stdout.isatty()
        for batch in rich.progress.track(every, total=steps, description=title, disable=silent):
            real = batch["mask"] > 0
            yield np.asarray(features(batch["image"]))[real], batch["label"][real]

    both = [[np.concatenate(parts) for parts in zip(*batches(source), strict=True)] for source in ("train", "eval")]
    return tuple(both[0]), tuple(both[1])
