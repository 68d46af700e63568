"""XMP sidecars, photo.xmp next to photo.jpg: captions in dc:description, labels in dc:subject and, with their parents,
in the hierarchies of Lightroom and digiKam. Other fields are preserved.
"""

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from typing import Any
from xml.etree import ElementTree

from ...bundle.regular_files import read_bounded
from ...results import Tag
from . import Description, TagDescription
from .sidecars import Sidecar

_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_DC = "http://purl.org/dc/elements/1.1/"
_DESCRIPTION = f"{{{_DC}}}description"
_SUBJECT = f"{{{_DC}}}subject"
_LIGHTROOM = "http://ns.adobe.com/lightroom/1.0/"
_DIGIKAM = "http://www.digikam.org/ns/1.0/"
_KEYWORDS: tuple[tuple[str, str, Callable[[Tag], str]], ...] = (  # field, its container, a label in it
    (_SUBJECT, "Bag", str),
    (f"{{{_LIGHTROOM}}}hierarchicalSubject", "Bag", lambda tag: "|".join((*tag.parents, tag))),
    (f"{{{_DIGIKAM}}}TagsList", "Seq", lambda tag: "/".join((*tag.parents, tag))),
)
_LANGUAGE = "{http://www.w3.org/XML/1998/namespace}lang"
_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # in XML 1.0
_HEAD = '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\n'
_TAIL = '\n<?xpacket end="w"?>\n'
_EMPTY = f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="{_RDF}"/></x:xmpmeta>'
_MAX_BYTES = 16 << 20  # of an existing sidecar
_MAX_NAMESPACES, _MAX_ELEMENTS, _MAX_DEPTH = 200, 200_000, 200


class XmpSidecar(Sidecar):
    """photo.xmp or photo.jpg.xmp next to photo.jpg. A sidecar that already has a description is done.

    Otherwise the description is added, and everything except comments outside the root element is preserved.
    """

    option = "--xmp-name"

    def __init__(self, overwrite: bool, replace_extension: bool) -> None:
        super().__init__(".xmp", overwrite, replace_extension)

    def _is_done(self, target: str) -> bool:
        try:
            found = _read(target)
        except OSError:
            return False
        return found is not None and self._is_described(found[0])

    def _content(self, target: str, description: Description) -> str:
        found = _read(target) if os.path.lexists(target) else None
        tree, prefixes = (ElementTree.fromstring(_EMPTY), dict[str, str]()) if found is None else found
        self._describe(tree, description)
        if found is None:
            ElementTree.indent(tree, " ")
        with _registered(prefixes):
            return _HEAD + ElementTree.tostring(tree, encoding="unicode") + _TAIL

    def _is_described(self, tree: Any) -> bool:
        """Whether dc:description has any text: as an attribute, as plain text, or in any language."""
        holders = tree.iter(f"{{{_RDF}}}Description")
        return any(holder.get(_DESCRIPTION, "").strip() for holder in holders) or _has_text(tree, False)

    def _describe(self, tree: Any, description: Description) -> None:
        _set_description(tree, _FORBIDDEN.sub("", "\n".join(description.captions)))


class XmpKeywords(XmpSidecar):
    """The same for labels: a sidecar that already has dc:subject is done. overwrite: replace the keywords."""

    def _is_described(self, tree: Any) -> bool:
        return tree.find(f".//{_SUBJECT}") is not None

    def _describe(self, tree: Any, description: Description) -> None:
        assert isinstance(description, TagDescription)
        [holder, *_] = holders = _holders(tree)
        for field, container, text in _KEYWORDS:
            for each in holders:
                each[:] = [child for child in each if child.tag != field]
            items = ElementTree.SubElement(ElementTree.SubElement(holder, field), f"{{{_RDF}}}{container}")
            for tag in description.tags:
                ElementTree.SubElement(items, f"{{{_RDF}}}li").text = _FORBIDDEN.sub("", text(tag))


class _Builder(ElementTree.TreeBuilder):
    """Builds the tree of an untrusted file, and collects its namespaces: address -> prefix. Raises ValueError."""

    def __init__(self) -> None:
        super().__init__(insert_comments=True, insert_pis=True)
        self.prefixes: dict[str, str] = {}
        self._elements = self._depth = 0

    def start(self, tag: Any, attrs: Any) -> Any:
        self._elements += 1
        self._depth += 1
        if self._depth > _MAX_DEPTH or self._elements > _MAX_ELEMENTS:
            raise ValueError(f"it has more than {_MAX_ELEMENTS:,} elements or {_MAX_DEPTH} levels")
        return super().start(tag, attrs)

    def end(self, tag: Any) -> Any:
        self._depth -= 1
        return super().end(tag)

    def start_ns(self, prefix: str, address: str) -> None:
        self.prefixes[address] = prefix
        if len(self.prefixes) > _MAX_NAMESPACES:
            raise ValueError(f"it has more than {_MAX_NAMESPACES} namespaces")

    def doctype(self, *_: object) -> None:
        raise ValueError("it has a document type")


def _read(path: str) -> tuple[Any, dict[str, str]] | None:
    """Parse a sidecar into its tree and its namespaces; None if the file is empty. Raises OSError if it is not XMP."""
    data = read_bounded(path, _MAX_BYTES, follow=False)
    if not data.strip():
        return None
    builder = _Builder()
    try:
        tree = ElementTree.fromstring(data, ElementTree.XMLParser(target=builder))
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise OSError(0, f"not XMP: {error}", path) from None
    if tree.find(f".//{{{_RDF}}}RDF") is None and tree.tag != f"{{{_RDF}}}RDF":
        raise OSError(0, "not XMP", path)
    return tree, builder.prefixes


@contextlib.contextmanager
def _registered(prefixes: dict[str, str]) -> Iterator[None]:
    """Write a file's own prefixes; then forget them, or a folder of files would slow down with each one."""
    known: dict[str, str] = ElementTree._namespace_map  # type: ignore[attr-defined]
    before = dict(known)
    try:
        for address, prefix in prefixes.items():
            if prefix and not prefix.startswith("ns"):
                ElementTree.register_namespace(prefix, address)
        yield
    finally:
        known.clear()
        known.update(before)


def _has_text(element: Any, inside: bool) -> bool:
    """Whether an element has text, without comments, in dc:description. inside: whether it is part of one."""
    inside = inside or element.tag == _DESCRIPTION
    if inside and isinstance(element.tag, str) and (element.text or "").strip():
        return True
    return any(_has_text(child, inside) or (inside and (child.tail or "").strip()) for child in element)


def _set_description(tree: Any, text: str) -> None:
    """Set dc:description to `text` in the default language. Other languages stay; any other form is removed."""
    holders = _holders(tree)
    items = tree.iterfind(f".//{_DESCRIPTION}/{{{_RDF}}}Alt/{{{_RDF}}}li")
    translations = [item for item in items if item.get(_LANGUAGE) not in (None, "x-default")]
    for holder in holders:
        holder.attrib.pop(_DESCRIPTION, None)
        holder[:] = [child for child in holder if child.tag != _DESCRIPTION]
    alternatives = ElementTree.SubElement(ElementTree.SubElement(holders[0], _DESCRIPTION), f"{{{_RDF}}}Alt")
    default = ElementTree.SubElement(alternatives, f"{{{_RDF}}}li", {_LANGUAGE: "x-default"})
    default.text = text
    alternatives.extend(translations)


def _holders(tree: Any) -> list[Any]:
    """The descriptions of a tree, which hold the fields; a new one if there is none."""
    rdf = tree if tree.tag == f"{{{_RDF}}}RDF" else tree.find(f".//{{{_RDF}}}RDF")
    holders: list[Any] = rdf.findall(f"{{{_RDF}}}Description")
    return holders or [ElementTree.SubElement(rdf, f"{{{_RDF}}}Description", {f"{{{_RDF}}}about": ""})]


ElementTree.register_namespace("x", "adobe:ns:meta/")
ElementTree.register_namespace("rdf", _RDF)
ElementTree.register_namespace("dc", _DC)
ElementTree.register_namespace("lr", _LIGHTROOM)
ElementTree.register_namespace("digiKam", _DIGIKAM)
