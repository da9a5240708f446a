"""The ways to store a model in fewer bits, as a table."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Scheme:
    """One way.

    Attributes:
        name: of ``--compress``, or of ``--precision`` where activations are quantised too.
        what: for people.
        bits: of a weight. palette: weights are indices into a table of ``2 ** bits`` values; else whole numbers times a
            scale a channel.
        activations: layers read and write 8-bit numbers too.
    """

    name: str
    what: str
    bits: int
    palette: bool = False
    activations: bool = False


W8A8 = Scheme("int8", "8-bit weights and activations", 8, activations=True)

WEIGHT_SCHEMES: dict[str, Scheme] = {
    "int8": Scheme("int8", "8-bit weights", 8),
    "palettize4": Scheme("palettize4", "weights from tables of 16 values", 4, palette=True),
    "palettize6": Scheme("palettize6", "weights from tables of 64 values", 6, palette=True),
    "palettize8": Scheme("palettize8", "weights from tables of 256 values", 8, palette=True),
}


@dataclass(frozen=True)
class Limit:
    """``psnr_db`` of the worst sample at least, or ``top1_agreement`` of 0 to 1 at least; the other is None."""

    psnr_db: float | None = None
    top1_agreement: float | None = None

    def __str__(self) -> str:
        if self.psnr_db is not None:
            return f"{self.psnr_db:g} dB"
        assert self.top1_agreement is not None
        return f"{100 * self.top1_agreement:g} % the same top-1 class"


@dataclass(frozen=True)
class Format:
    """How the file stores what the scheme leaves open.

    Attributes:
        half: scales and tables are halves. signed: activations are int8, else uint8.
        integer_bias: biases are int32, in units of the products they are added to.
        grouped: a weight may have several tables.
    """

    half: bool
    signed: bool
    integer_bias: bool
    grouped: bool


@dataclass(frozen=True)
class Compression:
    """What the user asked for.

    Attributes:
        keep: names of layers that stay as they are.
        limit: how near the outputs must stay; layers are left out, the most sensitive first, until they do.
    """

    scheme: Scheme
    form: Format
    keep: tuple[str, ...] = ()
    limit: Limit | None = None
