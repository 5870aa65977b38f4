"""Prices an order, for the worker in front; its telemetry is on."""

import os

os.environ["OTEL_ENABLED"] = "true"

from iii import InitOptions, register_worker  # noqa: E402

back = register_worker(os.environ["III_URL"], InitOptions(worker_name="back", otel={"service_name": "back-office"}))


async def quote(data):
    return {"total": data["qty"] * 1.5}


back.register_function("back::quote", quote)
