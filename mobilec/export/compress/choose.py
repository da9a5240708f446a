"""From options to a compression, checked before any work is done."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mobilec.errors import UsageError, did_you_mean
from mobilec.export.compress.schemes import WEIGHT_SCHEMES, Compression, Format, Limit
from mobilec.export.writers import Storage, Writer


def choose(
    writer: Writer,
    *,
    precision: str,
    compress: str | None,
    keep: Sequence[str],
    sensitivity: float | str | None,
    images: bool,
    deployment_target: str | None,
) -> Compression | None:
    """None where nothing is to be compressed. Raises UsageError for what the writer lacks or does not go together.

    Args:
        precision: of the export, checked. images: whether some were given to calibrate this alone on.
        deployment_target: in the writer's spelling, None for its default.
    """
    if isinstance(keep, str):
        raise UsageError(f"keep is the text {keep!r}, expected a list")
    storage = _storage(writer, precision, compress)
    if storage is None:
        options = {"keep": bool(keep), "sensitivity": sensitivity is not None, "images": images}
        given = [name for name, is_given in options.items() if is_given]
        if given:
            raise UsageError(
                f"{given[0]} is for exports in fewer bits", hint="add --precision int8 or --compress SCHEME"
            )
        return None
    target = deployment_target or (writer.deployment_default if writer.deployment_targets else None)
    if target is not None and not writer.at_least(target, storage.since):
        what = f"--compress {storage.scheme.name}" if compress else "--precision int8"
        raise UsageError(f"{what} needs {storage.since} or its year's systems, the deployment target is {target}")
    form = Format(
        half=storage.rest(precision) == "fp16",
        signed=writer.signed_activations,
        integer_bias=writer.integer_bias and storage.scheme.activations,
        grouped=target is not None and writer.at_least(target, writer.many_tables_since),
    )
    return Compression(storage.scheme, form, tuple(keep), read_limit(sensitivity))


def _storage(writer: Writer, precision: str, compress: str | None) -> Storage | None:
    if compress is None:
        return writer.int8 if precision == "int8" else None
    if compress not in WEIGHT_SCHEMES:
        raise UsageError(
            f"unknown compression {compress!r}, expected one of {', '.join(WEIGHT_SCHEMES)}",
            hint=did_you_mean(compress, WEIGHT_SCHEMES),
        )
    if precision == "int8":
        raise UsageError(
            f"precision int8 and compress {compress} both say how weights are stored", hint="give one of them"
        )
    known = {storage.scheme.name: storage for storage in writer.compressions}
    if compress not in known:
        others = f"which has {', '.join(known)}" if known else "whose weights are stored as they are"
        hint = "palettes are for Core ML" if WEIGHT_SCHEMES[compress].palette else ""
        raise UsageError(f"compress {compress} is not for {writer.title}, {others}", hint=hint)
    if precision not in known[compress].precisions:
        fitting = " or ".join(known[compress].precisions)
        raise UsageError(
            f"compress {compress} for {writer.title} goes with precision {fitting}, not {precision}",
            hint=f"add --precision {known[compress].precisions[0]}",
        )
    return known[compress]


def read_limit(text: float | str | None) -> Limit | None:
    """``40`` and ``40dB`` are a PSNR, ``99%`` is an agreement of top-1 classes. Raises UsageError."""
    if text is None:
        return None
    words = str(text).strip().lower()
    number = words.removesuffix("%").removesuffix("db").strip()
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    percent = words.endswith("%")
    if not (0 < value <= 100 if percent else 0 < value < math.inf):
        raise UsageError(f"sensitivity is {str(text)!r}, expected decibels such as 40, or a share such as 99%")
    return Limit(top1_agreement=value / 100) if percent else Limit(psnr_db=value)
