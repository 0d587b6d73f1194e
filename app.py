"""The entry point: `app` for any ASGI server; `python app.py` is `director up`."""

from director.settings import Settings
from director.web.app import create_app

if __name__ == "__main__":
    from director.cli import main

    raise SystemExit(main(["up"]))

app = create_app(Settings.from_env())
