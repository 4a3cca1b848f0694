"""Which network addresses may be asked for an image."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence
from typing import TypeAlias

import anyio

from tcl_core.errors import ImageError, SettingsError

__all__ = ["Network", "is_public", "parse_networks", "resolve"]

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


def parse_networks(texts: Sequence[str]) -> tuple[Network, ...]:
    """Read addresses and networks such as ``10.1.2.3`` or ``10.0.0.0/8``.

    Raises:
        SettingsError: one of them is neither.
    """
    networks: list[Network] = []
    for text in texts:
        try:
            networks.append(ipaddress.ip_network(text, strict=False))
        except ValueError as error:
            raise SettingsError(f"allow_addresses: {text!r} is not an address or network ({error})") from error
    return tuple(networks)


def is_public(address: Address) -> bool:
    """Whether an address belongs to the internet: not private, loopback, link-local, multicast or reserved.

    IPv4 addresses inside IPv6 ones (mapped, 6to4, NAT64, Teredo) are checked as what they lead to.

    >>> is_public(ipaddress.ip_address("8.8.8.8")), is_public(ipaddress.ip_address("::ffff:127.0.0.1"))
    (True, False)
    """
    if isinstance(address, ipaddress.IPv6Address):
        inner = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
        if address in _NAT64:
            inner.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        if any(embedded is not None and not is_public(embedded) for embedded in inner):
            return False
    return address.is_global and not address.is_multicast


async def resolve(host: str, port: int, allowed: Sequence[Network], *, trusted: bool = False) -> str:
    """Look a host up once and choose the address to connect to, so that a second look-up cannot change it.

    Args:
        host: name or address.
        port: of the connection.
        allowed: networks that may be asked although they are not public.
        trusted: whether every address will do (the operator named this very host).

    Returns:
        The address as text.

    Raises:
        ImageError: the host is unknown, or none of its addresses may be asked.
    """
    try:
        found = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise ImageError(f"the host {host!r} cannot be resolved ({error})") from error
    addresses = [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]
    for address in addresses:
        if trusted or is_public(address) or any(address in network for network in allowed):
            return str(address)
    raise ImageError(f"the host {host!r} resolves to a private address that is not in allow_addresses")
