"""Colour profiles made by hand, byte by byte: what ImageCms cannot create."""

from __future__ import annotations

import struct

D50 = (0.9642, 1.0, 0.8249)
# Red, green and blue of a colour space as X, Y, Z under D50, and its gamma.
PROPHOTO = ((0.79767, 0.28804, 0), (0.13519, 0.71188, 0), (0.03134, 0.00009, 0.82491), 1.8)
P3 = ((0.51512, 0.2412, -0.00105), (0.29198, 0.69225, 0.04189), (0.1571, 0.06657, 0.78407), 2.2)
ADOBE = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457), 2.2)


def matrix_profile(red, green, blue, gamma):
    colours = {b"rXYZ": xyz(red), b"gXYZ": xyz(green), b"bXYZ": xyz(blue)}
    curves = dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve(gamma))
    return profile(b"mntr", b"RGB ", b"XYZ ", colours | curves)


def gray_profile(gamma):
    return profile(b"mntr", b"GRAY", b"XYZ ", {b"kTRC": curve(gamma)})


def ink_profile():
    """CMYK inks of which each corner of the cube has the colour that `naive` gives it."""
    identity = bytes(range(256))
    corners = b"".join(
        lab(*naive(c, m, y, k)) for c in (0, 1) for m in (0, 1) for y in (0, 1) for k in (0, 1)
    )
    matrix = b"".join(number(value) for value in (1, 0, 0, 0, 1, 0, 0, 0, 1))
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + matrix + identity * 4 + corners
    return profile(b"prtr", b"CMYK", b"Lab ", {b"A2B0": table + identity * 3})


def naive(c, m, y, k):
    """Lightness and two colours of ink on paper: rough, but far from what a formula would say."""
    lightness = 100 - 100 * k - (1 - k) * (25 * c + 30 * m + 8 * y)
    return lightness, (1 - k) * (-30 * c + 70 * m - 5 * y), (1 - k) * (-45 * c - 5 * m + 85 * y)


def profile(kind, space, connection, tags):
    name = b"by hand\0"
    tags = tags | {
        b"desc": b"desc" + bytes(4) + struct.pack(">I", len(name)) + name + bytes(78),
        b"wtpt": xyz(D50),
        b"cprt": b"text" + bytes(4) + b"-\0",
    }
    table, data, at = b"", b"", 132 + 12 * len(tags)
    for key, value in tags.items():
        padded = value + bytes(-len(value) % 4)
        table += key + struct.pack(">II", at + len(data), len(value))
        data += padded
    body = struct.pack(">I", len(tags)) + table + data
    head = struct.pack(">I", 128 + len(body)) + bytes(4) + b"\x02\x10\0\0" + kind + space
    head += connection + struct.pack(">6H", 2020, 1, 1, 0, 0, 0) + b"acsp" + bytes(28)
    head += b"".join(map(number, D50))
    return head + bytes(128 - len(head)) + body


def number(value):
    return struct.pack(">i", round(value * 65536))


def xyz(values):
    return b"XYZ " + bytes(4) + b"".join(map(number, values))


def curve(gamma):
    return b"curv" + bytes(4) + struct.pack(">IH2x", 1, round(gamma * 256))


def lab(lightness, a, b):
    return bytes([round(lightness * 2.55), round(a + 128), round(b + 128)])
