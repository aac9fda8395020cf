"""`train.predict` prints probabilities and errors, and draws attention over the patches of an image."""

import csv
import io
import json
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests.initial import initial
from tests.runs import train as train_run
from train.attention_picture import Panels, attention_panels, draw_attention, last_of_one_shape
from train.build import DataInfo, build_objective
from train.config import Config, Distill
from train.data import load_dataset
from train.errors import UserError
from train.predict import main as predict
from train.prediction import are_independent, make_predict
from train.run.stored import Run, load_run
from vit_jax.capture import attention, rollout

INFO = DataInfo(("a", "b"), (8, 12, 3), (0.5,) * 3, (0.25,) * 3)
SIZES = ("dim=24", "depth=2", "heads=3", "dim_head=8", "mlp_dim=32")
PATCHES = (*SIZES, "patch_size=(4, 2)")  # two rows of six


def untrained(model: str, *pairs: str, distill: bool = False, shape: tuple[int, ...] = (8, 12, 3)) -> Run:
    """A run of `model` at initialisation, with weights scaled so that its attention is not uniform."""
    config = Config(model=model, model_args=pairs, distill=Distill(teacher="t" if distill else None))
    info = INFO._replace(image_shape=shape, mean=(0.5,) * shape[-1], std=(0.25,) * shape[-1])
    objective = build_objective(config, info)
    params, extras = initial(objective.init, jax.random.key(0), info.images)
    return Run(config, info, objective, jax.tree.map(lambda x: 2 * x, params), extras)


def pixels_of(run: Run, count: int = 2) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, *run.info.image_shape), np.uint8)


def maps_of(run: Run, pixels: np.ndarray):
    """Maps of the whole model, for images normalised by numpy."""
    images = ((pixels / 255 - 0.5) / 0.25).astype(np.float32)
    return attention(run.objective.model, {"params": run.params, **run.extras}, jnp.asarray(images))


def test_the_class_token_is_what_is_drawn():
    run = untrained("vit", *PATCHES)
    pixels = pixels_of(run)
    shares, names, reader = attention_panels(run, pixels)
    maps = maps_of(run, pixels)
    assert reader == "the class token"
    assert names == ("last layer, head 1", "last layer, head 2", "last layer, head 3", "2 layers, rolled out")
    assert shares.shape == (2, 4, 2, 6)
    for row, column in np.ndindex(2, 6):
        patch = 1 + 6 * row + column
        np.testing.assert_allclose(shares[:, :3, row, column], maps[1, :, :, 0, patch], atol=1e-5)
        np.testing.assert_allclose(shares[:, 3, row, column], rollout(maps)[:, 0, patch], atol=1e-5)
    assert np.ptp(shares) > 0.05


@pytest.mark.parametrize("pairs", [("vit", "pool='mean'"), ("simple_vit",)])
def test_where_the_mean_is_pooled_the_mean_is_drawn(pairs):
    run = untrained(pairs[0], *PATCHES, *pairs[1:])
    pixels = pixels_of(run)
    shares, _names, reader = attention_panels(run, pixels)
    maps = np.asarray(maps_of(run, pixels))
    front = maps.shape[-1] - 12
    assert reader == "all tokens (mean)"
    expected = maps[1].mean(axis=2)[..., front:].reshape(2, 3, 2, 6)
    np.testing.assert_allclose(shares[:, :3], expected, atol=1e-5)


def test_a_distillation_token_is_no_patch():
    run = untrained("vit", *PATCHES, distill=True)
    pixels = pixels_of(run)
    shares, _names, reader = attention_panels(run, pixels)
    maps = maps_of(run, pixels)
    assert maps.shape == (2, 2, 3, 14, 14)
    assert reader == "the class token"
    np.testing.assert_allclose(shares[:, :3].reshape(2, 3, 12), maps[1, :, :, 0, 1:13], atol=1e-5)


@pytest.mark.parametrize(
    ("name", "pairs", "grid", "layers"),
    [
        ("t2t", (*SIZES, "t2t_layers=((3, 2), (3, 2))"), (2, 3), 2),  # without the layers that make tokens
        ("vit_b_32", ("num_layers=3", "num_heads=3", "hidden_dim=24", "mlp_dim=32"), (1, 1), 3),
    ],
)
def test_stages_are_drawn_by_their_last(name, pairs, grid, layers):
    run = untrained(name, *pairs, shape=(8, 12, 1) if name == "t2t" else (32, 32, 3))
    shares, names, reader = attention_panels(run, pixels_of(run))
    assert shares.shape[2:] == grid
    assert names[-1] == f"{layers} layers, rolled out"
    assert reader == "the class token"


def test_the_last_stage_ends_where_shapes_change():
    maps = [jnp.ones(shape) for shape in ((2, 2), (1, 1), (2, 2), (2, 2))]
    assert last_of_one_shape(maps).shape == (2, 2, 2)
    assert last_of_one_shape(maps[3:]).shape == (1, 2, 2)


@pytest.mark.parametrize(
    ("name", "pairs", "message"),
    [
        ("cait", (*PATCHES, "cls_depth=1"), r"maps of shape \(1, 2, 3, 1, 13\): expected one array"),
        ("deepvit", PATCHES, "deepvit's attention maps have rows that do not sum to one"),
        ("simple_vit_with_register_tokens", PATCHES, "cannot determine which of the 16 tokens of .* are patches"),
        (
            "vit_with_patch_merger",
            (*PATCHES, "patch_merge_layer=1", "patch_merge_num_tokens=6"),
            "which of the 6 tokens",
        ),
        ("vit", (*PATCHES, "depth=0"), "ViT makes no attention maps"),
    ],
)
def test_models_without_such_maps_are_named(name, pairs, message):
    run = untrained(name, *pairs)
    with pytest.raises(UserError, match=message):
        attention_panels(run, pixels_of(run))


def test_bright_patches_are_drawn_where_they_are(tmp_path):
    """With a known map, only the corresponding corner of the corresponding panel is bright."""
    shares = np.full((1, 2, 2, 6), 0.01)
    shares[0, 1, 0, 5] = 0.9
    panels, black = Panels(shares, ("one", "two"), "nobody"), np.zeros((1, 8, 12, 3), np.uint8)
    draw_attention(panels, black, ["$not math"], tmp_path / "out.png")
    with Image.open(tmp_path / "out.png") as image:
        drawn = np.asarray(image.convert("RGB")).astype(int)
    rows, columns = np.nonzero((drawn[..., 0] > 150) & (drawn[..., 0] - drawn[..., 2] > 40))  # yellow
    height, width = drawn.shape[:2]
    assert width > 900
    assert columns[columns < width / 3].size == 0
    right = columns > 2 * width / 3
    assert right.sum() > 1000
    assert columns[right].min() > 2.7 * width / 3
    assert rows[right].max() < 0.7 * height


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run of two steps."""
    path = tmp_path_factory.mktemp("run")
    assert train_run(path, "--steps=2") == 0
    return path


def test_the_command_draws_a_row_for_each_image(workdir, tmp_path, capsys):
    paths = [str(tmp_path / f"{i}.png") for i in range(2)]
    for path, image in zip(paths, load_dataset(Config().data).eval.images, strict=False):
        Image.fromarray(image[..., 0]).save(path)
    heights = []
    for chosen in (paths[:1], paths):
        assert predict([*chosen, "--workdir", str(workdir), "--attention", str(tmp_path / "out.png")]) == 0
        assert capsys.readouterr().out.count("%") == 5 * len(chosen)
        with Image.open(tmp_path / "out.png") as image:
            assert image.format == "PNG"
            heights.append(image.height)
    assert heights[1] > 1.5 * heights[0]


def test_pictures_that_cannot_be_written_are_one_line(workdir, tmp_path, capsys):
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "0.png")
    for out in ("nowhere/out.png", "out.nonsense", "."):
        path = str(tmp_path / out)
        assert predict([str(tmp_path / "0.png"), "--workdir", str(workdir), "--attention", path]) == 2
        said, err = capsys.readouterr()
        assert said == ""
        assert err.startswith(f"error: --attention {tmp_path / out} cannot be written: ")
        assert err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["0.png"]


def test_a_picture_that_is_drawn_is_told(workdir, tmp_path, capsys):
    write_images(tmp_path, 1)
    assert predict([f"{tmp_path}/0.png", f"--workdir={workdir}", f"--attention={tmp_path}/out.png"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"attention drawn to {tmp_path}/out.png"
    assert (tmp_path / "out.png").exists()


def write_images(folder, count):
    """Grey images 0.png, 1.png ... of the size of digits, and their paths."""
    paths = [str(folder / f"{i}.png") for i in range(count)]
    for i, path in enumerate(paths):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (8, 8), np.uint8)).save(path)
    return paths


def test_a_run_in_python_predicts_as_the_command(workdir, tmp_path):
    (path,) = write_images(tmp_path, 1)
    run = load_run(workdir)
    found = run.predict(path)
    assert list(found.values()) == sorted(found.values(), reverse=True)
    expected = make_predict(run)(np.asarray(Image.open(path))[None, ..., None])[0]
    np.testing.assert_allclose([found[name] for name in run.info.class_names], expected, atol=1e-6)
    logits = jax.jit(run.model.apply)(run.variables, run.preprocess(path)[None])
    np.testing.assert_allclose(jax.nn.softmax(logits)[0], expected, atol=1e-5)
    with pytest.raises(UserError, match="cannot read the image"):
        run.predict(tmp_path / "nowhere.png")


def test_broken_images_are_errors_beside_the_others(workdir, tmp_path, capsys, monkeypatch):
    """Batches of two: one image broken, none broken, all broken, and a smaller last batch."""
    monkeypatch.setattr("train.prediction.BATCH", 2)
    paths = write_images(tmp_path, 7)
    assert predict([*paths, f"--workdir={workdir}", "--top=2"]) == 0
    whole = capsys.readouterr().out.splitlines()
    broken = {0, 4, 5}
    for i in broken:
        (tmp_path / f"{i}.png").write_bytes(b"broken")
    assert predict([*paths, f"--workdir={workdir}", "--top=2"]) == 1
    out, err = capsys.readouterr()
    assert out.splitlines() == [line for i in range(7) if i not in broken for line in whole[3 * i : 3 * i + 3]]
    assert [line.split(": it is")[0] for line in err.splitlines()] == [
        f"error: cannot read the image {paths[i]}" for i in sorted(broken)
    ]
    assert predict([paths[0], paths[4], f"--workdir={workdir}"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("error: ") == err.count("\n") == 2


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_table_has_the_probability_of_every_class(workdir, tmp_path, capsys, monkeypatch, suffix):
    """Of a folder, a pattern and standard input; with a broken image between the others."""
    monkeypatch.setattr("train.prediction.BATCH", 2)
    (tmp_path / "images").mkdir()
    paths = write_images(tmp_path / "images", 5)
    (tmp_path / "images/3.png").write_bytes(b"broken")
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{paths[0]}\n\n{paths[1]}\n"))
    out = tmp_path / f"table{suffix}"
    assert (
        predict([str(tmp_path / "images"), f"{tmp_path}/im*/[24].png", "-", f"--workdir={workdir}", f"--out={out}"])
        == 1
    )
    said = capsys.readouterr()
    assert f"8 of 9 images predicted; the table is {out}" in said.out
    assert said.err.count("error: cannot read the image") == 1
    text = out.read_text().splitlines()
    rows = [json.loads(line) for line in text] if suffix == ".jsonl" else list(csv.DictReader(text))
    assert [row["path"] for row in rows] == [*paths, paths[2], paths[4], paths[0], paths[1]]
    assert "it is none of" in rows[3]["error"]
    run = load_run(workdir)
    pixels = np.stack([np.asarray(Image.open(path))[..., None] for path in (*paths[:3], paths[4])])
    expected = make_predict(run)(pixels)
    for row, probabilities in zip([*rows[:3], rows[4]], expected, strict=True):
        found = row["probabilities"].values() if suffix == ".jsonl" else [row[f"p({name})"] for name in "0123456789"]
        np.testing.assert_allclose([float(value) for value in found], probabilities, atol=1e-6)
        assert row["class"] == run.info.class_names[int(np.argmax(probabilities))]
        assert float(row["probability"]) == max(map(float, found))
    assert rows[5] == rows[2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", f"table{suffix}"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{folder}"], "contains no images"),
        (["-"], "standard input names no images"),
        (["a.png", "--out={folder}/a.txt"], "a.txt: expected a file that ends in .csv or .jsonl"),
        (["a.png", "--out={folder}/nowhere/a.csv"], "there is no folder"),
    ],
)
def test_what_cannot_be_classified_is_told(tmp_path, arguments, message, capsys, monkeypatch):
    arguments = [argument.format(folder=tmp_path) for argument in arguments]
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert predict([*arguments, f"--workdir={tmp_path}"]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_picture_shows_the_images_that_can_be_read(workdir, tmp_path, capsys, monkeypatch):
    paths = write_images(tmp_path, 3)
    (tmp_path / "1.png").write_bytes(b"broken")
    drawn = []
    monkeypatch.setattr("train.prediction.draw_attention", lambda panels, pixels, titles, path: drawn.append(titles))
    assert predict([*paths, f"--workdir={workdir}", f"--attention={tmp_path}/out.png"]) == 1
    (titles,) = drawn
    assert [title.split("\n")[0] for title in titles] == ["0.png", "2.png"]
    assert "attention drawn" in capsys.readouterr().out
    assert predict([paths[1], f"--workdir={workdir}", f"--attention={tmp_path}/out.png"]) == 2
    assert "attention drawn" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("loss", "head", "is_sigmoid"),
    [
        ("sigmoid", None, True),
        ("softmax", None, False),
        ("sigmoid", "class", True),
        ("sigmoid", "mean", False),  # the distillation head learns a softmax
        ("sigmoid", "distill", False),
    ],
)
def test_probabilities_are_those_that_the_loss_trains(loss, head, is_sigmoid):
    distill = Distill(teacher="t", predict=head) if head else Distill()
    config = Config(model="vit", model_args=PATCHES, loss=loss, distill=distill)
    objective = build_objective(config, INFO)
    params, extras = jax.jit(objective.init)(jax.random.key(0), INFO.images)
    run = Run(config, INFO, objective, jax.tree.map(lambda x: 3 * x, params), extras)
    pixels = pixels_of(run, 3)
    images = jnp.asarray(((pixels / 255 - 0.5) / 0.25).astype(np.float32))
    logits = np.asarray(objective.predict(run.params, run.extras, images), np.float64)
    exponentials = np.exp(logits)
    expected = exponentials / (1 + exponentials if is_sigmoid else exponentials.sum(-1, keepdims=True))
    assert are_independent(run) == is_sigmoid
    np.testing.assert_allclose(make_predict(run)(pixels), expected, atol=1e-5)


def test_the_output_says_that_probabilities_are_independent(workdir, tmp_path, capsys):
    """The same run with the sigmoid loss in its stored config."""
    shutil.copytree(workdir, tmp_path / "run")
    file = tmp_path / "run/config.json"
    stored = json.loads(file.read_text())
    stored["config"]["loss"] = "sigmoid"
    file.write_text(json.dumps(stored))
    (path,) = write_images(tmp_path, 1)
    assert predict([path, f"--workdir={tmp_path}/run", "--top=10"]) == 0
    first, second, *rows = capsys.readouterr().out.splitlines()
    assert first == "the probability of each class is independent: percentages need not add up to 100%"
    assert second == path
    assert abs(sum(float(row.split()[0].rstrip("%")) for row in rows) - 100) > 10


@pytest.mark.parametrize("top", ["0", "-1"])
def test_at_least_one_class_is_asked_for(top, capsys):
    assert predict(["x.png", "--workdir=nowhere", f"--top={top}"]) == 2
    assert capsys.readouterr().err == f"error: --top is {top}; it must be a whole number from 1 to 1,000,000\n"


def test_a_picture_has_room_for_so_many_images(capsys):
    assert predict([*["x.png"] * 101, "--workdir=nowhere", "--attention=out.png"]) == 2
    assert capsys.readouterr().err == "error: --attention draws at most 100 images, but 101 are given\n"


def test_names_that_do_not_print_are_escaped(workdir, tmp_path, capfd):
    """Bytes that are not UTF-8, and a sequence that clears a terminal."""
    (path,) = write_images(tmp_path, 1)
    strange = os.fsdecode(os.fsencode(tmp_path) + b"/\xff\x1b[2J.png")
    os.rename(path, strange)
    assert predict([strange, strange + "!", f"--workdir={workdir}", f"--attention={tmp_path}/out.png"]) == 1
    out, err = capfd.readouterr()
    assert out.splitlines()[0] == rf"{tmp_path}/\udcff\x1b[2J.png"
    assert rf"cannot read the image {tmp_path}/\udcff\x1b[2J.png!" in err
    assert "\x1b" not in out + err


@pytest.mark.exhaustive
def test_attention_of_a_trained_model_lies_on_the_strokes(tmp_path):
    """By attention rollout, the class token of a T2T-ViT attends to patches with more ink than the mean patch."""
    sizes = ("dim=32", "depth=2", "heads=2", "mlp_dim=64", "t2t_layers=((3, 1), (3, 1))")
    assert train_run(tmp_path, "--model=t2t", "--steps=240", "--model-args", *sizes, base=()) == 0
    images = load_dataset(Config().data).eval.images
    shares = attention_panels(load_run(tmp_path), images).shares[:, -1]
    ink = images[..., 0].astype(float).reshape(-1, 4, 2, 4, 2).mean(axis=(2, 4))
    read = (shares * ink).sum(axis=(1, 2)) / shares.sum(axis=(1, 2)) / ink.mean(axis=(1, 2))
    assert read.mean() > 1.1
    assert (read > 1).mean() > 0.75
