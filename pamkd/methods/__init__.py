"""Methods by name."""

from __future__ import annotations

from pamkd.methods.kdcl import Kdcl
from pamkd.methods.method import Method
from pamkd.methods.mkd import Mkd
from pamkd.methods.no_first import NoFirst
from pamkd.methods.pamkd import Pamkd
from pamkd.methods.plain import Plain
from pamkd.methods.second_kdcl import SecondKdcl
from pamkd.methods.second_mkd import SecondMkd

METHODS: dict[str, type[Method]] = {
    "pamkd": Pamkd,
    "plain": Plain,
    "mkd": Mkd,
    "kdcl": Kdcl,
    "2nd-mkd": SecondMkd,
    "2nd-kdcl": SecondKdcl,
    "no-1st": NoFirst,
}
