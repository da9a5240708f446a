"""The table of architectures: what exists, as data (imports neither torch nor the families).

A variant is a few numbers; its family's file turns them into a module.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mobilec.errors import UsageError, did_you_mean


@dataclass(frozen=True)
class Variant:
    """One row of the table.

    Attributes:
        resolution: native input height and width in pixels.
        parameters: at 1000 classes, buffers not counted. macs: at the native resolution, batch 1.
        config: keyword arguments of the family's class.
        published: the authors' figures on ImageNet-1K, for people.
    """

    name: str
    resolution: int
    parameters: int
    macs: int
    config: dict[str, Any]
    published: str = ""


@dataclass(frozen=True)
class Family:
    """A group of variants built by one class. ``paper`` is an arXiv number."""

    name: str
    title: str
    paper: str
    module: str
    class_name: str
    variants: tuple[Variant, ...]


_MOBILEVIG = Family(
    name="mobilevig",
    title="MobileViG: sparse vision graph attention",
    paper="2307.00395",
    module="mobilec.mobile.mobilevig",
    class_name="MobileViG",
    variants=(
        Variant(
            name="mobilevig_ti",
            resolution=224,
            parameters=5_271_074,
            macs=662_142_336,
            config={
                "local_channels": (42, 84, 168),
                "local_depths": (2, 2, 6),
                "global_channels": 256,
                "global_depth": 2,
                "embedding": 512,
            },
            published="75.7 % top-1, 0.78 ms (iPhone 13 mini, Core ML)",
        ),
        Variant(
            name="mobilevig_s",
            resolution=224,
            parameters=7_276_538,
            macs=983_688_960,
            config={
                "local_channels": (42, 84, 176),
                "local_depths": (3, 3, 9),
                "global_channels": 256,
                "global_depth": 3,
                "embedding": 512,
            },
            published="78.2 % top-1",
        ),
        Variant(
            name="mobilevig_m",
            resolution=224,
            parameters=14_075_786,
            macs=1_493_425_152,
            config={
                "local_channels": (42, 84, 224),
                "local_depths": (3, 3, 9),
                "global_channels": 400,
                "global_depth": 3,
                "embedding": 768,
            },
            published="80.6 % top-1",
        ),
        Variant(
            name="mobilevig_b",
            resolution=224,
            parameters=26_868_506,
            macs=2_792_944_896,
            config={
                "local_channels": (42, 84, 240),
                "local_depths": (5, 5, 15),
                "global_channels": 464,
                "global_depth": 5,
                "embedding": 768,
            },
            published="82.6 % top-1, 2.30 ms (iPhone 13 mini, Core ML)",
        ),
    ),
)

_SHVIT = Family(
    name="shvit",
    title="SHViT: single-head vision transformer",
    paper="2401.16456",
    module="mobilec.mobile.shvit",
    class_name="SHViT",
    variants=(
        Variant(
            name="shvit_s1",
            resolution=224,
            parameters=6_330_808,
            macs=241_320_768,
            config={"channels": (128, 224, 320), "depths": (2, 4, 5), "partials": (32, 48, 68)},
            published="72.8 % top-1",
        ),
        Variant(
            name="shvit_s2",
            resolution=224,
            parameters=11_483_072,
            macs=365_394_896,
            config={"channels": (128, 308, 448), "depths": (2, 4, 5), "partials": (32, 66, 96)},
            published="75.2 % top-1",
        ),
        Variant(
            name="shvit_s3",
            resolution=224,
            parameters=14_245_273,
            macs=600_570_164,
            config={"channels": (192, 352, 448), "depths": (3, 5, 5), "partials": (48, 75, 96)},
            published="77.4 % top-1",
        ),
        Variant(
            name="shvit_s4",
            resolution=256,
            parameters=16_588_484,
            macs=986_216_960,
            config={"channels": (224, 336, 448), "depths": (4, 7, 6), "partials": (48, 72, 96)},
            published="79.4 % top-1, 1.6 ms (iPhone 12)",
        ),
    ),
)

_ECA_MOBILENETV2 = Family(
    name="eca_mobilenetv2",
    title="MobileNetV2 with efficient channel attention",
    paper="1910.03151",
    module="mobilec.mobile.eca_mobilenetv2",
    class_name="ECAMobileNetV2",
    variants=(
        Variant(
            name="eca_mobilenetv2",
            resolution=224,
            parameters=3_504_903,
            macs=300_777_952,
            config={},
            published="72.56 % top-1",
        ),
    ),
)

_ECA_RESNET = Family(
    name="eca_resnet",
    title="ResNet with efficient channel attention",
    paper="1910.03151",
    module="mobilec.mobile.eca_resnet",
    class_name="ECAResNet",
    variants=(
        Variant(
            name="eca_resnet18",
            resolution=224,
            parameters=11_689_556,
            macs=1_814_085_760,
            config={"block": "basic", "depths": (2, 2, 2, 2), "kernels": (3, 5, 7, 7)},
            published="70.92 % top-1",
        ),
        Variant(
            name="eca_resnet34",
            resolution=224,
            parameters=21_797_744,
            macs=3_663_781_952,
            config={"block": "basic", "depths": (3, 4, 6, 3), "kernels": (3, 3, 5, 7)},
            published="74.21 % top-1",
        ),
        Variant(
            name="eca_resnet50",
            resolution=224,
            parameters=25_557_112,
            macs=4_089_270_528,
            config={"block": "bottleneck", "depths": (3, 4, 6, 3), "kernels": (3, 5, 5, 7)},
            published="77.42 % top-1",
        ),
        Variant(
            name="eca_resnet101",
            resolution=224,
            parameters=44_549_317,
            macs=7_801_574_656,
            config={"block": "bottleneck", "depths": (3, 4, 23, 3), "kernels": (3, 3, 5, 7)},
            published="78.65 % top-1",
        ),
    ),
)

_GHOSTNETV2 = Family(
    name="ghostnetv2",
    title="GhostNetV2: cheap features with decoupled fully connected attention",
    paper="2211.12905",
    module="mobilec.mobile.ghostnetv2",
    class_name="GhostNetV2",
    variants=(
        Variant("ghostnetv2_100", 224, 6_156_908, 167_048_288, {"width": 1.0}, "75.3 % top-1"),
        Variant("ghostnetv2_130", 224, 8_960_404, 269_322_976, {"width": 1.3}),
        Variant("ghostnetv2_160", 224, 12_392_698, 398_607_224, {"width": 1.6}),
    ),
)

_CARE_FEATURES = {"features": (24, 48, 96, 192), "memory": (8, 16, 32, 64)}

_CARE = Family(
    name="care",
    title="CARE transformer: asymmetric linear attention with dual interaction",
    paper="2411.16170",
    module="mobilec.mobile.care",
    class_name="CARE",
    variants=(
        Variant(
            name="care_s0",
            resolution=224,
            parameters=7_340_000,
            macs=717_796_096,
            config={**_CARE_FEATURES, "depths": (2, 4, 8, 4), "ratios": ((2, 2), (2, 4), (4, 4), (4, 4))},
            published="78.4 % top-1, 1.1 ms (iPhone 13)",
        ),
        Variant(
            name="care_s1",
            resolution=224,
            parameters=9_602_424,
            macs=1_028_617_600,
            config={**_CARE_FEATURES, "depths": (3, 6, 10, 6), "ratios": ((2, 4), (2, 4), (4, 4), (4, 4))},
            published="80.1 % top-1, 1.4 ms (iPhone 13)",
        ),
        Variant(
            name="care_s2",
            resolution=224,
            parameters=19_481_288,
            macs=1_923_109_952,
            config={
                "features": (24, 48, 144, 288),
                "memory": (8, 16, 48, 96),
                "depths": (3, 6, 10, 6),
                "ratios": ((4, 4), (4, 4), (4, 4), (4, 4)),
            },
            published="82.1 % top-1, 2.0 ms (iPhone 13)",
        ),
    ),
)

# One network each; the variants differ in input size and window (7 divides 224 / 32, 8 divides 256 / 32 and 512 / 32).
_EMOV2_1M: dict[str, Any] = {
    "channels": (32, 48, 80, 180),
    "depths": (2, 2, 8, 3),
    "expansions": (2, 2.5, 3, 3.5),
    "head_dims": (20, 20),
}
_EMOV2_2M: dict[str, Any] = {
    "channels": (32, 48, 120, 200),
    "depths": (3, 3, 9, 3),
    "expansions": (2, 2.5, 3, 3.5),
    "head_dims": (20, 20),
}
_EMOV2_5M: dict[str, Any] = {
    "channels": (48, 72, 160, 288),
    "depths": (3, 3, 9, 3),
    "expansions": (2, 3, 4, 4),
    "head_dims": (32, 32),
}
_EMOV2_20M: dict[str, Any] = {
    "channels": (64, 128, 320, 448),
    "depths": (3, 3, 13, 3),
    "expansions": (2, 3, 4, 4),
    "head_dims": (32, 32),
}
_EMOV2_50M: dict[str, Any] = {
    "channels": (64, 128, 384, 512),
    "depths": (5, 8, 20, 7),
    "expansions": (2, 3, 4, 4),
    "head_dims": (32, 32),
}

_EMOV2 = Family(
    name="emov2",
    title="EMOv2: inverted residuals with close and remote window attention",
    paper="2412.06674",
    module="mobilec.mobile.emov2",
    class_name="EMOv2",
    variants=(
        Variant("emov2_1m", 224, 1_460_844, 279_936_484, {**_EMOV2_1M, "window": 7}, "72.3 % top-1"),
        Variant("emov2_2m", 224, 2_384_312, 480_811_600, {**_EMOV2_2M, "window": 7}, "75.8 % top-1"),
        Variant("emov2_5m", 224, 5_126_440, 1_025_113_984, {**_EMOV2_5M, "window": 7}, "79.4 % top-1"),
        Variant("emov2_20m", 224, 20_195_208, 3_997_004_032, {**_EMOV2_20M, "window": 7}),
        Variant("emov2_50m", 224, 49_815_560, 8_767_262_720, {**_EMOV2_50M, "window": 7}),
        Variant("emov2_1m_256", 256, 1_460_844, 385_889_824, {**_EMOV2_1M, "window": 8}),
        Variant("emov2_2m_256", 256, 2_384_312, 660_884_800, {**_EMOV2_2M, "window": 8}),
        Variant("emov2_5m_256", 256, 5_126_440, 1_393_517_824, {**_EMOV2_5M, "window": 8}),
        Variant("emov2_20m_256", 256, 20_195_208, 5_376_497_152, {**_EMOV2_20M, "window": 8}),
        Variant("emov2_50m_256", 256, 49_815_560, 11_760_619_520, {**_EMOV2_50M, "window": 8}),
        Variant("emov2_1m_512", 512, 1_460_844, 1_543_019_296, {**_EMOV2_1M, "window": 8}),
        Variant("emov2_2m_512", 512, 2_384_312, 2_642_939_200, {**_EMOV2_2M, "window": 8}),
        Variant("emov2_5m_512", 512, 5_126_440, 5_573_207_296, {**_EMOV2_5M, "window": 8}, "82.9 % top-1"),
        Variant("emov2_20m_512", 512, 20_195_208, 21_504_644_608, {**_EMOV2_20M, "window": 8}),
        Variant("emov2_50m_512", 512, 49_815_560, 47_040_942_080, {**_EMOV2_50M, "window": 8}),
    ),
)

FAMILIES: tuple[Family, ...] = (
    _MOBILEVIG,
    _SHVIT,
    _ECA_MOBILENETV2,
    _ECA_RESNET,
    _GHOSTNETV2,
    _CARE,
    _EMOV2,
)


def _index() -> dict[str, tuple[Family, Variant]]:
    table: dict[str, tuple[Family, Variant]] = {}
    for family in FAMILIES:
        for variant in family.variants:
            if variant.name in table:
                raise ValueError(f"the zoo lists {variant.name} twice")
            table[variant.name] = (family, variant)
    return table


_TABLE = _index()


def list_models(pattern: str | None = None) -> list[str]:
    """Names in table order; ``pattern`` is a shell-style glob (``"shvit*"``)."""
    return [name for name in _TABLE if pattern is None or fnmatch.fnmatchcase(name, pattern)]


def variants() -> Iterator[tuple[Family, Variant]]:
    """Every row with its family, in table order."""
    yield from _TABLE.values()


def find_variant(name: str) -> tuple[Family, Variant]:
    """The row called ``name``. Raises UsageError that offers the closest names."""
    if name in _TABLE:
        return _TABLE[name]
    raise UsageError(f"unknown model {name!r}", hint=did_you_mean(name, _TABLE, "`mobilec models` lists all names"))
