"""The job store on Redis or Valkey: the only room, with the worker, that knows redis-py and arq."""

from pipeserve.store.keys import Keys
from pipeserve.store.lease import LeaseKeeper
from pipeserve.store.queue import WakeUps
from pipeserve.store.store import DeploymentStore, Store, open_store

__all__ = ["DeploymentStore", "Keys", "LeaseKeeper", "Store", "WakeUps", "open_store"]
