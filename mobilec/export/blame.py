"""From a converter's complaint to the op and the PyTorch module it stands in."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from mobilec.errors import ExportError

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import Node

# How the converters name what they could not translate: torch.onnx a node, coremltools an op's or a node's name.
_COMPLAINTS = (
    re.compile(r"[Ee]rror when translating node %(?P<node>\w+)"),
    re.compile(r"Unsupported fx node (?P<node>\w+), kind (?P<op>[\w.]+)"),
    re.compile(r"convert function for op '(?P<op>[\w.]+)' not implemented"),
    re.compile(r"converting '(?P<op>[\w.]+)' op \(located at: '(?P<node>[\w/.]+)'\)"),
    re.compile(r"No ONNX function found for <OpOverload\(op='(?:\w+\.)?(?P<op>\w+)'"),
)


def conversion_error(converter: str, program: ExportedProgram, error: Exception, log: str) -> ExportError:
    """An ExportError that names the op and the module path where the converter tells them, else its own first line.

    Args:
        converter: name for the message. program: what was converted. log: what the converter said meanwhile.
    """
    chain = _chain(error)
    detail = "\n\n".join([f"{type(link).__name__}: {link}" for link in chain] + ([log] if log.strip() else []))
    for text in [*map(str, chain), log]:
        for complaint in _COMPLAINTS:
            found = complaint.search(text)
            if not found:
                continue
            groups = found.groupdict()
            node = find_node(program, groups.get("node") or "", groups.get("op") or "")
            op = op_name(node) if node is not None else groups.get("op") or groups.get("node")
            where = module_path(node) if node is not None else ""
            place = f" in {where}" if where else ""
            return ExportError(
                f"{converter} cannot translate {op}{place}: {_reason(chain)}",
                hint="write that part of the model with other operations, or choose another backend",
                detail=detail,
            )
    return ExportError(f"{converter} failed: {_reason(chain)}", detail=detail)


def find_node(program: ExportedProgram, name: str, op: str) -> Node | None:
    """The call node of that name, else the first whose op is called so (decompositions rename nodes)."""
    calls = [node for node in program.graph.nodes if node.op == "call_function"]
    for node in calls:
        if node.name == name:
            return node
    stem = re.sub(r"_\d+$", "", name)
    wanted = {text for text in (op.split(".")[0], op.split(".")[-1], stem) if text}
    for node in calls:
        base = op_name(node).split(".")
        if wanted & {base[-2] if len(base) > 1 else base[0], node.name}:
            return node
    for node in calls:
        if stem and stem in op_name(node):
            return node
    return None


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
