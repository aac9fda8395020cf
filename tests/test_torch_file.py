"""load_torch_file reads what torch.load reads, with the same bits; files made by hand need no torch."""

import ml_dtypes
import numpy as np
import pytest

from tests.torch_files import (
    BUILD,
    FLOATS,
    FLOATS8,
    INTEGERS,
    VALUES,
    call,
    dict_of,
    dump,
    legacy_tensor,
    name,
    refusal,
    refused,
    save,
    save_legacy,
    storage,
    tensor,
)
from vit_jax.torch_file import load_torch_file


def assert_same(ours, theirs, torch):
    """Assert the same structure and the same bits as in the result of torch.load."""
    if isinstance(theirs, torch.Tensor):
        assert isinstance(ours, np.ndarray)
        assert not ours.flags.writeable
        assert f"torch.{ours.dtype}" == str(theirs.dtype)
        assert ours.shape == tuple(theirs.shape)
        bits = theirs.detach().contiguous().flatten().view(torch.uint8).numpy()
        assert ours.tobytes() == bits.tobytes()
    elif isinstance(theirs, dict):
        assert type(ours) is dict
        assert list(ours) == list(theirs)
        for key in theirs:
            assert_same(ours[key], theirs[key], torch)
    elif isinstance(theirs, list | tuple):
        assert len(ours) == len(theirs)
        for a, b in zip(ours, theirs, strict=True):
            assert_same(a, b, torch)
    elif isinstance(theirs, torch.dtype):
        assert ours == str(theirs)
    else:
        assert type(ours) is type(theirs)
        assert ours == theirs


def round_trip(tmp_path, content, torch, **kwargs):
    path = tmp_path / "model.pth"
    torch.save(content, path, **kwargs)
    loaded = load_torch_file(path)
    assert_same(loaded, torch.load(path, weights_only=True), torch)
    return loaded


@pytest.mark.parametrize("dtype", FLOATS + FLOATS8 + INTEGERS)
def test_reads_every_dtype_as_torch_does(tmp_path, dtype):
    torch = pytest.importorskip("torch")
    numbers = torch.tensor([[0.0, 1.5, 3.0], [7.0, 0.25, 100.0]]).to(getattr(torch, dtype))
    views = {"all": numbers, "column": numbers[:, 1], "element": numbers[1, 2], "none": numbers[:, :0]}
    round_trip(tmp_path, views | {"dtype": numbers.dtype} if dtype != "bool" else views, torch)


def test_reads_every_layout_as_torch_does(tmp_path):
    torch = pytest.importorskip("torch")
    base = torch.arange(24.0).reshape(2, 3, 4)
    loaded = round_trip(
        tmp_path,
        {
            "base": base,
            "tied": base,
            "transposed": base.permute(2, 0, 1),
            "strided": base[:, ::2, 1:],
            "last row": base[1, 2],
            "windows": base.flatten().unfold(0, 4, 4),
            "channels last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
            "scalar": torch.tensor(3),
            "empty": torch.empty(0),
            "empty rows": torch.empty(3, 0, 2),
            "parameter": torch.nn.Parameter(torch.randn(3), requires_grad=True),
        },
        torch,
    )
    assert np.shares_memory(loaded["base"], loaded["tied"])
    assert np.shares_memory(loaded["base"], loaded["transposed"])


def test_reads_a_training_checkpoint_as_torch_does(tmp_path):
    torch = pytest.importorskip("torch")
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 2), torch.nn.BatchNorm2d(4), torch.nn.Flatten())
    optimizer = torch.optim.AdamW(model.parameters())
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 5])
    model(torch.randn(2, 3, 5, 5)).sum().backward()
    optimizer.step()
    checkpoint = {
        "model": model.state_dict(),  # an OrderedDict with the attribute _metadata
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict(),  # holds a Counter
        "rng": torch.get_rng_state(),
        "notes": [
            None,
            True,
            False,
            -1,
            255,
            70_000,
            2**40,
            -(2**70),
            0.1,
            "naïve ☃",
            (),
            (1, (2,)),
            {3: []},
        ],
        "size": torch.Size([1, 2]),
        "many": list(range(2000)),
    }
    loaded = round_trip(tmp_path, checkpoint, torch)
    assert loaded["model"]["1.num_batches_tracked"].dtype == np.int64
    assert loaded["model"]["1.num_batches_tracked"] == 1


def test_reads_a_parameter_with_attributes(tmp_path):
    torch = pytest.importorskip("torch")
    parameter = torch.nn.Parameter(torch.randn(2))
    parameter.no_decay = True
    round_trip(tmp_path, {"p": parameter}, torch)


def test_refuses_what_torch_saves_but_numpy_cannot_hold(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "model.pth"
    for content, expected in {
        "conj": (torch.ones(2, dtype=torch.complex64).conj(), "resolve_conj"),
        "expanded": (torch.ones(1).expand(5), "shape (5,) expanded from 1 elements"),
        "sparse": (torch.eye(2).to_sparse(), "refers to torch._utils._rebuild_sparse_tensor"),
        "meta": (torch.ones(2, device="meta"), "refers to torch._utils._rebuild_meta_tensor_no_storage"),
        "module": (torch.nn.Linear(1, 1), "refers to torch.nn.modules.linear.Linear"),
    }.values():
        torch.save({"x": content}, path)
        assert expected in refusal(path)


def test_reads_what_torch_saves_in_its_old_format(tmp_path):
    torch = pytest.importorskip("torch")
    path, x = tmp_path / "model.pth", torch.arange(12.0).reshape(3, 4)
    content = dict(x=x, turned=x.t(), row=x[1], half=torch.ones(2).half(), none=torch.ones(0), n=torch.tensor(3))
    torch.save(content, path, _use_new_zipfile_serialization=False)
    assert_same(load_torch_file(path), torch.load(path), torch)


def test_refuses_the_other_formats_of_torch(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "model.pth"
    torch.save([torch.ones(2)], path)
    assert "holds a list, expected a dict" in refusal(path)
    torch.save(torch.ones(2), path)
    assert "holds a ndarray, expected a dict" in refusal(path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_refuses_torchscript_made_by_torch(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "model.pt"
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), path)
    assert "TorchScript" in refusal(path)


def test_reads_a_file_made_without_torch(tmp_path):
    body = dict_of(
        model=dict_of(w=tensor(), t=tensor((3, 2), (1, 3)), last=tensor((), (), 5), none=tensor((0, 4), (4, 1))),
        epoch=dump(3),
        tail=tensor((2,), (2,), 3),
    )
    loaded = load_torch_file(save(tmp_path / "any.name", body))
    assert list(loaded) == ["model", "epoch", "tail"]
    assert loaded["epoch"] == 3
    np.testing.assert_array_equal(loaded["model"]["w"], [[0, 1, 2], [3, 4, 5]])
    np.testing.assert_array_equal(loaded["model"]["t"], [[0, 3], [1, 4], [2, 5]])
    np.testing.assert_array_equal(loaded["tail"], [3, 5])
    assert loaded["model"]["last"].shape == ()
    assert loaded["model"]["last"] == 5
    assert loaded["model"]["none"].shape == (0, 4)
    assert np.shares_memory(loaded["model"]["w"], loaded["tail"])
    assert not loaded["tail"].flags.writeable


def test_reads_typed_and_untyped_storages(tmp_path):
    numbers = np.array([0.5, -2, 96], ml_dtypes.bfloat16)
    eights = np.array([0.5, -2, 96], ml_dtypes.float8_e4m3fn)
    untyped = storage("1", "torch.storage.UntypedStorage", 3) + dump(1) + dump((2,)) + dump((1,)) + dump(False)
    body = dict_of(
        typed=tensor((3,), (1,), kind="torch.BFloat16Storage"),
        untyped=call(
            "torch._utils._rebuild_tensor_v3",
            untyped + call("collections.OrderedDict") + name("torch.float8_e4m3fn"),
        ),
        dtype=name("torch.float16"),
    )
    loaded = load_torch_file(save(tmp_path / "m.pt", body, {"0": numbers.tobytes(), "1": eights.tobytes()}))
    assert loaded["typed"].dtype == ml_dtypes.bfloat16
    assert loaded["typed"].tolist() == [0.5, -2, 96]
    assert loaded["untyped"].dtype == ml_dtypes.float8_e4m3fn
    assert loaded["untyped"].tolist() == [-2, 96]
    assert loaded["dtype"] == "torch.float16"


def test_byteorder_may_be_absent_but_not_big(tmp_path):
    path = save(tmp_path / "m.pt", dict_of(w=tensor()), entries={"byteorder": None})
    np.testing.assert_array_equal(load_torch_file(path)["w"], VALUES.reshape(2, 3))
    assert "has byte order big" in refused(tmp_path, dict_of(w=tensor()), entries={"byteorder": b"big"})


def test_reads_the_format_of_before_torch_1_6(tmp_path):
    path = save_legacy(tmp_path / "model.pth", dict_of(w=legacy_tensor(), again=legacy_tensor()))
    content = load_torch_file(path)
    np.testing.assert_array_equal(content["w"], VALUES.reshape(2, 3))
    assert not content["w"].flags.writeable
    assert np.shares_memory(content["w"], content["again"])


def test_the_attributes_of_a_state_dict_are_dropped(tmp_path):
    body = call("collections.OrderedDict") + dump({"_metadata": {}, "__class__": 1, "items": 2}) + BUILD
    loaded = load_torch_file(save(tmp_path / "a.pth", body))
    assert type(loaded) is dict
    assert loaded == {}
    assert not hasattr(loaded, "_metadata")
