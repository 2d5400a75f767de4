"""The engine's images, as far as stacks need them."""

import asyncio
import base64
import hashlib
import json
import tarfile
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from http import HTTPStatus
from typing import Any, BinaryIO

import aiodocker
import aiohttp

from runner.errors import EngineError, EngineGone
from runner.job import Bytes
from runner.stacks.images import BuildError, Image, PullError, PullLimits, Say

ANSWER = timedelta(seconds=10)
"""How long the engine may take to answer what it only has to look up."""
REMOVAL = timedelta(minutes=5)
"""How long it may take to remove an image: its layers are deleted file by file."""

_ASKED = timedelta(seconds=20)
"""How long a registry may take to tell whether it has an image."""
_NOTHING = bytes(2 * tarfile.BLOCKSIZE)  # the end of a tar file
_LARGE = aiohttp.ClientTimeout(sock_connect=10, sock_read=600)
"""For what may take long as a whole: only silence ends it."""
_FINAL = ("manifest unknown", "verification failed", "denied", "unauthorized", "no basic auth credentials")
"""What the engine says when asking the registry again would not help; its status is 500 for nearly all."""
_CANNOT_CONNECT = 900  # aiodocker's own status for a connection that could not be made or broke


class Images:
    """Looks up, builds and tags images. Raises `EngineGone` or `EngineError` when the engine does not do its part."""

    def __init__(self, docker: aiodocker.Docker) -> None:
        self._docker = docker

    async def inspect(self, name: str) -> Image | None:
        """The image with that tag or id; None if there is none."""
        try:
            with _translated("look up an image"):
                async with asyncio.timeout(ANSWER.total_seconds()):
                    said = await self._docker.images.inspect(name)
        except aiodocker.DockerError as error:
            if error.status == HTTPStatus.NOT_FOUND:
                return None
            raise EngineError(f"the engine refused to look up {name}: {error.message}") from error
        with _translated("look up an image"):
            return _image(said)

    async def tags(self) -> Mapping[str, str]:
        """The id of the image behind each name that begins with `runner/`."""
        try:
            with _translated("list images"):
                async with asyncio.timeout(ANSWER.total_seconds()):
                    found = await self._docker.images.list(filters={"reference": ["runner/*"]})
                return {tag: image["Id"] for image in found for tag in image["RepoTags"] or ()}
        except aiodocker.DockerError as error:
            raise EngineError(f"the engine refused to list its images: {error.message}") from error

    async def used(self) -> frozenset[str]:
        """The ids of the images that any container has, whether or not it runs."""
        try:
            with _translated("list containers"):
                async with asyncio.timeout(ANSWER.total_seconds()):
                    found = await self._docker._query_json("containers/json", params={"all": True})  # noqa: SLF001
                return frozenset(container["ImageID"] for container in found)
        except aiodocker.DockerError as error:
            raise EngineError(f"the engine refused to list its containers: {error.message}") from error

    async def layers(self, image: str) -> Mapping[str, Bytes]:
        """The size of each layer of the image, by a key that images share which share the layer."""
        try:
            with _translated("look up an image's layers"):
                async with asyncio.timeout(ANSWER.total_seconds()):
                    steps = await self._docker._query_json(f"images/{image}/history")  # noqa: SLF001 - a list, not a dict
                return _layers(reversed(steps))
        except aiodocker.DockerError as error:
            if error.status == HTTPStatus.NOT_FOUND:
                return {}
            raise EngineError(f"the engine refused to look up {image}: {error.message}") from error

    async def remove(self, name: str) -> bool:
        """Take a name from its image, and remove the image with its last one; false when a container has it.

        By id the image is removed with all its names.
        """
        try:
            with _translated("remove an image"):
                async with asyncio.timeout(REMOVAL.total_seconds()):
                    await self._docker.images.delete(name)
        except aiodocker.DockerError as error:
            if error.status == HTTPStatus.CONFLICT:
                # It may be about what the image stands on, to which somebody gave another child meanwhile.
                return await self.inspect(name) is None
            if error.status != HTTPStatus.NOT_FOUND:
                raise EngineError(f"the engine refused to remove {name}: {error.message}") from error
        return True

    async def remove_nameless(self, image: str) -> bool:
        """Remove an image by its id unless it has a name, which it may share; false when a container has it."""
        found = await self.inspect(image)
        return found is None or bool(found.tags) or await self.remove(image)

    async def tag(self, image: str, repository: str, tag: str) -> None:
        """Give the image a name, which another image loses."""
        try:
            with _translated("tag an image"):
                async with asyncio.timeout(ANSWER.total_seconds()):
                    await self._docker.images.tag(image, repository, tag=tag)
        except aiodocker.DockerError as error:
            raise EngineError(f"the engine refused to tag {repository}:{tag}: {error.message}") from error

    async def make_empty(self, repository: str, tag: str) -> None:
        """Have an image of that name in which nothing is."""
        params = {"fromSrc": "-", "repo": repository, "tag": tag}
        headers = {"Content-Type": "application/x-tar"}
        try:
            with _translated("make an image"):
                async with (
                    asyncio.timeout(ANSWER.total_seconds()),
                    self._docker._query("images/create", "POST", params=params, data=_NOTHING, headers=headers) as said,  # noqa: SLF001
                ):
                    await said.read()
        except aiodocker.DockerError as error:
            raise EngineError(f"the engine refused to make {repository}:{tag}: {error.message}") from error

    async def build(self, context: BinaryIO, labels: Mapping[str, str], say: Say, *, fresh: bool = False) -> str:
        """Build from a tar with a Dockerfile in it; the new image's id. Raises `BuildError` when a step fails.

        `fresh`: run every step again, whatever the engine remembers of it.
        """
        image = ""
        try:
            with _translated("build an image"):
                steps = self._docker.images.build(
                    fileobj=context, encoding="identity", labels=labels, forcerm=True, stream=True, nocache=fresh
                )
                async for step in steps:
                    image = step.get("aux", {}).get("ID", image)
                    for line in filter(None, step.get("stream", "").splitlines()):
                        say(line)
        except aiodocker.DockerError as error:
            raise BuildError(error.message) from error
        if not image:
            # aiodocker takes a connection that broke for the end of the output.
            raise EngineGone("the connection to the engine broke off while it built")
        return image

    async def saved(self, images: Sequence[str]) -> AsyncGenerator[bytes, None]:
        """The images, by id, as one tar in which they share layers, in pieces."""
        words = "&".join(f"names={image}" for image in images)
        try:
            with _translated("save images"):
                # Not aiodocker's export, which takes one image.
                response = await self._docker._do_query(f"images/get?{words}", "GET", timeout=_LARGE)  # noqa: SLF001
                async with response:
                    async for chunk in response.content.iter_chunked(2**20):
                        yield chunk
        except aiodocker.DockerError as error:
            raise EngineError(f"the engine refused to save images: {error.message}") from error

    async def load(self, source: BinaryIO) -> None:
        """Take in what `saved` gave; a layer that is not what its image says is refused."""
        try:
            with _translated("load images"):
                await self._docker.images.import_image(source, timeout=_LARGE)
        except aiodocker.DockerError as error:
            raise EngineError(f"the engine refused to load images: {error.message}") from error

    async def pull(self, reference: str, auth: Mapping[str, str] | None, say: Say, limits: PullLimits) -> Image:
        """Have the engine pull `<repository>@<digest>`, and see that it is that. Raises `PullError` if it is not."""
        repository, _, digest = reference.partition("@")
        timeout = aiohttp.ClientTimeout(
            total=limits.total.total_seconds(), sock_connect=10, sock_read=limits.idle.total_seconds()
        )
        params = {"fromImage": repository, "tag": digest}
        try:
            with _translated("pull an image"), _in_time(reference, limits):
                response = await self._docker._do_query(  # noqa: SLF001 - aiodocker's pull does not close its connection
                    "images/create", "POST", params=params, headers=_login(auth), timeout=timeout
                )
                async with response:
                    await _watch(response.content, say)
        except aiodocker.DockerError as error:
            raise PullError(f"{reference}: {error.message}", final=_is_final(error)) from error
        image = await self.inspect(reference)
        if image is None or not any(name.endswith(f"@{digest}") for name in image.digests):
            raise PullError(f"{reference}: the engine has pulled something else")
        return image

    async def look_for(self, reference: str, auth: Mapping[str, str] | None) -> None:
        """Have the engine ask a registry for an image that is not pulled. Raises `PullError` if it is not offered."""
        try:
            async with asyncio.timeout(_ASKED.total_seconds()):
                with _translated("ask a registry"):
                    path = f"distribution/{reference}/json"
                    async with self._docker._query(path, headers=_login(auth)) as said:  # noqa: SLF001
                        await said.read()
        except aiodocker.DockerError as error:
            raise PullError(f"{reference}: {error.message}", final=_is_final(error)) from error
        except TimeoutError as error:
            raise PullError(f"{reference}: no answer in {_ASKED.total_seconds():g} s") from error

    async def read(self, image: str, path: str, container: str) -> bytes | None:
        """A file out of the image; None if there is none. `container` names the container that is made to read it."""
        try:
            with _translated("read a file of an image"):
                await self._remove(container)
                try:
                    body: dict[str, Any] = {"Image": image, "Cmd": ["none"], "NetworkDisabled": True}
                    made = await self._docker.containers.create(body, name=container)
                    return _only_file(await made.get_archive(path))
                finally:
                    await self._remove(container)
        except aiodocker.DockerError as error:
            if error.status == HTTPStatus.NOT_FOUND:
                return None
            raise EngineError(f"the engine refused to read {path} of the image: {error.message}") from error

    async def _remove(self, container: str) -> None:
        try:
            await self._docker.containers.container(container).delete(force=True, v=True)
        except aiodocker.DockerError as error:
            if error.status != HTTPStatus.NOT_FOUND:
                raise


@asynccontextmanager
async def open_images(url: str) -> AsyncIterator[Images]:
    """The images of the engine at `unix://…`, `tcp://…` or `http://…`."""
    async with aiodocker.Docker(url=url.replace("tcp://", "http://", 1)) as docker:
        yield Images(docker)


@contextmanager
def _translated(doing: str) -> Iterator[None]:
    """Turns what says that the engine is not there into `EngineGone`; its refusals pass."""
    try:
        yield
    except aiodocker.DockerError as error:
        if error.status != _CANNOT_CONNECT:
            raise
        raise EngineGone(f"no connection to the engine to {doing}: {error.message}") from error
    except TimeoutError as error:
        raise EngineGone(f"the engine did not answer in time to {doing}") from error
    except (aiohttp.ClientError, OSError) as error:
        raise EngineGone(f"no connection to the engine to {doing}: {error}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise EngineError(f"the engine's answer makes no sense, to {doing}: {error!r}") from error


def _login(auth: Mapping[str, str] | None) -> dict[str, str]:
    """The header that tells the engine who we are to a registry."""
    return {"X-Registry-Auth": base64.urlsafe_b64encode(json.dumps(auth).encode()).decode()} if auth else {}


def _is_final(error: aiodocker.DockerError) -> bool:
    return any(word in error.message for word in _FINAL)


@contextmanager
def _in_time(reference: str, limits: PullLimits) -> Iterator[None]:
    try:
        yield
    except aiohttp.ConnectionTimeoutError:
        raise  # it is the engine that does not answer
    except aiohttp.SocketTimeoutError as error:
        idle = limits.idle.total_seconds()
        raise PullError(f"{reference}: nothing came for {idle:g} s; is the registry stuck?") from error
    except TimeoutError as error:
        raise PullError(f"{reference}: not there after {limits.total.total_seconds():g} s") from error


async def _watch(steps: aiohttp.StreamReader, say: Say) -> None:
    """Follow what the engine says of a pull, a JSON object a line; whatever goes wrong after its start stands there."""
    async for line in steps:
        if not line.strip():
            continue
        step = json.loads(line)
        if "error" in step:
            raise aiodocker.DockerError(0, str(step["error"]))
        # Progress in numbers comes many times a second.
        if not step.get("progressDetail"):
            say(": ".join(filter(None, (step.get("id", ""), step.get("status", "")))))


_NOTICED = ("Env", "User", "Cmd", "Entrypoint", "WorkingDir", "Volumes", "ExposedPorts", "StopSignal")


def _image(said: Mapping[str, Any]) -> Image:
    config = said["Config"]
    noticed = {key: config.get(key) or None for key in _NOTICED}
    content = [said["RootFS"].get("Layers") or [], said["Os"], said["Architecture"], noticed]
    return Image(
        id=said["Id"],
        labels=config.get("Labels") or {},
        env=dict(word.split("=", 1) for word in config.get("Env") or () if "=" in word),
        content=hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest(),
        tags=tuple(said.get("RepoTags") or ()),
        digests=tuple(said.get("RepoDigests") or ()),
    )


def _layers(steps: Iterable[Mapping[str, Any]]) -> dict[str, Bytes]:
    """What two images have in common is how they began: a step counts with all that came before it."""
    sizes, chain = {}, hashlib.sha256()
    for step in steps:
        chain.update(f"{step['Created']} {step['CreatedBy']} {step['Size']}\0".encode())
        if step["Size"]:
            sizes[chain.hexdigest()] = Bytes(int(step["Size"]))
    return sizes


def _only_file(archive: tarfile.TarFile) -> bytes | None:
    member = archive.next()
    content = archive.extractfile(member) if member else None
    return content.read() if content else None
