"""Whether the controller may watch what it is to watch: told at its start, for a watch would ask again for ever."""

import asyncio
from collections.abc import Sequence

from rectrain.controller.errors import ApiError, RefusedError
from rectrain.controller.kinds import Kind
from rectrain.controller.kube import ApiServer
from rectrain.controller.store import WATCHED


async def missing_rights(api: ApiServer, namespaces: Sequence[str]) -> list[str]:
    """Return a line for each namespace in which something that is watched may not be listed.

    Args:
        api: The API server.
        namespaces: The namespaces to watch; all where there is none.
    """
    found = await asyncio.gather(*(_missing_in(api, namespace) for namespace in namespaces or [""]))
    return [line for line in found if line]


async def _missing_in(api: ApiServer, namespace: str) -> str:
    refusals = await asyncio.gather(*(_refusal(api, kind, namespace) for kind in WATCHED))
    refused = {kind: said for kind, said in zip(WATCHED, refusals, strict=True) if said}
    if not refused:
        return ""
    place = f"namespace {namespace}" if namespace else "all namespaces"
    names = ", ".join(kind.resource for kind in refused)
    return f"{place}: the right to list and watch {names} is missing: {next(iter(refused.values()))}"


async def _refusal(api: ApiServer, kind: Kind, namespace: str) -> str:
    """Return why a kind may not be listed; empty where it may, and where it is not known, for a watch asks again."""
    try:
        await api.list_one(kind, namespace)
    except RefusedError as error:
        return str(error)
    except ApiError:
        return ""
    return ""
