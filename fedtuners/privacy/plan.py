"""The plan of a client's privacy: what all rounds will do, σ for it, and the forecast of its cost.

σ is calibrated once, over every round that a client can take part in and over LoRA-SB's start when
the clients give it. A client that takes part in fewer rounds spends less than its budget.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from fedtuners.config import Config, ConfigError, make_adapter
from fedtuners.privacy.accounting import Event, PrivacyError, calibrate, choose_delta, epsilon

SKETCHES = 2  # mechanisms of a start from the clients: one of the range, one of the core


@dataclass(frozen=True)
class Plan:
    """What one client of `units` protected units will do.

    Attributes:
        units: N.
        delta: δ.
        round: the mechanism of one round.
        sketch: that of each of the start's two sketches; None when the start costs nothing.
        rounds: how many rounds it can take part in.
    """

    units: int
    delta: float
    round: Event
    sketch: Event | None
    rounds: int

    def events(self, rounds: int | None = None) -> list[Event]:
        """All mechanisms of the start and of so many rounds; None: of all."""
        start = [self.sketch] * SKETCHES if self.sketch else []
        return [*start, *[self.round] * (self.rounds if rounds is None else rounds)]


def check(config: Config) -> None:
    """Refuse a private run whose settings cannot keep its promise.

    Raises
    ------
    ConfigError
        Naming the setting and the fix.
    """
    privacy = config.privacy
    if not privacy.active:
        return
    if privacy.epsilon is None and privacy.noise_multiplier is None:
        raise ConfigError("privacy.epsilon and privacy.noise_multiplier are both null: set one")
    for key in ("epsilon", "noise_multiplier", "clip", "start_noise"):
        value = getattr(privacy, key)
        if value is not None and not 0 < value < float("inf"):
            raise ConfigError(f"privacy.{key}={value} must be above 0 and finite")
    if config.train.gradient_checkpointing:
        raise ConfigError(
            "train.gradient_checkpointing=true gives no gradients per example: leave it off under "
            "privacy=example, and lower train.micro_batch to save memory"
        )
    start, data = config.start, config.data
    own = (start.data or data.source, start.split or data.train_split)
    if (
        make_adapter(config).needs_estimate
        and start.source != "clients"
        and own == (data.source, data.train_split)
    ):
        raise ConfigError(
            f"start.source={start.source} would read the clients' own training rows without noise: "
            "set start.data or start.split to other rows, or start.source=clients"
        )


def make_plan(config: Config, units: int) -> Plan:
    """The plan of a client with so many protected units.

    Raises
    ------
    ConfigError, PrivacyError
        When the settings cannot be had: δ not below 1/N, a batch larger than the client's rows.
    """
    check(config)
    privacy, train = config.privacy, config.train.resolved(units)
    delta = choose_delta(privacy.delta, units)
    if train.batch_size > units:
        raise PrivacyError(
            f"train.batch_size={train.batch_size} is above the {units} protected units of a "
            "client: lower it"
        )
    round_ = Event(1.0, train.batch_size / units, train.steps)
    sketch = None
    if make_adapter(config).needs_estimate and config.start.source == "clients":
        sketch = Event(privacy.start_noise, min(1.0, config.start.rows / units), 1)
    plan = Plan(units, delta, round_, sketch, config.federation.rounds)
    sigma = privacy.noise_multiplier
    if sigma is None:
        assert privacy.epsilon is not None
        sigma = _calibrated(privacy.epsilon, delta, tuple(plan.events()), privacy.accountant)
    return replace(plan, round=_scaled(round_, sigma), sketch=sketch and _scaled(sketch, sigma))


@lru_cache(maxsize=256)
def _calibrated(target: float, delta: float, events: tuple[Event, ...], accountant: str) -> float:
    return calibrate(target, delta, events, accountant)


def _scaled(event: Event, sigma: float) -> Event:
    return replace(event, noise_multiplier=event.noise_multiplier * sigma)


def forecast(config: Config, units: Sequence[int]) -> str:
    """What a private run will cost, from the configuration and the clients' numbers of units.

    A line for the smallest and the largest client: σ, δ, and ε after the start, some rounds, and
    all rounds.
    """
    lines = []
    for count in sorted({min(units), max(units)}):
        plan = make_plan(config, count)
        steps = sorted({0 if plan.sketch else 1, 1, (plan.rounds + 1) // 2, plan.rounds})
        spent = ", ".join(
            f"{epsilon(plan.events(rounds), plan.delta, config.privacy.accountant):.2f} "
            f"after {f'round {rounds}' if rounds else 'the start'}"
            for rounds in steps
        )
        lines.append(
            f"privacy of a client with {count} {config.privacy.unit or 'example'}s: "
            f"noise multiplier σ {plan.round.noise_multiplier:.3f}, clip {config.privacy.clip}, "
            f"sampling rate {plan.round.sample_rate:.4f}, {plan.round.steps} steps a round; "
            f"δ {plan.delta:.2e}, ε {spent} ({config.privacy.accountant})"
        )
    return "\n".join(lines)
