"""Registries on a real catalog and store, with a fake engine."""

import pytest

from fake_runtime import RegistryWorld


@pytest.fixture
async def open_world(tmp_path):
    """Return a function that opens a server's registry; all of one test share their state directory."""
    worlds = []

    async def open_one(loader=None, **settings):
        world = await RegistryWorld.open(tmp_path, loader, **settings)
        worlds.append(world)
        return world

    yield open_one
    for world in worlds:
        world.catalog.is_down = False
        world.catalog.fails.clear()
        world.registry.check_integrity()
        await world.registry.close()


@pytest.fixture
async def world(open_world):
    """Return one server's registry with the usual settings."""
    return await open_world()
