"""The line to the object store, which can fail: `python -m tests.cluster.door LISTEN_ADDRESS PORT STORE_URL`.

Obeys one word a line on stdin, and says `done`:

    open            pass everything on
    shut            refuse connections and end the ones there are
    slow SECONDS    answer each request so much later
    errors N        answer one request in N with status 503, at once

At its end, or on `count`, it says how many requests met a fault.
"""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import aiohttp
from aiohttp import web
from yarl import URL

HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade"}  # RFC 9110, 7.6.1
SLOW_DOWN = (
    '<?xml version="1.0" encoding="UTF-8"?><Error><Code>SlowDown</Code>'
    "<Message>Please reduce your request rate.</Message></Error>"
)


@dataclass
class Door:
    """What happens to a request now."""

    store_url: str
    delay_seconds: float = 0.0
    one_in: int = 0
    requests: int = 0
    faults: int = 0

    def handler(self, session: aiohttp.ClientSession) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        """Passes a request on as it came: signatures cover its host and headers."""

        async def handle(request: web.Request) -> web.StreamResponse:
            self.requests += 1
            if self.one_in and self.requests % self.one_in == 0:
                self.faults += 1
                await request.read()
                return web.Response(status=503, text=SLOW_DOWN, content_type="application/xml")
            if self.delay_seconds:
                self.faults += 1
                await asyncio.sleep(self.delay_seconds)
            return await self._pass_on(request, session)

        return handle

    async def _pass_on(self, request: web.Request, session: aiohttp.ClientSession) -> web.StreamResponse:
        headers = {name: value for name, value in request.headers.items() if name.lower() not in HOP_BY_HOP}
        body = await request.read()
        url = f"{self.store_url}{request.raw_path}"
        async with session.request(
            request.method, URL(url, encoded=True), headers=headers, data=body, allow_redirects=False
        ) as answer:
            kept = {name: value for name, value in answer.headers.items() if name.lower() not in HOP_BY_HOP}
            response = web.StreamResponse(status=answer.status, headers=kept)
            await response.prepare(request)
            async for part in answer.content.iter_chunked(1 << 16):
                await response.write(part)
            await response.write_eof()
            return response


async def serve(address: str, port: int, door: Door) -> None:
    """Serve until stdin ends."""
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    async with aiohttp.ClientSession(auto_decompress=False) as session:
        runner: web.AppRunner | None = None
        word: list[str] = ["open"]
        while word:
            door.delay_seconds = float(word[1]) if word[0] == "slow" else 0.0
            door.one_in = int(word[1]) if word[0] == "errors" else 0
            if word[0] == "shut" and runner:
                await runner.cleanup()
                runner = None
            elif word[0] != "shut" and runner is None:
                runner = await _listen(door.handler(session), address, port)
            print("done", door.requests, door.faults, flush=True)
            word = (await lines.readline()).decode().split()


async def _listen(
    handler: Callable[[web.Request], Awaitable[web.StreamResponse]], address: str, port: int
) -> web.AppRunner:
    app = web.Application(client_max_size=1 << 40)
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, address, port, reuse_address=True).start()
    return runner


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], int(sys.argv[2]), Door(sys.argv[3])))
