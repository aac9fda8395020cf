"""Reading and writing folders and files of published weights."""

import json
import os
import re
import time
import tracemalloc
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from tests.test_torch_file import dict_of, dump, save, tensor
from vit_jax.pretrained.describe import describe
from vit_jax.pretrained.files import load_weights, save_folder, weights_name
from vit_jax.pretrained.json_files import CONFIG, load_config

numpy_files = pytest.importorskip("safetensors.numpy")

W = np.arange(6, dtype=np.float32).reshape(2, 3)  # what `tensor()` writes
STATE = {"norm.weight": np.ones(3, np.float32), "head.weight": W}


def assert_equal(loaded, expected):
    assert loaded.keys() == expected.keys()
    for key, array in expected.items():
        assert loaded[key].dtype == array.dtype
        np.testing.assert_array_equal(loaded[key], array)
        assert not loaded[key].flags.writeable


def refusal(call, *args, **kwargs) -> str:
    """The one line of a ValueError."""
    with pytest.raises(ValueError, match=r"^[^\n]*$") as error:
        call(*args, **kwargs)
    message = str(error.value)
    assert message.isprintable()
    assert len(message) < 1500
    return message


# Which file.


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("pytorch_model.bin model.safetensors open_clip_model.safetensors", "model.safetensors"),
        (
            "model.safetensors.index.json model-00001-of-00001.safetensors pytorch_model.bin",
            "model.safetensors.index.json",
        ),
        ("pytorch_model.bin open_clip_pytorch_model.bin", "pytorch_model.bin"),
        ("pytorch_model.bin.index.json pytorch_model-00001-of-00001.bin", "pytorch_model.bin.index.json"),
        ("ViT-B_16.npz README.md", "ViT-B_16.npz"),
        ("mae.pth other.npz", "mae.pth"),
        ("x.bin training_args.bin optimizer.pt", "x.bin"),
    ],
)
def test_the_file_with_the_weights(names, expected):
    assert weights_name("here", names.split()) == expected


def test_no_file_with_the_weights():
    assert "has 2 files of weights; choose one by its path or weights=: a.pth, b.pth" in refusal(
        weights_name, "here", ["b.pth", "a.pth"]
    )
    assert "it has \\x1b[2J, model.h5" in refusal(weights_name, "here", ["model.h5", "\x1b[2J"])
    assert "it has no files" in refusal(weights_name, "here", [])


# Formats.


def test_safetensors_are_views_of_the_file(tmp_path):
    large = {f"blocks.{i}.weight": np.full((2**20,), i, np.float32) for i in range(8)}
    save_folder(tmp_path / "new", {}, large)
    tracemalloc.start()
    try:
        loaded = load_weights(tmp_path / "new")
        assert tracemalloc.get_traced_memory()[1] < 2**20  # the file has 2**25 bytes
    finally:
        tracemalloc.stop()
    assert_equal(loaded, large)
    save_folder(tmp_path / "new", {}, STATE)  # a new file, so the views keep their numbers
    assert_equal(loaded, large)


def test_a_folder_and_a_file(tmp_path):
    save_folder(tmp_path, {}, STATE)
    save(tmp_path / "pytorch_model.bin", dict_of(**{"x.y": tensor()}))
    assert_equal(load_weights(tmp_path), STATE)
    assert_equal(load_weights(str(tmp_path / "model.safetensors")), STATE)
    assert_equal(load_weights(tmp_path, "pytorch_model.bin"), {"x.y": W})
    assert_equal(load_weights(tmp_path / "pytorch_model.bin"), {"x.y": W})


def test_npz_with_slashes_and_bfloat16(tmp_path):
    state = {"params/img/head/kernel": W, "params/t": np.array(10.0), "opt/x": W.astype(ml_dtypes.bfloat16)}
    np.savez(tmp_path / "vit.npz", **state)
    assert_equal(load_weights(tmp_path), state)
    assert_equal(load_weights(tmp_path / "vit.npz", prefix="params/"), {"img/head/kernel": W, "t": np.array(10.0)})


def test_npz_with_objects_text_or_damage(tmp_path):
    path = tmp_path / "vit.npz"
    np.savez(path, **{"a/b": np.array([{}], object)})
    assert "Object arrays cannot be loaded" in refusal(load_weights, path)
    np.savez(path, **{"a/b": np.array(["text"])})
    assert "holds a/b as <U4, expected numbers" in refusal(load_weights, path)
    np.savez(path, **{"a/b": W})
    content = path.read_bytes()
    for end in range(0, len(content), 40):
        path.write_bytes(content[:end])
        assert "download it again" in refusal(load_weights, path)


def test_npz_that_unpacks_to_far_more(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/b.npy", bytes(2**24))
    assert "but claims to hold 16777216" in refusal(load_weights, tmp_path / "bomb.npz")


def write_shards(folder, suffix) -> Path:
    if suffix == ".safetensors":
        for name, key in (("a", "head.weight"), ("b", "norm.weight")):
            numpy_files.save_file({key: STATE[key]}, folder / f"{name}{suffix}")
    else:
        save(folder / "a.bin", dict_of(**{"head.weight": tensor()}))
        save(folder / "b.bin", dict_of(**{"norm.weight": tensor((3,), (0,), 1), "unused.weight": tensor()}))
    index = folder / f"model{suffix}.index.json"
    places = {"head.weight": f"a{suffix}", "norm.weight": f"b{suffix}"}
    index.write_text(json.dumps(dict(metadata=dict(total_size=36), weight_map=places)))
    return index


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_shards(tmp_path, suffix):
    index = write_shards(tmp_path, suffix)
    assert_equal(load_weights(index), STATE)
    assert_equal(load_weights(tmp_path, index.name), STATE)


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        ({"w": "../a.safetensors"}, "lists '../a.safetensors' for w: expected a .safetensors file beside it"),
        ({"w": "/etc/passwd"}, "lists '/etc/passwd'"),
        ({"w": "a/b.safetensors"}, "lists 'a/b.safetensors'"),
        ({"w": "a.bin"}, "lists 'a.bin'"),
        ({"w": 3}, "lists '3'"),
        ({"w": "c.safetensors"}, "c.safetensors is missing, which model.safetensors.index.json lists"),
        ({"w": "a.safetensors"}, "a.safetensors has no 'w', which model.safetensors.index.json lists"),
        ({"w": "link.safetensors"}, "link.safetensors is a link out of the folder"),
        ({}, "has no weight_map"),
        ([], "weight_map is [], expected dict"),
    ],
)
def test_an_index_is_not_trusted(tmp_path, places, expected):
    folder = tmp_path / "folder"
    folder.mkdir()
    index = write_shards(folder, ".safetensors")
    (tmp_path / "outside.safetensors").write_bytes((folder / "a.safetensors").read_bytes())
    (folder / "link.safetensors").symlink_to(tmp_path / "outside.safetensors")
    index.write_text(json.dumps(dict(weight_map=places)))
    assert expected in refusal(load_weights, index)


# What a checkpoint contains beside the weights.


def nested(*keys, **items: bytes) -> bytes:
    body = dict_of(**items)
    for key in reversed(keys):
        body = dict_of(**{key: body})
    return body


@pytest.mark.parametrize(
    "body",
    [
        nested(**{"a.w": tensor(), "epoch": b"K\x03"}),
        nested("state_dict", **{"a.w": tensor()}),
        nested("model", "module", **{"module.a.w": tensor()}),
        nested(**{"module._orig_mod.a.w": tensor()}),
        nested(**{"timm_model.a.w": tensor()}),
        nested(**{"student.backbone.a.w": tensor()}),
        nested(model=nested(**{"a.w": tensor()}), rng=tensor(), optimizer=nested("state", step=tensor())),
    ],
)
def test_the_only_state_dict_of_a_checkpoint(tmp_path, body):
    assert_equal(load_weights(save(tmp_path / "x.pth", body)), {"a.w": W})


def test_dicts_that_share_dicts(tmp_path):
    body = nested(**{"a.w": tensor()})
    for i in range(4):  # each level has the level below a hundred times, by its number in the pickle's memory
        copies = b"".join(dump(f"{n}") + b"h" + bytes([100 + i]) + b"s" for n in range(100))
        body = b"}" + dump("first") + body + b"q" + bytes([100 + i]) + b"s" + copies
    started = time.process_time()
    assert_equal(load_weights(save(tmp_path / "x.pth", body)), {"a.w": W})
    assert time.process_time() - started < 1  # a hundred million paths lead to the weights


def test_several_state_dicts(tmp_path):
    weights = nested(**{"backbone.a.w": tensor(), "head.w": tensor()})
    path = save(tmp_path / "x.pth", nested(student=weights, teacher=weights))
    assert "contains 2 state dicts; choose one by prefix='student' or 'teacher'" in refusal(load_weights, path)
    assert_equal(load_weights(path, prefix="teacher.backbone"), {"a.w": W})
    assert_equal(load_weights(path, prefix="student"), {"backbone.a.w": W, "head.w": W})
    assert f"{path}: state_dict has no names that begin with 'ema'" in refusal(load_weights, path, prefix="ema")
    assert "contains no weights" in refusal(load_weights, save(tmp_path / "y.pth", nested(epoch=b"K\x03")))


# JSON.


def write_config(folder, content) -> Path:
    path = folder / CONFIG
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def test_a_config_is_read(tmp_path):
    assert load_config(tmp_path) is None
    assert load_config(write_config(tmp_path, b'\xef\xbb\xbf{"architecture": "vit", "a": null}')) == dict(
        architecture="vit", a=None
    )


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("[1, 2]", "holds a list: expected a JSON object"),
        ("", "is not valid JSON"),
        ('{"a": 1', "is not valid JSON"),
        (b'{"a": "\xff"}', "is not valid JSON (UnicodeDecodeError"),
        ('{"a": ' + "[" * 100_000, "is not valid JSON (RecursionError"),
        ('{"a": ' + "[" * 30 + "]" * 30 + "}", "is nested more than 20 levels deep"),
        ('{"a": NaN}', "NaN is not a number"),
        (f'{{"a": {"9" * 5000}}}', "is not valid JSON (ValueError: Exceeds the limit"),
        (r'{"a": ["x\u0000y"]}', "contains a NUL character"),
        (r'{"x\u0000y": 1}', "contains a NUL character"),
        ('{"architecture": ["vit"]}', "architecture is ['vit'], expected str"),
        ('{"num_classes": true}', "num_classes is True, expected int"),
        ('{"pretrained_cfg": "x"}', "pretrained_cfg is 'x', expected dict"),
        (b" " * (2**24 + 1), "has more than 16,777,216 bytes"),
    ],
    ids=lambda value: str(value)[:20] if isinstance(value, str) else None,
)
def test_a_config_is_not_trusted(tmp_path, content, expected):
    message = refusal(load_config, write_config(tmp_path, content))
    assert expected in message
    assert message.startswith(f"{tmp_path / CONFIG}")


def test_links_and_pipes(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    write_config(tmp_path, "{}")
    (folder / CONFIG).symlink_to(tmp_path / CONFIG)
    assert "is a link out of the folder; copy the file" in refusal(load_config, folder)
    (folder / CONFIG).unlink()
    os.mkfifo(folder / CONFIG)
    assert "is a pipe, a device or a socket, expected a file" in refusal(load_config, folder)
    (folder / "vit.npz").symlink_to("pipe.npz")
    os.mkfifo(folder / "pipe.npz")
    assert "is a pipe, a device or a socket" in refusal(load_weights, folder, "vit.npz")
    (folder / "model.safetensors").symlink_to("/etc/passwd")
    assert "is a link out of the folder" in refusal(load_weights, folder)
    write_config(folder / "..", "{}")
    (folder / "real.json").write_text('{"a": 1}')
    (folder / "inside.json").symlink_to("real.json")
    assert load_config(folder, "inside.json") == {"a": 1}


# Writing.


def test_a_folder_is_complete_or_as_before(tmp_path, monkeypatch):
    new, old = tmp_path / "a/new", tmp_path / "old"
    old.mkdir()
    (old / "notes.txt").write_text("kept")
    for folder in (new, old):
        save_folder(folder, dict(architecture="vit", sizes=(1, 2)), STATE | {"b.w": W.T.astype(ml_dtypes.bfloat16)})
        assert load_config(folder) == dict(architecture="vit", sizes=[1, 2])
        assert_equal(load_weights(folder), STATE | {"b.w": W.T.astype(ml_dtypes.bfloat16)})
        assert (folder / "model.safetensors").stat().st_mode == (folder / CONFIG).stat().st_mode
        assert "config cannot be written as JSON" in refusal(save_folder, folder, dict(mean=float("nan")), STATE)
        assert "config cannot be written as JSON" in refusal(save_folder, folder, dict(mean=W), STATE)
    for folder in (old, tmp_path / "other"):
        with pytest.raises(OSError, match=r"model.safetensors cannot be written: .*object"):
            save_folder(folder, {}, {"w": np.array([{}], object)})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "old"]
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["new"]
    assert sorted(path.name for path in old.iterdir()) == [CONFIG, "model.safetensors", "notes.txt"]
    assert load_config(old)["architecture"] == "vit"


def test_new_weights_never_meet_an_old_config(tmp_path, monkeypatch):
    save_folder(tmp_path, dict(num_classes=1), STATE)
    replaced = Path.replace

    def stopped(path, target):
        if path.name == CONFIG:
            raise KeyboardInterrupt
        return replaced(path, target)

    monkeypatch.setattr(Path, "replace", stopped)
    with pytest.raises(KeyboardInterrupt):
        save_folder(tmp_path, dict(num_classes=2), {"w.x": W})
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    assert_equal(load_weights(tmp_path), {"w.x": W})


def test_timm_reads_the_folder(tmp_path):
    torch = pytest.importorskip("torch")
    import tests.upstream  # noqa: F401, which makes torchvision importable, and so timm

    timm = pytest.importorskip("timm")
    sizes = dict(depth=1, embed_dim=8, num_heads=2, img_size=32)
    name = "vit_tiny_patch16_224"
    state = {key: value.numpy() for key, value in timm.create_model(name, num_classes=3, **sizes).state_dict().items()}
    state = {key: np.random.default_rng(0).random(value.shape, np.float32) for key, value in state.items()}
    config = dict(architecture=name, num_classes=3, model_args=sizes, pretrained_cfg=dict(input_size=(3, 32, 32)))
    save_folder(tmp_path / "saved", config, state)
    model = timm.create_model(f"local-dir:{tmp_path / 'saved'}", pretrained=True)
    assert model.num_classes == 3
    assert model.pretrained_cfg["input_size"] == [3, 32, 32]
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, torch.from_numpy(state[key]), rtol=0, atol=0)


# Guesses.


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ("blocks.{i}.norm1.weight blocks.{i}.ls1.gamma", "timm's ViT or Meta's DeiT, DINO or MAE (3 blocks, width 8)"),
        ("blocks.{i}.norm1.weight blocks.{i}.attn.q_proj.weight", "timm's EVA (3 blocks, width 8)"),
        ("blocks.{i}.norm1.weight mask_token", "Meta's DINOv2 (3 blocks, width 8)"),
        ("blocks.{i}.norm1.weight storage_tokens", "Meta's DINOv3 (3 blocks, width 8)"),
        ("blocks.{i}.norm1.weight decoder_blocks.0.norm1.weight", "Meta's MAE with its decoder (3 blocks, width 8)"),
        (
            "vision_model.encoder.layers.{i}.layer_norm1.weight text_model.encoder.layers.0.layer_norm1.weight",
            "Hugging Face's SigLIP (3 blocks, width 8) behind the prefix 'vision_model.'",
        ),
        ("encoder.layer.{i}.norm1.weight", "Hugging Face's DINOv2 (3 blocks, width 8)"),
        ("layer.{i}.norm1.weight layer.{i}.attention.o_proj.weight", "Hugging Face's DINOv3 (3 blocks, width 8)"),
        (
            "vit.encoder.layer.{i}.layernorm_before.weight",
            "Hugging Face's ViT (3 blocks, width 8) behind the prefix 'vit.'",
        ),
        ("visual.transformer.resblocks.{i}.ln_1.weight", "OpenAI's or OpenCLIP's CLIP (3 blocks, width 8)"),
        (
            "params/img/Transformer/encoderblock_{i}/LayerNorm_0/scale",
            "big_vision's ViT (3 blocks, width 8) behind the prefix 'params/img/'",
        ),
        ("layers.{i}.blocks.0.norm1.weight layers.{i}.blocks.1.norm1.weight", "timm's or Microsoft's Swin (3 stages)"),
        ("stages.{i}.blocks.0.attn.qkv.bn.weight", "timm's LeViT (3 stages)"),
        ("transformers.{i}.blocks.0.norm1.weight", "timm's PiT (3 stages)"),
        ("layer{i}.0.bn1.weight", "a ResNet (3 stages)"),
    ],
)
def test_guesses(keys, expected):
    names = [template.format(i=i) for template in keys.split() for i in range(3)]
    assert describe({name: np.ones(8) for name in names}) == f"these look like {expected}"
    assert describe(names) == f"these look like {expected.replace(', width 8', '')}"


def test_guesses_of_blocks_in_one_array():
    key = "Transformer/encoderblock/LayerNorm_0/scale"
    assert describe({key: np.ones((12, 384))}) == "these look like big_vision's ViT (12 blocks, width 384)"
    assert describe([key]) == "these look like big_vision's ViT (all blocks in one array)"


def test_no_guess():
    assert re.fullmatch(
        r"these are 2 tensors of an unknown network; the first: a, \\x1b\[2J", describe(["a", "\x1b[2J"])
    )
    assert describe([]) == "these are 0 tensors of an unknown network; the first: none"
