"""Methods by name."""

from __future__ import annotations

from pamkd.methods.afd import Afd
from pamkd.methods.cream import Cream
from pamkd.methods.kdcl import Kdcl
from pamkd.methods.method import Method
from pamkd.methods.mkd import Mkd
from pamkd.methods.nes import Nes
from pamkd.methods.no_first import NoFirst
from pamkd.methods.okddip import Okddip
from pamkd.methods.one import One
from pamkd.methods.pamkd import Pamkd
from pamkd.methods.plain import Plain
from pamkd.methods.second_kdcl import SecondKdcl
from pamkd.methods.second_mkd import SecondMkd

METHODS: dict[str, type[Method]] = {
    "pamkd": Pamkd,
    "plain": Plain,
    "mkd": Mkd,
    "kdcl": Kdcl,
    "okddip": Okddip,
    "one": One,
    "afd": Afd,
    "cream": Cream,
    "nes": Nes,
    "2nd-mkd": SecondMkd,
    "2nd-kdcl": SecondKdcl,
    "no-1st": NoFirst,
}
