"""Router tuning, optional and labelled: owners name public text like theirs, routing learns on it.

``choose_proxies`` runs at an owner's home, ``tune_router`` at the coordinator's.
"""

from moiety.tune.proxies import ChosenProxies, ProxiesPlan, choose_proxies
from moiety.tune.router import RouterPlan, TunedRouter, tune_router, tuning_config

__all__ = [
    "ChosenProxies",
    "ProxiesPlan",
    "RouterPlan",
    "TunedRouter",
    "choose_proxies",
    "tune_router",
    "tuning_config",
]
