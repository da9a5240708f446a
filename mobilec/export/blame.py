"""From a converter's complaint to the op and the PyTorch module it stands in."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from mobilec.errors import ExportError

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import Node

# How the converters name what they could not translate: torch.onnx a node, coremltools an op's or a node's name,
# coreai-torch ops.
_COMPLAINTS = (
    re.compile(r"No ONNX function found for <OpOverload\(op='(?P<op>[\w.]+)'"),
    re.compile(r"[Ee]rror when translating node %(?P<node>\w+)(?:.*?\[target=torch\.ops\.(?P<op>[\w.]+)\])?"),
    re.compile(r"Unsupported fx node (?P<node>\w+), kind (?P<op>[\w.]+)"),
    re.compile(r"convert function for op '(?P<op>[\w.]+)' not implemented"),
    re.compile(r"(?:unsupported ATen|non-decomposed) ops: (?P<op>\w+(?:\.\w+)*)"),
    re.compile(r"converting '(?P<op>[\w.]+)' op \(located at: '(?P<node>[\w/.]+)'\)"),
)


def conversion_error(converter: str, program: ExportedProgram, error: Exception, log: str) -> ExportError:
    """An ExportError that names the op and the module path where the converter tells them, else its own first line.

    Args:
        converter: name for the message. program: what was converted. log: what the converter said meanwhile.
    """
    chain = _chain(error)
    detail = "\n\n".join([f"{type(link).__name__}: {link}" for link in chain] + ([log] if log.strip() else []))
    named: dict[str, str] = {}
    for text in [*map(str, chain), log]:
        for complaint in _COMPLAINTS:
            if found := complaint.search(text):
                named = {key: word for key, word in found.groupdict().items() if word} | named
    if not named:
        return ExportError(f"{converter} failed: {_reason(chain)}", detail=detail)
    node = find_node(program, named.get("node", ""), named.get("op", ""))
    what = op_name(node) if node is not None else named.get("op") or named.get("node")
    where = module_path(node) if node is not None else ""
    place = f" in {where}" if where else ""
    return ExportError(
        f"{converter} cannot translate {what}{place}: {_reason(chain)}",
        hint="write that part of the model with other operations, or choose another backend",
        detail=detail,
    )


def find_node(program: ExportedProgram, name: str, op: str) -> Node | None:
    """The call node that a converter means by a node's name, an op's name, or both; None where that is not clear.

    Decompositions give nodes new names, so that a name alone may mean another node than it did.
    """
    calls = [node for node in program.graph.nodes if node.op == "call_function"]
    wanted = _base(op)
    for node in calls:
        if node.name == name and (not wanted or wanted in _base(op_name(node)) or _base(op_name(node)) in wanted):
            return node
    stems = {stem for stem in (wanted, re.sub(r"_\d+$", "", name)) if stem}
    exact = [node for node in calls if _base(op_name(node)) in stems]
    if exact:
        return exact[0]
    near = [node for node in calls if any(_base(op_name(node)).endswith(f"_{stem}") for stem in stems)]
    return near[0] if near else None


def _base(op: str) -> str:
    """``aten.conv2d.default``, ``aten.conv2d`` and ``conv2d`` are all ``conv2d``."""
    parts = op.split(".")
    return parts[1] if len(parts) > 1 else parts[0]


def op_name(node: Node) -> str:
    """``aten.conv2d.default`` for an ATen call, else the function's name."""
    return str(node.target) if "." in str(node.target) else getattr(node.target, "__name__", str(node.target))


def module_path(node: Node) -> str:
    """Dotted path and class of the innermost module a node was traced in, ``blocks.2.mixer (SHSA)``; may be empty."""
    stack: dict[str, Any] = node.meta.get("nn_module_stack") or {}
    if not stack:
        return ""
    path, kind = list(stack.values())[-1]
    kind = (kind if isinstance(kind, str) else getattr(kind, "__name__", str(kind))).split(".")[-1]
    return f"{path} ({kind})" if path else kind


def _chain(error: BaseException) -> list[BaseException]:
    links = []
    link: BaseException | None = error
    while link is not None and link not in links:
        links.append(link)
        link = link.__cause__ or link.__context__
    return links


def _reason(chain: list[BaseException]) -> str:
    """The innermost message, its first sentence, colours stripped."""
    text = re.sub(r"\x1b\[[\d;]*m", "", str(chain[-1])).strip() or type(chain[-1]).__name__
    text = text.replace("Failure message: No decompositions registered for the real-valued input", "").strip()
    return text.splitlines()[0][:300].rstrip(". ")
