"""The web server of a class: Voilà with a key for each person, and nothing else open.

    python -m rlhf_lab.classroom_server < SETTINGS.json

`/label?key=…` and `/teacher?key=…` are what the links of `rlhf-lab classroom` open. The key is looked up in the class's
database before any kernel is started; it then moves into a cookie that scripts cannot read, and out of the address
bar, which may stand on a wall. Voilà lets a page talk to its kernel's widgets only: it forwards no code.

The server is its own process and ends when its standard input does, so it never outlives the command that began it.
"""

from __future__ import annotations

import html
import json
import os
import re
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tornado.web
from jupyter_server.auth.identity import IdentityProvider, User
from jupyter_server.base.handlers import FileFindHandler
from jupyter_server.services.kernels.handlers import KernelHandler
from jupyter_server.utils import url_path_join
from traitlets import Unicode
from voila.app import Voila
from voila.shutdown_kernel_handler import VoilaShutdownKernelHandler
from voila.static_file_handler import MultiStaticFileHandler
from voila.tornado.handler import TornadoVoilaHandler
from voila.tornado.kernel_websocket_handler import VoilaKernelWebsocketHandler

from .assignments import Assignments
from .errors import InputError
from .kernel_forks import install
from .store import FeedbackStore, StoreError

PAGES = Path(__file__).parent / "classroom_pages"
WIDGETS = {"rank": "ranking", "compare": "compare", "grade": "compare", "rate": "rating", "thumbs": "thumbs"}
EXTENSIONS = ["@jupyter-widgets/jupyterlab-manager", "@voila-dashboards/widgets-manager8", "anywidget"]
COOKIE_DAYS = 31
REMEMBER = 30.0  # seconds for which a key that was looked up need not be looked up again
KERNEL = r"(?P<kernel_id>\w+-\w+-\w+-\w+-\w+)"
NO_KEY = "This page opens with a personal link. Ask your teacher for yours. (Cookies must be allowed for this page.)"
WRONG_KEY = "This link’s key is not known. Ask your teacher for your link again."
WELCOME = "RLHF Lab is running here. Open the personal link that your teacher gave you."
NO_DATABASE = "The class’s database cannot be reached just now. Nothing is lost; reload this page in a minute."
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' ws: wss: blob: data:; "
    "object-src 'none'; base-uri 'self'; frame-ancestors 'self'"
)


@dataclass(frozen=True)
class Door:
    """One of the two pages: its path, its notebook, and the function that its one cell calls."""

    path: str
    notebook: str
    cell: str


STUDENT = Door("label", "label.ipynb", "from widgets.labelling import student_page\n\nstudent_page({name!r})")
TEACHER = Door("teacher", "teacher.ipynb", "from widgets.dashboard import teacher_page\n\nteacher_page()")


class ClassIdentity(IdentityProvider):
    """Who asks: the person whose key came as `?key=` or in this page's cookie. `username` is "student:Ada" or
    "teacher:".

    A cookie is signed and cannot be read by scripts; student and teacher have one each, so both pages can be open in
    one browser.
    """

    token = Unicode("one key a person")  # not empty: authentication is on
    people: Assignments

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._known: dict[tuple[Door, str], tuple[float, User]] = {}

    def get_user(self, handler: tornado.web.RequestHandler) -> User | None:
        for door in (STUDENT, TEACHER):
            cookie = handler.get_secure_cookie(self.cookie_of(door, handler), max_age_days=COOKIE_DAYS)
            user = self.user_of(door, cookie.decode()) if cookie else None
            if user:
                return user
        return None

    def user_of(self, door: Door, key: str) -> User | None:
        """The user whom a key opens this door to, or None. Raises StoreError when the database cannot be asked."""
        known = self._known.get((door, key))
        if known and time.monotonic() < known[0]:
            return known[1]
        try:
            if door is TEACHER:
                user = User("teacher:", "Teacher") if self.people.is_teacher(key) else None
            else:
                name = self.people.who(key)
                user = User(f"student:{name}", name)
        except StoreError:
            if known:  # the database is away for a moment: whoever was known still is
                return known[1]
            raise
        except InputError:
            user = None
        if user:
            self._known[door, key] = time.monotonic() + REMEMBER, user
        return user

    def cookie_of(self, door: Door, handler: tornado.web.RequestHandler) -> str:
        port = re.sub(r"[^\w.-]", "", handler.request.host.rpartition(":")[2], flags=re.ASCII)  # "[::1]" has none
        return f"rlhf-lab-{door.path}-{port}"

    def get_handlers(self) -> list:
        return []  # no login form: a link is the way in


class PageHandler(TornadoVoilaHandler):
    """`/label` and `/teacher`: checks the key, then hands the page to Voilà with the person's name in its cell."""

    def initialize(self, door: Door, **options: Any) -> None:
        super().initialize(notebook_path=door.notebook, **options)
        self.door = door

    async def prepare(self) -> None:  # the base class would send people to a login form
        self.current_user = None
        self.xsrf_token  # noqa: B018 (sets the cookie that a page shows when it ends its kernel)
        _secure(self)

    async def get(self, path: str | None = None) -> None:
        key = self.get_argument("key", "")
        cookie = self.identity_provider.cookie_of(self.door, self)
        stored = self.get_secure_cookie(cookie, max_age_days=COOKIE_DAYS)
        try:
            user = self.identity_provider.user_of(self.door, key or (stored.decode() if stored else ""))
        except StoreError:
            return self._say(503, NO_DATABASE)
        if user is None:
            return self._say(403, WRONG_KEY if key or stored else NO_KEY)
        if key:
            # Lax, not Strict: a link in a mail or a course page leads here, and a strict cookie misses the redirect
            options = {"httponly": True, "samesite": "Lax", "path": self.base_url, "expires_days": COOKIE_DAYS}
            self.set_secure_cookie(cookie, key, **options)
            return self.redirect(url_path_join(self.base_url, self.door.path))
        self.current_user = user
        async for part in self.get_generator():
            self.write(part)
            self.flush()

    def _say(self, status: int, message: str) -> None:
        self.set_status(status)
        self.finish(note(self.base_url, message))


class Welcome(tornado.web.RequestHandler):
    """Any other address: one sentence, and no hint of what is where."""

    def initialize(self, base_url: str) -> None:
        self.base_url = base_url

    def get(self, *_: str) -> None:
        _secure(self)
        self.set_status(200 if self.request.path == self.base_url else 404)
        self.finish(note(self.base_url, WELCOME))


def note(base_url: str, message: str) -> str:
    """A page with one sentence."""
    text = (PAGES / "note.html").read_text(encoding="utf-8")
    return text.replace("{base}", html.escape(base_url)).replace("{message}", html.escape(message))


def _secure(handler: tornado.web.RequestHandler) -> None:
    handler.set_header("Content-Security-Policy", POLICY)
    handler.set_header("Referrer-Policy", "no-referrer")
    handler.set_header("X-Content-Type-Options", "nosniff")
    handler.set_header("Cache-Control", "no-store")


class ClassServer(Voila):
    """Voilà's application with the class's doors in place of its tree, contents and file handlers."""

    people: Assignments

    def init_settings(self) -> dict[str, Any]:
        self.token = "one key a person"
        self.identity_provider_class = ClassIdentity
        settings = super().init_settings()
        self.identity_provider.people = self.people
        settings["log_function"] = lambda handler: None  # addresses hold keys: they are not logged
        settings["allow_remote_access"] = True
        return settings

    def setup_template_dirs(self) -> None:
        super().setup_template_dirs()
        self.template_paths = [str(PAGES), *self.template_paths]

    def init_handlers(self) -> list[tuple]:
        def at(path: str) -> str:
            return url_path_join(self.server_url, path)

        page = {
            "template_paths": self.template_paths,
            "config": self.config,
            "voila_configuration": self.voila_configuration,
        }
        static = {"paths": self.static_paths, "default_filename": "index.html"}
        extensions = {"path": self.labextensions_path}
        return [
            *((at(door.path), PageHandler, page | {"door": door}) for door in (STUDENT, TEACHER)),
            (at(rf"/api/kernels/{KERNEL}"), KernelHandler),
            (at(rf"/api/kernels/{KERNEL}/channels"), VoilaKernelWebsocketHandler),
            (at(r"/voila/api/shutdown/(.*)"), VoilaShutdownKernelHandler),
            (at(r"/voila/static/(.*)"), MultiStaticFileHandler, static),
            (at(r"/voila/labextensions/(.*)"), FileFindHandler, extensions),
            (at(r"/(page\.css)"), tornado.web.StaticFileHandler, {"path": str(PAGES)}),
            (at(r"/(.*)"), Welcome, {"base_url": self.server_url}),
        ]


def make_server(settings: dict[str, Any]) -> ClassServer:
    """The server for settings {"store", "ip", "port", "base_url", …}; see `rlhf_lab.classroom.Settings`."""
    app = ClassServer(
        ip=settings["ip"], port=settings["port"], port_retries=0, open_browser=False, root_dir=str(PAGES),
        base_url=settings.get("base_url", "/"), log_level="ERROR",
    )  # fmt: skip
    app.people = Assignments(FeedbackStore(settings["store"]))
    app.config.VoilaConfiguration.update(
        allow_template_override="NO", allow_theme_override="NO", extension_allowlist=EXTENSIONS, show_tracebacks=False,
        template="lab",
    )  # fmt: skip
    app.config.AsyncMappingKernelManager.update(
        cull_idle_timeout=settings.get("idle", 900), cull_interval=60, cull_connected=False, root_dir=str(PAGES)
    )
    app.initialize([])
    app.voila_configuration.prelaunch_hook = _write_cell
    return app


def _write_cell(handler: PageHandler, notebook: Any, cwd: str) -> None:
    """Put the person's name, which the server has checked, into the page's one cell."""
    notebook.cells[0].source = handler.door.cell.format(name=handler.current_user.name)


def main() -> None:
    settings = json.loads(sys.stdin.readline())
    os.environ["RLHF_LAB_CLASS"] = json.dumps(settings)  # for the kernels
    threading.Thread(target=_end_with_parent, daemon=True).start()
    drivers = [] if settings["store"].startswith("sqlite") else ["psycopg"]
    nursery = install(["widgets.labelling", f"widgets.{WIDGETS.get(settings['form'], 'correction')}", *drivers])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the command that began us ends us
    try:
        make_server(settings).start()
    finally:
        if nursery:
            nursery.close()


def _end_with_parent() -> None:
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
