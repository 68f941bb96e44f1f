"""The opcodes of pickle, protocols 0 to 5, and how the argument of each is laid out.

Source    CPython's Lib/pickle.py and Modules/_pickle.c, which load; not pickletools, which only describes.
"""

from __future__ import annotations

import struct

U1, U2, I4, U4, U8 = (struct.Struct(f"<{code}") for code in "BHiIQ")
FLOAT = struct.Struct(">d")
# what follows an opcode: a number, which may be the length of what comes then, or so many lines
NONE, LINE, LINES = 0, 1, 2

OPCODES: dict[int, tuple[str, int | struct.Struct]] = {
    code[0]: (name, argument)
    for code, name, argument in (
        (b"(", "mark", NONE),
        (b".", "stop", NONE),
        (b"0", "pop", NONE),
        (b"1", "pop_mark", NONE),
        (b"2", "dup", NONE),
        (b"F", "float_text", LINE),
        (b"I", "int_text", LINE),
        (b"J", "number", I4),
        (b"K", "number", U1),
        (b"L", "long_text", LINE),
        (b"M", "number", U2),
        (b"N", "none", NONE),
        (b"P", "persistent_text", LINE),
        (b"Q", "persistent", NONE),
        (b"R", "reduce", NONE),
        (b"S", "string_text", LINE),
        (b"T", "bytes_as_text", I4),
        (b"U", "bytes_as_text", U1),
        (b"V", "unicode_text", LINE),
        (b"X", "unicode", U4),
        (b"a", "append", NONE),
        (b"b", "build", NONE),
        (b"c", "imported", LINES),
        (b"d", "dict", NONE),
        (b"}", "empty_dict", NONE),
        (b"e", "appends", NONE),
        (b"g", "get_text", LINE),
        (b"h", "get", U1),
        (b"i", "inst", LINES),
        (b"j", "get", U4),
        (b"l", "list", NONE),
        (b"]", "empty_list", NONE),
        (b"o", "obj", NONE),
        (b"p", "put_text", LINE),
        (b"q", "put", U1),
        (b"r", "put", U4),
        (b"s", "set_item", NONE),
        (b"t", "tuple", NONE),
        (b")", "empty_tuple", NONE),
        (b"u", "set_items", NONE),
        (b"G", "float", FLOAT),
        (b"\x80", "protocol", U1),
        (b"\x81", "new", NONE),
        (b"\x82", "extension", U1),
        (b"\x83", "extension", U2),
        (b"\x84", "extension", I4),
        (b"\x85", "tuple_1", NONE),
        (b"\x86", "tuple_2", NONE),
        (b"\x87", "tuple_3", NONE),
        (b"\x88", "true", NONE),
        (b"\x89", "false", NONE),
        (b"\x8a", "long", U1),
        (b"\x8b", "long", I4),
        (b"B", "bytes", U4),
        (b"C", "bytes", U1),
        (b"\x8c", "unicode", U1),
        (b"\x8d", "unicode", U8),
        (b"\x8e", "bytes", U8),
        (b"\x8f", "empty_set", NONE),
        (b"\x90", "add_items", NONE),
        (b"\x91", "frozen_set", NONE),
        (b"\x92", "new_keywords", NONE),
        (b"\x93", "stack_import", NONE),
        (b"\x94", "memoize", NONE),
        (b"\x95", "frame", U8),
        (b"\x96", "bytes", U8),
        (b"\x97", "next_buffer", NONE),
        (b"\x98", "read_only_buffer", NONE),
    )
}
