"""What `doctor` finds at a server's address.

Runs in: the command's own process.
"""

from __future__ import annotations

from shadow_client import Client, ConnectionFailedError, ShadowClientError, TimedOutError
from shadow_client.error import AuthenticationError
from shadow_server.command.checkup import Finding, failed, passed, warned


def check_server(client: Client, url: str) -> list[Finding]:
    """Return what was found there; a server that does not run is a warning, as one may be about to start it.

    Args:
        client: of the server.
        url: its address, for people.
    """
    try:
        is_ready = client.is_ready()
    except TimedOutError as error:
        return [failed("server", str(error), "its log; it took the connection and says nothing")]
    except ConnectionFailedError:
        hint = "shadowserve serve MODEL, or --url of the server that you mean"
        return [warned("server", f"nothing answers at {url}", hint)]
    except ShadowClientError as error:
        hint = "--url: another program answers there"
        return [failed("server", f"{url} is no ShadowServe: {error}", hint)]
    ready = passed("server", f"{url} is ready: the plugin is active in every worker")
    if not is_ready:
        hint = "its log; a start takes minutes, after that its engine has stopped"
        ready = failed("server", f"{url} is not ready", hint)
    return [ready, check_key(client)]


def check_key(client: Client) -> Finding:
    """Look whether the server takes the key, or needs none."""
    try:
        adapters = client.adapters.list()
    except AuthenticationError as error:
        return failed("key", str(error), "--key-file FILE, or the key in SHADOW_SERVER_KEY")
    except ShadowClientError as error:
        return failed("key", str(error), "the server's log")
    bad = [adapter.name for adapter in adapters if adapter.state == "FAILED"]
    if bad:
        hint = f"shadowserve adapters validate, or unload {bad[0]}"
        return warned("adapters", f"{len(bad)} of {len(adapters)} cannot be loaded", hint)
    return passed("adapters", f"{len(adapters)} answer")
