"""Which receivers may be sent to."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from pipeserve.errors import ConfigurationError
from pipeserve.webhooks import Receivers, check_url
from pipeserve.webhooks.receivers import is_public

PRIVATE = [
    "0.0.0.0",
    "10.1.2.3",
    "100.64.0.1",
    "127.0.0.1",
    "168.63.129.16",  # Azure's own services
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.8",
    "192.0.2.1",
    "192.168.1.1",
    "198.18.0.1",
    "203.0.113.7",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::10.0.0.1",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "64:ff9b::a00:1",  # NAT64 of 10.0.0.1
    "64:ff9b:1::1",
    "2002:a00:1::",  # 6to4 of 10.0.0.1
    "2001::1",  # Teredo
    "2001:db8::1",
    "3fff::1",
    "fc00::1",
    "fd12:3456::1",
    "fe80::1",
    "fec0::1",
    "ff02::1",
    "100::1",
]
PUBLIC = ["1.1.1.1", "8.8.8.8", "172.32.0.1", "100.128.0.1", "2606:4700:4700::1111", "2001:4860:4860::8888"]


@pytest.mark.parametrize("address", PRIVATE)
def test_addresses_that_the_internet_can_not_reach_are_private(address: str) -> None:
    assert not is_public(ip_address(address))
    literal = f"[{address}]" if ":" in address else address
    with pytest.raises(ValueError, match="private address"):
        check_url(f"https://{literal}/hook")
    check_url(f"https://{literal}/hook", "*")


@pytest.mark.parametrize("address", [*PUBLIC, "::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::"])
def test_other_addresses_are_public(address: str) -> None:
    assert is_public(ip_address(address))


@pytest.mark.parametrize("url", ["http://example.com", "https://EXAMPLE.com:8443/a?b=c", "https://bücher.example/x"])
def test_a_url_with_a_host_name_is_accepted_without_a_look_up(url: str) -> None:
    check_url(url)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("ftp://example.com/", "http://"),
        ("example.com/hook", "http://"),
        ("/hook", "http://"),
        ("https:///hook", "no host"),
        ("https://me:secret@example.com/", "password"),
        ("https://me@example.com/", "user name"),
        ("https://example.com\\@10.0.0.1/", "user name"),
        ("https://exa mple.com/", "no host name"),
        ("https://a..b/", "no host name"),
        ("https://example.com:0/", "no port"),
        ("https://example.com:70000/", "no port"),
        ("https://example.com/\r\nX: y", "can't be read"),
        ("https://[1::2::3]/", "can't be read"),
        ("https://localhost:8080/", "private"),
        ("https://api.localhost./", "private"),
        ("https://127.1/", "private"),
        ("https://127.0.0.1./", "private"),
        ("https://2130706433/", "private"),
        ("https://0x7f000001/", "private"),
        ("https://0177.0.0.1/", "can't be read"),
        ("https://example.com/" + "a" * 3000, "longer"),
    ],
)
def test_a_wrong_url_is_refused_in_words(url: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        check_url(url)


@pytest.mark.parametrize(
    ("allow", "host", "address", "allowed"),
    [
        ("", "example.com", "8.8.8.8", True),
        ("", "example.com", "10.0.0.1", False),
        ("*", "example.com", "10.0.0.1", True),
        ("10.0.0.0/8", "example.com", "10.0.0.1", True),
        ("10.0.0.0/8", "example.com", "::ffff:10.0.0.1", True),
        ("10.0.0.0/8", "example.com", "192.168.0.1", False),
        ("10.0.0.1", "example.com", "10.0.0.1", True),
        ("fd00::/8, 10.0.0.0/8", "example.com", "fd00::1", True),
        ("hooks.internal", "HOOKS.internal.", "10.0.0.1", True),
        ("hooks.internal", "a.hooks.internal", "10.0.0.1", False),
        ("*.internal", "hooks.internal", "10.0.0.1", True),
        ("*.internal", "internal", "10.0.0.1", False),
        ("*.internal", "notinternal", "10.0.0.1", False),
    ],
)
def test_private_receivers_are_allowed_by_name_or_network(allow: str, host: str, address: str, allowed: bool) -> None:
    assert Receivers.parse(allow).allows(host, ip_address(address)) is allowed


@pytest.mark.parametrize("allow", ["10.0.0.0/33", "a b", "https://example.com", "*.*", "**"])
def test_a_wrong_entry_is_refused_by_the_name_of_the_variable(allow: str) -> None:
    with pytest.raises(ConfigurationError, match="PIPESERVE_WEBHOOK_ALLOW"):
        Receivers.parse(allow)
