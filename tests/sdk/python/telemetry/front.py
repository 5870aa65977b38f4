"""Takes orders, and asks the worker behind it for their price; its telemetry is on, its gauges too."""

import os
import resource

os.environ["OTEL_ENABLED"] = "true"

from iii import InitOptions, register_worker  # noqa: E402
from iii_observability import Logger  # noqa: E402
from opentelemetry import metrics  # noqa: E402

OTEL = {"service_name": "front-desk", "metrics_export_interval_ms": 500}
front = register_worker(os.environ["III_URL"], InitOptions(worker_name="front", otel=OTEL))


async def order(data):
    Logger().warn("an order came in", {"qty": data["qty"]})
    return await front.trigger_async({"function_id": "back::quote", "payload": {"qty": data["qty"]}})


async def measure(data):
    def memory(_):
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return [metrics.Observation(used, {"worker.id": data["worker_id"], "worker.name": "front"})]

    # What the SDK has for its own gauges does not work with the OpenTelemetry that it installs.
    metrics.get_meter("front-desk").create_observable_gauge("iii.worker.memory.rss", callbacks=[memory], unit="By")


front.register_function("front::order", order)
front.register_function("front::measure", measure)
