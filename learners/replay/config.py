"""The configuration of learners that are networks: the keys they share, each with its range; needs no torch.

Only records of keys inherit here. The pipeline file's [learner] table is flat, and each algorithm has defaults of its own for
the same keys.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from millrace.learners.protocol import Value

INF = float("inf")


@dataclass(frozen=True, slots=True)
class Allowed:
    """What a key may be: one of ``choices``, or numbers from ``low`` to ``high``, or a list of them."""

    low: float = -INF
    high: float = INF
    ends: str = "[]"  # "(" and ")" leave the end itself out
    choices: tuple[str, ...] = ()

    def fits(self, value: Any, default: Any) -> bool:
        """Whether a value is of the default's kind and within the range; of a list, whether each number is."""
        if self.choices:
            return value in self.choices
        if isinstance(default, tuple):
            return isinstance(value, tuple) and all(self.fits(item, 1) for item in value)
        kinds = int if isinstance(default, int) else (int, float)
        if not isinstance(value, kinds) or isinstance(value, bool) or not -INF < value < INF:
            return False
        above = value > self.low if self.ends[0] == "(" else value >= self.low
        return bool(above and (value < self.high if self.ends[1] == ")" else value <= self.high))

    def __str__(self) -> str:
        if self.choices:
            return " or ".join(f'"{choice}"' for choice in self.choices)
        return f"in {self.ends[0]}{self.low:g}, {self.high:g}{self.ends[1]}"


def number(default: Any, low: float, high: float = INF, ends: str = "[]") -> Any:
    """A key that is a number in a range (or a list of such); whole where its default is."""
    return field(default=default, metadata={"allowed": Allowed(low, high, ends)})


def one_of(default: str, *others: str) -> Any:
    """A key that is one of several choices."""
    return field(default=default, metadata={"allowed": Allowed(choices=(default, *others))})


@dataclass(frozen=True, slots=True)
class Head:
    """What stands between features z (n, p) and the scores of C classes.

    linear: z W^T + b. cosine: scale cos(z, w_c). error: -mean_k (g_c(x) - h(x))_k^2 (pec.py).
    """

    kind: str = "linear"
    bias: bool = True  # linear: whether there is b
    scale: float = 1.0  # cosine: what cosines are multiplied by before a softmax
    projection: int = 0  # width of a linear map of z that only training uses; 0: none
    hidden: int = 0  # error: units of a student g_c
    outputs: int = 0  # error: numbers that g_c and h give
    teacher: int = 0  # error: units of h


@dataclass(frozen=True, slots=True)
class Spec:
    """All that a network's arithmetic depends on beside its tensors."""

    d: int  # columns of x
    network: str = "flat"  # flat: z = x
    hidden: tuple[int, ...] = ()
    channels: int = 0
    image: tuple[int, ...] = ()  # (C, H, W); empty: rows are no images
    pixels: bool = False  # x is whole numbers 0..255 and is divided by 255; else standardised
    head: Head = Head()

    @classmethod
    def of(cls, plain: dict[str, Value]) -> Spec:
        """The spec that ``dataclasses.asdict`` made plain."""
        lists = {key: tuple(plain[key]) for key in ("hidden", "image")}
        return cls(**{**plain, **lists, "head": Head(**plain["head"])})


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """The keys of every learner that is a network.

    Raises: ValueError naming key, value and what is allowed.
    """

    task: str = one_of("classify")  # networks learn classes
    classes: tuple[str, ...] = ()  # the declared set: rows of others are left out and counted; empty: any class, as it comes
    image: tuple[int, ...] = number((), 1)  # >= 1, [channels, height, width], whose product is d; empty: rows are no images
    pixels: bool = False  # x is whole numbers 0..255: kept in one byte, divided by 255; what is beyond is the nearest
    warm_up_rows: int = number(100, 2)  # >= 2, rows that the frozen scale is taken from before any is learned (not of pixels)
    step_rows: int = number(10, 1)  # >= 1, incoming rows of one gradient step; more is faster and learns less from each
    optimiser: str = one_of("sgd", "adam")  # which rule makes a step of a gradient
    rate: float = number(0.1, 0.0, ends="(]")  # > 0, the learning rate; more follows the data faster
    momentum: float = number(0.0, 0.0, 1.0, "[)")  # in [0, 1), with optimiser = "sgd"; more goes on longer in one direction
    weight_decay: float = number(0.0, 0.0)  # >= 0; more pulls weights to 0
    # in [0, 1), share that the served average of weights keeps at a step (CoLLAs 2023: 0.99); 0: no average
    ema: float = number(0.0, 0.0, 1.0, "[)")
    device: str = one_of("cpu", "cuda")  # where the network trains; it answers on the processor

    def __post_init__(self) -> None:
        for key in fields(self):
            allowed = key.metadata.get("allowed")
            if allowed is not None and not allowed.fits(getattr(self, key.name), key.default):
                raise ValueError(f"{key.name} = {getattr(self, key.name)!r}: must be {allowed}")
        if len(set(self.classes)) < len(self.classes):
            raise ValueError(f"classes = {list(self.classes)}: a name stands twice")
        if len(self.image) not in (0, 3):
            raise ValueError(f"image = {list(self.image)}: must be [channels, height, width], or []")


@dataclass(frozen=True, slots=True)
class ReplayConfig(NetworkConfig):
    """The keys of every learner that replays stored rows."""

    network: str = one_of("mlp", "convnet", "resnet18")  # its architecture; the last two need ``image``
    hidden: tuple[int, ...] = number((100, 100), 1)  # >= 1, units of each layer of an mlp; more is finer and slower
    channels: int = number(20, 1)  # >= 1, channels of the first convolution (nf); more is finer, and slower by its square
    buffer_rows: int = number(1000, 1)  # >= 1, rows kept; more forgets less and takes more memory
    replay_rows: int = number(10, 1)  # >= 1, stored rows of one gradient step; more forgets less and is slower
    augment: str = one_of("crop-flip", "crop", "colour", "none")  # how the second view of an image is changed


def spec_of(config: NetworkConfig, head: Head, d: int) -> Spec:
    """The network that a config asks for, over ``d`` columns.

    Raises: ValueError where the image does not fit.
    """
    height = config.image[1] * config.image[2] * config.image[0] if config.image else d
    if height != d:
        raise ValueError(f"image = {list(config.image)} makes {height} numbers, and the fields make {d} columns")
    if not isinstance(config, ReplayConfig):
        return Spec(d, image=config.image, pixels=config.pixels, head=head)
    if config.augment == "colour" and config.image and not config.pixels:
        raise ValueError('augment = "colour" changes colours, which only pixels = true has')
    if config.network != "mlp" and not config.image:
        raise ValueError(f'network = "{config.network}" needs image = [channels, height, width]')
    return Spec(d, config.network, config.hidden, config.channels, config.image, config.pixels, head)
