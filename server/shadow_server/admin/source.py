"""Where a publish takes an adapter's files from: a directory below a root, an upload, a hub repository.

Runs in: API process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError

from shadow_server.admin.describe import directory_source
from shadow_server.admin.path import AdapterPath, resolve_adapter_path
from shadow_server.admin.schema import AdapterSource, HubReference
from shadow_server.admin.upload import boundary_of, receive_upload
from shadow_server.engine import (
    ArtifactStore,
    HubSource,
    Progress,
    StagedArtifact,
    UploadSession,
)
from shadow_server.errors import ApiError, describe_validation
from shadow_server.openai.body import read_json_object
from shadow_server.settings import ServerSettings

MAX_BODY_BYTES = 64 << 10
_MAX_UPLOADS = 8

BodyT = TypeVar("BodyT", bound=BaseModel)
JsonT = TypeVar("JsonT", bound=AdapterSource)


@dataclass(frozen=True, slots=True)
class Source:
    """Files that can be staged once.

    Attributes:
        stage: copies them into the store's staging area and returns them; blocks.
        is_remote: staging waits for another machine, for minutes perhaps.
    """

    stage: Callable[[Progress | None], StagedArtifact]
    is_remote: bool = False


class SourceReader:
    """Reads the requests that bring an adapter along, as JSON or multipart/form-data.

    Bounded: at most 8 uploads are received at once; the next is refused, not queued.
    """

    def __init__(self, store: ArtifactStore, settings: ServerSettings) -> None:
        self._store = store
        self._settings = settings
        endpoint = settings.hub_endpoint
        self._hub = (
            HubSource(settings.hub_allow)
            if endpoint is None
            else HubSource(settings.hub_allow, endpoint=endpoint)
        )
        self._num_uploads = 0

    async def read(
        self,
        request: Request,
        json_model: type[JsonT],
        upload_model: type[BodyT],
        check: Callable[[JsonT | BodyT], object],
    ) -> tuple[JsonT | BodyT, Source]:
        """Return the request's fields and its files.

        Args:
            request: not read yet.
            json_model: the fields of a JSON body, the place of the files among them.
            upload_model: the fields of a multipart/form-data body.
            check: raises for fields that are refused, before anything is looked up.

        Raises:
            ApiError, ShadowError: the request is refused; nothing is held then.
        """
        boundary = boundary_of(request.headers.get("content-type", ""))
        if boundary is not None:
            return await self._read_upload(request, boundary, upload_model, check)
        body = parse_body(await read_json_object(request, MAX_BODY_BYTES), json_model)
        check(body)
        return body, await self.of_json(body)

    async def of_json(self, body: AdapterSource) -> Source:
        """Return the directory or the repository that `body` names."""
        if body.path is not None and body.hub is None:
            return await self.of_directory(body.path, body.backbone_config)
        if body.path is not None or body.hub is None:
            raise ApiError.of(
                "invalid_request", "Exactly one of 'path' and 'hub' must be given", param="path"
            )
        if body.backbone_config is not None:
            raise ApiError.of(
                "invalid_request",
                "'backbone_config' goes with 'path' only",
                param="backbone_config",
            )
        return self._of_hub(body.hub)

    async def of_directory(
        self, path: str, backbone_config: str | None = None, param: str = "path"
    ) -> Source:
        """Return the directory below a root that `path` means."""
        found = await self._resolve(path, param)
        config = None
        if backbone_config is not None:
            config = Path((await self._resolve(backbone_config, "backbone_config")).real)
        label = directory_source(found.shown)

        def stage(progress: Progress | None) -> StagedArtifact:
            return self._store.stage_directory(
                Path(found.real), config, source_label=label, progress=progress
            )

        return Source(stage)

    def _of_hub(self, hub: HubReference) -> Source:

        def stage(progress: Progress | None) -> StagedArtifact:
            return self._hub.stage(self._store, hub.repo, hub.revision, progress=progress)

        return Source(stage, is_remote=True)

    async def _read_upload(
        self,
        request: Request,
        boundary: bytes,
        model: type[BodyT],
        check: Callable[[BodyT], object],
    ) -> tuple[BodyT, Source]:
        if self._num_uploads >= _MAX_UPLOADS:
            raise ApiError.of("server_overloaded", "Too many uploads at once")
        self._num_uploads += 1
        try:
            session = await asyncio.to_thread(self._store.begin_upload)
            try:
                fields = await receive_upload(
                    request, boundary, session, self._settings.max_upload_bytes
                )
                body = parse_body(dict(fields), model)
                check(body)
                return body, _of_upload(session)
            except BaseException:
                await asyncio.to_thread(session.discard)
                raise
        finally:
            self._num_uploads -= 1

    async def _resolve(self, text: str, param: str) -> AdapterPath:
        # A root on a network disk must not stop the event loop.
        return await asyncio.to_thread(
            resolve_adapter_path, text, self._settings.adapter_roots, param
        )


def _of_upload(session: UploadSession) -> Source:
    def stage(progress: Progress | None) -> StagedArtifact:
        staged = session.finish("upload")
        if progress is not None:
            size = {"num_bytes": staged.num_bytes, "total_bytes": staged.num_bytes}
            progress("reading", size)
        return staged

    return Source(stage)


def parse_body(body: dict[str, object], model: type[BodyT]) -> BodyT:
    """Return `body` as a model; raises ApiError 400 naming the first field at fault."""
    try:
        return model.model_validate(body)
    except ValidationError as error:
        message, param = describe_validation(error.errors(include_input=False))
        raise ApiError.of("invalid_request", message, param=param) from None
