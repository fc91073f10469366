"""A list in YAML, read entry by entry, with limits: no aliases, no deep nesting."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

from discovery.file.entries import NO_LIST, Broken, Entry

__all__ = ["require_yaml", "yaml_entries"]

_DEEPEST = 20


def require_yaml() -> None:
    """Import PyYAML.

    Raises:
        ImportError: it is not installed; the message says how to change that.
    """
    _loader_class()


def yaml_entries(text: str) -> Iterator[Entry]:
    """The entries of the list, or of the list `endpoints` of a mapping.

    Raises:
        Broken: the text is no such list; entries before that place were yielded already.
        ImportError: PyYAML is not installed.
    """
    loader_class = _loader_class()
    import yaml  # noqa: PLC0415 - an extra

    try:
        yield from _document(loader_class(text))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        why = " ".join(filter(None, (error.context, error.problem)))
        raise Broken(why, mark.line + 1 if mark else 1, mark.column + 1 if mark else 1) from error
    except yaml.reader.ReaderError as error:
        # libyaml counts bytes.
        counted = text.encode()[: error.position].decode(errors="ignore") if yaml.__with_libyaml__ else text
        before = counted[: error.position]
        line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
        raise Broken(f"character #x{error.character:04x} is not allowed", line, column) from error


def _document(loader: Any) -> Iterator[Entry]:
    from yaml import events  # noqa: PLC0415 - an extra

    loader.get_event()  # of the stream
    if loader.check_event(events.StreamEndEvent):
        raise Broken(NO_LIST, 1, 1)
    loader.get_event()  # of the document
    if loader.check_event(events.SequenceStartEvent):
        yield from _list(loader)
    elif loader.check_event(events.MappingStartEvent):
        yield from _mapping(loader)
    else:
        raise _at(loader, NO_LIST)
    loader.get_event()
    if not loader.check_event(events.StreamEndEvent):
        raise _at(loader, "more than one document")


def _list(loader: Any) -> Iterator[Entry]:
    from yaml import events  # noqa: PLC0415 - an extra

    loader.get_event()
    while not loader.check_event(events.SequenceEndEvent):
        node = loader.compose_node(None, None)
        try:
            value = loader.construct_document(node)
        except (ValueError, OverflowError) as error:
            # A date or a number that is none: that entry's own fault.
            value = ValueError(str(error))
        yield node.start_mark.line + 1, value
    loader.get_event()


def _mapping(loader: Any) -> Iterator[Entry]:
    from yaml import events  # noqa: PLC0415 - an extra

    found = False
    nowhere = _at(loader, NO_LIST)
    loader.get_event()
    while not loader.check_event(events.MappingEndEvent):
        key = loader.compose_node(None, None)
        if key.value == "endpoints":
            if found or not loader.check_event(events.SequenceStartEvent):
                raise _at(loader, NO_LIST)
            found = True
            yield from _list(loader)
        else:
            loader.compose_node(None, None)
    if not found:
        raise nowhere
    loader.get_event()


def _at(loader: Any, why: str) -> Broken:
    mark = loader.peek_event().start_mark
    return Broken(why, mark.line + 1, mark.column + 1)


@functools.cache
def _loader_class() -> Any:
    """PyYAML's safe loader, with libyaml's parser where it is there, but the nodes made in Python.

    libyaml's own nodes are made in one go, without ever letting other threads run, and without a limit
    of depth: 100 000 brackets end the process.
    """
    try:
        import yaml  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise ImportError("YAML support is not installed: pip install 'lbclient[yaml]'") from error

    class Limited(yaml.composer.Composer):  # type: ignore[misc]
        """Refuses aliases, which can make a small text a huge value, and deep nesting."""

        depth = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            event = self.peek_event()
            if isinstance(event, yaml.AliasEvent):
                raise yaml.composer.ComposerError(
                    None, None, "aliases (*name) are not supported", event.start_mark
                )
            if self.depth >= _DEEPEST:
                raise yaml.composer.ComposerError(None, None, "nested too deeply", event.start_mark)
            self.depth += 1
            try:
                return super().compose_node(parent, index)
            finally:
                self.depth -= 1

    if not yaml.__with_libyaml__:
        return type("Loader", (Limited, yaml.SafeLoader), {})

    class Loader(Limited, yaml.cyaml.CParser, yaml.constructor.SafeConstructor, yaml.resolver.Resolver):  # type: ignore[misc]
        def __init__(self, text: str) -> None:
            yaml.cyaml.CParser.__init__(self, text)
            yaml.composer.Composer.__init__(self)
            yaml.constructor.SafeConstructor.__init__(self)
            yaml.resolver.Resolver.__init__(self)

    return Loader
