"""An adapter's tensors by name, out of and into a model.

A state is `{"<module path in the base model>.<factor>": tensor}`, for example
`model.layers.0.self_attn.q_proj.lora_A`. The tensors of a task head keep the names that they have
in the base model, for example `classifier.weight`. Only the active adapter is seen.
"""

from collections.abc import Iterator, Mapping
from typing import cast

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn

from fedtuners.adapters.linear import LinearLayer, linear_layer

State = dict[str, Tensor]

PEFT_PREFIX = "base_model.model."


def adapter_state(model: nn.Module) -> State:
    """Copies of all tensors of the active adapter and the task head, on the CPU."""
    return {
        name: parameter.detach().to("cpu", copy=True)
        for name, parameter in named_parameters(model).items()
    }


def trainable_names(model: nn.Module) -> list[str]:
    """The names, out of `adapter_state`, of the tensors that training changes."""
    return [name for name, p in named_parameters(model).items() if p.requires_grad]


def load_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copies tensors into the active adapter and the task head; names not given keep their value.

    Raises:
        ValueError: when a name is not the model's, or a shape or dtype differs; nothing is
            changed then.
    """
    parameters = named_parameters(model)
    for name, value in state.items():
        if name not in parameters:
            raise ValueError(f"{name} is not a tensor of this adapter: is it another method's?")
        expected = parameters[name]
        if expected.shape != value.shape or expected.dtype != value.dtype:
            raise ValueError(
                f"{name} is {value.dtype} {tuple(value.shape)}, the adapter's is "
                f"{expected.dtype} {tuple(expected.shape)}: use the same settings on both sides"
            )
    with torch.no_grad():
        for name, value in state.items():
            parameters[name].copy_(value)


def freeze_all_but(model: nn.Module, factor: str) -> None:
    """Lets only one factor of every module train, besides the task head.

    PEFT makes an adapter's factors trainable whenever it is switched to or enabled; this holds
    through that. Called again with another factor, it lets that one train instead.

    Raises:
        ValueError: when a module has no such factor.
    """
    for path, layer in tuner_layers(model).items():
        adapter = active_adapter(layer)
        factors = list(dict(_factors(layer, adapter)))
        if factor not in factors:
            raise ValueError(f"{path} has no factor {factor}: choose one of {', '.join(factors)}")
        frozen = tuple(name for name in factors if name != factor)
        layer.frozen_peft_weight_names = {**layer.frozen_peft_weight_names, adapter: frozen}
        layer.set_adapter(layer.active_adapters)


def by_module(state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Groups a state by module: `{module path: {factor: tensor}}`; a head's tensors too."""
    grouped: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        module, _, factor = name.rpartition(".")
        grouped.setdefault(module, {})[factor] = tensor
    return grouped


def modules(model: nn.Module) -> dict[str, LinearLayer]:
    """The frozen base layers that are adapted, by their path in the base model."""
    return {
        path: linear_layer(path, layer.get_base_layer())
        for path, layer in tuner_layers(model).items()
    }


def tuner_layers(model: nn.Module) -> dict[str, BaseTunerLayer]:
    """PEFT's layers around the adapted ones, by path in the base model."""
    return {
        name.removeprefix(PEFT_PREFIX): module
        for name, module in model.named_modules()
        if isinstance(module, BaseTunerLayer)
    }


def base_layer(model: nn.Module, path: str) -> LinearLayer:
    """The frozen linear layer at a path in the base model, under any adapters.

    Raises:
        ValueError: when there is none, or it is not linear.
    """
    root = model.get_base_model() if isinstance(model, PeftModel) else model
    try:
        layer = root.get_submodule(path)
    except AttributeError as error:
        raise ValueError(f"the base model has no module {path}") from error
    base = layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer
    return linear_layer(path, base)


def active_adapter(layer: BaseTunerLayer) -> str:
    """The name of the one active adapter of a layer.

    Raises:
        ValueError: when none or several are active.
    """
    if len(layer.active_adapters) != 1:
        raise ValueError(f"active adapters are {layer.active_adapters}: activate exactly one")
    return layer.active_adapters[0]


def named_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of the active adapter and the task head, by their names in a state."""
    parameters: dict[str, nn.Parameter] = {}
    for path, layer in tuner_layers(model).items():
        for factor, parameter in _factors(layer, active_adapter(layer)):
            parameters[f"{path}.{factor}"] = parameter
    for name, module in model.named_modules():
        if isinstance(module, ModulesToSaveWrapper):
            path = name.removeprefix(PEFT_PREFIX)
            for factor, parameter in module.modules_to_save[
                module.active_adapters[0]
            ].named_parameters():
                parameters[f"{path}.{factor}"] = parameter
    return parameters


def _factors(layer: BaseTunerLayer, adapter: str) -> Iterator[tuple[str, nn.Parameter]]:
    """(factor, parameter) of one adapter on one layer.

    A factor is `<factor>.<adapter>.weight` or, several in one module, `<…>.<adapter>.<factor>`.
    """
    for name, parameter in cast(nn.Module, layer).named_parameters():
        if name.startswith("base_layer."):
            continue
        group, owner, leaf = name.split(".")
        if owner == adapter:
            yield (group if leaf == "weight" else leaf), parameter
