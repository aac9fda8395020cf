"""Every model against its upstream counterpart with the same weights: values and gradients, in float32.

The models of a row are built once for all tests of this file: pytest runs the tests of a row consecutively.
"""

import copy
import dataclasses
import functools
from functools import cached_property

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from tests.cases import CASES, FIRST, drawn_cases
from tests.cases.case import Case, build, build_upstream, upstream_class
from vit_jax import list_models
from vit_jax.convert import from_torch, to_torch, torch_key

torch = pytest.importorskip("torch")
from tests.upstream import channels_first, shake  # noqa: E402

SMALL = 0.1  # of inputs and weights, where a norm's wrong epsilon shows


class Row:
    """Both models of a case, with the same perturbed weights."""

    def __init__(self, case: Case):
        self.case, self.model = case, build(case)
        self.rng = np.random.default_rng(1)
        self.inputs, keywords = case.inputs(self.rng)
        self.floats = {name: value for name, value in keywords.items() if value.dtype == np.float32}
        self.fixed = {name: value for name, value in keywords.items() if name not in self.floats}
        self.traces = 0

    def twin(self, scale: float = 1.0):
        return shake(build_upstream(self.case), scale=scale)

    @cached_property
    def state(self) -> dict[str, np.ndarray]:
        return {key: tensor.numpy() for key, tensor in self.twin().state_dict().items()}

    @cached_property
    def variables(self):
        return jax.tree.map(np.asarray, from_torch(self.model, self.state, self.inputs, **self.floats, **self.fixed))

    def apply(self, variables, inputs, floats, fixed):
        """Outputs; what the trace collects on its way is noted in `maps`."""
        self.traces += 1
        outputs, collected = self.model.apply(variables, inputs, **floats, **fixed, mutable=["intermediates"])
        axes = {jax.tree_util.keystr(path): leaf.ndim for path, leaf in jax.tree.leaves_with_path(collected)}
        self.maps = {path: count for path, count in axes.items() if "'block'" not in path}  # outputs of blocks
        return jax.tree.leaves(outputs)

    @cached_property
    def gradients(self):
        """A compiled function of variables, inputs and cotangents: gradients of params, inputs and floats; outputs."""

        @functools.partial(jax.jit, compiler_options=self.case.compiler_options)
        def gradients(variables, inputs, floats, fixed, cotangents):
            def loss(params, inputs, floats):
                outputs = self.apply({**variables, "params": params}, inputs, floats, fixed)
                weighted = [(out * weights).sum() for out, weights in zip(outputs, cotangents, strict=True)]
                return sum(weighted), outputs

            return jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(variables["params"], inputs, floats)

        return lambda *args: jax.tree.map(np.array, gradients(*args))  # copies, as torch wants arrays to be writable

    @cached_property
    def compared(self) -> dict[float, tuple[dict, dict, set[str]]]:
        """For each scale: outputs and gradients by name, (ours, upstream's), and our parameters without a gradient."""
        return {scale: self._compare(scale) for scale in (SMALL, 1.0)}

    def scaled_variables(self, twin, scale):
        """The variables of `twin`: `shake` has scaled all of them except buffers that are not statistics."""
        buffers = {name for name, _ in twin.named_buffers() if "running_" not in name}
        flat = flatten_dict(self.variables)
        is_fixed = {path: torch_key(self.model, path) in buffers for path in flat}
        return unflatten_dict({path: leaf if is_fixed[path] else leaf * scale for path, leaf in flat.items()})

    def _compare(self, scale: float):
        twin = self.twin(scale)
        variables = self.scaled_variables(twin, np.float32(scale))
        inputs, floats = jax.tree.map(lambda leaf: leaf * np.float32(scale), (self.inputs, self.floats))
        torch_inputs = jax.tree.map(lambda images: images.requires_grad_(), channels_first(inputs))
        torch_floats = {name: torch.from_numpy(value).requires_grad_() for name, value in floats.items()}
        torch_fixed = {name: torch.from_numpy(value) for name, value in self.fixed.items()}
        expected = jax.tree.leaves(twin(torch_inputs, **torch_floats, **torch_fixed))
        rng = copy.deepcopy(self.rng)  # the same at both scales
        cotangents = [rng.standard_normal(out.shape, np.float32) for out in expected]
        sum(
            (out * torch.from_numpy(weights)).sum() for out, weights in zip(expected, cotangents, strict=True)
        ).backward()

        (params_grad, inputs_grad, floats_grad), outputs = self.gradients(
            variables, inputs, floats, self.fixed, cotangents
        )
        ours = to_torch(self.model, {"params": params_grad}) | floats_grad
        ours |= inputs_by_name(channels_first(inputs_grad))
        theirs = dict(twin.named_parameters()) | inputs_by_name(torch_inputs) | torch_floats
        gradient = lambda tensor: np.zeros(tensor.shape) if tensor.grad is None else tensor.grad.numpy()
        return (
            {f"output {i}": (a, b.detach()) for i, (a, b) in enumerate(zip(outputs, expected, strict=True))},
            {name: (ours[name], gradient(theirs[name])) for name in theirs if theirs[name].numel()},
            {"/".join(path) for path, gradient in flatten_dict(params_grad).items() if not np.any(gradient)},
        )

    def among_others(self) -> list[list[np.ndarray]]:
        """Outputs for every image: of the same program, for a batch whose other images are replaced."""
        cotangents = [np.zeros(np.shape(ours), np.float32) for ours, _ in self.compared[1.0][0].values()]
        outputs = lambda batch: self.gradients(self.variables, batch, self.floats, self.fixed, cotangents)[1]
        return [outputs(self.replaced(kept)) for kept in range(len(self.inputs))]

    def replaced(self, kept: int):
        """A batch with nothing but copies of one image; where images have sizes of their own, with others beside it."""
        if not self.case.takes_list:
            return np.repeat(self.inputs[kept : kept + 1], len(self.inputs), axis=0)
        return [image if i == kept else image[::-1] + np.float32(1) for i, image in enumerate(self.inputs)]


def inputs_by_name(inputs) -> dict:
    return {f"input {i}": images for i, images in enumerate(jax.tree.leaves(inputs))}


@pytest.fixture(scope="module", params=CASES, ids=str)
def row(request):
    return Row(request.param)


def test_a_row_may_name_a_class_outside_of_vit_pytorch():
    assert upstream_class(dataclasses.replace(FIRST["vit"], upstream="torch.nn:Linear")) is torch.nn.Linear


def test_upstream_loads_what_we_export(row):
    twin = build_upstream(row.case)
    assert sum(p.numel() for p in twin.parameters()) == row.case.parameters
    exported = to_torch(row.model, row.variables)
    twin.load_state_dict({key: torch.from_numpy(value) for key, value in exported.items()}, strict=True)
    assert exported.keys() == row.state.keys()
    assert {"params"} <= row.variables.keys() <= {"params", "batch_stats"}
    constants = {name for name, _ in twin.named_buffers() if "running_" not in name}  # `from_torch` has compared them
    for key in row.state.keys() - constants:
        np.testing.assert_array_equal(exported[key], row.state[key], err_msg=key, strict=True)


def test_values_and_gradients_equal_upstreams(row):
    """At usual and at small activations, with one trace. Every parameter has a gradient, except those the row names."""
    assert_parity(row, row.case.tolerance, row.case.tolerance)
    *_, idle = row.compared[1.0]
    assert {name for name in idle if not row.case.is_faint(name)} == set(row.case.unused)
    assert len(row.maps) == row.case.maps
    assert all("'attn'" in path and axes >= 4 for path, axes in row.maps.items())
    if row.case is FIRST[row.case.name]:
        assert_no_image_reads_another(row)
    assert row.traces == 1


def assert_no_image_reads_another(row: Row):
    outputs, *_ = row.compared[1.0]
    others = zip(*row.among_others(), strict=True)
    for (what, (ours, _)), outs in zip(outputs.items(), others, strict=True):
        # A single number is a mean over images.
        kept = [out[i] for i, out in enumerate(outs)] if ours.ndim else np.mean(outs)
        assert_close(kept, ours, 2e-6, f"{what} of an image among others")


def assert_parity(row: Row, value_tolerance: float, gradient_tolerance: float):
    """Assert that relative errors are at most these."""
    for scale, (outputs, gradients, _) in row.compared.items():
        for what, (ours, theirs) in outputs.items():
            assert_close(ours, theirs, value_tolerance, f"{what}, {scale=}")
        # Sums that cancel, as at the queries of small activations, whose attention is even, are rounding in torch as
        # well. What counts is an error above that of the largest gradient, 6e-8 of it: with the floors, tolerances of
        # 1e-5 ask for 1e-8 of it at small activations, and for 1e-6 where a row names what is faint at any.
        largest = max(np.abs(theirs).max() for _, theirs in gradients.values())
        for what, (ours, theirs) in gradients.items():
            floor = largest * (1e-1 if row.case.is_faint(what) else 1e-3 if scale < 1 else 0.0)
            assert_close(ours, theirs, gradient_tolerance, f"gradient of {what}, {scale=}", floor)


def assert_close(ours, theirs, tolerance: float, what: str, floor: float = 0.0):
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape, what
    error = np.abs(ours - theirs).max() / (max(np.abs(theirs).max(), floor) or 1)
    assert error <= tolerance, f"{what}: relative error {error:.2g}"


@pytest.mark.exhaustive
@pytest.mark.parametrize("seed", [0])
@pytest.mark.parametrize("name", list_models())
def test_other_configurations_are_equal_too(name, seed):
    assert_parity(Row(drawn_cases(seed)[name]), value_tolerance=1e-5, gradient_tolerance=1e-4)
