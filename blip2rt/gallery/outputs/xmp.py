"""Captions in XMP sidecars: dc:description in photo.xmp next to photo.jpg. Other fields are preserved."""

from __future__ import annotations

import io
import os
import re
from typing import Any
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from . import Description
from .sidecars import Sidecar

_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_DC = "http://purl.org/dc/elements/1.1/"
_DESCRIPTION = f"{{{_DC}}}description"
_LANGUAGE = "{http://www.w3.org/XML/1998/namespace}lang"
_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # in XML 1.0
_HEAD = '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\n'
_TAIL = '\n<?xpacket end="w"?>\n'
_NEW = f"""<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <rdf:RDF xmlns:rdf="{_RDF}">
  <rdf:Description rdf:about="" xmlns:dc="{_DC}">
   <dc:description>
    <rdf:Alt>
     <rdf:li xml:lang="x-default">{{}}</rdf:li>
    </rdf:Alt>
   </dc:description>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>"""
_MAX_BYTES = 16 << 20  # of an existing sidecar


class XmpSidecar(Sidecar):
    """photo.xmp next to photo.jpg. A sidecar that already has a description is done.

    Otherwise the description is added, and everything except comments outside the root element is preserved.
    """

    def __init__(self, overwrite: bool) -> None:
        super().__init__(".xmp", overwrite)

    def _is_done(self, target: str) -> bool:
        try:
            tree = _read(target)
        except OSError:
            return False
        return tree is not None and _has_description(tree)

    def _content(self, target: str, description: Description) -> str:
        text = _FORBIDDEN.sub("", "\n".join(description.captions))
        tree = _read(target) if os.path.exists(target) else None
        if tree is None:
            return _HEAD + _NEW.format(escape(text)) + _TAIL
        _set_description(tree, text)
        return _HEAD + ElementTree.tostring(tree, encoding="unicode") + _TAIL


def _read(path: str) -> Any:
    """Parse a sidecar; None if the file is empty. Raises OSError if it is not XMP."""
    if os.stat(path).st_size > _MAX_BYTES:
        raise OSError(0, "too large for an XMP sidecar", path)
    with open(path, "rb") as file:
        data = file.read()
    if not data.strip():
        return None
    try:
        for _, (prefix, address) in ElementTree.iterparse(io.BytesIO(data), ["start-ns"]):
            if prefix and not prefix.startswith("ns"):
                ElementTree.register_namespace(prefix, address)
        builder = ElementTree.TreeBuilder(insert_comments=True, insert_pis=True)
        tree = ElementTree.fromstring(data, ElementTree.XMLParser(target=builder))
    except (ElementTree.ParseError, ValueError) as error:
        raise OSError(0, f"not XML: {error}", path) from None
    if tree.find(f".//{{{_RDF}}}RDF") is None and tree.tag != f"{{{_RDF}}}RDF":
        raise OSError(0, "not XMP", path)
    return tree


def _has_description(tree: Any) -> bool:
    """Whether dc:description has any text: as an attribute, as plain text, or in any language."""
    texts = [holder.get(_DESCRIPTION, "") for holder in tree.iter(f"{{{_RDF}}}Description")]
    texts += [_text(element) for element in tree.iter(_DESCRIPTION)]
    return any(text.strip() for text in texts)


def _text(element: Any) -> str:
    """The text of an element without its comments."""
    own = element.text or "" if isinstance(element.tag, str) else ""
    return own + "".join(_text(child) + (child.tail or "") for child in element)


def _set_description(tree: Any, text: str) -> None:
    """Set dc:description to `text` in the default language. Other languages stay; any other form is removed."""
    rdf = tree if tree.tag == f"{{{_RDF}}}RDF" else tree.find(f".//{{{_RDF}}}RDF")
    holders = rdf.findall(f"{{{_RDF}}}Description")
    if not holders:
        holders = [ElementTree.SubElement(rdf, f"{{{_RDF}}}Description", {f"{{{_RDF}}}about": ""})]
    items = tree.iterfind(f".//{_DESCRIPTION}/{{{_RDF}}}Alt/{{{_RDF}}}li")
    translations = [item for item in items if item.get(_LANGUAGE) not in (None, "x-default")]
    for holder in holders:
        holder.attrib.pop(_DESCRIPTION, None)
        for old in holder.findall(_DESCRIPTION):
            holder.remove(old)
    alternatives = ElementTree.SubElement(ElementTree.SubElement(holders[0], _DESCRIPTION), f"{{{_RDF}}}Alt")
    default = ElementTree.SubElement(alternatives, f"{{{_RDF}}}li", {_LANGUAGE: "x-default"})
    default.text = text
    alternatives.extend(translations)


ElementTree.register_namespace("x", "adobe:ns:meta/")
ElementTree.register_namespace("rdf", _RDF)
ElementTree.register_namespace("dc", _DC)
