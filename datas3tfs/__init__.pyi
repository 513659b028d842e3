from datas3tfs.client import AsyncClient as AsyncClient
from datas3tfs.client import Client as Client

__version__: str
