"""Makes a tuner known to PEFT by name, so that stock PEFT saves and loads it like its own.

PEFT's `register_peft_method` is public but takes only names of its closed `PeftType` enumeration;
a new member is therefore added first.
"""

from peft.config import PeftConfig
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import PeftType, register_peft_method


def register(name: str, config: type[PeftConfig], model: type[BaseTuner]) -> None:
    """Registers a tuner under a lower-case name; its parameter prefix is `<name>_`.

    Raises:
        ValueError: when another tuner already has the name.
    """
    member = name.upper()
    if member not in PeftType.__members__:
        _add_member(member)
    registered = PEFT_TYPE_TO_TUNER_MAPPING.get(PeftType[member])
    if registered is None:
        register_peft_method(name=name, config_cls=config, model_cls=model)
    elif registered is not model:
        raise ValueError(f"PEFT already has a method called {name!r}: rename this one")


def _add_member(name: str) -> None:
    """Adds a member to PeftType as its class body would have done."""
    member = str.__new__(PeftType, name)
    member._name_ = name
    member._value_ = name
    type.__setattr__(PeftType, name, member)
    PeftType._member_names_.append(name)
    PeftType._member_map_[name] = member
    PeftType._value2member_map_[name] = member
